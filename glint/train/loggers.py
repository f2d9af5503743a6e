"""Where a run's numbers go beside log.jsonl: TensorBoard, Weights & Biases, MLflow, a user's own.

A logger lives in a thread of its own, made there too: one that fails is given up with one warning,
one that hangs loses lines, and neither stops a step. Its `close` is waited for a while at the end.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from glint.errors import UsageError
from glint.log import logger

_WAITING = 1000  # lines that a slow logger may be behind
PATIENCE = 30.0  # seconds that the end of a run waits for a logger
_EXTRAS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}  # name -> package


class Logger(Protocol):
    """What takes numbers; made as `Logger(out: Path, recipe: dict)` on rank 0."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take finite numbers by name, such as "step/loss"; steps rise, but for a resumed run."""

    def close(self) -> None:
        """Send what is left."""


class TensorBoard:
    """Curves in RUN/tensorboard."""

    def __init__(self, out: Path, recipe: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(out / "tensorboard"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush."""
        self._board.close()


class Wandb:
    """A run of Weights & Biases, gone on with where RUN is; wandb's own variables steer it."""

    def __init__(self, out: Path, recipe: Mapping[str, Any]) -> None:
        import wandb

        place = hashlib.sha256(str(out.resolve()).encode()).hexdigest()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "glint"),
            name=out.name,
            id=os.environ.get("WANDB_RUN_ID", f"glint-{place[:12]}"),
            resume="allow",
            dir=str(out),
            config=dict(recipe),
            settings=wandb.Settings(console="off"),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log one line."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class Mlflow:
    """A run of MLflow where MLFLOW_TRACKING_URI says; each start of a run is one of its runs."""

    def __init__(self, out: Path, recipe: Mapping[str, Any]) -> None:
        import mlflow

        self._mlflow = mlflow
        if "MLFLOW_EXPERIMENT_NAME" not in os.environ and "MLFLOW_EXPERIMENT_ID" not in os.environ:
            mlflow.set_experiment("glint")
        mlflow.start_run(run_name=out.name)
        for table, value in recipe.items():
            for key, one in (value if isinstance(value, Mapping) else {"": value}).items():
                mlflow.log_param(f"{table}.{key}".rstrip("."), str(one)[:500])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log one line."""
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


_KNOWN: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow}


def check(name: str) -> None:
    """Raise UsageError GL0003 for a logger whose package is not there, GL0002 for no such one.

    A module of one's own must be installed or on PYTHONPATH: what merely lies in the folder that
    glint is started in, beside a recipe from somebody else, say, is not imported.
    """
    module = _EXTRAS.get(name, name.partition(":")[0])
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if name in _KNOWN:
        if found is None and name != "tensorboard":
            hint = f"pip install 'glint-faces[{name}]', or leave it out of run.loggers"
            raise UsageError("GL0003", f"{name} is not installed", where="run.loggers", hint=hint)
        return
    if ":" not in name:
        what = f"expected tensorboard, wandb, mlflow or module:Class, found {name!r}"
        raise UsageError("GL0002", what, where="run.loggers")
    if found is None or _beside(found.origin, module):
        raise UsageError(
            "GL0002", f"no module {module!r} is installed", where="run.loggers",
            hint="install it, or put its folder on PYTHONPATH: it is code, and will be run",
        )  # fmt: skip


def _beside(origin: str | None, module: str) -> bool:
    """Say whether a module is found only because glint was started in its folder."""
    here = Path.cwd().resolve()
    listed = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    named = [Path(one).resolve() for one in listed if one]
    root = Path(origin).resolve().parent if origin else here
    if origin and Path(origin).name == "__init__.py":
        root = root.parent
    for _ in range(module.count(".")):
        root = root.parent
    return root == here and here not in named


def _made(name: str, out: Path, recipe: Mapping[str, Any]) -> Logger:
    if name in _KNOWN:
        return _KNOWN[name](out, recipe)  # type: ignore[call-arg]
    module, _, place = name.partition(":")
    kind = getattr(importlib.import_module(module), place)
    if not isinstance(kind, type) or not all(hasattr(kind, one) for one in ("write", "close")):
        raise TypeError(f"{name} is no class with write and close")
    made: Logger = kind(out, recipe)
    return made


class Detached:
    """A logger in a thread of its own."""

    def __init__(self, name: str, make: Callable[[], Logger]) -> None:
        self.name, self._lost = name, 0
        self._lines: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(
            target=self._work, args=(make,), name=f"logger {name}", daemon=True
        )
        self._thread.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over one line; never waits."""
        if not self._thread.is_alive():
            return
        try:
            self._lines.put_nowait((step, dict(values)))
        except queue.Full:
            if not self._lost:
                logger.warning("logger %s does not keep up: lines are left out", self.name)
            self._lost += 1

    def close(self) -> None:
        """Wait until it is done, a while at most."""
        try:
            self._lines.put(None, timeout=PATIENCE)
        except queue.Full:
            pass
        else:
            self._thread.join(PATIENCE)
        if self._thread.is_alive():
            logger.warning("logger %s did not end within %g s: left", self.name, PATIENCE)
        elif self._lost:
            logger.warning("logger %s: %d lines were left out", self.name, self._lost)

    def _work(self, make: Callable[[], Logger]) -> None:
        try:
            made = make()
            while (line := self._lines.get()) is not None:
                made.write(*line)
            made.close()
        except ImportError as error:
            logger.info("logger %s: %s: log.jsonl goes on", self.name, error)
        except BaseException as error:  # sys.exit of a library, too
            logger.warning("logger %s: %s: %s; log.jsonl goes on without it",
                           self.name, type(error).__name__, error)  # fmt: skip


def begin(names: list[str], out: Path, recipe: Mapping[str, Any]) -> list[Detached]:
    """Start loggers by their names."""
    return [Detached(name, lambda name=name: _made(name, out, recipe)) for name in names]  # type: ignore[misc]

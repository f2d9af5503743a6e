"""The log of a run: log.jsonl, what `loggers` get, and where the time goes."""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glint.files.atomic import open_own, write_bytes
from glint.log import logger
from glint.train import loggers

if TYPE_CHECKING:
    from glint.evals.pairs import Verification
    from glint.stream.loader import Batch
    from glint.train.build import Run


Moment = Any  # seconds on a CPU, an event on a GPU


def cut(path: Path, start: int) -> None:
    """Keep the entries of a log up to step `start`, none at 0; a torn last line goes too."""
    if not path.exists():
        return
    wanted, whole = [], path.read_bytes()
    for line in whole.splitlines(keepends=True):
        try:
            if line.endswith(b"\n") and start and int(json.loads(line)["step"]) <= start:
                wanted.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    if b"".join(wanted) != whole:
        write_bytes(path, b"".join(wanted))


def _not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def chosen(names: list[str], tensorboard: bool) -> list[str]:
    """Return loggers, each once; without TensorBoard where that is not wanted."""
    return [name for name in dict.fromkeys(names) if name != "tensorboard" or tensorboard]


class Log:
    """Writes on rank 0 only; a failing logger never ends a run."""

    def __init__(self, run: Run, start: int = 0) -> None:
        """Go on with the log of a run that goes on at step `start`: what is done again is cut."""
        self.run = run
        self._shares: dict[str, float] = {}
        self._accuracy: float | None = None
        self._rate = self._since = self._waited = 0.0
        self._at: Moment = 0.0
        self._begin()
        self._file, self._loggers = None, list[loggers.Detached]()
        names = chosen(run.recipe.run.loggers, run.recipe.run.tensorboard)
        for name in names:
            loggers.check(name)
        if run.world.rank == 0:
            run.out.mkdir(parents=True, exist_ok=True)
            path = run.out / "log.jsonl"
            cut(path, start)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._file = os.fdopen(open_own(path, flags, 0o644), "a", buffering=1)
            if names:
                self._loggers = loggers.begin(names, run.out, run.recipe.model_dump(mode="json"))

    def start(self, step: int, total: int) -> None:
        """Write where a run begins or goes on, of how many steps, and on how many ranks."""
        run = self.run
        entry = {"step": step, "steps": total, "steps_per_epoch": run.steps_per_epoch,
                 "world": run.world.size, "global_batch": run.global_batch}  # fmt: skip
        self._write("start", entry)

    def mark(self, part: str) -> None:
        """Count the time since the last mark as `part`: on a GPU, its own and not the host's.

        What glint's collectives took of it on the CPU counts as "comm".
        """
        now, waited = self._now(), self.run.world.waited.seconds
        self._marks.append((part, self._at, now, waited - self._waited))
        self._at, self._waited = now, waited

    def note(self, epoch: int, loss: float, lr: float, distance: float = math.nan) -> str:
        """Return the text of the progress line; accuracy and shares are of the last line logged.

        distance: to the teacher, where there is one.
        """
        accuracy = "" if self._accuracy is None else f" acc@1 {self._accuracy:.3f}"
        largest = sorted(self._shares.items(), key=lambda part: -part[1])
        shares = " ".join(f"{part} {100 * share:.0f} %" for part, share in largest if share >= 0.01)
        teacher = f" teacher {distance:.3f}" if self.run.teacher else ""
        return (
            f"epoch {epoch} loss {loss:.3f}{teacher}{accuracy} lr {lr:.4f} "
            f"{self._rate:.0f} img/s {shares}"
        )

    def step(
        self, step: int, epoch: int, lr: float, loss: float, distance: float = math.nan
    ) -> None:
        """Count a step; every `log_every` of them, write one line."""
        self._steps += 1
        every = self.run.recipe.run.log_every
        now = time.perf_counter()
        images = self._steps * self.run.step_images
        self._rate = images / max(1e-9, now - self._since)
        if (step + 1) % every == 0 or self._steps == 1 == step + 1:
            self._shares = self._parts()
            statistics = self.run.head.statistics()
            self._accuracy = statistics.get("accuracy")
            self._write(
                "step",
                {
                    "step": step + 1,
                    "epoch": epoch,
                    "loss": loss,
                    "lr": lr,
                    "images_per_s": round(self._rate, 2),
                    "time": self._shares,
                    **statistics,
                    **({"distill": distance} if math.isfinite(distance) else {}),
                },
            )
            self._begin()
            self._since = now

    def verification(self, step: int, epoch: float, results: dict[str, Verification]) -> None:
        """Write the accuracies of one evaluation."""
        for name, v in results.items():
            self._write(
                "verification",
                {
                    "step": step,
                    "epoch": round(epoch, 4),
                    "set": name,
                    "accuracy": v.accuracy,
                    "std": v.std,
                },
            )
        self._begin()

    def saved(self, step: int, size: int, waited: float, paused: float) -> None:
        """Write what a checkpoint of `size` bytes here cost the steps, in seconds.

        waited: for the save before it; paused: for the copy, or the writing where none is made.
        """
        entry = {"step": step, "bytes": size, "waited_s": waited, "paused_s": paused}
        self._write("save", {k: round(v, 4) for k, v in entry.items()})

    def dump(self, step: int, batches: list[Batch], loss: float) -> str:
        """Name the samples of a bad step in RUN/diverged-*.json and return that path."""
        run = self.run
        path = run.out / f"diverged-{step + 1:08d}-rank{run.world.rank}.json"
        run.out.mkdir(parents=True, exist_ok=True)
        rows = [int(r) for batch in batches for r in batch.row]
        keys = [run.data.dataset.key[r] for r in rows]
        text = json.dumps({"step": step + 1, "loss": str(loss), "rows": rows, "keys": keys})
        write_bytes(path, text.encode())
        return str(path)

    def close(self) -> None:
        """Flush and close."""
        for one in self._loggers:
            one.close()
        if self._file is not None:
            self._file.close()

    def _begin(self) -> None:
        """Begin to count anew."""
        self._marks: list[tuple[str, Moment, Moment, float]] = []
        self._since, self._at = time.perf_counter(), self._now()
        self._waited = self.run.world.waited.seconds
        self._steps = 0

    def _now(self) -> Moment:
        if self.run.world.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _parts(self) -> dict[str, float]:
        """Return the share of each part in the time since counting began."""
        if self.run.world.device.type == "cuda":
            torch.cuda.synchronize()
        spent: dict[str, float] = defaultdict(float)
        for part, before, after, waited in self._marks:
            if isinstance(before, float) and isinstance(after, float):
                spent[part] += after - before - waited
                spent["comm"] += waited
            else:
                spent[part] += before.elapsed_time(after) / 1000
        whole = sum(spent.values()) or 1.0
        return {part: round(took / whole, 4) for part, took in spent.items() if took > 0}

    def _write(self, kind: str, entry: dict[str, Any]) -> None:
        if self._file is None:
            return
        entry = {k: None if _not_finite(v) else v for k, v in entry.items()}  # JSON has no NaN
        try:
            self._file.write(json.dumps({"kind": kind, **entry}) + "\n")
        except OSError as error:
            logger.warning("the log could not be written: %s", error)
        if kind == "start":
            return
        prefix = f"{kind}/{entry['set']}" if "set" in entry else kind
        values = {
            f"{prefix}/{key}": value
            for key, value in entry.items()
            if isinstance(value, int | float) and key not in ("step", "epoch")
        }
        for one in self._loggers:
            one.write(entry["step"], values)

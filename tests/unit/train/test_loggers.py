"""Loggers: what they are given, that they may fail or hang, that code is asked for by name."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from glint.errors import UsageError
from glint.train import loggers, metrics

RECIPE = {"run": {"seed": 3, "val": ["a.bin"]}, "optim": {"lr": 0.1}}


class Kept:
    """A user's own."""

    made: ClassVar[list[Kept]] = []

    def __init__(self, out: Path, recipe: Mapping[str, Any]) -> None:
        self.out, self.recipe, self.lines, self.closed = out, recipe, [], False
        Kept.made.append(self)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.lines.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A module my_loggers that is on PYTHONPATH."""
    Kept.made.clear()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "my_loggers.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    import my_loggers

    my_loggers.Kept = Kept
    yield my_loggers
    sys.modules.pop("my_loggers")


def run_of(out: Path, names: list[str], rank: int = 0, **more: Any) -> Any:
    world = SimpleNamespace(rank=rank, waited=SimpleNamespace(seconds=0.0),
                            device=SimpleNamespace(type="cpu"))  # fmt: skip
    table = SimpleNamespace(**{"loggers": names, "tensorboard": True, "log_every": 1, **more})
    recipe = SimpleNamespace(run=table, model_dump=lambda mode: RECIPE)
    head = SimpleNamespace(statistics=lambda: {"accuracy": 0.5})
    return SimpleNamespace(
        world=world, recipe=recipe, out=out, head=head, step_images=4, teacher=None
    )


def write_two(log: metrics.Log) -> None:
    log.step(0, 0, 0.1, 2.5)
    log.step(1, 0, 0.2, float("nan"))
    verified = SimpleNamespace(accuracy=0.75, std=0.01)
    log.verification(2, 1.0, {"lfw": verified})  # type: ignore[dict-item]
    log.close()


def test_ones_own_gets_what_the_json_lines_have(mine: Any, tmp_path: Path) -> None:
    write_two(metrics.Log(run_of(tmp_path / "run", ["my_loggers:Kept"])))
    (kept,) = Kept.made
    assert (kept.out, kept.recipe, kept.closed) == (tmp_path / "run", RECIPE, True)
    steps, values = zip(*kept.lines)
    assert steps == (1, 2, 2)
    assert (values[0]["step/loss"], values[0]["step/lr"]) == (2.5, 0.1)
    assert "step/loss" not in values[1] and values[1]["step/lr"] == 0.2  # not a number
    assert values[2] == {"verification/lfw/accuracy": 0.75, "verification/lfw/std": 0.01}
    Kept.made.clear()
    write_two(metrics.Log(run_of(tmp_path / "other", ["my_loggers:Kept"], rank=1)))
    assert not Kept.made and not (tmp_path / "other").exists()


@pytest.mark.parametrize("where", ["__init__", "write", "close"])
def test_one_that_fails_is_given_up(
    where: str, mine: Any, tmp_path: Path, caplog: Any, monkeypatch: Any
) -> None:
    def fail(*given: Any) -> None:
        raise SystemExit("no network")

    monkeypatch.setattr(Kept, where, fail)
    monkeypatch.setattr(logging.getLogger("glint"), "propagate", True)
    write_two(metrics.Log(run_of(tmp_path / "run", ["my_loggers:Kept"])))
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 3
    assert len({id(one) for one in caplog.records if "no network" in one.message}) == 1


def test_one_that_hangs_stops_nothing(
    mine: Any, tmp_path: Path, caplog: Any, monkeypatch: Any
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(Kept, "write", lambda *given: go_on.wait(60))
    monkeypatch.setattr(loggers, "PATIENCE", 0.2)
    monkeypatch.setattr(loggers, "_WAITING", 2)
    monkeypatch.setattr(logging.getLogger("glint"), "propagate", True)
    log = metrics.Log(run_of(tmp_path / "run", ["my_loggers:Kept"]))
    begun = time.monotonic()
    for step in range(20):
        log.step(step, 0, 0.1, 1.0)
    log.close()
    assert time.monotonic() - begun < 5
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 20
    said = [one.message for one in {id(one): one for one in caplog.records}.values()]
    assert sum("does not keep up" in one for one in said) == 1
    assert sum("did not end" in one for one in said) == 1
    go_on.set()


def test_names(tmp_path: Path, monkeypatch: Any, mine: Any) -> None:
    loggers.check("tensorboard")
    loggers.check("my_loggers:Kept")
    with pytest.raises(UsageError, match="found 'comet'"):
        loggers.check("comet")
    with pytest.raises(UsageError, match="no module 'nowhere'"):
        loggers.check("nowhere:Class")
    monkeypatch.setattr(loggers, "_EXTRAS", {"wandb": "no_wandb_here"})
    with pytest.raises(UsageError, match=r"GL0003.*wandb is not installed"):
        loggers.check("wandb")
    (tmp_path / "sent_with_a_recipe.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    with pytest.raises(UsageError, match="no module 'sent_with_a_recipe'"):
        loggers.check("sent_with_a_recipe:Class")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    loggers.check("sent_with_a_recipe:Class")
    assert metrics.chosen(["tensorboard", "wandb", "wandb"], False) == ["wandb"]


def test_what_is_no_logger_is_not_called(
    mine: Any, tmp_path: Path, caplog: Any, monkeypatch: Any
) -> None:
    called = []
    mine.system = lambda *given: called.append(given)
    monkeypatch.setattr(logging.getLogger("glint"), "propagate", True)
    write_two(metrics.Log(run_of(tmp_path / "run", ["my_loggers:system"])))
    assert not called and any("no class with write" in one.message for one in caplog.records)


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_two(metrics.Log(run_of(tmp_path / "run", ["tensorboard"])))
    read = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    read.Reload()
    assert [(one.step, one.value) for one in read.Scalars("step/loss")] == [(1, 2.5)]
    assert read.Scalars("verification/lfw/accuracy")[0].value == 0.75


def test_mlflow_offline(tmp_path: Path, monkeypatch: Any) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    place = f"file://{tmp_path / 'mlruns'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(place)
    try:
        write_two(metrics.Log(run_of(tmp_path / "run", ["mlflow"])))
        client = mlflow.MlflowClient(place)
        experiment = client.get_experiment_by_name("glint")
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.run_name == "run" and run.info.status == "FINISHED"
        assert run.data.params["optim.lr"] == "0.1"
        lines = client.get_metric_history(run.info.run_id, "step/lr")
        assert [(one.step, one.value) for one in lines] == [(1, 0.1), (2, 0.2)]
    finally:
        mlflow.set_tracking_uri(before)


def test_wandb_is_called_as_it_asks(tmp_path: Path, monkeypatch: Any) -> None:
    called: list[Any] = []
    run = SimpleNamespace(
        log=lambda values, step: called.append((step, values)),
        finish=lambda: called.append("finish"),
    )
    made = SimpleNamespace(
        init=lambda **given: called.append(given) or run, Settings=lambda **given: given
    )
    monkeypatch.setitem(sys.modules, "wandb", made)
    monkeypatch.setattr(loggers, "_EXTRAS", {"wandb": "json"})
    for _ in range(2):
        write_two(metrics.Log(run_of(tmp_path / "run", ["wandb"])))
    first, again = (one for one in called if isinstance(one, dict))
    assert first == again and first["resume"] == "allow" and first["config"] == RECIPE
    assert called[1][0] == 1 and called[1][1]["step/loss"] == 2.5
    assert called.count("finish") == 2


@pytest.mark.slow
def test_wandb_offline(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    write_two(metrics.Log(run_of(tmp_path / "run", ["wandb"])))
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    data = kept.read_bytes()
    for text in (b"step/loss", b"verification/lfw/accuracy", b"2.5"):
        assert text in data

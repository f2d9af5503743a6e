"""The report of a run: curves of its log in one HTML file that opens offline."""

# S entries of the log

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glint.errors import InputError, UsageError
from glint.log import logger
from glint.models import checkpoint
from glint.review.lines import Lines, lines
from glint.review.plots import Plots, Table, write

NAME = "report.html"
_PARTS = ("data", "teacher", "forward", "head", "backward", "update", "comm", "save")
Reals = npt.NDArray[np.float64]


def entries(run: Path) -> list[dict[str, Any]]:
    """Read log.jsonl; lines that are no JSON objects with a step are passed over."""
    found = []
    for line in (run / "log.jsonl").read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                found.append(entry)
        except (ValueError, RecursionError):
            continue
    return found


def _reals(entries: Sequence[dict[str, Any]], name: str, inner: str = "") -> Reals:
    def value(entry: dict[str, Any]) -> float:
        found = entry.get(name)
        if inner:
            found = found.get(inner) if isinstance(found, dict) else None
        good = isinstance(found, int | float) and not isinstance(found, bool)
        return float(found) if good else math.nan  # type: ignore[arg-type]

    return np.array([value(entry) for entry in entries], np.float64)


def page(run: Path) -> Plots:
    """Collect what the page of a run's folder shows. Raises UsageError GL0001 without a log."""
    if not (run / "log.jsonl").is_file():
        raise UsageError(
            "GL0001", "no log.jsonl here", where=str(run), hint="name a folder of glint train"
        )
    every = entries(run)
    steps = [entry for entry in every if entry.get("kind") == "step"]
    checks = [entry for entry in every if entry.get("kind") == "verification"]
    step_S = _reals(steps, "step")

    def drawn(title: str, names: Sequence[tuple[str, str]], **options: Any) -> Lines | None:
        values = [(words, step_S, _reals(steps, name)) for name, words in names]
        return lines(title, "step", values, **options)

    sets = sorted({str(entry.get("set", "")) for entry in checks})
    accuracy, best, table = [], 0.0, []
    for name in sets:
        mine = [entry for entry in checks if str(entry.get("set", "")) == name]
        value_S = 100 * _reals(mine, "accuracy")
        accuracy.append((name, _reals(mine, "step"), value_S))
        if np.isfinite(value_S).any():
            top = int(np.nanargmax(value_S))
            best = max(best, float(value_S[top]))
            table.append(
                (name, f"{value_S[-1]:.2f} %", f"{value_S[top]:.2f} %", str(mine[top]["step"]))
            )
    time_S = []
    for part in _PARTS:
        share_S = _reals(steps, "time", part)
        if np.isfinite(share_S).any():  # where it does not stand it took nothing
            time_S.append((part, step_S, 100 * np.nan_to_num(share_S)))
    drawings = [
        drawn("Loss", [("loss", "loss")], bottom=0.0),
        drawn("Distance to the teacher", [("distill", "without its weight")], bottom=0.0),
        lines("Verification accuracy, %", "step", accuracy),
        drawn(
            "Cosines of the batch",
            [("positive_cosine", "to the own centre"), ("hardest_negative", "hardest negative")],
        ),
        drawn(
            "Own centre nearest, share of the batch", [("accuracy", "acc@1")], bottom=0.0, top=1.0
        ),
        drawn("Learning rate", [("lr", "rate")], bottom=0.0),
        drawn("Images per second", [("images_per_s", "all ranks")], bottom=0.0),
        lines("Where the time goes, %", "step", time_S, bottom=0.0, top=100.0),
        drawn("Length of the centres that played", [("centre_norm", "mean")]),
    ]
    skipped = int(np.isnan(_reals(steps, "loss")).sum())
    loss_S = _reals(steps, "loss")
    good_S = loss_S[np.isfinite(loss_S)]
    speed_S = _reals(steps, "images_per_s")
    counts = [
        (f"{int(step_S[-1]) if len(step_S) else 0}", "steps"),
        (f"{good_S[-1]:.3f}" if len(good_S) else "-", "loss"),
        (f"{best:.2f} %" if table else "-", "best accuracy"),
        (f"{np.nanmedian(speed_S):.0f}" if np.isfinite(speed_S).any() else "-", "images/s"),
    ]
    notes = [f"{skipped} logged steps had no finite loss and were skipped"] if skipped else []
    heads = ("set", "last", "best", "at step")
    tables = [Table("Verification", heads, table)] if table else []
    shown = [drawing for drawing in drawings if drawing is not None]
    return Plots(run.resolve().name, counts, facts(run), shown, (), tables, notes)


def facts(run: Path) -> list[tuple[str, str]]:
    """Return what the newest checkpoint's state.json has of data, recipe and ranks."""
    found = checkpoint.all_in(run / "checkpoints")
    if not found:
        return [("checkpoint", "none yet")]
    try:
        state = checkpoint.read_state(found[-1])
        rows = [("checkpoint", found[-1].name)]
        for name in ("world", "global_batch", "steps_per_epoch", "torch"):
            rows.append((name.replace("_", " "), str(state[name])))
        for name, value in state["identity"].items():
            if isinstance(value, dict):
                value = ", ".join(f"{k} {v}" for k, v in value.items())
            rows.append((name.replace("_", " "), str(value)))
        return rows
    except (OSError, InputError, KeyError, AttributeError) as error:
        return [("checkpoint", f"{found[-1].name} cannot be read ({type(error).__name__})")]


def make(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run, by default as report.html in its folder; return where."""
    path = out or run / NAME
    write(path, page(run))
    return path


def keep_up(run: Path) -> None:
    """Write the page while a run goes on; that it cannot be written ends no run."""
    try:
        make(run)
    except Exception as error:  # whatever it is, training matters more
        logger.warning("the page of the run was not written: %s", error)

"""The report of a run: curves of its log in one HTML file that opens offline."""

# S entries of the log

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glint.errors import InputError, UsageError
from glint.log import logger
from glint.models import checkpoint
from glint.review.lines import Lines, lines
from glint.review.plots import Plots, Table, write

NAME, SEVERAL = "report.html", "runs.html"
EVERY = 20  # seconds between two drawings while a run goes on, at least
ACCURACY, TIME = "Verification accuracy, %", "Where the time goes, %"
_CHARTS: tuple[tuple[str, tuple[tuple[str, str], ...], dict[str, float]], ...] = (
    ("Loss", (("loss", "loss"),), {"bottom": 0.0}),
    ("Distance to the teacher", (("distill", "without its weight"),), {"bottom": 0.0}),
    ("Cosines of the batch",
     (("positive_cosine", "to the own centre"), ("hardest_negative", "to the nearest other one")),
     {}),
    ("Own centre nearest, share of the batch", (("accuracy", "acc@1"),),
     {"bottom": 0.0, "top": 1.0}),
    ("Learning rate", (("lr", "rate"),), {"bottom": 0.0}),
    ("Images per second", (("images_per_s", "all ranks"),), {"bottom": 0.0}),
    ("Mean centre norm", (("centre_norm", "mean"),), {}),
)  # fmt: skip
_NOTE = {  # how to read each
    ACCURACY: "Pairs of people never trained on that are told right, in ten folds: 50 % is a "
    "guess, and higher is better.",
    "Loss": "It should fall steeply, then slowly. Compare runs of one recipe only: margin, scale "
    "and the centres sampled change what a loss is.",
    "Distance to the teacher": "How far embeddings are from the teacher's: it should fall.",
    "Cosines of the batch": "The cosine to the own centre should rise and leave that to the "
    "nearest other centre behind: the gap between them tells people apart.",
    "Own centre nearest, share of the batch": "Near 1 while verification stands still, the net "
    "learns the training images by heart.",
    "Learning rate": "What the schedule gave to each step.",
    "Images per second": "A dip is a checkpoint, or data that came late: the shares of the time "
    "below say which.",
    TIME: "Shares of a step by its parts: much of data means that reading and decoding hold the "
    "net up.",
    "Mean centre norm": "The mean length of the class centres used in a step: steps lengthen "
    "them, weight decay shortens them, and it should settle.",
}
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


@dataclass(frozen=True)
class Told:
    """What the log of a run tells. steps, checks, starts: its entries by kind."""

    name: str
    steps: Sequence[dict[str, Any]]
    checks: Sequence[dict[str, Any]]
    starts: Sequence[dict[str, Any]]
    done: int

    @staticmethod
    def of(run: Path, name: str = "") -> Told:
        """Read a run's folder. Raises UsageError GL0001 without a log."""
        if not (run / "log.jsonl").is_file():
            raise UsageError(
                "GL0001", "no log.jsonl here", where=str(run), hint="name a folder of glint train"
            )
        every = entries(run)
        kinds = ("step", "verification", "start")
        steps, checks, starts = ([e for e in every if e.get("kind") == k] for k in kinds)
        done = max((int(entry["step"]) for entry in every), default=0)
        return Told(name or run.resolve().name, steps, checks, starts, done)

    def last(self, name: str) -> int:
        """Return a whole number of the last start, 0 where the log has none."""
        found = self.starts[-1].get(name) if self.starts else None
        return found if type(found) is int and found > 0 else 0

    def marks(self) -> list[tuple[float, str]]:
        """Return where the run was resumed, and on how many ranks where that changed."""
        made, before = [], None
        for entry in self.starts:
            world = entry.get("world")
            words = "resumed" if world == before else f"{before} to {world} ranks"
            if entry["step"] and before is not None:
                made.append((float(entry["step"]), words))
            before = world
        return made

    def sets(self) -> dict[str, tuple[Reals, Reals]]:
        """Return steps and accuracies in per cent by verification set."""
        made = {}
        for name in sorted({str(entry.get("set", "")) for entry in self.checks}):
            mine = [entry for entry in self.checks if str(entry.get("set", "")) == name]
            made[name] = _reals(mine, "step"), 100 * _reals(mine, "accuracy")
        return made

    def best(self) -> float:
        """Return the best mean accuracy over the sets verified at one step, else NaN."""
        by: dict[float, list[float]] = {}
        for step_S, value_S in self.sets().values():
            for step, value in zip(step_S, value_S):
                by.setdefault(step, []).append(float(value))
        return max((m for v in by.values() if (m := float(np.mean(v))) == m), default=math.nan)

    def steps_done(self) -> str:
        """Return the steps done, of how many."""
        total = self.last("steps")
        return f"{self.done:,} of {total:,}" if total else f"{self.done:,}"


def _quantity(run: Told, name: str, inner: str = "", scale: float = 1.0) -> tuple[Reals, Reals]:
    return _reals(run.steps, "step"), scale * _reals(run.steps, name, inner)


def page(*runs: Path, live: bool = False) -> Plots:
    """Collect what the page of a run's folder shows, or of several over each other.

    live: the page loads itself again. Raises UsageError GL0001 without a log, GL0002 for one run
    that is named twice.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise UsageError("GL0002", "a run is named twice", where=", ".join(map(str, runs)))
    names = [run.resolve().name for run in runs]
    if len({*names}) < len(names):
        names = [str(run) for run in runs]
    told = [Told.of(run, name) for run, name in zip(runs, names)]
    return _one(runs[0], told[0], live) if len(runs) == 1 else _several(told)


def _drawer(runs: Sequence[Told]) -> Callable[..., Lines | None]:
    """Return what draws over steps, with epochs and the marks of runs that were resumed."""
    alone = len(runs) == 1
    marks = [(at, words if alone else f"{one.name}: {words}")
             for one in runs for at, words in one.marks()]  # fmt: skip
    spe = {one.last("steps_per_epoch") for one in runs}
    return partial(lines, axis="step", marks=marks, epoch=spe.pop() if len(spe) == 1 else 0)


def _one(run: Path, told: Told, live: bool) -> Plots:
    draw, sets, table = _drawer([told]), told.sets(), []
    for name, (step_S, value_S) in sets.items():
        if np.isfinite(value_S).any():
            top = int(np.nanargmax(value_S))
            last, highest = (f"{value_S[k]:.2f} %" for k in (-1, top))
            table.append((name, last, highest, f"{step_S[top]:,.0f}"))
    shares = [(part, *_quantity(told, "time", part, 100)) for part in _PARTS]
    shares = [  # where a share does not stand it took nothing
        (part, x, np.nan_to_num(y)) for part, x, y in shares if np.isfinite(y).any()
    ]
    drawn = [
        draw(ACCURACY, values=[(name, *xy) for name, xy in sets.items()], note=_NOTE[ACCURACY])
    ]
    drawn += [
        draw(title, values=[(words, *_quantity(told, name)) for name, words in names],
             note=_NOTE[title], **ends)
        for title, names, ends in _CHARTS
    ]  # fmt: skip
    drawn.append(draw(TIME, values=shares, bottom=0.0, top=100.0, note=_NOTE[TIME]))
    loss_S, speed_S = (_reals(told.steps, name) for name in ("loss", "images_per_s"))
    good_S, skipped = loss_S[np.isfinite(loss_S)], int(np.isnan(loss_S).sum())
    best, several = told.best(), "mean " * (len(sets) > 1)
    counts = [
        ("-" if math.isnan(best) else f"{best:.2f} %", f"best {several}accuracy"),
        (told.steps_done(), "steps"),
        (f"{good_S[-1]:.3f}" if len(good_S) else "-", "loss"),
        (f"{np.nanmedian(speed_S):,.0f}" if np.isfinite(speed_S).any() else "-", "images/s"),
    ]
    words = f"{skipped} logged step{'s'[: skipped != 1]} without a finite loss: skipped"
    notes = [words] if skipped else []
    heads = ("set", "last", "best", "at step")
    tables = [Table("Verification", heads, table)] if table else []
    shown = [drawing for drawing in drawn if drawing is not None]
    return Plots(told.name, counts, facts(run), shown, (), tables, notes,
                 status=_status(told, live), refresh=EVERY if live else 0)  # fmt: skip


def _several(runs: Sequence[Told]) -> Plots:
    draw = _drawer(runs)
    drawn = [
        draw(f"{ACCURACY}: {name}", note=_NOTE[ACCURACY],
             values=[(one.name, *one.sets().get(name, (np.empty(0), np.empty(0)))) for one in runs])
        for name in sorted({name for one in runs for name in one.sets()})
    ]  # fmt: skip
    for title, names, ends in _CHARTS:
        for name, words in names:
            head = title if len(names) == 1 else f"{title}: {words}"
            values = [(one.name, *_quantity(one, name)) for one in runs]
            drawn.append(draw(head, values=values, note=_NOTE[title], **ends))
    best = sorted(((one.best(), one.name) for one in runs), key=lambda b: -np.nan_to_num(b[0]))
    counts = [("-" if math.isnan(b) else f"{b:.2f} %", f"best accuracy of {n}") for b, n in best]
    rows = []
    for one in runs:
        for name, (step_S, value_S) in one.sets().items():
            if np.isfinite(value_S).any():
                top = int(np.nanargmax(value_S))
                rows.append((one.name, one.steps_done(), name, f"{value_S[-1]:.2f} %",
                             f"{value_S[top]:.2f} %", f"{step_S[top]:,.0f}"))  # fmt: skip
    heads = ("run", "steps", "set", "last", "best", "at step")
    tables = [Table("Verification", heads, rows)] if rows else []
    notes = []
    if len({one.last("steps_per_epoch") for one in runs}) > 1:
        notes.append("No axis of epochs: these runs differ in their length, or a log lacks it.")
    shown = [drawing for drawing in drawn if drawing is not None]
    return Plots(" and ".join(one.name for one in runs), counts, [], shown, (), tables, notes,
                 status=f"{len(runs)} runs, written {_now()}")  # fmt: skip


def _now() -> str:
    return f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def _status(told: Told, live: bool) -> str:
    marks = told.marks()
    resumed = f" Resumed {len(marks)} time{'s'[: len(marks) > 1]}: dashed lines." if marks else ""
    if live:
        stale = "if that time stays behind for longer than a verification takes, the run is gone"
        return f"Training, as of {_now()}. This page loads itself again; {stale}.{resumed}"
    finished = "Finished. " if told.done and told.done == told.last("steps") else ""
    return f"{finished}Written {_now()}.{resumed}"


def facts(run: Path) -> list[tuple[str, str]]:
    """Return what the newest checkpoint's state.json has of data, recipe and ranks."""
    found = checkpoint.all_in(run / "checkpoints")
    if not found:
        return [("checkpoint", "none yet")]
    try:
        state = checkpoint.read_state(found[-1])
        rows = [("checkpoint", found[-1].name)]
        rows.append(("ranks", str(state["world"])))
        for name in ("global_batch", "steps_per_epoch", "torch"):
            rows.append((name.replace("_", " "), str(state[name])))
        for name, value in state["identity"].items():
            if isinstance(value, dict):
                value = ", ".join(f"{k} {v}" for k, v in value.items())
            rows.append((name.replace("_", " "), str(value)))
        return rows
    except (OSError, InputError, KeyError, AttributeError) as error:
        return [("checkpoint", f"{found[-1].name} cannot be read ({type(error).__name__})")]


def make(*runs: Path, out: Path | None = None, live: bool = False) -> Path:
    """Write the page of a run, by default as report.html in its folder; return where.

    Of several runs it is by default runs.html in the current folder.
    """
    path = out or (runs[0] / NAME if len(runs) == 1 else Path(SEVERAL))
    write(path, page(*runs, live=live))
    return path


class Kept:
    """Keeps the page of a run while it goes on; that it cannot be written ends no run.

    It is drawn at most every EVERY seconds, and takes at most a hundredth of the time: the more a
    drawing took, the later is the next. `here` is false on all ranks but one: they do nothing.
    """

    def __init__(self, run: Path, here: bool = True) -> None:
        self.run, self.here = run, here
        self.due = time.monotonic() + EVERY
        self.said = ""

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *error: object) -> None:
        """Draw the page that stays: it does not load itself again."""
        self._draw(live=False)

    def keep_up(self, now: bool = False) -> None:
        """Draw the page if it is due, or now."""
        if now or time.monotonic() >= self.due:
            self._draw(live=True)

    def _draw(self, live: bool) -> None:
        if not self.here:
            return
        begun = time.monotonic()
        try:
            make(self.run, live=live)
        except Exception as error:  # whatever it is, training matters more
            said, self.said = self.said, f"{type(error).__name__}: {error}"
            if self.said != said:
                logger.warning("the page of the run was not written: %s", self.said)
        self.due = time.monotonic() + max(EVERY, 100 * (time.monotonic() - begun))

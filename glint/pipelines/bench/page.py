"""The table of a bench and its page: one offline file, private because it shows faces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glint.pipelines.bench.run import Ran
from glint.results import bench as results
from glint.review import accepts
from glint.review.chart import Chart
from glint.review.lines import Lines, lines
from glint.review.plots import Faces, Plots, Table, write

Cell = tuple[str, str]  # words, value


def share(value: float | None, interval: Sequence[float] | None = None) -> str:
    """Write a share in per cent, with its interval."""
    if value is None:
        return "-"
    text = f"{100 * value:.2f}"
    if interval is not None:
        text += f" [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"
    return text


def cells(kind: str, row: results.BenchRow) -> list[Cell]:
    """Return the figures that a table shows of a row, by the kind of test."""
    told = row.figures
    if row.error is not None:
        return [("error", row.error)]
    if kind in ("pack", "pairs"):
        made = [("accuracy %", share(told["accuracy"], row.accuracy_interval))]
        return made + [
            (f"TAR@FAR {far} %", share(told["tar_at_far"][far], row.tar_intervals.get(far)))
            for far in ("1e-2", "1e-3", "1e-4")
        ]
    if kind == "ijb":
        one, many = told["one_to_one"], told["one_to_many"]
        made = [(f"TAR@FAR {far} %", share(one["tar_at_far"][far])) for far in ("1e-4", "1e-5")]
        near = one["tar_at_nearest_far"]
        made.append(("nearest FAR 1e-4, as the field %", share(near["1e-4"])))
        return made + ([("1:N rank 1 %", share(many["field"]["rank"]["1"]))] if many else [])
    if kind == "tinyface":
        return [(f"rank {k} %", share(told["rank"][k])) for k in ("1", "5", "10")]
    if kind == "distractors":
        count, rank = list(told["rank1_by_distractors"].items())[-1]
        made = [(f"rank 1 among {count} %", share(rank))]
        return made + [(f"TAR@FAR {far} %", share(t)) for far, t in told["tar_at_far"].items()]
    return [
        (f"TAR@FAR {far} %", share(told["tar_at_far"][far])) for far in ("1e-3", "1e-4", "1e-6")
    ]


def groups(rows: Sequence[dict[str, Any]]) -> list[list[Cell]]:
    """Return the cells of errors by group."""
    return [
        [("group", row["group"]), ("pairs", str(row["pairs"])),
         ("accuracy %", share(row["accuracy"])),
         ("same refused %", share(row["refused_same"])),
         ("different accepted %", share(row["accepted_different"]))]
        for row in rows
    ]  # fmt: skip


def contaminated(kind: str, row: results.BenchRow) -> list[list[Cell]]:
    """Return the figures with and without what a training set holds."""
    told = row.contamination
    if told is None:
        return []
    made = [[("pairs", str(row.figures["pairs"])), *cells(kind, row)[:1]]]
    words = [f"all; {told['people_found']} of {told['people_of_test']} people and "
             f"{told['images_found']} of {told['images_of_test']} images "
             f"are in {told['dataset']}"]  # fmt: skip
    for without in ("people", "images"):
        part = told[f"without_{without}"]
        accuracy = share(part.get("accuracy"), part.get("accuracy_interval"))
        made.append([("pairs", str(part["pairs"])), ("accuracy %", accuracy)])
        words.append(f"without these {without}")
    return [[("test pairs", text), *row] for text, row in zip(words, made)]


def table(title: str, rows: Iterable[tuple[Sequence[Cell], Sequence[Cell]]]) -> list[Table]:
    """Make tables of rows: those of the same heads stand together."""
    by: dict[tuple[str, ...], list[list[str]]] = {}
    for first, more in rows:
        both = [*first, *more]
        by.setdefault(tuple(w for w, _ in both), []).append([value for _, value in both])
    return [Table(title if k == 0 else "", heads, held)
            for k, (heads, held) in enumerate(by.items())]  # fmt: skip


def published(rows: Sequence[results.Published]) -> list[Table]:
    """Return the table of what others published."""
    if not rows:
        return []
    columns = list(dict.fromkeys(name for row in rows for name in row.figures))
    heads = ("work", "trained on", "net", *columns, "source, date")
    made = [
        (row.name, row.data, row.net, *(f"{row.figures[c]:.2f}" if c in row.figures else ""
                                       for c in columns), f"{row.source}, {row.date}")
        for row in rows
    ]  # fmt: skip
    return [Table("Published by others: their figures, %, not measured here", heads, made)]


def tables(found: results.Bench) -> list[Table]:
    """Return all tables of the page."""
    kind = {one.set: one.kind for one in found.sets}
    made = table("Measured", (
        ([("set", row.set), ("model", row.model)], cells(kind[row.set], row))
        for row in found.rows
    ))  # fmt: skip
    made += table("Models", (
        ([("model", one.name), ("ms/image", "-" if one.ms_per_image is None
                                else f"{one.ms_per_image:.2f}")],
         [("parameters", f"{one.parameters:,}"), ("numbers", str(one.dim)),
          ("engine", one.engine)])
        for one in found.models
    ))  # fmt: skip
    made += table("Errors by group, at the one threshold of the test", (
        ([("set", row.set), ("model", row.model)], one)
        for row in found.rows for one in groups(row.groups)
    ))  # fmt: skip
    made += table("Errors by group, at one threshold for all groups", (
        ([("model", model)], one)
        for model, rows in found.pooled_groups.items() for one in groups(rows)
    ))  # fmt: skip
    made += table("With and without people and images of the training set", (
        ([("set", row.set), ("model", row.model)], one)
        for row in found.rows for one in contaminated(kind[row.set], row)
    ))  # fmt: skip
    made += published(found.published)
    left = [(one.path, one.reason) for one in found.skipped]
    return made + ([Table("Not run", ("file", "reason"), left)] if left else [])


def det(title: str, rans: Sequence[tuple[str, Ran]]) -> list[Lines]:
    """Draw the share of same-person pairs refused by false accept rate, a curve for each model."""
    curves = []
    for name, ran in rans:
        points = ran.rates["roc"] if ran.rates is not None else []
        far_p, tar_p = np.array(points, np.float64).reshape(-1, 2).T
        curves.append((name, far_p, 100 * (1 - tar_p)))
    if not any(len(x) > 1 for _, x, _ in curves):
        return []
    words = f"{title}: same-person pairs refused, %, by false accept rate (DET)"
    note = "How many pairs of one person are refused where so many pairs of different people "
    note += "(FAR, a logarithmic axis) are accepted: lower is better."
    drawn = lines(words, "FAR", curves, bottom=0.0, logarithmic=True, told=False, note=note)
    return [drawn] if drawn is not None else []


def headline(found: results.Bench) -> list[tuple[str, str]]:
    """Return each model's mean accuracy over the tests of pairs that all of them went through."""
    rows = {(row.set, row.model): row for row in found.rows if row.error is None}
    names = [one.name for one in found.models]
    sets = [one.set for one in found.sets if one.kind in ("pack", "pairs")]
    sets = [one for one in sets if all((one, name) in rows for name in names)]
    if not sets:
        return []
    over = f"accuracy on {sets[0]}" if len(sets) == 1 else f"mean accuracy on {len(sets)} tests"
    mean = {n: sum(rows[s, n].figures["accuracy"] for s in sets) / len(sets) for n in names}
    best = sorted(mean, key=lambda name: -mean[name])
    return [(f"{100 * mean[name]:.2f} %", f"{over}, {name}") for name in best]


def make(path: Path, found: results.Bench, rans: Sequence[tuple[str, Ran]]) -> None:
    """Write the page. Raises ResourceError."""
    curves: list[Lines] = []
    charts: list[Chart] = []
    faces: list[Faces] = []
    models = [one.name for one in found.models]
    for one in found.sets:
        mine = [(name, ran) for name, ran in rans if ran.part.name == one.set]
        curves += det(one.set, [(n, next(r for m, r in mine if m == n)) for n in models])
        for name, ran in mine:
            if ran.rates is not None:
                charts += accepts.drawing(f"{one.set}, {name}", ran.rates)[1]
            for same, words in (
                (True, "one person, least alike"),
                (False, "two people, most alike"),
            ):
                worst = [(f"cosine {c:.3f}", a, b) for c, kind, a, b in ran.worst if kind == same]
                if worst:
                    faces.append(Faces(f"{one.set}, {name}: {words}", worst))
    notes = [f"{row.set}, {row.model}: {text}" for row in found.rows for text in row.warnings]
    notes += [f"{row.set}, {row.model}: {row.error}" for row in found.rows if row.error]
    by = dict.fromkeys(f"{row.set}: {row.people} people, by {row.people_by}"
                       for row in found.rows if row.people)  # fmt: skip
    facts = [("intervals", "95 %, drawn over people"), *(("people", text) for text in by),
             ("mirrored image added", str(found.flip)),
             *((f"model {one.name}", f"{one.path}, {one.digest[:16]}")
               for one in found.models)]  # fmt: skip
    many = len(found.sets), len(models)
    counts = [*headline(found)[:4],
              *((str(n), f"{word}{'s'[: n != 1]}") for n, word in zip(many, ("test", "model"))),
              (str(found.errors), "could not be run")]  # fmt: skip
    write(path, Plots("Bench", counts, facts, curves, charts, tables(found), notes, faces))

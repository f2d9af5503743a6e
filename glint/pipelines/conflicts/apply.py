"""Apply the verdicts of a conflict report as a new label version, and take them back.

Only labels/ of the dataset changes, and what _glint keeps of it; no shard is opened.
"""

# C labels as sharded, m masked pairs

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from glint import schemas
from glint.conflicts import decisions
from glint.conflicts.groups import components
from glint.errors import InputError, MismatchError, UsageError
from glint.files import atomic, parquet
from glint.results import identities as results
from glint.shards import labels
from glint.shards.dataset import Dataset

FORMAT = "glint/conflicts@1"
STAGE = "dedup-conflicts"
TAKEN = ("drop", f"{STAGE} undo")  # stages of versions that only leave out
TABLES = ("pairs.parquet", "groups.parquet")
REPORT = (*TABLES, "conflicts.json")
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Report:
    """A report on its dataset: groups to merge, pairs to mask (labels as sharded)."""

    dataset: Dataset
    groups: list[Ints]
    mask_m2: Ints
    label_version: int
    labels: str  # digest of what that version says; "" in reports of old
    digest: str  # of conflicts.json and both tables: what `labels.history` names the report by
    tables: str  # of the tables alone, as histories of old name it
    verdicts: Sequence[tuple[int, int, str]] = ()  # pairs that reviewers decided otherwise
    said: Sequence[decisions.Said] = ()  # of reviewers, for what they say of single images


def relabel(
    target_C: Ints, old_m2: Ints, groups: Sequence[Ints], mask_m2: Ints
) -> tuple[Ints, Ints]:
    """Return the targets and masks that follow from a label version and decisions on top of it.

    target_C: targets in force (-1 = dropped); old_m2: masks in force, in targets; groups and
    mask_m2: in labels as sharded. Merged targets become one, numbers stay dense and in the order
    of their smallest member; masks inside one target, or on a dropped one, vanish.
    """
    first, second = [], []
    for group in groups:
        kept = target_C[group]
        kept = np.unique(kept[kept >= 0])
        first.append(kept[:-1])
        second.append(kept[1:])
    none = np.empty(0, np.int64)
    number = int(target_C.max(initial=-1)) + 1
    head = np.arange(number, dtype=np.int64)
    for piece in components(np.concatenate([none, *first]), np.concatenate([none, *second])):
        head[piece] = piece[0]
    new = (np.cumsum(head == np.arange(number)) - 1)[head]
    renew = np.concatenate([new, [-1]])  # index -1: dropped stays dropped
    fresh_m2 = np.concatenate(
        [renew[old_m2.reshape(-1, 2)], renew[target_C[mask_m2.reshape(-1, 2)]]]
    )
    fresh_m2 = np.sort(fresh_m2, axis=1)
    fresh_m2 = fresh_m2[(fresh_m2[:, 0] >= 0) & (fresh_m2[:, 0] != fresh_m2[:, 1])]
    return renew[target_C].astype(np.int64), np.unique(fresh_m2, axis=0).astype(np.int64)


def read(folder: Path, more: Sequence[Path] | None = (), *, flagged: bool = False) -> Report:
    """Read a report folder and check it against itself and its dataset.

    Verdicts of reviewers, in decisions.jsonl of the folder and in the files `more`, go before the
    report's; more = None leaves them all out. flagged: what inside.parquet suggests of single
    images holds where no reviewer spoke of them. Raises InputError GL0501 for contradictions, by
    name, and MismatchError for another dataset.
    """
    path = folder / "conflicts.json"
    if not path.is_file():
        raise InputError(
            "GL0501",
            "expected the folder of a conflict report, found no conflicts.json",
            where=str(folder),
            hint="make one with: glint dedup-conflicts DATASET --embeddings DIR --out DIR",
        )
    root, digest, version, said = _named(folder)
    dataset = Dataset(root)
    if dataset.digest != digest:
        raise MismatchError(
            "GL0501",
            f"the report was made from dataset {digest}, found {dataset.digest}",
            where=str(root),
            hint="run glint embed and glint dedup-conflicts again",
        )
    groups = _groups(folder / "groups.parquet", dataset.classes)
    a, b, verdict = _verdicts(folder / "pairs.parquet", groups, dataset.classes)
    lines: list[tuple[int, int, str]] = []
    reviewed: list[decisions.Said] = []
    if more is not None:
        reviewed = _decided(folder, more)
        after = decisions.settle(reviewed, np.minimum(a, b), np.maximum(a, b), verdict)
        other = np.flatnonzero(after != verdict)
        if len(other):
            groups = components(a[after == "merge"], b[after == "merge"])
            lines = sorted(zip(a[other].tolist(), b[other].tolist(), after[other].tolist()))
            verdict = after
    if flagged:
        reviewed += _suggested(folder / "inside.parquet", dataset, reviewed)
    mask_m2 = np.stack([a[verdict == "mask"], b[verdict == "mask"]], axis=1).astype(np.int64)
    whole, both = _digest(folder, REPORT), _digest(folder, TABLES)
    return Report(dataset, groups, mask_m2, version, said, whole, both, lines, reviewed)


def _decided(folder: Path, more: Sequence[Path]) -> list[decisions.Said]:
    """Read what reviewers decided: the folder's own file and the others."""
    for path in more:
        if not path.is_file():
            raise UsageError("GL0001", "expected a file of decisions, found none", where=str(path))
    report = decisions.report_id(folder)
    return [
        one for path in (folder / decisions.NAME, *more) for one in decisions.read(path, report)
    ]


def _suggested(
    path: Path, dataset: Dataset, said: Sequence[decisions.Said]
) -> list[decisions.ImageDecision]:
    """Return what a report suggests of outliers, but of those that a reviewer spoke of."""
    table = parquet.read(path, schemas.INSIDE, code="GL0501")
    table = table.filter(pc.equal(table.column("kind"), "outlier"))
    key = parquet.read(dataset.root / "samples.parquet", schemas.SAMPLES, columns=["key"])
    row_k = pc.index_in(table.column("key"), key.column("key").combine_chunks())
    wrong = ~np.isin(table.column("suggested").to_pylist(), ("move", "exclude"))
    wrong |= row_k.is_null().to_numpy()
    if wrong.any():
        raise InputError(
            "GL0501",
            "expected an image of the dataset to move or to exclude, found "
            f"{table.slice(int(np.argmax(wrong)), 1).to_pylist()[0]}",
            where=str(path),
        )
    rows = row_k.to_numpy().astype(np.int64)
    return [
        decisions.ImageDecision(row, how, to if how == "move" else -1, "suggested", 0)
        for row, how, to, free in zip(
            rows.tolist(),
            table.column("suggested").to_pylist(),
            table.column("towards").to_pylist(),
            decisions.unspoken(said, rows).tolist(),
        )
        if free
    ]


def _named(folder: Path) -> tuple[Path, str, int, str]:
    """Read which dataset a report is about: folder and digest, label version and what that says."""
    path = folder / "conflicts.json"
    about = atomic.read_json(path, "GL0501")
    try:
        if about["format"] != FORMAT:
            raise InputError(
                "GL0501", f"expected format {FORMAT!r}, found {about['format']!r}", where=str(path)
            )
        named = about["dataset"]
        digest, version = str(named["digest"]), int(named["label_version"])
        said = str(named.get("labels", ""))
        places = [Path(os.path.normpath(folder / str(named["path"]))), Path(str(named["absolute"]))]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("GL0501", f"lacks or spoils {error}", where=str(path)) from None
    root = next((p for p in places if (p / "manifest.json").is_file()), places[-1])
    return root, digest, version, said


def _digest(folder: Path, names: Sequence[str]) -> str:
    """Return the SHA-256 of files of a report, one after the other."""
    state = hashlib.sha256()
    for name in names:
        state.update((folder / name).read_bytes())
    return "sha256:" + state.hexdigest()


def _groups(path: Path, classes: int) -> list[Ints]:
    """Read the groups; a label may stand in one only."""
    table = parquet.read(path, schemas.GROUPS, code="GL0501")
    group, label = (table.column(name).to_numpy() for name in ("group", "label"))
    if len(label) and not 0 <= label.min() <= label.max() < classes:
        raise InputError(
            "GL0501",
            f"labels run from {label.min()} to {label.max()}, expected 0 to {classes - 1}",
            where=str(path),
        )
    seen, times = np.unique(label, return_counts=True)
    if (times > 1).any():
        raise InputError(
            "GL0501", f"identity {seen[times > 1][0]} stands in two groups", where=str(path)
        )
    order = np.lexsort((label, group))
    edge = np.flatnonzero(np.diff(group[order])) + 1
    return np.split(label[order], edge) if len(label) else []


def _verdicts(
    path: Path, groups: list[Ints], classes: int
) -> tuple[Ints, Ints, npt.NDArray[np.str_]]:
    """Read the pairs and their verdicts; merge pairs and groups must say the same."""
    table = parquet.read(path, schemas.PAIRS, columns=["a", "b", "verdict"], code="GL0501")
    a, b = table.column("a").to_numpy(), table.column("b").to_numpy()
    verdict = np.array(table.column("verdict").to_pylist(), dtype=str)
    for name in np.unique(verdict):
        if name not in ("merge", "mask", "keep"):
            raise InputError(
                "GL0501", f"expected merge, mask or keep, found {str(name)!r}", where=str(path)
            )
    if len(a) and not (min(a.min(), b.min()) >= 0 and max(a.max(), b.max()) < classes):
        raise InputError(
            "GL0501", f"a pair names an identity outside 0 to {classes - 1}", where=str(path)
        )
    joined = components(a[verdict == "merge"], b[verdict == "merge"])
    merged = {tuple(piece.tolist()) for piece in joined}
    held = {tuple(piece.tolist()) for piece in groups}
    for odd in sorted(merged ^ held):
        where = "pairs.parquet merges" if odd in merged else "groups.parquet groups"
        other = "groups.parquet" if odd in merged else "pairs.parquet"
        raise InputError(
            "GL0501",
            f"{where} the identities {list(odd)}, {other} does not",
            where=str(path.parent),
            hint="both files must say the same",
        )
    return a, b, verdict


def _applied(report: Report) -> str | None:
    """Return the digest of the decisions with which this very report made the labels in force.

    None where it did not make them.
    """
    dataset = report.dataset
    for line in labels.in_force(dataset.root, dataset.classes)[:1]:
        if _is_of(line, {report.digest, report.tables}):
            return str(line["why"].get("decided", ""))
    return None


def _before(report: Report, folder: Path) -> tuple[int, bool]:
    """Return the version that this report went on top of, and whether take-downs came since.

    Raises InputError GL0502 where it is not what is in force, take-downs aside.
    """
    dataset = report.dataset
    lines = labels.in_force(dataset.root, dataset.classes)
    since = list(takewhile(lambda line: (line.get("why") or {}).get("stage") in TAKEN, lines))
    for line in lines[len(since) :][:1]:
        if _is_of(line, {report.digest, report.tables}):
            return int(line["from"]), bool(since)
    version = lines[0]["version"] if lines else 0
    what = f"this report is not in force (the labels stand at version {version})"
    hint = "what was applied later must be undone first; take-downs (glint drop) stay"
    raise InputError("GL0502", what, where=str(folder), hint=hint)


def _is_of(line: dict[str, Any], marks: set[str]) -> bool:
    """Return whether a history line is about the report of these digests."""
    why = line.get("why") or {}
    return why.get("stage") == STAGE and why.get("report") in marks


def stands(folder: Path, dataset: Dataset) -> bool:
    """Return whether labels in force, of its own dataset or of `dataset`, rest on a report.

    Raises InputError GL0501 where conflicts.json is spoilt.
    """
    root, digest, *_ = _named(folder)
    if not all((folder / name).is_file() for name in REPORT):
        return False
    where = [dataset] if dataset.digest == digest else []
    if (root / "manifest.json").is_file() and root.resolve() != dataset.root.resolve():
        where.append(Dataset(root))
    marks = {_digest(folder, REPORT), _digest(folder, TABLES)}
    return any(
        _is_of(line, marks) for one in where for line in labels.in_force(one.root, one.classes)
    )


@dataclass(frozen=True)
class Outcome:
    """The labels that follow from a report, and what reviewers changed in it.

    decided: digest of that, empty where nothing; pairs, left_out, moved: how many pairs, and images
    left out or of another identity.
    """

    table: labels.LabelTable
    decided: str
    pairs: int
    left_out: int
    moved: int


def outcome(report: Report, now: labels.LabelTable) -> Outcome:
    """Put a report's verdicts and what was decided of single images on top of labels in force.

    Raises InputError GL0501 where reviewers contradict each other.
    """
    dataset = report.dataset
    target_C, mask_m2 = relabel(now.target, now.masks, report.groups, report.mask_m2)
    table = labels.given(target_C, mask_m2, now.row, now.label)
    lines: list[Any] = [*report.verdicts]
    row = label = np.empty(0, np.int64)
    if any(isinstance(one, decisions.ImageDecision) for one in report.said):
        row, label = decisions.settle_images(report.said, dataset.n, target_C)
        table = table.moved(row, label, dataset.label)
    mark = ""
    if len(row):
        lines.append(["images", *zip(row.tolist(), label.tolist())])
    if lines:
        mark = "sha256:" + hashlib.sha256(json.dumps(lines).encode()).hexdigest()
    table = labels.settled(dataset.root, replace(table, version=now.version))
    out = int((label < 0).sum())
    return Outcome(table, mark, len(report.verdicts), out, len(row) - out)


def apply(
    folder: Path, *, more: Sequence[Path] = (), flagged: bool = False, dry_run: bool = False
) -> results.Apply:
    """Put the report's verdicts, as reviewers changed them, in force as a new label version.

    more: files of decisions beside the folder's own decisions.jsonl. flagged: also move or leave
    out every image that inside.parquet says so of, but those that a reviewer spoke of.

    Applying a report that is in force already, or that would change nothing, makes no version and
    says so. Raises MismatchError when the labels changed after the report was made, BusyError
    GL0309 where they change meanwhile.
    """
    report = read(folder, more, flagged=flagged)
    dataset = report.dataset
    now = labels.unchecked(dataset.root, dataset.classes)
    then = outcome(report, now)
    stood = _applied(report)
    if stood == then.decided:
        if not dry_run:
            labels.complete(dataset.root)
        return _result(folder, dataset, now, now, applied=False, already=True, dry_run=dry_run)
    if stood is not None:
        raise MismatchError(
            "GL0501",
            "this report is in force with other decisions",
            where=str(folder),
            hint=f"first run: glint dedup-conflicts undo {folder}",
        )
    other = report.labels != now.digest if report.labels else report.label_version != now.version
    if other:
        raise MismatchError(
            "GL0501",
            f"the report was made on label version {report.label_version}, "
            f"in force is {now.version}, which says something else",
            where=str(dataset.root),
            hint="undo what was applied since, or run glint dedup-conflicts again",
        )
    told: dict[str, Any] = {
        "decided": then.pairs,
        "images_left_out": then.left_out,
        "images_moved": then.moved,
    }
    if then.table.same(now):
        result = _result(folder, dataset, now, now, applied=False, already=False, dry_run=dry_run)
        return replace(result, nothing=True)
    if dry_run:
        table = then.table
        result = _result(folder, dataset, now, table, applied=False, already=False, dry_run=True)
        return replace(result, **told)
    why = {
        "stage": STAGE,
        "report": report.digest,
        "groups": len(report.groups),
        "masks": len(report.mask_m2),
        **({"decided": then.decided} if then.decided else {}),
    }
    with labels.changing(dataset.root):
        version = labels.commit(dataset.root, then.table, why, based_on=now.version)
    after = labels.load(dataset.root, version, dataset.classes)
    result = _result(folder, dataset, now, after, applied=True, already=False, dry_run=False)
    return replace(result, **told)


def undo(folder: Path) -> results.Undo:
    """Put the label version from before the report back in force, exactly.

    Where take-downs came since, a new version says what that one did, without whom they name.

    Raises InputError GL0502 when the report is not what is in force, and what `labels.undo` raises.
    """
    report = read(folder, None)
    dataset = report.dataset
    now = labels.unchecked(dataset.root, dataset.classes)
    labels.complete(dataset.root)
    before, taken = _before(report, folder)
    if taken:
        table, why = labels.load(dataset.root, before, dataset.classes), {"stage": TAKEN[1]}
        with labels.changing(dataset.root):
            version = labels.commit(dataset.root, table, why, based_on=now.version, rests_on=before)
    else:
        version = labels.undo(dataset.root, based_on=now.version)
    then = labels.load(dataset.root, version, dataset.classes)
    result = _result(folder, dataset, now, then, applied=False, already=False, dry_run=False)
    return results.Undo(**vars(result) | {"undone": True})


def _result(
    folder: Path,
    dataset: Dataset,
    before: labels.LabelTable,
    after: labels.LabelTable,
    *,
    applied: bool,
    already: bool,
    dry_run: bool,
) -> results.Apply:
    return results.Apply(
        applied=applied,
        already=already,
        dry_run=dry_run,
        version=after.version,
        version_before=before.version,
        classes=after.classes,
        classes_before=before.classes,
        masks=len(after.masks),
        masks_before=len(before.masks),
        shards_rewritten=0,
        dataset=str(dataset.root),
        report=str(folder),
    )

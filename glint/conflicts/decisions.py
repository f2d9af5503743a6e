"""What reviewers decided: lines of decisions.jsonl, which of them stand, where they contradict.

One JSON object a line: schema, report (digest of conflicts.json), by (the reviewer), seq, and
about two identities a, b (labels as sharded, a < b) and verdict (merge, mask, keep, or none:
withdrawn); about one image (row of the dataset) action (exclude, move, keep, none) and, of a move,
to (a label as sharded). Of the lines of one reviewer about one pair or image the largest seq
stands, so neither the order of lines nor of files matters.
"""

# K pairs, C labels as sharded, k images

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from glint.conflicts.groups import components
from glint.errors import InputError
from glint.files import atomic, reads
from glint.log import logger

NAME = "decisions.jsonl"
SCHEMA = "glint/decision@1"
IMAGE_SCHEMA = "glint/image-decision@1"
VERDICTS = ("merge", "mask", "keep")
ACTIONS = ("exclude", "move", "keep")
WITHDRAWN = "none"
LONGEST = 64  # characters of a reviewer's name
SHOWN = 5  # contradictions named in one error

Ints = npt.NDArray[np.int64]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Decision:
    """One verdict of one reviewer on one pair of identities, a < b."""

    a: int
    b: int
    verdict: str
    by: str
    seq: int

    @property
    def about(self) -> Pair:
        """Return what is decided on."""
        return self.a, self.b

    def __str__(self) -> str:
        return f"the identities {self.a} and {self.b}"

    def line(self, report: str) -> dict[str, Any]:
        """Return the decision as the object that stands in decisions.jsonl."""
        return {"schema": SCHEMA, "report": report, **vars(self)}


@dataclass(frozen=True)
class ImageDecision:
    """What one reviewer does with one image, by its row; to: label as sharded of a move, or -1."""

    image: int
    action: str
    to: int
    by: str
    seq: int

    @property
    def about(self) -> int:
        """Return what is decided on."""
        return self.image

    @property
    def verdict(self) -> str:
        """Return the action, with the identity of a move."""
        return f"move to {self.to}" if self.action == "move" else self.action

    def __str__(self) -> str:
        return f"the image {self.image}"

    def line(self, report: str) -> dict[str, Any]:
        """Return the decision as the object that stands in decisions.jsonl."""
        told = {"schema": IMAGE_SCHEMA, "report": report, **vars(self)}
        return told if self.action == "move" else {k: v for k, v in told.items() if k != "to"}


Said = Decision | ImageDecision
One = TypeVar("One", Decision, ImageDecision)


def report_id(folder: Path) -> str:
    """Name a report by its conflicts.json, which names the digests of its tables."""
    return "sha256:" + hashlib.sha256((folder / "conflicts.json").read_bytes()).hexdigest()


def checked(value: object, report: str, where: str) -> Said:
    """Turn one parsed line into a decision. Raises InputError GL0501."""
    if not isinstance(value, dict):
        raise InputError("GL0501", "expected a JSON object", where=where)
    schema = value.get("schema")
    if schema not in (SCHEMA, IMAGE_SCHEMA):
        what = f"expected schema {SCHEMA!r} or {IMAGE_SCHEMA!r}, found {schema!r}"
        raise InputError("GL0501", what, where=where)
    if value.get("report") != report:
        raise InputError(
            "GL0501",
            f"decided on the report {value.get('report')!r}, found {report}",
            where=where,
            hint="decisions belong to one report: move the file away, or review this report",
        )
    by, seq = value.get("by"), _number(value, "seq", where)
    if not usable_name(by):
        raise InputError(
            "GL0501",
            f"expected the name of a reviewer, 1 to {LONGEST} printable characters, found {by!r}",
            where=where,
        )
    if schema == IMAGE_SCHEMA:
        image, (action, to) = _number(value, "image", where), checked_action(value, where)
        return ImageDecision(image, action, to, str(by), seq)
    a, b = (_number(value, name, where) for name in ("a", "b"))
    verdict = value.get("verdict")
    if verdict not in (*VERDICTS, WITHDRAWN):
        raise InputError(
            "GL0501", f"expected merge, mask, keep or none, found {verdict!r}", where=where
        )
    return Decision(min(a, b), max(a, b), str(verdict), str(by), seq)


def checked_action(value: dict[str, Any], where: str) -> tuple[str, int]:
    """Return what a line does with an image, and the label of a move or -1.

    Raises InputError GL0501.
    """
    action = value.get("action")
    if action not in (*ACTIONS, WITHDRAWN):
        what = f"expected exclude, move, keep or none, found {action!r}"
        raise InputError("GL0501", what, where=where)
    if action == "move":
        return str(action), _number(value, "to", where)
    if value.get("to") is not None:
        raise InputError("GL0501", f"{action} goes to no identity, found to", where=where)
    return str(action), -1


def _number(value: dict[str, Any], name: str, where: str) -> int:
    """Return a field that is a whole number from 0 to 2**63 - 1. Raises InputError GL0501."""
    number = value.get(name)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**63:
        raise InputError(
            "GL0501", f"expected a number from 0 for {name}, found {number!r}", where=where
        )
    return number


def usable_name(by: object) -> bool:
    """Return whether this can be the name of a reviewer."""
    return isinstance(by, str) and 0 < len(by.strip()) <= len(by) <= LONGEST and by.isprintable()


def read(path: Path, report: str) -> list[Said]:
    """Read a file of decisions on one report; none where it is absent.

    A last line that a crash tore is left out, with a warning. Raises InputError GL0501 naming the
    line, GL0903 where the file cannot be read.
    """
    return _read(path, report)[0]


def _read(path: Path, report: str) -> tuple[list[Said], int]:
    """Return the decisions and the length in bytes of the lines that they stand in."""
    try:
        raw = reads.whole(path) if path.exists() else b""
    except OSError as error:
        raise InputError("GL0903", f"cannot be read: {error.strerror}", where=str(path)) from None
    found: list[Said] = []
    good = 0
    for number, line in enumerate(raw.splitlines(keepends=True), 1):
        where = f"{path}: line {number}"
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    logger.warning("%s: torn by a crash, left out", where)
                    break
                raise InputError("GL0501", f"is no JSON: {error}", where=where) from None
            found.append(checked(value, report, where))
        good += len(line)
    return found, good


class Book:
    """decisions.jsonl, open for one writer: append-only, each call durable when it returns."""

    def __init__(self, path: Path, report: str) -> None:
        self.path, self.report = path, report
        if path.is_symlink():
            raise atomic.foreign(path, "a file")
        self.decisions, good = _read(path, report)
        self._seq = max((d.seq for d in self.decisions), default=0)
        with atomic.writing(path):
            fresh = not path.exists()
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._file = os.fdopen(atomic.open_own(path, flags), "ab", buffering=0)
            os.fchmod(self._file.fileno(), 0o600)
            self._file.truncate(good)
            if good and path.read_bytes()[good - 1 : good] != b"\n":  # edited by hand
                self._file.write(b"\n")
            if fresh:
                atomic.sync_dir(path.parent)

    def add(
        self,
        by: str,
        verdicts: Sequence[tuple[int, int, str]],
        images: Sequence[tuple[int, str, int]] = (),
    ) -> list[Said]:
        """Append verdicts (a, b, verdict) and images (row, action, to) of one reviewer.

        Returns them as they stand: seq is the time in milliseconds, or one more than the last, so
        that the later decision stands. to: -1 but for a move.
        """
        added: list[Said] = []
        added += [Decision(min(a, b), max(a, b), how, by, self._next()) for a, b, how in verdicts]
        added += [ImageDecision(row, how, to, by, self._next()) for row, how, to in images]
        left = b"".join(json.dumps(d.line(self.report)).encode() + b"\n" for d in added)
        size = os.fstat(self._file.fileno()).st_size
        with atomic.writing(self.path):
            try:
                while left:
                    left = left[self._file.write(left) :]
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(size)  # or the next line would stand behind half a line
                raise
        self.decisions += added
        return added

    def _next(self) -> int:
        self._seq = max(self._seq + 1, time.time_ns() // 1_000_000)
        return self._seq

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _last(decisions: Iterable[One]) -> dict[Any, dict[str, One]]:
    """Return the last decision of each reviewer on each pair or image; withdrawn ones left out.

    Raises InputError GL0501 where one reviewer gave two verdicts on one under one seq.
    """
    last: dict[tuple[Any, str], One] = {}
    twice: set[tuple[Any, str]] = set()
    for one in decisions:
        key = (one.about, one.by)
        held = last.get(key)
        if held is None or one.seq > held.seq:
            last[key] = one
            twice.discard(key)
        elif one.seq == held.seq and one.verdict != held.verdict:
            twice.add(key)
    if twice:
        held = last[min(twice)]
        raise InputError(
            "GL0501",
            f"{held.by} said two things at once about {held} (seq {held.seq})",
            hint="decide it once more, or remove one of the lines",
        )
    found: dict[Any, dict[str, One]] = {}
    for (about, by), one in sorted(last.items()):
        if one.verdict != WITHDRAWN:
            found.setdefault(about, {})[by] = one
    return found


def standing(decisions: Iterable[Said]) -> dict[Pair, dict[str, str]]:
    """Return the last verdict of each reviewer: pair -> reviewer -> verdict; withdrawn left out.

    Raises InputError GL0501 where one reviewer gave two verdicts on a pair under one seq.
    """
    pairs = _last(one for one in decisions if isinstance(one, Decision))
    return {pair: {by: one.verdict for by, one in said.items()} for pair, said in pairs.items()}


def unspoken(decisions: Iterable[Said], row_k: Ints) -> npt.NDArray[np.bool_]:
    """Return which images, by row, no reviewer decided on. Raises what `standing` does."""
    said = _last(one for one in decisions if isinstance(one, ImageDecision))
    return ~np.isin(row_k, np.fromiter(said, np.int64, len(said)))


def settle_images(decisions: Iterable[Said], images: int, target_C: Ints) -> tuple[Ints, Ints]:
    """Return the images that reviewers changed, ascending, and the label of each, or -1.

    Rows int64 [k], labels as sharded int64 [k] (-1: excluded); images to keep are none of them.
    images: of the dataset; target_C: who is one person once the decisions on pairs hold, so that
    two reviewers agree who move an image to two labels of one.
    Raises InputError GL0501, by name, where an image or an identity is unknown or dropped, and
    where reviewers disagree.
    """
    said = _last(one for one in decisions if isinstance(one, ImageDecision))
    rows, labels, clashes, lost = [], [], [], []
    for row, by_name in said.items():
        if row >= images:
            raise InputError(
                "GL0501", f"a decision names the image {row}, the dataset has {images}"
            )
        for one in by_name.values():
            if one.to >= len(target_C) or (one.to >= 0 and target_C[one.to] < 0):
                lost.append(f"image {row} to {one.to} by {one.by}")
        if lost:
            continue
        meant = {
            (one.action, int(target_C[one.to]) if one.to >= 0 else -1) for one in by_name.values()
        }
        if len(meant) > 1:
            what = ", ".join(f"{one.verdict} by {by}" for by, one in sorted(by_name.items()))
            clashes.append(f"{row}: {what}")
            continue
        one = by_name[min(by_name)]
        if one.action != "keep":
            rows.append(row)
            labels.append(one.to)
    _refuse(lost, "an image moves to an identity that is dropped or unknown: ")
    _refuse(clashes, "reviewers disagree about the image ")
    return np.array(rows, np.int64), np.array(labels, np.int64)


def settle(
    decisions: Iterable[Said], a_K: Ints, b_K: Ints, verdict_K: npt.NDArray[np.str_]
) -> npt.NDArray[np.str_]:
    """Return the verdicts of K pairs (a < b) after the decisions of all reviewers.

    Raises InputError GL0501, by name, where a pair is unknown, where reviewers disagree, and where
    two identities that a reviewer did not merge become one by way of others.
    """
    verdicts = standing(decisions)
    place = {pair: k for k, pair in enumerate(zip(a_K.tolist(), b_K.tolist()))}
    unknown = [pair for pair in verdicts if pair not in place]
    if unknown:
        raise InputError(
            "GL0501",
            f"a decision names the identities {unknown[0][0]} and {unknown[0][1]}, "
            "which are no pair of the report",
        )
    clashes = [
        f"{a} and {b}: "
        + ", ".join(f"{verdict} by {by}" for by, verdict in sorted(by_name.items()))
        for (a, b), by_name in verdicts.items()
        if len(set(by_name.values())) > 1
    ]
    _refuse(clashes, "reviewers disagree about the identities ")
    out = verdict_K.astype(object)
    for pair, by_name in verdicts.items():
        out[place[pair]] = next(iter(by_name.values()))
    settled: npt.NDArray[np.str_] = out.astype(str)
    merge = settled == "merge"
    group = {int(label): piece for piece in components(a_K[merge], b_K[merge]) for label in piece}
    chains = []
    for (a, b), by_name in verdicts.items():
        by, verdict = min(by_name.items())
        if verdict != "merge" and a in group and group[a] is group.get(b):
            through = [int(label) for label in group[a] if label not in (a, b)][:SHOWN]
            chains.append(f"{a} and {b} ({verdict} by {by}) by way of {through}")
    _refuse(chains, "merges join what was kept apart: ")
    return settled


def _refuse(found: list[str], what: str) -> None:
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise InputError(
            "GL0501",
            what + "; ".join(found[:SHOWN]) + more,
            hint="decide these again: glint dedup-conflicts review FOLDER, filter contradictions",
        )

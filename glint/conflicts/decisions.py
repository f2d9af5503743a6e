"""What reviewers decided: lines of decisions.jsonl, which of them stand, where they contradict.

One JSON object a line: schema, report (digest of conflicts.json), a, b (labels as sharded, a < b),
verdict (merge, mask, keep, or none: withdrawn), by (the reviewer), seq. Of the lines of one
reviewer about one pair the largest seq stands, so neither the order of lines nor of files matters.
"""

# K pairs

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glint.conflicts.groups import components
from glint.errors import InputError
from glint.files import atomic, reads
from glint.log import logger

NAME = "decisions.jsonl"
SCHEMA = "glint/decision@1"
VERDICTS = ("merge", "mask", "keep")
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

    def line(self, report: str) -> dict[str, Any]:
        """Return the decision as the object that stands in decisions.jsonl."""
        return {
            "schema": SCHEMA,
            "report": report,
            "a": self.a,
            "b": self.b,
            "verdict": self.verdict,
            "by": self.by,
            "seq": self.seq,
        }


def report_id(folder: Path) -> str:
    """Name a report by its conflicts.json, which names the digests of its tables."""
    return "sha256:" + hashlib.sha256((folder / "conflicts.json").read_bytes()).hexdigest()


def checked(value: object, report: str, where: str) -> Decision:
    """Turn one parsed line into a decision. Raises InputError GL0501."""
    if not isinstance(value, dict):
        raise InputError("GL0501", "expected a JSON object", where=where)
    if value.get("schema") != SCHEMA:
        raise InputError(
            "GL0501", f"expected schema {SCHEMA!r}, found {value.get('schema')!r}", where=where
        )
    if value.get("report") != report:
        raise InputError(
            "GL0501",
            f"decided on the report {value.get('report')!r}, found {report}",
            where=where,
            hint="decisions belong to one report: move the file away, or review this report",
        )
    a, b, seq = (value.get(name) for name in ("a", "b", "seq"))
    for name, number in (("a", a), ("b", b), ("seq", seq)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise InputError(
                "GL0501", f"expected a number from 0 for {name}, found {number!r}", where=where
            )
    assert isinstance(a, int) and isinstance(b, int) and isinstance(seq, int)
    verdict, by = value.get("verdict"), value.get("by")
    if verdict not in (*VERDICTS, WITHDRAWN):
        raise InputError(
            "GL0501", f"expected merge, mask, keep or none, found {verdict!r}", where=where
        )
    if not usable_name(by):
        raise InputError(
            "GL0501",
            f"expected the name of a reviewer, 1 to {LONGEST} printable characters, found {by!r}",
            where=where,
        )
    return Decision(min(a, b), max(a, b), str(verdict), str(by), seq)


def usable_name(by: object) -> bool:
    """Return whether this can be the name of a reviewer."""
    return isinstance(by, str) and 0 < len(by.strip()) <= len(by) <= LONGEST and by.isprintable()


def read(path: Path, report: str) -> list[Decision]:
    """Read a file of decisions on one report; none where it is absent.

    A last line that a crash tore is left out, with a warning. Raises InputError GL0501 naming the
    line, GL0903 where the file cannot be read.
    """
    return _read(path, report)[0]


def _read(path: Path, report: str) -> tuple[list[Decision], int]:
    """Return the decisions and the length in bytes of the lines that they stand in."""
    try:
        raw = reads.whole(path) if path.exists() else b""
    except OSError as error:
        raise InputError("GL0903", f"cannot be read: {error.strerror}", where=str(path)) from None
    found: list[Decision] = []
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

    def add(self, by: str, verdicts: Sequence[tuple[int, int, str]]) -> list[Decision]:
        """Append verdicts (a, b, verdict) of one reviewer and return them as they stand.

        seq is the time in milliseconds, or one more than the last: the later decision stands.
        """
        added = []
        for a, b, verdict in verdicts:
            self._seq = max(self._seq + 1, time.time_ns() // 1_000_000)
            added.append(Decision(min(a, b), max(a, b), verdict, by, self._seq))
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

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def standing(decisions: Iterable[Decision]) -> dict[Pair, dict[str, str]]:
    """Return the last verdict of each reviewer: pair -> reviewer -> verdict; withdrawn left out.

    Raises InputError GL0501 where one reviewer gave two verdicts on a pair under one seq.
    """
    last: dict[tuple[int, int, str], Decision] = {}
    twice: set[tuple[int, int, str]] = set()
    for one in decisions:
        key = (one.a, one.b, one.by)
        held = last.get(key)
        if held is None or one.seq > held.seq:
            last[key] = one
            twice.discard(key)
        elif one.seq == held.seq and one.verdict != held.verdict:
            twice.add(key)
    if twice:
        a, b, by = min(twice)
        raise InputError(
            "GL0501",
            f"{by} said two things at once about the identities {a} and {b} "
            f"(seq {last[a, b, by].seq})",
            hint="decide the pair once more, or remove one of the lines",
        )
    verdicts: dict[Pair, dict[str, str]] = {}
    for (a, b, by), one in sorted(last.items()):
        if one.verdict != WITHDRAWN:
            verdicts.setdefault((a, b), {})[by] = one.verdict
    return verdicts


def settle(
    decisions: Iterable[Decision], a_K: Ints, b_K: Ints, verdict_K: npt.NDArray[np.str_]
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
            hint="decide these pairs again: glint dedup-conflicts review FOLDER, filter "
            "contradictions",
        )

"""Is a dataset still what was written? Everything that is not is named."""

# n samples of a shard, C labels as sharded

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glint import log, schemas
from glint.errors import GlintError, InputError, UsageError
from glint.files import atomic, parquet, seal
from glint.files.store import is_url
from glint.log import Progress
from glint.results import datasets as results
from glint.shards import against, dali, decoded, labels, private, tombstones
from glint.shards.dataset import TABLES, Dataset
from glint.shards.remote import Remote
from glint.shards.walk import Entry, Findings, Problem, Rows, entries, index, none, plain_size, walk

OBJECTS = 16  # objects of a store asked for at once
_LOST, _LINE = "the file is missing", "a line is damaged"
_TODO = "make the dataset again from its source, or bring the files back from a copy"

Ints = NDArray[np.int64]
Place = Remote | Path
Pool = tuple[Callable[..., Any], int]  # starts the reading of a shard; how many at a time


class _Check:
    """What is known of one dataset while it is verified."""

    def __init__(self, root: against.Place) -> None:
        self.remote = Remote(os.fspath(root)) if is_url(root) else None
        self.root = Path(root) if self.remote is None else self.remote.root
        self.place = self.remote or self.root
        self.found, self.notes, self.there = Findings(), list[str](), set[int]()

    def problem(
        self, code: str, what: str, file: str, *said: object, at: int | None = None
    ) -> None:
        """Note a problem with a file: what was expected and found, and the place."""
        self.found.add(Problem(code, what, file, None, at, *map(str, said)))

    @contextmanager
    def reading(self, file: str, code: str = "") -> Iterator[None]:
        """Note what a reader says of a file; with `code` also that it is missing."""
        try:
            yield
        except GlintError as error:
            lost = code and isinstance(error.__cause__, FileNotFoundError)
            self.problem(code if lost else error.code, _LOST if lost else error.what, file)
        except FileNotFoundError:
            if code:
                self.problem(code, _LOST, file)
        except OSError as error:
            self.problem("GL0903", f"cannot be read: {error.strerror or error}", file)

    def plain(self, name: str, code: str = "GL0301") -> Path:
        """Return the path of a file that may be opened. Raises InputError, OSError."""
        found = plain_size(self.root / name)
        if found == "":
            raise FileNotFoundError(name)
        if isinstance(found, str):
            raise InputError(code, f"expected a plain file, found {found}")
        return self.root / name

    def manifest(self) -> Dataset | None:
        """Check the manifest against its seal and itself."""
        name = "manifest.json"
        if not (self.root / name).is_file():
            Dataset(self.root)  # says what is wrong with the folder
        with self.reading(name):
            seal.check(self.root / name)
        try:
            dataset = Dataset(self.root)
            said, listed = dataset.manifest, entries(dataset)
            if any(min(entry.samples, entry.bytes) < 0 for entry in listed):
                raise ValueError("the shards: a negative size")
            if not 0 <= dataset.classes <= 10**9:
                raise ValueError(f"identities: {dataset.classes}")
            parts = [int(said.get(it, 0)) for it in ("written", "quarantined", "erased", "further")]
        except (InputError, KeyError, TypeError, ValueError) as error:
            if not isinstance(error, InputError):
                self.problem("GL0301", f"lacks or spoils {error}", name)
            elif not self.found.count:  # else the seal has said it
                self.problem(error.code, error.what, name)
            return None
        if (total := sum(entry.samples for entry in listed)) != dataset.n:
            what = "the counts of the shards do not add up"
            self.problem("GL0301", what, name, dataset.n, total)
        if said.get("read") != sum(parts[:3]) - parts[3]:
            what, plus = "read is not written + quarantined", " + ".join(map(str, parts[:3]))
            self.problem("GL0301", what, name, plus, said.get("read"))
        return dataset

    def tables(self, dataset: Dataset) -> None:
        """Check the bytes of every table that the manifest lists."""
        listed = dataset.manifest.get("files")
        listed = listed if isinstance(listed, list) else []
        names = {str(entry.get("name")) for entry in listed if isinstance(entry, dict)}
        for name in TABLES:
            if name not in names:
                self.problem("GL0301", f"no digest of {name} is recorded", "manifest.json")
        for entry in listed:
            self.bytes(entry, "", "GL0301")
        if self.remote is not None:
            self.remote.loose()
            for entry in listed:
                with suppress(InputError):  # one that is spoilt has been named
                    self.remote.table(entry)

    def bytes(self, entry: Any, below: str, code: str) -> None:
        """Compare size and SHA-256 of a file with what is recorded."""
        name = str(entry.get("name")) if isinstance(entry, dict) else ""
        if name in ("", ".", "..") or "/" in name:
            what = f"expected a file's name, found {name!r}"
            return self.problem(code, what, below or "manifest.json")
        file = below + name
        with self.reading(file, code):
            found = (
                self.remote.store.entry(file) if self.remote else seal.entry(self.plain(file, code))
            )
            for part in ("bytes", "sha256"):
                if found[part] != entry.get(part):
                    what, said = "the file's bytes have changed", f"{part} {entry.get(part)}"
                    return self.problem(code, what, file, said, found[part])

    def shards(self, dataset: Dataset, deep: bool) -> None:
        """Compare names and sizes with the manifest; what a store has besides is not seen."""
        listed, none = entries(dataset), "no object" if self.remote else "no file"
        names = {entry.name for entry in listed}
        if len(names) != len(listed):
            self.problem("GL0301", "a shard is listed twice", "manifest.json")
        with ThreadPoolExecutor(OBJECTS) as pool:
            sizes = list(pool.map(partial(_size, self.place), listed))
            indexes = list(pool.map(partial(_index, self.place), dataset.manifest["shards"]))
        lost = []
        for number, (entry, size) in enumerate(zip(listed, sizes)):
            said, what = f"{entry.bytes} bytes", "the shard has another size"
            if isinstance(size, int):
                self.there.add(number)
                if size != entry.bytes and not deep:
                    at = min(size, entry.bytes)
                    self.problem("GL0302", what, entry.file, said, f"{size} bytes", at=at)
            elif isinstance(size, str):
                lost += [] if size else [entry]
                what = "no plain file" if size else "the shard is missing"
                self.problem("GL0302", what, entry.file, said, size or none)
            else:
                self.problem(size.code, size.what, entry.file)
        for entry, odd in zip(listed, indexes):
            if odd is not None:
                code = "GL0903" if odd[0].startswith("cannot be read") else "GL0302"
                self.problem(code, odd[0], f"data/{dali.index_name(entry.name)}", *odd[1:])
        with self.reading("data"):
            for path in () if self.remote else sorted((self.root / "data").iterdir()):
                if path.name not in names:
                    self.besides(path, lost if deep else [])

    def besides(self, path: Path, lost: list[Entry]) -> None:
        """Note a file that the manifest does not list, and whether it is one of the lost."""
        file = f"data/{path.name}"
        if ".tmp." in path.name:
            self.notes.append(f"{file} was left by a run that was killed")
        elif path.name.endswith(".tar"):
            what, found = "a shard that the manifest does not list", "a file"
            if plain_size(path) in {entry.bytes for entry in lost}:
                told = seal.entry(path)["sha256"]
                twins = [entry.name for entry in lost if entry.sha256 == told]
                found = f"the bytes of {twins[0]}" if twins else found
            self.problem("GL0302", what, file, "no such file", found)

    def rows(self, dataset: Dataset, count_C: Ints, mine: range) -> Iterator[tuple[int, Rows]]:
        """Read the index shard by shard, checking that it is one; add to `count_C`."""
        last, total, listed, name = -1, 0, entries(dataset), "samples.parquet"
        with self.reading(name):
            for number, rows in index(dataset) if self.plain(name) else ():
                key_n = rows.key_n9.astype(np.int64) @ (10 ** np.arange(8, -1, -1)) - 5_333_333_328
                total += len(key_n)
                if (np.diff(key_n, prepend=last) <= 0).any():
                    self.problem("GL0301", f"keys do not ascend in shard {number}", name)
                last = int(key_n[-1])
                inside = (rows.label_n >= 0) & (rows.label_n < dataset.classes)
                if not inside.all():
                    what, said = f"a label of shard {number} is out of range", dataset.classes - 1
                    self.problem("GL0301", what, name, f"0 to {said}", rows.label_n[~inside][0])
                count_C += np.bincount(rows.label_n[inside], minlength=dataset.classes)
                entry = listed[number]
                if number in mine and len(key_n) != entry.samples:
                    what = "the index has another number of samples of this shard"
                    self.problem("GL0302", what, entry.file, entry.samples, len(key_n))
                yield number, rows
            if total != dataset.n:
                what = "the index has another number of samples"
                self.problem("GL0301", what, name, dataset.n, total)

    def deep(self, dataset: Dataset, count_C: Ints, mine: range, pool: Any, show: Progress) -> None:
        """Walk the shards `mine`, some at a time; name shards that hold another's bytes."""
        listed, left, done = entries(dataset), self.there & {*mine}, 0
        total = sum(listed[i].bytes for i in mine)
        owner = {entry.sha256: entry.name for entry in listed}
        waiting: deque[tuple[Entry, Any]] = deque()

        def todo() -> Iterator[tuple[int, Rows | None]]:
            for number, rows in self.rows(dataset, count_C, mine):
                if number in left:
                    left.discard(number)
                    yield number, rows
            for number in sorted(left):  # empty ones; all that are left if the index is damaged
                yield number, None if listed[number].samples else none()

        def settle(most: int) -> None:
            nonlocal done
            while len(waiting) > most:
                entry, coming = waiting.popleft()
                found, told = coming.result()
                other = owner.get(told, entry.name)
                if told != entry.sha256 and other != entry.name:
                    what, seen = "the shard holds another's bytes", f"the bytes of {other}"
                    self.problem("GL0302", what, entry.file, entry.name, seen)
                else:
                    self.found.join(found)
                done += entry.bytes
                show(done, total, entry.name)

        with pool as (submit, workers):
            for number, rows in todo():
                entry = listed[number]
                waiting.append((entry, submit(_walk, self.place, number, entry, rows)))
                settle(2 * workers)
            settle(0)

    def identities(self, dataset: Dataset, count_C: Ints) -> None:
        """Check that row i is label i and, where the index could be read, its count."""
        name = "identities.parquet"
        with self.reading(name):
            table = parquet.read(self.plain(name), schemas.IDENTITIES)
            label, count = (table.column(part).to_numpy() for part in ("label", "count"))
            if not np.array_equal(label, np.arange(dataset.classes)):
                said = f"labels 0 to {dataset.classes - 1}"
                self.problem("GL0301", "row i is not label i", name, said, f"{len(label)} rows")
            elif int(count_C.sum()) == dataset.n and len(wrong := np.flatnonzero(count != count_C)):
                what = f"{len(wrong)} counts are wrong, first label {wrong[0]}"
                self.problem("GL0301", what, name, count_C[wrong[0]], count[wrong[0]])

    def quarantine(self, dataset: Dataset) -> None:
        """Check that what was not written is accounted for."""
        name, said = "quarantine.parquet", dataset.manifest
        with self.reading(name):
            table = parquet.read(self.plain(name), schemas.QUARANTINE)
            found = dict(sorted(Counter(table.column("reason").to_pylist()).items()))
            told = said.get("quarantine_reasons")
            if told != found or said.get("quarantined") != table.num_rows:
                what = "the quarantine is not what the manifest says"
                self.problem("GL0301", what, name, told, found)

    def versions(self, dataset: Dataset) -> dict[str, int]:
        """Check the label table in force, every version in the history, and the tombstones."""
        folder, name, result = self.root / "labels", "labels/current.json", dict[str, int]()
        with self.reading("_glint"):
            self.found.join(private.links(self.root, self.notes))
        with self.reading("labels"):
            for path in folder.iterdir() if folder.is_dir() else ():
                self.plain(f"labels/{path.name}", "GL0304")
            history, bad = seal.lines(folder / "history.jsonl")
            if bad is not None:
                self.problem("GL0304", _LINE, "labels/history.jsonl", at=bad)
            made = [entry for line in history for entry in line.get("files", ())]
            for entry in made:
                self.bytes(entry, "labels/", "GL0304")
            names = {path.name for path in folder.glob("v*.parquet")} if bad is None else set()
            for one in sorted(names - {entry["name"] for entry in made}):
                self.notes.append(f"labels/{one} is in no history: an interrupted apply")
            table, path = labels.unchecked(self.root, dataset.classes), self.root / name
            if path.exists() and path.read_bytes() != seal.spell(atomic.read_json(path)):
                what = "expected the spelling that glint writes, found another"
                self.problem("GL0304", what, name)
            ends = {history[-1]["version"], history[-1]["from"]} if history else {0}
            if bad is None and table.version not in ends:
                what = "the version in force is not the history's last"
                self.problem("GL0304", what, name, sorted(ends)[-1], table.version)
            elif history and bad is None and table.version != history[-1]["version"]:
                self.notes.append("the last change of the labels was interrupted: make it again")
            self.tombstones(table, history)
            result |= {"label_version": table.version, "classes": table.classes}
        return result

    def tombstones(self, table: labels.LabelTable, history: list[dict[str, Any]]) -> None:
        """Check that every take-down has a line, and that its labels are not in force."""
        lines, bad = list[dict[str, Any]](), None
        with self.reading(tombstones.FILE):
            lines, bad = seal.lines(self.plain(tombstones.FILE, "GL0304"))
        if bad is not None:
            self.problem("GL0304", _LINE, tombstones.FILE, at=bad)
        buried = [label for line in lines for label in line.get("labels", ())]
        dropped = [line["why"] for line in history if line.get("why", {}).get("stage") == "drop"]
        bare = sorted({label for why in dropped for label in why.get("labels", ())} - {*buried})
        if bare and bad is None:
            what = f"identity {bare[0]} was taken down and has no tombstone ({len(bare)} in all)"
            self.problem("GL0304", what, tombstones.FILE, "a line for each take-down", "none")
        with self.reading("samples.parquet"):
            for name in tombstones.revived(self.root, table) if lines and bad is None else ():
                what = f"{name} was taken down and is in the labels in force"
                self.problem("GL0308", what, "labels/current.json", "target -1", "a target")

    def sampling(self) -> None:
        """Check that a sampling table can be read."""
        with self.reading("sampling.parquet"):
            parquet.read(self.plain("sampling.parquet"), schemas.SAMPLING, code="GL0305")


def _size(place: Place, entry: Entry) -> int | str | GlintError:
    """Return the size of a shard, what stands there instead, or why neither can be said."""
    try:
        if isinstance(place, Path):
            return plain_size(place / entry.file)
        stat = place.store.stat(entry.file)
        return "" if stat is None else stat.size
    except GlintError as error:
        return error
    except OSError as error:
        return InputError("GL0903", f"cannot be read: {error.strerror or error}")


def _index(place: Place, told: dict[str, Any]) -> tuple[str, str, str] | None:
    """Compare a shard's index for DALI: what is wrong, expected, found."""
    name = dali.index_name(f"data/{told['name']}")
    if isinstance(place, Path):
        odd = plain_size(place / name) if "idx" in told else 0
        if isinstance(odd, str) and odd:
            return "no plain file", f"sha256 {told['idx']}", odd
        return dali.damage(place / "data", told)
    data = place.store.get(name) if "idx" in told else None
    sha256 = None if data is None else hashlib.sha256(data).hexdigest()
    return dali.difference(told, sha256, "no object")


def _walk(place: Place, number: int, entry: Entry, rows: Rows | None) -> tuple[Findings, str]:
    """Read one shard; one in a store is fetched for it, whatever the cache holds."""
    if isinstance(place, Path):
        return walk(place / entry.file, entry, rows)
    try:
        with place.fresh(number) as root:
            return walk(root / entry.file, entry, rows)
    except InputError as error:
        return Findings([Problem(error.code, error.what, entry.file)], 1), ""


@contextmanager
def _threads(workers: int) -> Iterator[Pool]:
    with ThreadPoolExecutor(workers) as pool:
        yield pool.submit, workers


def verify(
    root: against.Place,
    *,
    deep: bool = False,
    workers: int = 1,
    progress: Progress = log.silent,
    task: tuple[int, int] = (0, 1),
    pool: AbstractContextManager[Pool] | None = None,
    sources: Sequence[against.Place] = (),
    labels_file: str = "",
    decode: bool = False,
) -> results.Verify:
    """Check a dataset and return what is wrong with it.

    Shallow: every file is there with its size, every table has its digest, all counts add up, the
    labels fit. Deep: one sequential read of every shard, see `walk`; `progress` is in bytes. Task
    (i, N) reads the shards with number % N == i, only task 0 the tables: all is well where it is
    for every task. decode: see `decoded`; sources, labels_file: see `against`. Raises GL0301, too.
    """
    if workers < 1:
        raise UsageError("GL0002", f"expected 1 or more, found {workers}", where="--workers")
    started, check = time.perf_counter(), _Check(root)
    if os.path.realpath(root) in map(os.path.realpath, sources):
        what, hint = "a dataset proves nothing of itself", "give what it was made of"
        raise UsageError("GL0002", what, where="--against", hint=hint)
    origins = against.read_as(root, sources, labels_file) if sources else []
    dataset = check.manifest()
    result: dict[str, Any] = {}
    if dataset is not None:
        listed = entries(dataset)
        mine = range(task[0], len(listed), task[1])
        if task[0] == 0:
            check.tables(dataset)
        elif check.remote is not None:
            check.remote.tables()
        check.shards(dataset, deep)
        count_C = np.zeros(dataset.classes, np.int64)
        if deep:
            check.deep(dataset, count_C, mine, pool or _threads(workers), progress)
        else:
            deque(check.rows(dataset, count_C, mine), maxlen=0)
        if task[0] == 0:
            check.identities(dataset, count_C)
            check.quarantine(dataset)
            result |= check.versions(dataset)
            check.sampling()
        result |= {
            "shards": len(mine),
            "samples": sum(listed[i].samples for i in mine),
            "identities": dataset.classes,
            "digest": dataset.digest,
            "bytes": sum(listed[i].bytes for i in mine),
        }
        if task[1] > 1:
            result |= {"task": f"{task[0]}/{task[1]}", "of_shards": len(listed)}
        if origins:
            lost = {*range(len(listed))} - check.there
            found, told = against.compare(root, origins, lost, progress)
            check.found.join(found)
            result["against"] = results.Against(**told)
        if decode and not check.found.count:
            check.notes += decoded.check(dataset, check.found, workers, progress)
            result["decoded"] = True
    return results.Verify(
        **result, ok=not check.found.count, deep=deep, dataset=str(root),
        problem_count=check.found.count,
        problems=[results.Problem(**one.as_dict()) for one in check.found.shown],
        shown=[*map(str, check.found.shown)], notes=check.notes,
        hint=_TODO if check.found.count else "",
        seconds=round(time.perf_counter() - started, 3),
    )  # fmt: skip


def survey(
    root: against.Place, sources: Sequence[against.Place] = (), *, deep: bool = False
) -> results.VerifyPlan:
    """Return what there is to read. Raises InputError GL0301, and what `against` raises."""
    dataset = Dataset(root)
    kinds = [results.SourceKind(source=os.fspath(s), kind=against.kind_of(s)) for s in sources]
    return results.VerifyPlan(
        dry_run=True, dataset=str(root), deep=deep, against=kinds or None,
        files=len(dataset.manifest.get("files", ())) + 1, shards=len(entries(dataset)),
        bytes=sum(entry.bytes for entry in entries(dataset)),
    )  # fmt: skip

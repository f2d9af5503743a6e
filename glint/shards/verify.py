"""Is a dataset still what was written? Everything that is not is named."""

# n samples of a shard, C labels as sharded

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from glint import log
from glint.errors import InputError, ResourceError, UsageError
from glint.log import Progress
from glint.manifests import tables
from glint.shards import commit, dali, labels, parquet, seal
from glint.shards.cache import Remote
from glint.shards.index import Dataset
from glint.shards.store import is_url
from glint.shards.walk import SHOWN, Entry, Findings, Ints, Problem, Rows, walk

# Tables without which a folder is no dataset.
TABLES = ("samples.parquet", "identities.parquet", "quarantine.parquet")
TOMBSTONES = "_glint/tombstones.jsonl"
OBJECTS = 16  # objects of a store asked for at once
_COLUMNS = ["key", "label", "shard", "offset", "size", "digest"]
_TODO = "make the dataset again from its source, or bring the files back from a copy"


class Coming(Protocol):
    """A result that is on its way: a Future, or an engine's."""

    def result(self) -> tuple[Findings, str]: ...


# What starts the reading of a shard, and how many are read at a time.
Pool = tuple[Callable[..., Coming], int]


@contextmanager
def _threads(workers: int) -> Iterator[Pool]:
    with ThreadPoolExecutor(workers) as pool:
        yield pool.submit, workers


class _Check:
    """What is known of one dataset while it is verified."""

    def __init__(self, root: str | os.PathLike[str], sha256: bool = False) -> None:
        self.sha256 = sha256
        self.remote = Remote(os.fspath(root)) if is_url(root) else None
        self.root = Path(root) if self.remote is None else self.remote.root
        self.found = Findings()
        self.notes: list[str] = []

    def problem(
        self,
        code: str,
        what: str,
        file: str,
        expected: object = "",
        found: object = "",
        offset: int | None = None,
    ) -> None:
        """Note a problem with a file."""
        self.found.add(Problem(code, what, file, None, offset, str(expected), str(found)))

    def error(self, error: InputError, file: str) -> None:
        """Note what a reader said of a file."""
        self.problem(error.code, error.what, file)

    def manifest(self) -> Dataset | None:
        """Check the manifest against its seal and itself."""
        path = self.root / "manifest.json"
        if not path.is_file():
            Dataset(self.root)  # says what is wrong with the folder
        try:
            seal.check(path)
        except InputError as error:
            self.error(error, "manifest.json")
        try:
            dataset = Dataset(self.root)
            for entry in entries(dataset):
                if min(entry.samples, entry.bytes) < 0:
                    raise ValueError(f"{entry.name}: a negative size")
            if not 0 <= dataset.classes <= 10**9:
                raise ValueError(f"identities: {dataset.classes}")
        except InputError as error:
            if not self.found.count:
                self.error(error, "manifest.json")
            return None
        except (KeyError, TypeError, ValueError) as error:
            self.problem("GL0301", f"lacks or spoils {error}", "manifest.json")
            return None
        said = dataset.manifest
        total = sum(entry.samples for entry in entries(dataset))
        if total != dataset.n:
            self.problem(
                "GL0301",
                "the counts of the shards do not add up",
                "manifest.json",
                dataset.n,
                total,
            )
        parts = [said.get(name, 0) for name in ("written", "quarantined", "erased")]
        if said.get("read") != sum(parts):
            self.problem(
                "GL0301",
                "read is not written + quarantined",
                "manifest.json",
                " + ".join(map(str, parts)),
                said.get("read"),
            )
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
            self._bytes(entry, self.root, "", "GL0301")
        if self.remote is not None:
            self.remote.loose()
            for entry in listed:
                with suppress(InputError):  # one that is spoilt has been named
                    self.remote.table(entry)

    def _bytes(self, entry: Any, folder: Path, below: str, code: str) -> None:
        name = str(entry.get("name")) if isinstance(entry, dict) else ""
        if name in ("", ".", "..") or "/" in name:
            self.problem(code, f"expected a file's name, found {name!r}", below or "manifest.json")
            return
        try:
            found = (
                seal.entry(folder / name) if self.remote is None else self.remote.told(below + name)
            )
        except (ResourceError, InputError) as error:
            lost = isinstance(error.__cause__, FileNotFoundError)
            what = "the file is missing" if lost else error.what
            self.problem(code, what, below + name)
            return
        for field in ("bytes", "sha256"):
            if found[field] != entry.get(field):
                self.problem(
                    code,
                    "the file's bytes have changed",
                    below + name,
                    f"{field} {entry.get(field)}",
                    found[field],
                )
                return

    def folder(self, dataset: Dataset, deep: bool) -> None:
        """Compare the names and sizes in data/ with the manifest."""
        data, listed = self.root / "data", {entry.name: entry for entry in entries(dataset)}
        if len(listed) != len(dataset.shards):
            self.problem("GL0301", "a shard is listed twice", "manifest.json")
        there = {p.name: p for p in sorted(data.iterdir())} if data.is_dir() else {}
        lost = [entry for name, entry in listed.items() if name not in there]
        for entry in lost:
            self.problem(
                "GL0302", "the shard is missing", entry.file, f"{entry.bytes} bytes", "no file"
            )
        for name, path in there.items():
            if name in listed:
                size = path.stat().st_size
                if size != listed[name].bytes and not deep:
                    self.problem(
                        "GL0302",
                        "the shard has another size",
                        f"data/{name}",
                        f"{listed[name].bytes} bytes",
                        f"{size} bytes",
                        min(size, listed[name].bytes),
                    )
            elif ".tmp." in name:
                self.notes.append(f"data/{name} was left by a run that was killed")
            elif name.endswith(".tar"):
                twin = self._twin(path, lost) if deep else ""
                self.problem(
                    "GL0302",
                    "a shard that the manifest does not list",
                    f"data/{name}",
                    "no such file",
                    f"the bytes of {twin}" if twin else "a file",
                )
        for told in dataset.manifest["shards"]:
            if found := dali.damage(data, told):
                what, expected, seen = found
                self.problem(
                    "GL0302", what, f"data/{dali.beside(str(told['name']))}", expected, seen
                )

    def objects(self, remote: Remote, dataset: Dataset, deep: bool) -> None:
        """Compare the objects of a store with the manifest; what it does not list is not seen."""
        listed = entries(dataset)
        with ThreadPoolExecutor(OBJECTS) as pool:
            stats = list(pool.map(remote.store.stat, [entry.file for entry in listed]))
            problems = list(pool.map(partial(_index, remote), dataset.manifest["shards"]))
        self.lost = {i for i, stat in enumerate(stats) if stat is None}
        for entry, stat, problem in zip(listed, stats, problems):
            expected = f"{entry.bytes} bytes"
            if stat is None:
                self.problem("GL0302", "the shard is missing", entry.file, expected, "no object")
            elif stat.size != entry.bytes and not deep:
                self.problem(
                    "GL0302",
                    "the shard has another size",
                    entry.file,
                    expected,
                    f"{stat.size} bytes",
                    min(stat.size, entry.bytes),
                )
            if problem is not None:
                self.problem("GL0302", *problem)

    def there(self, listed: list[Entry]) -> set[int]:
        """Return the shards that are there."""
        if self.remote is not None:
            return set(range(len(listed))) - self.lost
        return {i for i, entry in enumerate(listed) if (self.root / entry.file).is_file()}

    def walk(self, number: int, entry: Entry, rows: Rows | None) -> tuple[Findings, str]:
        """Read one shard; one in a store is fetched for it, whatever the cache holds."""
        if self.remote is None:
            return walk(self.root, entry, rows, self.sha256)
        with self.remote.fresh(number) as root:
            return walk(root, entry, rows, self.sha256)

    def _twin(self, path: Path, lost: list[Entry]) -> str:
        if path.stat().st_size not in {entry.bytes for entry in lost}:
            return ""
        with path.open("rb") as file:
            told = commit.sha256(file)
        return next((entry.name for entry in lost if entry.sha256 == told), "")

    def rows(self, dataset: Dataset, count_C: Ints) -> Iterator[tuple[int, Rows]]:
        """Read the index shard by shard, checking that it is one; add to `count_C`."""
        last, total = -1, 0
        try:
            for number, table in runs(dataset):
                rows = columns(table, number)
                key_n = rows.key_n9.astype(np.int64) @ (10 ** np.arange(8, -1, -1)) - 5_333_333_328
                total += len(key_n)
                if len(key_n) and (key_n[0] <= last or (np.diff(key_n) <= 0).any()):
                    self.problem(
                        "GL0301", f"keys do not ascend in shard {number}", "samples.parquet"
                    )
                last = int(key_n[-1]) if len(key_n) else last
                inside = (rows.label_n >= 0) & (rows.label_n < dataset.classes)
                if not inside.all():
                    worst = int(rows.label_n[~inside][0])
                    self.problem(
                        "GL0301",
                        f"a label of shard {number} is out of range",
                        "samples.parquet",
                        f"0 to {dataset.classes - 1}",
                        worst,
                    )
                count_C += np.bincount(rows.label_n[inside], minlength=dataset.classes)
                yield number, rows
        except InputError as error:
            self.error(error, "samples.parquet")
            return
        if total != dataset.n:
            self.problem(
                "GL0301",
                "the index has another number of samples",
                "samples.parquet",
                dataset.n,
                total,
            )

    def share(self, entry: Entry, rows: Rows) -> None:
        """Check the number of samples of one shard."""
        if len(rows.label_n) != entry.samples:
            self.problem(
                "GL0302",
                "the index has another number of samples of this shard",
                entry.file,
                entry.samples,
                len(rows.label_n),
            )

    def identities(self, dataset: Dataset, count_C: Ints | None) -> None:
        """Check that row i is label i and that its count is right."""
        try:
            table = dataset.identities()
        except InputError as error:
            self.error(error, "identities.parquet")
            return
        label, count = (table.column(name).to_numpy() for name in ("label", "count"))
        if not np.array_equal(label, np.arange(dataset.classes)):
            self.problem(
                "GL0301",
                "row i is not label i",
                "identities.parquet",
                f"labels 0 to {dataset.classes - 1}",
                f"{len(label)} rows",
            )
        elif count_C is not None and not np.array_equal(count, count_C):
            wrong = np.flatnonzero(count != count_C)
            self.problem(
                "GL0301",
                f"{len(wrong)} counts are wrong, first label {wrong[0]}",
                "identities.parquet",
                count_C[wrong[0]],
                count[wrong[0]],
            )

    def quarantine(self, dataset: Dataset) -> None:
        """Check that what was not written is accounted for."""
        try:
            table = parquet.read(self.root / "quarantine.parquet", tables.QUARANTINE)
        except InputError as error:
            self.error(error, "quarantine.parquet")
            return
        said, found = (
            dataset.manifest.get("quarantine_reasons"),
            dict(sorted(Counter(table.column("reason").to_pylist()).items())),
        )
        if said != found or dataset.manifest.get("quarantined") != table.num_rows:
            self.problem(
                "GL0301",
                "the quarantine is not what the manifest says",
                "quarantine.parquet",
                said,
                found,
            )

    def versions(self, dataset: Dataset) -> dict[str, int]:
        """Check the label table in force, every version in the history, and the tombstones."""
        folder = self.root / "labels"
        history, bad = seal.lines(folder / "history.jsonl")
        if bad is not None:
            self.problem("GL0304", "a line is damaged", "labels/history.jsonl", offset=bad)
        made: set[str] = set()
        for line in history:
            for entry in line.get("files", ()):
                made.add(entry["name"])
                self._bytes(entry, folder, "labels/", "GL0304")
        for path in sorted(folder.glob("v*.parquet")) if bad is None else ():
            if path.name not in made:
                self.notes.append(f"labels/{path.name} is in no history: an interrupted apply")
        try:
            table = labels.current(self.root, dataset.classes)
        except InputError as error:
            self.error(error, "labels")
            return {}
        path = folder / "current.json"
        if path.exists() and path.read_bytes() != seal.spell(commit.read_json(path)):
            self.problem(
                "GL0304",
                "expected the spelling that glint writes, found another",
                "labels/current.json",
            )
        ends = {history[-1]["version"], history[-1]["from"]} if history else {0}
        if bad is None and table.version not in ends:
            self.problem(
                "GL0304",
                "the version in force is not the history's last",
                "labels/current.json",
                sorted(ends)[-1],
                table.version,
            )
        elif history and bad is None and table.version != history[-1]["version"]:
            self.notes.append("the last change of the labels was interrupted: make it again")
        self._tombstones(table, history)
        return {"label_version": table.version, "classes": table.classes}

    def sampling(self) -> None:
        """Check that a sampling table can be read."""
        if (self.root / "sampling.parquet").exists():
            try:
                parquet.read(self.root / "sampling.parquet", tables.SAMPLING, code="GL0305")
            except InputError as error:
                self.error(error, "sampling.parquet")

    def _tombstones(self, table: labels.LabelTable, history: list[dict[str, Any]]) -> None:
        lines, bad = seal.lines(self.root / TOMBSTONES)
        if bad is not None:
            self.problem("GL0304", "a line is damaged", TOMBSTONES, offset=bad)
        buried = {label for line in lines for label in line.get("labels", ())}
        dropped = [line["why"] for line in history if line.get("why", {}).get("stage") == "drop"]
        bare = sorted({label for why in dropped for label in why.get("labels", ())} - buried)
        if bare and bad is None:
            self.problem(
                "GL0304",
                f"identity {bare[0]} was taken down and has no tombstone ({len(bare)} in all)",
                TOMBSTONES,
                "a line for each take-down",
                "none",
            )
        for line in lines:
            for label in line.get("labels", ()):
                if not 0 <= label < len(table.target) or table.target[label] >= 0:
                    self.problem(
                        "GL0304",
                        f"identity {label} was taken down and is in the labels in force",
                        "labels/current.json",
                        "target -1",
                        table.target[label] if label < len(table.target) else "no label",
                    )


def _index(remote: Remote, told: dict[str, Any]) -> tuple[str, str, str, str] | None:
    """Compare a shard's index for DALI in a store: what is wrong, the file, expected, found."""
    if "idx" not in told:
        return None
    name, expected = f"data/{dali.beside(str(told['name']))}", f"sha256 {told['idx']}"
    data = remote.store.get(name)
    if data is None:
        return "the index for DALI is missing", name, expected, "no object"
    found = f"sha256 {hashlib.sha256(data).hexdigest()}"
    return ("the index for DALI has changed", name, expected, found) if found != expected else None


def entries(dataset: Dataset) -> list[Entry]:
    """Return the shards as the manifest lists them."""
    return [
        Entry(str(e["name"]), int(e["samples"]), int(e["bytes"]), str(e["sha256"]))
        for e in dataset.manifest["shards"]
    ]


def runs(dataset: Dataset) -> Iterator[tuple[int, pa.Table]]:
    """Read the index a shard at a time, in order: (number, its rows).

    Raises InputError GL0301 where the shards' numbers descend, or are none of the manifest's.
    """
    held: pa.Table | None = None
    number = -1
    path = dataset.root / "samples.parquet"
    for table in parquet.groups(path, tables.SAMPLES, columns=_COLUMNS):
        if table.column("shard").null_count:
            raise InputError("GL0301", "a shard's number is missing", where=str(path))
        shard_n = table.column("shard").to_numpy()
        start_r = np.flatnonzero(np.diff(shard_n, prepend=-1 if len(shard_n) else 0))
        for start, stop in zip(start_r.tolist(), [*start_r[1:].tolist(), len(shard_n)]):
            now = int(shard_n[start])
            if now < number or now >= len(dataset.shards):
                raise InputError(
                    "GL0301",
                    f"shard {now} follows shard {number} of {len(dataset.shards)}",
                    where=str(path),
                )
            piece = table.slice(start, stop - start)
            if now == number and held is not None:
                held = pa.concat_tables([held, piece])
                continue
            if held is not None:
                yield number, held
            held, number = piece, now
    if held is not None:
        yield number, held


def columns(table: pa.Table, shard: int) -> Rows:
    """Return one shard's rows as arrays. Raises InputError GL0301 for empty cells or odd keys."""
    table = table.combine_chunks()
    for name in _COLUMNS:
        if table.column(name).null_count:
            raise InputError("GL0301", f"column {name} has an empty cell in shard {shard}")
    arrays = {name: table.column(name).combine_chunks() for name in _COLUMNS}
    arrays = {
        name: a.chunk(0) if isinstance(a, pa.ChunkedArray) else a for name, a in arrays.items()
    }
    key, digest, n = arrays["key"], arrays["digest"], table.num_rows
    end_n = np.frombuffer(key.buffers()[1], np.int32)[key.offset : key.offset + n + 1]
    text = np.frombuffer(key.buffers()[2] or b"", np.uint8)[end_n[0] : end_n[-1]]
    if (np.diff(end_n) != 9).any() or ((text < ord("0")) | (text > ord("9"))).any():
        raise InputError("GL0301", f"a key of shard {shard} is not nine digits")
    image_nk = np.frombuffer(digest.buffers()[1], np.uint8)[16 * digest.offset :][: 16 * n]
    label_n, offset_n, size_n = (
        arrays[name].to_numpy(zero_copy_only=False).astype(np.int64)
        for name in ("label", "offset", "size")
    )
    return Rows(text.reshape(n, 9), label_n, offset_n, size_n, image_nk.reshape(n, 16))


def _deep(
    check: _Check,
    dataset: Dataset,
    count_C: Ints,
    mine: range,
    pool: AbstractContextManager[Pool],
    progress: Progress,
) -> None:
    """Walk the shards `mine`, some at a time; name shards that hold another's bytes."""
    listed = entries(dataset)
    total, done = sum(listed[i].bytes for i in mine), 0
    waiting: deque[tuple[Entry, Coming]] = deque()
    owner = {entry.sha256: entry.name for entry in listed}
    left = check.there(listed) & {*mine}

    def settle(most: int) -> None:
        nonlocal done
        while len(waiting) > most:
            entry, future = waiting.popleft()
            found, told = future.result()
            other = owner.get(told, entry.name)
            if told != entry.sha256 and other != entry.name:
                check.problem(
                    "GL0302",
                    "the shard holds another's bytes",
                    entry.file,
                    entry.name,
                    f"the bytes of {other}",
                )
            else:
                check.found.join(found)
            done += entry.bytes
            progress(done, total, entry.name)

    with pool as (submit, workers):
        for number, rows in check.rows(dataset, count_C):
            entry = listed[number]
            if number in mine:
                check.share(entry, rows)
            if number in left:
                left.discard(number)
                waiting.append((entry, submit(check.walk, number, entry, rows)))
            settle(2 * workers)
        for number in sorted(left):  # empty shards; all that are left if the index is damaged
            rows_ = _none() if not listed[number].samples else None
            entry = listed[number]
            waiting.append((entry, submit(check.walk, number, entry, rows_)))
            settle(2 * workers)
        settle(0)


def _none() -> Rows:
    none = np.empty(0, np.int64)
    return Rows(np.empty((0, 9), np.uint8), none, none, none, np.empty((0, 16), np.uint8))


def verify(
    root: str | os.PathLike[str],
    *,
    deep: bool = False,
    workers: int = 1,
    progress: Progress = log.silent,
    sha256: bool = False,
    task: tuple[int, int] = (0, 1),
    pool: AbstractContextManager[Pool] | None = None,
) -> dict[str, Any]:
    """Check a dataset and return what is wrong with it: `ok`, `problems`, `problem_count`.

    Shallow: every file is there with its size, every table has its digest, all counts add up, the
    labels fit. Deep: also one sequential read of every shard, see `walk`; `progress` is in bytes;
    `sha256`: with the SHA-256 of every shard, which is else taken only where it is needed.
    Task (i, N) reads the shards with number % N == i, and only task 0 looks at the tables: all is
    well where it is for every task. `pool` reads shards elsewhere than in threads here.
    Raises InputError GL0301 where the folder is no dataset at all.
    """
    if workers < 1:
        raise UsageError("GL0002", f"expected 1 or more, found {workers}", where="--workers")
    started = time.perf_counter()
    check = _Check(root, sha256)
    dataset = check.manifest()
    result: dict[str, Any] = {"ok": False, "deep": deep, "dataset": str(root)}
    if dataset is not None:
        listed = entries(dataset)
        mine = range(task[0], len(listed), task[1])
        if task[0] == 0:
            check.tables(dataset)
        elif check.remote is not None:
            check.remote.tables()
        if check.remote is None:
            check.folder(dataset, deep)
        else:
            check.objects(check.remote, dataset, deep)
        count_C = np.zeros(dataset.classes, np.int64)
        before = check.found.count
        if deep:
            _deep(check, dataset, count_C, mine, pool or _threads(workers), progress)
        else:
            for number, rows in check.rows(dataset, count_C):
                check.share(listed[number], rows)
        whole = check.found.count == before or int(count_C.sum()) == dataset.n
        if task[0] == 0:
            check.identities(dataset, count_C if whole else None)
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
    return {
        **result,
        "ok": not check.found.count,
        "problem_count": check.found.count,
        "problems": [problem.as_dict() for problem in check.found.shown[:SHOWN]],
        "shown": [str(problem) for problem in check.found.shown[:SHOWN]],
        "notes": check.notes,
        "hint": _TODO if check.found.count else "",
        "seconds": round(time.perf_counter() - started, 3),
    }


def survey(root: str | os.PathLike[str]) -> dict[str, int]:
    """Say what there is to read. Raises InputError GL0301."""
    dataset = Dataset(root)
    listed = entries(dataset)
    return {
        "files": len(dataset.manifest.get("files", ())) + 1,
        "shards": len(listed),
        "bytes": sum(entry.bytes for entry in listed),
    }

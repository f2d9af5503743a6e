"""Hold every image of a dataset against the source it came from, by the source's own bytes."""

# n samples of the dataset

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from glint import schemas
from glint.errors import GlintError, InputError, ResourceError, UsageError
from glint.files import parquet
from glint.files.store import is_url
from glint.files.strings import text
from glint.log import Progress
from glint.shards import pixels
from glint.shards.dataset import Dataset
from glint.shards.image import Rejected
from glint.shards.sources import Rule, Source, open_source, recognise
from glint.shards.walk import Findings, Problem, plain_size

BLOCK = 1 << 14  # rows read at a time
ERASED = "erased"  # what stands in the quarantine for a record of an erased identity
INDEX = "samples.parquet"
_TABLES = (INDEX, "identities.parquet", "quarantine.parquet")
_COUNT = dict.fromkeys(("compared", "missing", "other_bytes", "other_label", "unknown"), 0)
Place = str | os.PathLike[str]
_SCHEMA = pa.schema([*schemas.SAMPLES, *schemas.PROVENANCE])
_CAME = schemas.PROVENANCE.names  # the columns of a merged dataset


class Origin:
    """What a dataset was made of: a source, several together, or another dataset.

    rule: how the source was read; to_jpeg: the quality of JPEGs that were made of its other images.
    Raises what opening them raises.
    """

    def __init__(self, paths: Sequence[Place], rule: Rule, to_jpeg: int = 0) -> None:
        self.to_jpeg = to_jpeg
        self.path, self.data = ", ".join(str(one) for one in paths), self._open(paths, rule)
        self.is_dataset = isinstance(self.data, Dataset)
        self.merged = isinstance(self.data, Dataset) and self.data.is_merged

    @staticmethod
    def _open(paths: Sequence[Place], rule: Rule) -> Dataset | Source:
        if len(paths) == 1 and kind_of(paths[0], rule) == "dataset":
            return Dataset(paths[0])
        try:
            return open_source(paths, rule)
        except InputError as error:
            if error.code != "GL0213":
                raise
            # What was sharded so is here again; what is lost since is missed.
            return open_source(paths, rule, resync=True)

    def records(self, whole: bool) -> Iterator[tuple[str, str | None, bytes | Rejected]]:
        """Give name, label and image of every record; `whole`: what was merged has longer names."""
        for i, (name, label) in enumerate(self._names(whole)):
            data: bytes | Rejected
            try:
                data = self._read(i)
            except Rejected as why:
                data = why
            except GlintError as error:
                where = f"{self.path}: {error.where}"
                raise type(error)(error.code, error.what, where=where, hint=error.hint) from None
            except OSError as error:
                what = f"cannot be read: {error.strerror or error}"
                raise ResourceError("GL0903", what, where=self.path) from None
            yield name, label, data

    def _read(self, i: int) -> bytes:
        if isinstance(self.data, Dataset):
            return self.data.read(i, verify=False)
        data = self.data.read(i)
        return pixels.as_jpeg(data, self.to_jpeg, Counter()) if self.to_jpeg else data

    def _names(self, whole: bool) -> Iterator[tuple[str, str | None]]:
        if isinstance(self.data, Dataset):
            columns = [*(_CAME if self.merged and whole else ["key"]), "source_label"]
            for batch in parquet.scan(self.data.root / INDEX, _SCHEMA, columns, BLOCK):
                *name, label = (batch.column(column).to_pylist() for column in columns)
                yield from zip(map("\0".join, zip(*name)), label)
            return
        said = text(self.data.classes)
        for i, label in enumerate(self.data.label.tolist()):
            yield self.data.name(i), said[label].as_py() if label >= 0 else None


class Comparison:
    """A dataset whose samples are looked up by what their origins call them.

    It holds 26 bytes a sample (hash and order of the names, hash of the label, two marks); the
    places of the images take another 16, and those of an origin that is a dataset 16 more. Raises
    InputError where the index cannot be read, UsageError GL0002 for another number of origins.
    """

    def __init__(self, dataset: Dataset, origins: Sequence[Origin], skip: set[int]) -> None:
        self.dataset, self.origins, self.skip = dataset, origins, skip
        self.found, self.lost = Findings(), Findings()
        self.count = Counter(_COUNT)
        # Only a merge gives new keys; whoever made one dataset of one kept them.
        kept = len(origins) == 1 and (origins[0].merged or not dataset.is_merged)
        self.merged = [] if kept else _merged_names(dataset, len(origins))
        self.shard_n, self.size_n, self.offset_n = dataset.shard, dataset.size, dataset.offset
        hash_n = np.zeros(dataset.n, np.uint64)
        self.label_n, self.own_n = np.zeros_like(hash_n), np.zeros(dataset.n, np.bool_)
        own, every = Counter[int](), Counter[int]()
        for row, (origin, name, key, label, said) in enumerate(islice(self._rows(), dataset.n)):
            hash_n[row], self.label_n[row] = _hash(origin, name), _hash(label)
            self.own_n[row] = label == key
            own[origin] += label == key
            every[origin] += 1
            if label != said:
                self.label_n[row] = 0  # named
                self._label(row, "the label is not that of its identity", said, label)
        # Sharded without labels: nearly every one is the key that glint gave the image.
        self.unlabelled = {origin for origin in own if 2 * own[origin] > every[origin]}
        self.order_n = np.argsort(hash_n, kind="stable")
        self.hash_n, self.free_n = hash_n[self.order_n], np.ones(dataset.n, np.bool_)
        # Names of one hash are the same or, hardly ever, others: then the names themselves decide.
        twin_m = np.flatnonzero(self.hash_n[1:] == self.hash_n[:-1])
        twins = {*self.order_n[twin_m].tolist(), *self.order_n[twin_m + 1].tolist()}
        rows = enumerate(self._rows()) if twins else ()
        self.names = {row: (origin, name) for row, (origin, name, *_) in rows if row in twins}
        self.quarantined = self._quarantine()

    def _rows(self) -> Iterator[tuple[int, str, str, str, str]]:
        """Give origin, name there, key there, label, and its identity's label of every sample."""
        columns = ["key", "source", "source_label", "label", *(_CAME if self.merged else ())]
        texts = self.dataset.identities().column("source_label").combine_chunks()
        for batch in parquet.scan(self.dataset.root / INDEX, _SCHEMA, columns, BLOCK):
            label_m = np.clip(batch.column(3).to_numpy(zero_copy_only=False), 0, len(texts) - 1)
            said = texts.take(pa.array(label_m.astype(np.int64))).to_pylist()
            cells = [batch.column(i).to_pylist() for i in range(batch.num_columns)]
            for key, source, label, _, *came, meant in zip(*cells, said):
                origin, inner = self._origin(came[0]) if came else (0, "")
                key = came[1] if came else key
                name = key if self.origins[origin].is_dataset else source
                yield origin, f"{inner}{name}", key, label, meant

    def _origin(self, name: str) -> tuple[int, str]:
        """Return the origin that a merge calls so, and what that one itself was merged of."""
        top, _, inner = str(name).partition("/")
        if top not in self.merged:
            return 0, f"/{name}\0"  # none: no record is called so
        return self.merged.index(top), f"{inner}\0" if inner else ""

    def _quarantine(self) -> Counter[int]:
        """Count by the hashes of their names the records that were not written."""
        table = parquet.read(self.dataset.root / "quarantine.parquet", schemas.QUARANTINE)
        names, came = table.column("source").to_pylist(), [""] * table.num_rows
        if self.merged and _CAME[0] in table.column_names:
            came = table.column(_CAME[0]).to_pylist()
        places = [self._origin(one)[0] if self.merged else 0 for one in came]
        datasets = [origin.data for origin in self.origins if isinstance(origin.data, Dataset)]
        self.erased = int(self.dataset.manifest.get("erased", 0))
        self.erased -= sum(int(dataset.manifest.get("erased", 0)) for dataset in datasets)
        self.erased += names.count(ERASED) if len(datasets) < len(self.origins) else 0
        return Counter(
            _hash(place, name)
            for place, name in zip(places, names)
            if not self.origins[place].is_dataset
        )

    def _label(self, row: int, what: str, expected: str | None, found: str | None) -> None:
        self.count["other_label"] += 1
        said = (str(expected), str(found))
        self.found.add(Problem("GL0302", what, INDEX, self.dataset.key[row], None, *said))

    def _differs(self, row: int, record: bytes | Rejected) -> tuple[str, str] | None:
        """Compare the image of a sample with a record: None, or what was expected and found."""
        if isinstance(record, Rejected):
            return f"no image ({record.reason})", f"{self.size_n[row]} bytes"
        if int(self.size_n[row]) != len(record):
            return f"{len(record)} bytes", f"{self.size_n[row]} bytes"
        try:
            image = self.dataset.read(row, verify=False)
        except (GlintError, OSError) as error:
            return f"{len(record)} bytes", str(error)
        if image == record:
            return None
        expected, found = (f"sha256 {hashlib.sha256(v).hexdigest()}" for v in (record, image))
        return expected, found

    def record(self, origin: int, name: str, label: str | None, data: bytes | Rejected) -> None:
        """Look for one record of an origin in the dataset."""
        hash_ = _hash(origin, name)
        lo, hi = (np.searchsorted(self.hash_n, np.uint64(hash_), s) for s in ("left", "right"))
        rows = [r for r in self.order_n[lo:hi].tolist() if self.free_n[r]]
        rows = [r for r in rows if self.names.get(r, (origin, name)) == (origin, name)]
        if self.quarantined[hash_] and (not rows or isinstance(data, Rejected)):
            self.quarantined[hash_] -= 1
            return
        if not rows:
            self.count["missing"] += 1
            what = "a record of the source is not in the dataset"
            self.lost.add(Problem("GL0302", what, INDEX, None, None, name, "no sample"))
            return
        row, differs = rows[0], None
        if int(self.shard_n[row]) not in self.skip:  # else it is named already
            self.count["compared"] += 1
            every = [self._differs(r, data) for r in rows]  # of one name there is mostly one
            row = rows[every.index(None)] if None in every else row
            differs = None if None in every else every[0]
        self.free_n[row] = False
        if differs is not None:
            self.count["other_bytes"] += 1
            file, at = f"data/{self.dataset.shards[self.shard_n[row]]}", self.offset_n[row]
            what, key = f"the image is not that of {name} in the source", self.dataset.key[row]
            self.found.add(Problem("GL0303", what, file, key, int(at), *differs))
        given = origin in self.unlabelled and bool(self.own_n[row])
        said = None if label is None else _hash(label)
        if not given and int(self.label_n[row]) not in (0, said):
            found = self.dataset.source_label[row]
            self._label(row, f"the label is not that of {name} in the source", label, found)

    def finish(self) -> Findings:
        """Note the samples that no record accounts for, and the records that are missing."""
        for row in np.flatnonzero(self.free_n).tolist():
            self.count["unknown"] += 1
            what, said = "the source has no record of this sample", self.dataset.source[row]
            self.found.add(
                Problem("GL0302", what, INDEX, self.dataset.key[row], None, "a record", said)
            )
        if self.erased and self.lost.count != self.erased:
            what = "the records of the source that are missing are not as many as were erased"
            said = (str(self.erased), str(self.lost.count))
            self.found.add(Problem("GL0302", what, INDEX, None, None, *said))
        elif not self.erased:
            self.found.join(self.lost)
        return self.found


def _hash(*words: object) -> int:
    said = "\0".join(map(str, words)).encode("utf-8", "surrogatepass")
    value: int = xxhash.xxh3_64_intdigest(said)
    return value


def _merged_names(dataset: Dataset, count: int) -> list[str]:
    try:
        steps = [step for step in dataset.manifest["derived"] if step["by"] == "merge"]
        names = [str(one["name"]) for one in steps[-1]["from"]]
    except (IndexError, KeyError, TypeError):
        names = [""]
    if len(names) != count:
        said = f"{len(names)} (in this order: {', '.join(names)})" if names[0] else "one"
        raise UsageError("GL0002", f"expected {said}, found {count}", where="--against")
    return names if names[0] else []


def kind_of(path: Place, rule: Rule = Rule()) -> str:  # noqa: B008
    """Name the kind of what a dataset was made of. Raises what `recognise` raises."""
    known = is_url(path) or (Path(path) / INDEX).is_file()
    return "dataset" if known else recognise(path, rule)[0]


def read_as(root: Place, sources: Sequence[Place], labels: str) -> list[Origin]:
    """Open what a dataset came from as its manifest says that it was read.

    labels: where the list of its labels lies now. Raises UsageError GL0002.
    """
    try:
        told = Dataset(root).manifest.get("recognised", {})
    except InputError:  # told by those who check it
        told = {}
    rule, to_jpeg = Rule.of(told.get("rule"), labels), int(told.get("to_jpeg", 0))
    if "align" in told and any(kind_of(source, rule) != "dataset" for source in sources):
        what = "its images were cut out of photographs by glint align: no source holds them"
        hint = "the same glint align command into a new folder gives the same digest"
        raise UsageError("GL0002", what, where="--against", hint=hint)
    together = len(sources) > 1 and len(told.get("sources", ())) == len(sources)
    groups = [sources] if together else [[source] for source in sources]
    return [Origin(group, rule, to_jpeg) for group in groups]


def compare(
    root: Place, origins: Sequence[Origin], skip: set[int], progress: Progress
) -> tuple[Findings, dict[str, Any]]:
    """Compare every sample with its record, and look for every record; return what is wrong.

    skip: shards that are not there. Problems are GL0303 for other bytes, GL0302 for a missing
    record, another label and a sample without a record. `progress` is in records. Raises
    GlintError where an origin cannot be read, UsageError GL0002 for too few or too many of them.
    """
    told: dict[str, Any] = {"source": [origin.path for origin in origins], **_COUNT}
    found, done, total = Findings(), 0, sum(origin.data.n for origin in origins)
    try:
        dataset = Dataset(root)
        if any(isinstance(plain_size(dataset.root / name), str) for name in _TABLES):
            return found, told  # named already
        state = Comparison(dataset, origins, skip)
    except InputError as error:
        found.add(Problem(error.code, error.what, INDEX))
        return found, told
    for number, origin in enumerate(origins):
        for name, label, data in origin.records(bool(state.merged)):
            state.record(number, name, label, data)
            done += 1
            if done % 256 == 0 or done == total:
                progress(done, total, origin.path)
    return state.finish(), {**told, **state.count}

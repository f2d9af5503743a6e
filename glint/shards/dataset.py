"""A dataset on disk as its readers see it: columns of the index, and the bytes of a sample."""

# n samples, k bytes of a digest

from __future__ import annotations

import os
import resource
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from glint import schemas
from glint.errors import InputError, ResourceError
from glint.files import atomic, parquet, reads, store
from glint.shards import labels, pixels, plan, remote

FORMAT = "glint/dataset@1"
# Tables without which a folder is no dataset.
TABLES = ("samples.parquet", "identities.parquet", "quarantine.parquet")
OPEN_FILES = 256  # or a quarter of those that the process may open
REMOTE_FILES = 8  # an open file takes its room on the disk even when it has left the cache


Bytes = bytes | memoryview


def check_sample(
    data: Bytes, size: int, digest: bytes, where: Callable[[], str], hint: Callable[[], str]
) -> None:
    """Compare stored image bytes with the index; no `digest`, no comparison with one.

    where, hint: make the texts of the error. Raises InputError GL0303.
    """
    if len(data) != size:
        what = f"expected {size} bytes, found {len(data)}"
    elif digest and xxhash.xxh3_128_digest(data) != digest:
        what = "the image bytes do not match their checksum"
    else:
        return
    raise InputError("GL0303", what, where=where(), hint=hint())


def read_sample(
    file: int,
    offset: int,
    size: int,
    digest: bytes,
    where: Callable[[], str],
    hint: Callable[[], str],
) -> bytes:
    """Return the image bytes at an offset of an open shard, checked.

    The one way to a stored image: of `Dataset`, of the training stream, of rewrites.
    Raises InputError GL0303, GL0302 where the shard is too short, GL0903 where it cannot be read.
    """
    try:
        data = reads.patient(lambda: reads.pread(file, size, offset))
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise InputError("GL0903", what, where=where()) from None
    if len(data) < size:
        what = f"the shard ends early: expected {size} bytes, found {len(data)}"
        raise InputError("GL0302", what, where=where(), hint=hint())
    check_sample(data, size, digest, where, hint)
    return data


def open_files() -> int:
    """Return how many shards may be open at once."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return min(OPEN_FILES, max(4, soft // 4)) if soft > 0 else OPEN_FILES


def open_shard(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a shard; one that is away for a moment is waited for. Raises OSError."""
    return reads.patient(lambda: reads.open_plain(path, buffering=0))


class Text:
    """A column of strings, read like a list, kept as Arrow keeps it."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [str(value) for value in self.column[row].to_pylist()]
        return str(self.column[int(row)].as_py())

    def __iter__(self) -> Iterator[str]:
        for chunk in self.column.chunks:
            yield from chunk.to_pylist()


def _unfinished(root: Path) -> InputError | None:
    """Return the error of a dataset that was begun and not finished; None for another folder."""
    try:
        told = atomic.read_json(root / "_glint" / "plan.json")
        options = told["fingerprint"]["options"]
        spans = plan.spans(int(told["n"]), int(options["samples_per_shard"]))
    except (InputError, KeyError, TypeError, ValueError):
        return None
    done = sum((root / "data" / plan.shard_name(i)).is_file() for i in range(len(spans)))
    command = "glint align " if "faces" in options else "glint shard "
    command = "" if "from" in told["fingerprint"].get("source", ()) else command
    what = f"unfinished: {done} of {len(spans)} shards are complete"
    hint = f"run the same {command}command to continue"
    return InputError("GL0301", what, where=str(root), hint=hint)


class Dataset:
    """A folder that `glint shard` wrote, here or in an object store.

    Columns are read when first asked for. `read` is safe across threads and forks, and a Dataset
    can be pickled. A URL such as s3://bucket/dataset is read through the cache: `root` is then the
    folder there, `remote` what fills it. `name` is the path or the URL, as people may see it.
    Raises InputError GL0301 where the folder is not a dataset.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.remote: remote.Remote | None = None
        if store.is_url(root):
            self.remote = remote.Remote(os.fspath(root))
            self.remote.tables()
            self.root, self.name = self.remote.root, self.remote.store.shown
        else:
            store.refuse(root)
            self.root, self.name = Path(root), os.fspath(root)
        path = self.root / "manifest.json"
        if not path.is_file():
            if unfinished := _unfinished(self.root):
                raise unfinished
            found = "a file" if self.root.exists() else "no such folder"
            if self.root.is_dir():
                found = "a folder without manifest.json"
            hint = "make one with: glint shard SRC OUT; if a run stopped half way, "
            hint += "the same command continues it"
            what = f"expected a dataset, found {found}"
            raise InputError("GL0301", what, where=str(root), hint=hint)
        self.manifest: dict[str, Any] = atomic.read_json(path)
        if self.manifest.get("format") != FORMAT:
            what = f"expected format {FORMAT!r}, found {self.manifest.get('format')!r}"
            raise InputError("GL0301", what, where=str(path))
        try:
            self.digest = str(self.manifest["digest"])
            self.n = int(self.manifest["written"])
            self.classes = int(self.manifest["identities"])
            self.shards = [str(entry["name"]) for entry in self.manifest["shards"]]
        except (KeyError, TypeError, ValueError) as error:
            what = f"the manifest lacks or spoils {error}"
            raise InputError("GL0301", what, where=str(path)) from None
        if any("/" in name or name in ("", ".", "..") for name in self.shards):
            raise InputError("GL0301", "a shard's name is not a plain file name", where=str(path))
        for count, table in ((self.n, TABLES[0]), (self.classes, TABLES[1])):
            there = self.root / table
            if there.is_file():  # else its reader says so
                where, size = f"{path}: {table}", there.stat().st_size
                parquet.check_claim(count, size, where, "GL0301")
        self._files: OrderedDict[int, IO[bytes]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, row: int) -> tuple[pixels.Pixels, int]:
        """Return (RGB uint8 (H, W, 3), label in force) of a sample; -1 where it is left out.

        So torch's DataLoader takes it. Raises as `read`, and InputError GL0303 for what is no
        picture.
        """
        if not 0 <= row < self.n:
            raise IndexError(f"sample {row} of {self.n}")
        try:
            return pixels.rgb(self.read(row)), int(self.target[row])
        except ValueError as error:
            where = f"data/{self.shards[self.shard[row]]} key {self.key[row]}"
            raise InputError("GL0303", f"expected an image, found {error}", where=where) from None

    @cached_property
    def target(self) -> npt.NDArray[np.int64]:
        """Labels in force, 0 to classes - 1, int64 [n]; -1 where a sample is left out."""
        return labels.current(self.root, self.classes).sample_target(self.label)

    @property
    def is_merged(self) -> bool:
        """Say whether the samples say which dataset they came from."""
        files = self.manifest.get("files")
        listed = files if isinstance(files, list) else []
        return any(isinstance(one, dict) and one.get("name") == "merge.parquet" for one in listed)

    def column(self, name: str) -> pa.ChunkedArray:
        """Read one column of the index, whole. Raises InputError GL0301."""
        path = self.root / "samples.parquet"
        found = parquet.read(path, schemas.SAMPLES, columns=[name], rows=self.n).column(name)
        if len(found) != self.n or found.null_count:
            what = f"column {name} has {len(found)} cells, {found.null_count} of them empty; "
            what += f"the manifest says {self.n} samples"
            raise InputError("GL0301", what, where=str(path))
        return found

    def _numbers(self, name: str) -> npt.NDArray[Any]:
        value: npt.NDArray[Any] = self.column(name).to_numpy()
        return value

    @cached_property
    def key(self) -> Text:
        """The generated keys."""
        return Text(self.column("key"))

    @cached_property
    def source(self) -> Text:
        """Where each sample came from: a path below the source, or a record's key."""
        return Text(self.column("source"))

    @cached_property
    def source_label(self) -> Text:
        """The label that the source gave each sample."""
        return Text(self.column("source_label"))

    @cached_property
    def label(self) -> npt.NDArray[np.int64]:
        """Dense labels as sharded, int64 [n]."""
        label_n: npt.NDArray[np.int64] = self._numbers("label")
        if self.n and not 0 <= label_n.min() <= label_n.max() < self.classes:
            what = f"labels run from {label_n.min()} to {label_n.max()}, "
            what += f"expected 0 to {self.classes - 1}"
            raise InputError("GL0301", what, where=str(self.root / "samples.parquet"))
        return label_n

    @cached_property
    def shard(self) -> npt.NDArray[np.int32]:
        """Number of the shard, int32 [n]."""
        shard_n: npt.NDArray[np.int32] = self._numbers("shard")
        if self.n and not 0 <= shard_n.min() <= shard_n.max() < len(self.shards):
            what = "a sample names a shard that the manifest lacks"
            raise InputError("GL0301", what, where=str(self.root / "samples.parquet"))
        return shard_n

    @cached_property
    def offset(self) -> npt.NDArray[np.int64]:
        """Offset of the image bytes inside the tar, int64 [n]."""
        offset_n: npt.NDArray[np.int64] = self._numbers("offset")
        return offset_n

    @cached_property
    def size(self) -> npt.NDArray[np.int32]:
        """Length of the image bytes, int32 [n]."""
        size_n: npt.NDArray[np.int32] = self._numbers("size")
        return size_n

    @cached_property
    def digests(self) -> npt.NDArray[np.uint8]:
        """xxh3-128 of the image bytes, uint8 [n, 16]."""
        chunks = self.column("digest").chunks
        parts = [
            np.frombuffer(c.buffers()[1], np.uint8, 16 * len(c), 16 * c.offset)
            for c in chunks
            if len(c)
        ]
        digest_nk = np.concatenate(parts) if parts else np.empty(0, np.uint8)
        return digest_nk.reshape(-1, 16)

    def identities(self) -> pa.Table:
        """Return the identities table: row i is label i."""
        return parquet.read(self.root / TABLES[1], schemas.IDENTITIES, rows=self.classes)

    def shard_path(self, shard: int) -> Path:
        """Return the path of one shard; one in a store is fetched into the cache first.

        Raises InputError GL0302, GL0903 where that fails.
        """
        if self.remote is not None:
            return self.remote.shard(shard)
        return self.root / "data" / self.shards[shard]

    def open_shard(self, shard: int) -> IO[bytes]:
        """Open one shard. Raises InputError GL0302, GL0903."""
        if self.remote is not None:
            return self.remote.open(shard)
        path = self.shard_path(shard)
        try:
            return open_shard(path)
        except OSError as error:
            if reads.passing(error):
                raise reads.unread(error, path) from None
            what = f"cannot be opened: {error.strerror}"
            raise InputError("GL0302", what, where=str(path)) from None

    def place(self, shard: int) -> str:
        """Return where a shard lies, for the text of an error."""
        return f"{self.name}/data/{self.shards[shard]}"

    def publish(self, name: str) -> None:
        """Upload a file of `root` that was written anew, where the dataset lies in a store."""
        if self.remote is not None:
            self.remote.put(name)

    @cached_property
    def _order(self) -> npt.NDArray[np.int64]:
        return np.argsort(self.label, kind="stable")

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        return np.searchsorted(self.label[self._order], np.arange(self.classes + 1))

    def rows_of(self, label: int) -> npt.NDArray[np.int64]:
        """Return the rows of one label as sharded, ascending."""
        return self._order[self._starts[label] : self._starts[label + 1]]

    def _open(self, shard: int) -> IO[bytes]:
        file = self._files.get(shard)
        if file is None:
            try:
                file = self.open_shard(shard)
            except ResourceError:
                self._files.clear()  # if too many are open: these are the dataset's own
                file = self.open_shard(shard)
            self._files[shard] = file
            most = open_files() if self.remote is None else REMOTE_FILES
            if len(self._files) > most:
                self._files.popitem(last=False)
            if self.remote is not None and shard + 1 < len(self.shards):
                self.remote.prefetch(shard + 1)
        return file

    def read(self, row: int, verify: bool = True) -> bytes:
        """Return the image bytes of sample `row`, checked against the index's checksum.

        Raises InputError GL0303 naming shard and key, GL0302 where the shard is missing, GL0903.
        """
        shard = int(self.shard[row])
        file = self._open(shard)  # held here, so that another thread cannot close it
        offset = int(self.offset[row])
        return read_sample(
            file.fileno(),
            offset,
            int(self.size[row]),
            self.digests[row].tobytes() if verify else b"",
            lambda: f"data/{self.shards[shard]} key {self.key[row]} @ 0x{offset:x}",
            lambda: self.remedy(shard),
        )

    def remedy(self, shard: int) -> str:
        """Return what to do about a damaged sample."""
        if self.remote is not None:
            return f"remove {self.shard_path(shard)}, it is fetched again; glint verify --deep"
        return "make the dataset again from its source into a new folder"

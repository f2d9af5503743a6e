"""Millions of strings as two arrays: saved, mapped and indexed without a list of objects."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glint.errors import ResourceError


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Raise ResourceError GL0903 instead of OSError while glint's own files are read."""
    try:
        yield
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise ResourceError("GL0903", what, where=str(folder)) from error


class Strings:
    """An immutable list of byte strings: `blob` uint8 and `end` int64 [n]."""

    def __init__(self, blob: npt.NDArray[np.uint8], end_n: npt.NDArray[np.int64]) -> None:
        self.blob, self.end_n = blob, end_n

    @classmethod
    def of(cls, values: Iterable[bytes]) -> Strings:
        """Pack byte strings."""
        blob, end = bytearray(), array("q")
        for value in values:
            blob += value
            end.append(len(blob))
        return cls(np.frombuffer(blob, np.uint8), np.frombuffer(end, np.int64))

    @classmethod
    def of_columns(cls, columns: Iterable[Any]) -> Strings:
        """Take over Arrow columns of strings, one after the other."""
        blobs, lengths = [np.empty(0, np.uint8)], [np.empty(0, np.int64)]
        for chunk in (chunk for column in columns for chunk in column.chunks if len(chunk)):
            end = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset :][: len(chunk) + 1]
            blobs.append(np.frombuffer(chunk.buffers()[2] or b"", np.uint8)[end[0] : end[-1]])
            lengths.append(np.diff(end).astype(np.int64))
        return cls(np.concatenate(blobs), np.cumsum(np.concatenate(lengths)))

    def __len__(self) -> int:
        return len(self.end_n)

    def __getitem__(self, row: int) -> bytes:
        start = int(self.end_n[row - 1]) if row else 0
        return self.blob[start : int(self.end_n[row])].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        start = 0
        for end in self.end_n.tolist():
            yield self.blob[start:end].tobytes()
            start = end

    def save(self, folder: Path, name: str) -> None:
        """Write NAME.blob.npy and NAME.end.npy."""
        save_array(folder, f"{name}.blob", self.blob)
        save_array(folder, f"{name}.end", self.end_n)

    @classmethod
    def load(cls, folder: Path, name: str) -> Strings:
        """Map what `save` wrote."""
        return cls(load_array(folder, f"{name}.blob"), load_array(folder, f"{name}.end"))

    @classmethod
    def some(cls, folder: Path, name: str, row_n: npt.NDArray[np.int64]) -> Strings:
        """Read these of what `save` wrote, and map nothing: a page touched would stay in memory."""
        with (
            reading(folder),
            (folder / f"{name}.blob.npy").open("rb") as blob,
            (folder / f"{name}.end.npy").open("rb") as ends,
        ):
            start, first = (_start(file) for file in (blob, ends))
            read = os.pread

            def one(row: int) -> bytes:
                at = (
                    read(ends.fileno(), 16, first + 8 * row - 8)
                    if row
                    else bytes(8) + read(ends.fileno(), 8, first)
                )
                begin, end = int.from_bytes(at[:8], "little"), int.from_bytes(at[8:], "little")
                return read(blob.fileno(), end - begin, start + begin)

            return cls.of(map(one, row_n.tolist()))

    def arrow(self) -> pa.Array:
        """Return the strings as text; bytes that are not UTF-8 are written as \\xNN."""
        if len(self.blob) < 1 << 31:
            end_n = np.append(np.zeros(1, np.int32), self.end_n.astype(np.int32))
            made = pa.StringArray.from_buffers(
                len(self), pa.py_buffer(end_n), pa.py_buffer(np.ascontiguousarray(self.blob))
            )
            try:
                made.validate(full=True)
                return made
            except pa.ArrowInvalid:
                pass
        return pa.array([value.decode("utf-8", "backslashreplace") for value in self], pa.string())


def _start(file: IO[bytes]) -> int:
    """Return where the numbers of an .npy file begin."""
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    return file.tell()


def write_array(file: IO[bytes], array: npt.NDArray[Any]) -> None:
    """Write an array as .npy. numpy itself overlooks that a disk is full for the last bytes."""
    plain: Any = SimpleNamespace(write=file.write)  # or numpy takes the descriptor
    np.save(plain, array, allow_pickle=False)


def save_array(folder: Path, name: str, array: npt.NDArray[Any]) -> None:
    """Write NAME.npy."""
    with (folder / f"{name}.npy").open("wb") as file:
        write_array(file, array)


def new_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Create an .npy of this shape, with its room on the disk, and map it for writing."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    take_room(path)
    return array


def take_room(path: Path) -> None:
    """Take the room of a file that is mapped for writing: a full disk would be a signal later."""
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def load_array(folder: Path, name: str) -> npt.NDArray[Any]:
    """Map NAME.npy for reading, as a plain array: a memmap is slow to index."""
    path = folder / f"{name}.npy"
    with reading(folder):
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array.view(np.ndarray)

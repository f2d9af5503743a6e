"""Names by the million as Arrow holds them, and arrays of a plan: saved, mapped, read in parts."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glint.files import atomic, reads

SUM = ".xxh3"
BLOCK = 1 << 16  # names that are Python objects at a time


def packed(values: Iterable[bytes]) -> pa.LargeBinaryArray:
    """Pack byte strings: 8 bytes each beside their own."""
    left = iter(values)
    pieces = [pa.array([], pa.large_binary())]
    while piece := list(islice(left, BLOCK)):
        pieces.append(pa.array(piece, pa.large_binary()))
    return pa.concat_arrays(pieces)


def text(names: pa.Array) -> pa.StringArray:
    """Return byte strings as text; where some are not UTF-8, their bytes are written as \\xNN."""
    try:
        return names.cast(pa.large_string()).cast(pa.string())
    except pa.ArrowInvalid:
        values = (name.as_py().decode("utf-8", "backslashreplace") for name in names)
        return pa.array(values, pa.string())


@contextmanager
def checksummed(path: Path) -> Iterator[atomic.Hashed]:
    """Yield a file to write; NAME.xxh3 beside it says what was given to be written."""
    with path.open("wb") as file:
        hashed = atomic.Hashed(file)
        yield hashed
    path.with_name(path.name + SUM).write_text(hashed.digest)


def checksums_hold(folder: Path) -> bool:
    """Say whether the files that `checksummed` wrote into a folder are as they were given to it."""
    try:
        sums = {path: path.read_text() for path in folder.rglob("*" + SUM)}
        return bool(sums) and all(atomic.xxh3_of(p.with_suffix("")) == s for p, s in sums.items())
    except (OSError, ValueError):
        return False


def save_names(folder: Path, name: str, names: pa.Array) -> None:
    """Write NAME.arrow."""
    batch = pa.record_batch([names], [name])
    with (
        checksummed(folder / f"{name}.arrow") as file,
        pa.ipc.new_file(pa.PythonFile(file, "w"), batch.schema) as writer,
    ):
        writer.write_batch(batch)


def load_names(folder: Path, name: str) -> pa.Array:
    """Map what `save_names` wrote. Raises ResourceError GL0903."""
    with reads.reading(folder):
        column = (
            pa.ipc.open_file(pa.memory_map(os.fsencode(folder / f"{name}.arrow")))
            .read_all()
            .column(0)
        )
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


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


def load_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read what `np.savez` wrote.

    Raises OSError, and ValueError for another archive: also before it takes more memory than the
    file has bytes.
    """
    arrays = {}
    try:
        with reads.open_plain(path) as file, zipfile.ZipFile(file) as archive:
            left = path.stat().st_size
            for member in archive.infolist():
                left -= member.file_size
                if member.compress_type != zipfile.ZIP_STORED or left < 0:
                    raise ValueError(f"{member.filename} claims {member.file_size} bytes")
                data = archive.read(member)
                form = np.lib.format
                read = io.BytesIO(data)
                version = form.read_magic(read)
                head = form.read_array_header_1_0 if version == (1, 0) else None
                shape, _, dtype = (head or form.read_array_header_2_0)(read)
                if math.prod(shape) * dtype.itemsize > len(data):
                    raise ValueError(f"{member.filename} claims an array of {shape}")
                read.seek(0)
                name = member.filename.removesuffix(".npy")
                arrays[name] = form.read_array(read, allow_pickle=False)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ValueError(str(error)) from None
    return arrays


def load_array(folder: Path, name: str) -> npt.NDArray[Any]:
    """Map NAME.npy for reading, as a plain array: a memmap is slow to index."""
    path = folder / f"{name}.npy"
    with reads.reading(folder):
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array.view(np.ndarray)

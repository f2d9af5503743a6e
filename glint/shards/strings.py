"""Millions of strings as two arrays: saved, mapped and indexed without a list of objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class Strings:
    """An immutable list of byte strings: `blob` uint8 and `end` int64 [n]."""

    def __init__(self, blob: npt.NDArray[np.uint8], end_n: npt.NDArray[np.int64]) -> None:
        self.blob, self.end_n = blob, end_n

    @classmethod
    def of(cls, values: Iterable[bytes]) -> Strings:
        """Pack byte strings."""
        blob = bytearray()
        ends: list[int] = []
        for value in values:
            blob += value
            ends.append(len(blob))
        return cls(np.frombuffer(bytes(blob), np.uint8), np.array(ends, np.int64))

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
        np.save(folder / f"{name}.blob.npy", self.blob, allow_pickle=False)
        np.save(folder / f"{name}.end.npy", self.end_n, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path, name: str) -> Strings:
        """Map what `save` wrote."""
        return cls(load_array(folder, f"{name}.blob"), load_array(folder, f"{name}.end"))


def load_array(folder: Path, name: str) -> npt.NDArray[Any]:
    """Map NAME.npy for reading, as a plain array: a memmap is slow to index."""
    array: npt.NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return array.view(np.ndarray)

"""Block rows of a pair search that are done, on disk: what a search that was killed need not redo.

One file for each: a line of JSON (which search, which row, how many pairs, xxh3-128 of what
follows), then a, b (int64) and cosine (float64), little endian. A file of another search, cut
short or changed is as good as none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from glint.files import atomic

FORMAT = "glint/search@1"
WIDTH = 24  # bytes of a pair


@dataclass(frozen=True)
class BlockPairs:
    """Row pairs a < b with their cosine."""

    a: npt.NDArray[np.int64]
    b: npt.NDArray[np.int64]
    cosine: npt.NDArray[np.float64]


class FinishedRows:
    """The finished block rows of one search in a folder of its own; whoever calls holds a lock.

    search: names rows, threshold and blocks; what `folder` holds of any other search goes.
    """

    def __init__(self, folder: Path, search: str) -> None:
        self._folder, self._search = folder, search
        atomic.own_dir(folder)
        atomic.sweep(folder)
        with atomic.writing(folder):
            for path in folder.glob("*-[0-9][0-9][0-9][0-9][0-9][0-9].pairs"):
                if not path.name.startswith(search):
                    path.unlink()

    def load(self, row: int) -> BlockPairs | None:
        """Read a block row; None where it is not there, whole and of this search."""
        path = self._path(row)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        data = raw[raw.find(b"\n") + 1 :]
        if len(data) % WIDTH or raw != self._line(row, data) + data:
            return None
        third = len(data) // 3
        a, b = (np.frombuffer(data[i * third : (i + 1) * third], "<i8") for i in range(2))
        return BlockPairs(a, b, np.frombuffer(data[2 * third :], "<f8"))

    def save(self, row: int, found: BlockPairs) -> None:
        """Write a block row, durably. Raises ResourceError."""
        parts = (found.a.astype("<i8"), found.b.astype("<i8"), found.cosine.astype("<f8"))
        data = b"".join(part.tobytes() for part in parts)
        atomic.write_bytes(self._path(row), self._line(row, data) + data)

    def _path(self, row: int) -> Path:
        return self._folder / f"{self._search}-{row:06d}.pairs"

    def _line(self, row: int, data: bytes) -> bytes:
        about = {
            "format": FORMAT,
            "search": self._search,
            "row": row,
            "pairs": len(data) // WIDTH,
            "xxh3": xxhash.xxh3_128_hexdigest(data),
        }
        return json.dumps(about).encode() + b"\n"

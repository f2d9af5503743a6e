"""Block rows of a pair search that are done, on disk: what a search that was killed need not redo.

One file for each: a line of JSON (which search, which row, how many pairs, xxh3-128 of what
follows), then a, b (int64) and cosine (float64), little endian. A file of another search, cut
short or changed is as good as none. Beside them the order of the rows, which says what a block is
(machines whose last bits differ would not agree on it), and what several processes map instead of
making it each: the rows in int8.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from glint.files import atomic
from glint.files.strings import write_array
from glint.search.screens import Rows, Whole

FORMAT = "glint/search@1"
WIDTH = 24  # bytes of a pair
KINDS = ("*-[0-9][0-9][0-9][0-9][0-9][0-9].pairs", "*-order.npy", "*-int8.npy", "*-int8.json")


@dataclass(frozen=True)
class BlockPairs:
    """Row pairs a < b with their cosine."""

    a: npt.NDArray[np.int64]
    b: npt.NDArray[np.int64]
    cosine: npt.NDArray[np.float64]


def unordered(_: Rows | None) -> Rows:
    """Return the order of blocks that go by none."""
    return np.empty(0, np.int64)


class FinishedRows:
    """The finished block rows of one search in a folder of its own.

    rows: names rows, threshold and blocks; order: returns the order to go by, that which is kept
    (or None is) or another. sweep: what `folder` holds of any other search goes; whoever calls then
    holds it alone.
    """

    def __init__(
        self,
        folder: Path,
        rows: str,
        order: Callable[[Rows | None], Rows] = unordered,
        *,
        sweep: bool = True,
    ) -> None:
        self._folder = folder
        path = folder / f"{rows}-order.npy"
        if sweep:
            atomic.own_dir(folder)
            atomic.sweep(folder)
        found = _array(path)
        self.order: Rows = np.array(order(found))  # no map: what it says must not change any more
        if found is None or found.tobytes() != self.order.tobytes():
            with atomic.replacing(path) as file:
                write_array(file, self.order)
        self.search = xxhash.xxh3_128_hexdigest(rows.encode() + self.order.tobytes())
        if sweep:
            with atomic.writing(folder):
                for path in (one for kind in KINDS for one in folder.glob(kind)):
                    if not path.name.startswith((self.search, rows)):
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

    def keep(self, table: Whole) -> None:
        """Write the rows in int8 for other processes, durably. Raises ResourceError."""
        with atomic.replacing(self._int8("npy")) as file:
            write_array(file, table.row_ND)
        about = {"xxh3": _digest(table), "step": table.step_b.tolist(), "off": table.off_b.tolist()}
        atomic.write_json(self._int8("json"), about)

    def kept(self, block: int) -> Whole | None:
        """Map the rows in int8; None where they are not there, whole and of this search."""
        row_ND, path = _array(self._int8("npy")), self._int8("json")
        if row_ND is None or not path.is_file():
            return None
        about = atomic.read_json(path)
        step_b, off_b = (np.array(about.get(name), np.float64) for name in ("step", "off"))
        table = Whole(row_ND, step_b, off_b, block)
        return table if _digest(table) == about.get("xxh3") else None

    def _int8(self, kind: str) -> Path:
        return self._folder / f"{self.search}-int8.{kind}"

    def _path(self, row: int) -> Path:
        return row_path(self._folder, self.search, row)

    def _line(self, row: int, data: bytes) -> bytes:
        about = {
            "format": FORMAT,
            "search": self.search,
            "row": row,
            "pairs": len(data) // WIDTH,
            "xxh3": xxhash.xxh3_128_hexdigest(data),
        }
        return json.dumps(about).encode() + b"\n"


def row_path(folder: Path, search: str, row: int) -> Path:
    """Return where a block row of a search is kept."""
    return folder / f"{search}-{row:06d}.pairs"


def _array(path: Path) -> npt.NDArray[Any] | None:
    """Map an .npy; None where there is none, or none that is whole."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except (OSError, ValueError, EOFError):
        return None


def _digest(table: Whole) -> str:
    state = xxhash.xxh3_128(repr(table.row_ND.shape).encode())
    for part in (table.row_ND, table.step_b, table.off_b):
        state.update(np.ascontiguousarray(part).data)
    return str(state.hexdigest())

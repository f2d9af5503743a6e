"""A folder of embeddings: rows that grow block by block, and their reading when all are there.

A line in a journal, synced after the rows, says that a block is there; embeddings.json, written
last, holds the checksums of both arrays.
"""

# n images of one batch, N images of the dataset, C classes as sharded, D embedding

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from glint import schemas
from glint.errors import InputError, MismatchError
from glint.files import atomic, parquet, reads
from glint.files.strings import load_arrays, new_array, take_room
from glint.log import logger
from glint.shards.label_table import LabelTable

FORMAT = "glint/embeddings@2"  # 1 had no checksums
ARRAYS = ("samples.npy", "centres.npy")
AGAIN = "delete this folder and run `glint embed` again"
TRIM_DEGREES = 75.0  # sub-centre ArcFace drops samples this far from their centre
GROWING = ("samples.npy", "norm.npy", "status.npy")  # in the private folder, until all is there
STATUS = ("ok", "damaged", "not-a-jpeg", "wrong-size", "not-finite")

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Embeddings:
    """An embedding folder that fits its dataset.

    sample_ND: memory map, rows of NaN for failed images; centres_CD: rows of NaN for empty classes,
    None where every image is an identity of its own: its centre would be its row again.
    """

    root: Path
    sample_ND: Floats
    centres_CD: npt.NDArray[np.float32] | None
    about: dict[str, Any]

    @property
    def centre_CD(self) -> npt.NDArray[np.float32]:
        """The centres. Raises InputError GL0402 where there are none."""
        if self.centres_CD is None:
            raise InputError(
                "GL0402",
                "there are no centres: no identity has two images",
                where=str(self.root),
                hint="glint cluster says who is who, and `glint cluster apply` makes that labels",
            )
        return self.centres_CD

    def under(self, table: LabelTable, label_N: npt.NDArray[np.int64]) -> Embeddings:
        """Return the embeddings with the centres of the identities of labels in force.

        label_N: of every sample as sharded. A centre stands at the first label of its identity, the
        other labels have none: rows of NaN. Centres on disk that were made of the same images are
        taken as they are, others are averaged again; where no identity has two images, none are.
        """
        made = (self.about.get("labels") or {}).get("images", "")
        if table.classes == len(table.target) and table.images == made:
            return self
        person_N = table.sample_person(label_N)
        classes = len(table.target)
        if alone(person_N, classes):
            return replace(self, centres_CD=None)
        trim = bool(self.about.get("trim"))
        return replace(self, centres_CD=centres(self.sample_ND, person_N, classes, trim=trim))


def load(root: Path, dataset_digest: str, *, images: int, classes: int) -> Embeddings:
    """Open an embedding folder and check that it belongs to the dataset.

    Raises InputError for a missing, unreadable or damaged folder, MismatchError for another
    dataset's. Reads both arrays once, for their checksums.
    """
    if not (root / "embeddings.json").is_file():
        raise InputError(
            "GL0402",
            "expected embeddings, found no embeddings.json",
            where=str(root),
            hint="run `glint embed` to its end first",
        )
    about = atomic.read_json(root / "embeddings.json", "GL0402")
    if about.get("dataset") != dataset_digest:
        raise MismatchError(
            "GL0402",
            f"made from dataset {about.get('dataset')}, expected {dataset_digest}",
            where=str(root),
            hint="run `glint embed` on this dataset",
        )
    if about.get("format") != FORMAT:
        raise InputError(
            "GL0402",
            f"expected format {FORMAT!r}, found {about.get('format')!r}",
            where=str(root / "embeddings.json"),
            hint=AGAIN,
        )
    sample_ND = _open(root / "samples.npy", images)
    centre_CD = None if about.get("centres") is False else _open(root / "centres.npy", classes)
    if centre_CD is not None and sample_ND.shape[1] != centre_CD.shape[1]:
        raise InputError(
            "GL0402",
            f"samples have {sample_ND.shape[1]} columns, centres {centre_CD.shape[1]}",
            where=str(root),
        )
    check_sums(root, about)
    if why := about.get("warning") or ("" if centre_CD is None else nonsense(centre_CD, "centres")):
        logger.warning("%s: %s", root, why)
    return Embeddings(root, sample_ND, centre_CD, about)


def nonsense(sample_ND: npt.NDArray[Any], what: str = "images") -> str:
    """Say that all embeddings are nearly one, by some of them; "" where they are not."""
    some_nD = np.asarray(sample_ND[:: max(1, len(sample_ND) // 256)][:256], np.float64)
    some_nD = some_nD[np.isfinite(some_nD).all(1)]
    if len(some_nD) < 8 or (mean := float(np.linalg.norm(some_nD.mean(0)) ** 2)) < 0.98:
        return ""
    text = "the model says the same of all: are its pixels scaled otherwise (--mean, --std)?"
    return f"the mean cosine of any two {what} is {mean:.3f}: {text}"


def check_sums(root: Path, about: dict[str, Any]) -> None:
    """Read the arrays and compare with what was written. Raises InputError GL0402."""
    written = about.get("files")
    for name in arrays(about):
        expected = written.get(name) if isinstance(written, dict) else None
        found = checksum(root / name)
        if found != expected:
            raise InputError(
                "GL0402",
                f"expected the checksum {expected}, found {found}",
                where=str(root / name),
                hint=AGAIN,
            )


def arrays(about: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the arrays that embeddings have."""
    return ARRAYS[:1] if about.get("centres") is False else ARRAYS


def alone(label_N: npt.NDArray[np.int64], classes: int) -> bool:
    """Return whether no label has two images, of many: -1 for an image without one."""
    label_n = label_N[label_N >= 0]
    if len(label_n) < 2:
        return False
    seen_C = np.zeros(classes, np.bool_)
    seen_C[label_n] = True
    return int(seen_C.sum()) == len(label_n)


def checksum(path: Path) -> str:
    """Return the xxh3-128 of a file. Raises InputError GL0402 where it cannot be read."""
    try:
        return "xxh3:" + atomic.xxh3_of(path)
    except OSError as error:
        if reads.passing(error):
            raise reads.unread(error, path) from error
        raise InputError(
            "GL0402", f"cannot be read: {error}", where=str(path), hint=AGAIN
        ) from None


def _open(path: Path, rows: int) -> Any:
    """Map a two-dimensional float .npy with `rows` rows. Raises InputError for anything else."""
    try:
        with reads.open_plain(path):  # numpy would wait for a pipe
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and reads.passing(error):
            raise reads.unread(error, path) from error
        raise InputError(
            "GL0402", f"cannot be read: {error}", where=str(path), hint=AGAIN
        ) from None
    if not isinstance(array, np.ndarray):
        raise InputError("GL0402", "expected one array, found an archive", where=str(path))
    if array.ndim != 2 or len(array) != rows or array.dtype.kind != "f":
        raise InputError(
            "GL0402",
            f"expected {rows} rows of floats, found {array.dtype} {array.shape}",
            where=str(path),
        )
    return array


def centres(
    sample_ND: Floats, label_N: npt.NDArray[np.int64], classes: int, *, trim: bool = False
) -> npt.NDArray[np.float32]:
    """Average unit embeddings per label and scale to length one; NaN where a label has none.

    Samples of label -1 are left out.

    trim: a second pass leaves out samples more than 75 degrees from the first average.
    """
    centre_CD = _mean(sample_ND, label_N, classes, None)
    if trim:
        trimmed_CD = _mean(sample_ND, label_N, classes, centre_CD)
        found_C1 = np.isfinite(trimmed_CD[:, :1])  # else nothing is near the first average
        centre_CD = np.where(found_C1, trimmed_CD, centre_CD)
    return centre_CD


def _mean(
    sample_ND: Floats,
    label_N: npt.NDArray[np.int64],
    classes: int,
    near_CD: npt.NDArray[np.float32] | None,
) -> npt.NDArray[np.float32]:
    """Sum finite rows (those near `near_CD` where given) per label; scale to length one."""
    sum_CD = np.zeros((classes, sample_ND.shape[1]), np.float32)
    for start in range(0, len(sample_ND), 16384):
        row_nD = np.asarray(sample_ND[start : start + 16384], dtype=np.float32)
        label_n = label_N[start : start + 16384]
        keep_n = np.isfinite(row_nD).all(axis=1) & (label_n >= 0)
        if near_CD is not None:
            cosine_n = (row_nD * near_CD[label_n]).sum(axis=1)
            keep_n &= cosine_n >= np.cos(np.radians(TRIM_DEGREES))
        row_nD, label_n = row_nD[keep_n], label_n[keep_n]
        if not len(label_n):
            continue
        order = np.argsort(label_n, kind="stable")
        label_n = label_n[order]
        first = np.flatnonzero(np.r_[True, label_n[1:] != label_n[:-1]])
        sum_CD[label_n[first]] += np.add.reduceat(row_nD[order], first, axis=0)
    norm_C1 = np.linalg.norm(sum_CD, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        np.divide(sum_CD, norm_C1, out=sum_CD)
    sum_CD[norm_C1[:, 0] <= 1e-6] = np.nan
    return sum_CD


class Rows:
    """Rows that grow: embeddings, norms and statuses at their final size, and the journal.

    Whoever holds `out` alone opens them; `work` is its private folder.
    """

    def __init__(
        self, out: Path, work: Path, images: int, dim: int, dtype: str, block: int
    ) -> None:
        self.images, self.block = images, block
        if (out / "samples.npy").exists():  # stopped while finishing
            (out / "samples.npy").replace(work / "samples.npy")
        self.journal = atomic.Journal(work / "journal.jsonl")
        sample, norm, status = (work / name for name in GROWING)
        self.sample_ND = _grow(sample, (images, dim), np.dtype(dtype))
        self.norm_N = _grow(norm, (images,), np.dtype(np.float32))
        self.status_N = _grow(status, (images,), np.dtype(np.uint8))
        self.done = self._trusted()

    def _cut(self, number: int) -> slice:
        return slice(number * self.block, min((number + 1) * self.block, self.images))

    def _digest(self, cut: slice) -> str:
        state = xxhash.xxh3_128()
        for array in (self.sample_ND, self.norm_N, self.status_N):
            state.update(np.ascontiguousarray(array[cut]).tobytes())
        return state.hexdigest()

    def _trusted(self) -> set[int]:
        """Believe a journal line only where the rows it names still have its digest."""
        claimed = {int(entry["block"]): str(entry["xxh3"]) for entry in self.journal.lines}
        return {
            number
            for number, digest in claimed.items()
            if number * self.block < self.images and self._digest(self._cut(number)) == digest
        }

    def count(self) -> int:
        """Return how many rows are there."""
        return sum(self._cut(i).stop - self._cut(i).start for i in self.done)

    def take(self, number: int, path: Path) -> bool:
        """Take the rows of a block from its file; return whether they were there and whole."""
        cut = self._cut(number)
        try:
            file = load_arrays(path)
            part = [file[name] for name in ("sample", "norm", "status")]
        except (OSError, ValueError, KeyError):
            return False
        arrays = (self.sample_ND, self.norm_N, self.status_N)
        for array, rows in zip(arrays, part):
            if rows.shape != array[cut].shape or rows.dtype != array.dtype:
                return False
        for array, rows in zip(arrays, part):
            array[cut] = rows
        self.commit(number)
        return True

    def missing(self) -> list[tuple[int, slice]]:
        """List the blocks that are not there yet, and their rows."""
        blocks = -(-self.images // self.block)
        return [(i, self._cut(i)) for i in range(blocks) if i not in self.done]

    def commit(self, number: int) -> None:
        """Sync the rows of a block, then the journal line that vouches for them."""
        for array in (self.sample_ND, self.norm_N, self.status_N):
            array.flush()
        self.journal.append({"block": number, "xxh3": self._digest(self._cut(number))})
        self.done.add(number)

    def write_table(self, out: Path, key: Any) -> None:
        """Write samples.parquet; key: the keys, in Arrow or a sequence."""
        import pyarrow as pa

        status = pa.DictionaryArray.from_arrays(pa.array(np.asarray(self.status_N)), list(STATUS))
        norm = pa.array(np.asarray(self.norm_N), pa.float32())
        table = {"key": key, "norm": norm, "status": status.cast(pa.string())}
        parquet.write(out / "samples.parquet", pa.table(table, schema=schemas.EMBEDDED))


def _grow(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.memmap[Any, Any]:
    """Open or create a .npy of its final shape. Raises BusyError GL0004 for a link."""
    with atomic.writing(path):
        fd = atomic.open_own(path, os.O_RDWR | os.O_CREAT)
        size = os.fstat(fd).st_size
        os.close(fd)
        if size:
            try:
                array = np.lib.format.open_memmap(path, mode="r+")
                if array.shape == shape and array.dtype == dtype:
                    take_room(path)
                    return array
            except ValueError:
                pass  # stopped while being created: begin again
        return new_array(path, dtype, shape)

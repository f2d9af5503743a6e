"""Stage `embed`: a dataset and a recogniser in, unit embeddings and class centres out.

Rows are written block by block into files of their final size; a line in a journal, synced after
the rows, says that a block is there. The same command continues after any stop. Tasks and workers
elsewhere write each block into a file of its own, `_glint/pieces/`, from which the rows are taken.
"""

# n images of one batch, N images of the dataset, C classes as sharded, D embedding

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from glint import log, schemas
from glint.errors import GlintError, InputError, MismatchError, UsageError
from glint.files import atomic, parquet
from glint.files.strings import new_array, take_room, write_array
from glint.jobs import tasks, workspace
from glint.jobs import workers as stage
from glint.log import Progress, logger
from glint.results import identities as results

FORMAT = "glint/embeddings@2"  # 1 had no checksums
BLOCK = 2048  # rows between two journal lines
TRIM_DEGREES = 75.0  # sub-centre ArcFace drops samples this far from their centre
ARRAYS = ("samples.npy", "centres.npy")
AGAIN = "delete this folder and run `glint embed` again"
STATUS = ("ok", "damaged", "not-a-jpeg", "wrong-size", "not-finite")

Floats = npt.NDArray[np.floating]


class Recogniser(Protocol):
    """What `evals.recogniser.open_model` returns."""

    @property
    def dim(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    def embed(self, image_nHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]: ...


class Source(Protocol):
    """The part of `shards.index.Dataset` that embedding reads."""

    @property
    def n(self) -> int: ...
    @property
    def classes(self) -> int: ...
    @property
    def label(self) -> npt.NDArray[np.int64]: ...
    @property
    def key(self) -> Any: ...
    @property
    def digest(self) -> str: ...
    def read(self, row: int) -> bytes: ...


Opener = Callable[[], tuple[Source, Recogniser]]


@dataclass(frozen=True)
class Paths:
    """Where a worker, on whatever machine, finds the dataset and the model."""

    dataset: str
    model: str

    def __call__(self) -> tuple[Source, Recogniser]:
        """Open both; the model computes with one thread, or on the GPU."""
        from glint.models.recogniser import open_model
        from glint.shards.dataset import Dataset

        return Dataset(self.dataset), open_model(self.model, threads=1)


@dataclass(frozen=True)
class Embeddings:
    """An embedding folder that fits its dataset.

    sample_ND: memory map, rows of NaN for failed images; centre_CD: rows of NaN for empty classes.
    """

    root: Path
    sample_ND: Floats
    centre_CD: npt.NDArray[np.float32]
    about: dict[str, Any]


def embed(
    dataset: Source,
    model: Recogniser,
    out: Path,
    *,
    batch: int = 64,
    flip: bool = False,
    dtype: str = "float16",
    workers: int = 2,
    trim: bool = False,
    block: int = BLOCK,
    progress: Progress = log.silent,
    task: tasks.Task | None = None,
    engine: stage.Engine | None = None,
    opener: Opener | None = None,
) -> results.Embed | results.EmbedShare:
    """Embed every image of `dataset` into the folder `out`; continue what a stop left there.

    flip: add the embedding of the mirrored image before scaling to length one. trim: leave samples
    more than 75 degrees from their centre out of it. A task embeds its share of the blocks, and
    what it returns says how many are `left` to others; an engine opens dataset and model by
    `opener`, which pickles and compares. Raises MismatchError when `out` was begun with other
    inputs, BusyError when another run writes there or it holds something else, InputError when no
    image can be embedded.
    """
    plan = {
        "format": FORMAT,
        "dataset": dataset.digest,
        "model": model.digest,
        "name": model.name,
        "dim": int(model.dim),
        "size": int(model.size),
        "images": int(dataset.n),
        "classes": int(dataset.classes),
        "flip": flip,
        "dtype": dtype,
        "trim": trim,
        "block": block,
    }
    if dtype not in ("float16", "float32"):
        raise UsageError("GL0002", f"expected float16 or float32, found {dtype!r}", where="--dtype")
    check_out(out)
    work, made = out / "_glint", out / "embeddings.json"
    atomic.make_dir(work)
    how = _How(str(work), opener, dataset.digest, model.digest, batch, flip, dtype, block, workers)
    left = 0
    with tasks.claim(work, task) as held, atomic.writing(out):
        with tasks.planning(work, task):
            _refuse_other_plan(out, work, plan)
        finished = made.exists()
        if task is not None and not made.exists():
            _share(how, dataset, model, task, engine, progress)
        with tasks.ending(work, task):
            if task is not None and not made.exists():
                left = len(how.missing(dataset.n))
            if not left and not made.exists():
                rows = _Rows(out, work, dataset.n, model.dim, dtype, block)
                try:
                    _gather(rows, how, engine, progress)
                    _fill(rows, dataset, model, batch, flip, workers, progress)
                    _finish(rows, dataset, out, work, plan)
                finally:
                    rows.journal.close()
            if not left and held.alone():
                _tidy(work)
            held.release()
    if left:
        blocks = how.blocks(dataset.n)
        return results.EmbedShare(
            out=str(out), images=dataset.n, blocks=blocks, task=str(task), left=left
        )
    about = atomic.read_json(made, "GL0402")
    if finished:  # by another call: nothing was written, so what lies there is looked at
        _check_sums(out, about)
    return results.Embed(
        images=about["images"],
        dim=about["dim"],
        failed=about["failed"],
        failures=about["failures"],
        empty_classes=about["empty_classes"],
        out=str(out),
        task=None if task is None else str(task),
        left=None if task is None else left,
    )


def check_out(out: Path) -> None:
    """Raise BusyError where `out` is not a folder that `embed` may write. Writes nothing."""
    marks = ("embeddings.json", "_glint/plan.json")
    workspace.refuse_foreign(out, "glint/embeddings", marks, "embeddings")


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
    centre_CD = _open(root / "centres.npy", classes)
    if sample_ND.shape[1] != centre_CD.shape[1]:
        raise InputError(
            "GL0402",
            f"samples have {sample_ND.shape[1]} columns, centres {centre_CD.shape[1]}",
            where=str(root),
        )
    _check_sums(root, about)
    return Embeddings(root, sample_ND, centre_CD, about)


def _check_sums(root: Path, about: dict[str, Any]) -> None:
    """Read both arrays and compare with what was written. Raises InputError GL0402."""
    written = about.get("files")
    for name in ARRAYS:
        expected = written.get(name) if isinstance(written, dict) else None
        found = _checksum(root / name)
        if found != expected:
            raise InputError(
                "GL0402",
                f"expected the checksum {expected}, found {found}",
                where=str(root / name),
                hint=AGAIN,
            )


def centres(
    sample_ND: Floats, label_N: npt.NDArray[np.int64], classes: int, *, trim: bool = False
) -> npt.NDArray[np.float32]:
    """Average unit embeddings per label and scale to length one; NaN where a label has none.

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
        keep_n = np.isfinite(row_nD).all(axis=1)
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
        centre_CD: npt.NDArray[np.float32] = (sum_CD / norm_C1).astype(np.float32)
    centre_CD[norm_C1[:, 0] <= 1e-6] = np.nan
    return centre_CD


class _Rows:
    """The growing rows: embeddings, norms and statuses at their final size, and the journal."""

    def __init__(
        self, out: Path, work: Path, images: int, dim: int, dtype: str, block: int
    ) -> None:
        self.images, self.block = images, block
        if (out / "samples.npy").exists():  # stopped while finishing
            (out / "samples.npy").replace(work / "samples.npy")
        self.journal = atomic.Journal(work / "journal.jsonl")
        self.sample_ND = _grow(work / "samples.npy", (images, dim), np.dtype(dtype))
        self.norm_N = _grow(work / "norm.npy", (images,), np.dtype(np.float32))
        self.status_N = _grow(work / "status.npy", (images,), np.dtype(np.uint8))
        self.done = self._trusted()

    def _cut(self, number: int) -> slice:
        return slice(number * self.block, min((number + 1) * self.block, self.images))

    def _digest(self, cut: slice) -> str:
        import xxhash

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
        """Take the rows of a block from its file; say whether they were there and whole."""
        cut = self._cut(number)
        try:
            with np.load(path, allow_pickle=False) as file:
                part = [file[name] for name in ("sample", "norm", "status")]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
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
        """List the blocks that are not there yet."""
        blocks = -(-self.images // self.block)
        return [(i, self._cut(i)) for i in range(blocks) if i not in self.done]

    def commit(self, number: int) -> None:
        """Sync the rows of a block, then the journal line that vouches for them."""
        for array in (self.sample_ND, self.norm_N, self.status_N):
            array.flush()
        self.journal.append({"block": number, "xxh3": self._digest(self._cut(number))})
        self.done.add(number)


def _grow(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.memmap[Any, Any]:
    """Open or create a .npy of its final shape."""
    with atomic.writing(path):
        if path.exists():
            try:
                array = np.lib.format.open_memmap(path, mode="r+")
                if array.shape == shape and array.dtype == dtype:
                    take_room(path)
                    return array
            except ValueError:
                pass  # stopped while being created: begin again
        return new_array(path, dtype, shape)


@dataclass(frozen=True)
class _How:
    """What a worker needs to embed a block into a file of its own."""

    work: str
    opener: Opener | None
    dataset: str  # digests
    model: str
    batch: int
    flip: bool
    dtype: str
    block: int
    workers: int

    def path(self, number: int) -> Path:
        """Where the rows of a block are put down."""
        return Path(self.work) / "pieces" / f"{number:06d}.npz"

    def blocks(self, images: int) -> int:
        """Return the number of blocks."""
        return -(-images // self.block)

    def missing(self, images: int) -> list[int]:
        """List the blocks that are neither put down nor in a plain run's journal."""
        lines = atomic.journal_lines(Path(self.work) / "journal.jsonl")[0]
        there = {int(line["block"]) for line in lines}
        return [
            i for i in range(self.blocks(images)) if i not in there and not self.path(i).is_file()
        ]


def _put_down(how: _How, dataset: Source, model: Recogniser, number: int) -> None:
    """Embed a block into its file, whose members are checked by their CRC when it is read."""
    cut = slice(number * how.block, min((number + 1) * how.block, dataset.n))
    with ThreadPoolExecutor(max(1, how.workers), thread_name_prefix="glint-decode") as pool:
        parts = list(_embedded(pool, dataset, model, cut, how.batch, how.flip))
    with atomic.atomic(how.path(number)) as file:
        np.savez(
            file,
            sample=np.concatenate([part[1] for part in parts]).astype(how.dtype),
            norm=np.concatenate([part[2] for part in parts]),
            status=np.concatenate([part[3] for part in parts]),
        )


@lru_cache(maxsize=1)
def _opened(opener: Opener) -> tuple[Source, Recogniser]:
    return opener()


def _elsewhere(how: _How, number: int) -> int:
    """Embed a block in a process that opens what it needs, once. Raises MismatchError GL0006."""
    assert how.opener is not None
    dataset, model = _opened(how.opener)
    if (dataset.digest, model.digest) != (how.dataset, how.model):
        raise MismatchError(
            "GL0006",
            f"this worker found dataset {dataset.digest} and model {model.digest}, "
            f"expected {how.dataset} and {how.model}",
            hint="every machine has to see the same files under the same paths",
        )
    _put_down(how, dataset, model, number)
    return number


def _share(
    how: _How,
    dataset: Source,
    model: Recogniser,
    task: tasks.Task,
    engine: stage.Engine | None,
    progress: Progress,
) -> None:
    """Put down the blocks of one task that are not there yet."""
    mine = tasks.share(task, range(how.blocks(dataset.n)))
    todo = tasks.share(task, how.missing(dataset.n))
    atomic.make_dir(how.path(0).parent)
    count = len(mine) - len(todo)

    def done(number: int, result: object) -> None:
        nonlocal count
        count += 1
        progress(min(count * how.block, dataset.n), min(len(mine) * how.block, dataset.n))

    if engine is not None:
        engine.each(_elsewhere, how, todo, 0, done)
        return
    for number in todo:
        _put_down(how, dataset, model, number)
        done(number, None)


def _gather(rows: _Rows, how: _How, engine: stage.Engine | None, progress: Progress) -> None:
    """Take the rows that were put down; an engine first puts down those that are missing."""
    missing = dict(rows.missing())
    for number in list(missing):
        if rows.take(number, how.path(number)):
            del missing[number]

    def done(number: int, result: object) -> None:
        rows.take(number, how.path(number))
        how.path(number).unlink(missing_ok=True)
        progress(rows.count(), rows.images)

    if engine is not None and missing:
        atomic.make_dir(how.path(0).parent)
        engine.each(_elsewhere, how, list(missing), 0, done)


def _fill(
    rows: _Rows,
    dataset: Source,
    model: Recogniser,
    batch: int,
    flip: bool,
    workers: int,
    progress: Progress,
) -> None:
    """Embed every missing block; the next batch is decoded while this one is embedded."""
    done = rows.count()
    if 0 < done < rows.images:
        logger.info("continuing: %d of %d images are embedded already", done, rows.images)
    failed = 0
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="glint-decode") as pool:
        for number, cut in rows.missing():
            for into, row_nD, norm_n, status_n in _embedded(pool, dataset, model, cut, batch, flip):
                rows.sample_ND[into] = row_nD
                rows.norm_N[into], rows.status_N[into] = norm_n, status_n
                failed += int((status_n != 0).sum())
                done += len(norm_n)
                progress(done, rows.images, f"{failed} failed" if failed else "")
            rows.commit(number)


_Part = tuple[
    slice, npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.uint8]
]  # rows of the dataset, unit embeddings, norms, statuses


def _embedded(
    pool: ThreadPoolExecutor, dataset: Source, model: Recogniser, cut: slice, batch: int, flip: bool
) -> Iterator[_Part]:
    """Embed the rows of a block, batch by batch."""
    ahead = [(s, min(s + batch, cut.stop)) for s in range(cut.start, cut.stop, batch)]
    waiting = [pool.submit(_decode, dataset, row, model.size) for row in range(*ahead[0])]
    for i, (start, stop) in enumerate(ahead):
        ready = [future.result() for future in waiting]
        if i + 1 < len(ahead):
            waiting = [
                pool.submit(_decode, dataset, row, model.size) for row in range(*ahead[i + 1])
            ]
        status_n = np.array([status for status, _ in ready], np.uint8)
        row_nD = np.full((stop - start, model.dim), np.nan, np.float32)
        norm_n = np.full(stop - start, np.nan, np.float32)
        good_n = np.flatnonzero(status_n == 0)
        if len(good_n):
            image_nHWC = np.stack([image for _, image in ready if image is not None])
            row_nD[good_n], norm_n[good_n] = _unit(model, image_nHWC, flip)
        status_n[good_n[np.isnan(norm_n[good_n])]] = STATUS.index("not-finite")
        yield slice(start, stop), row_nD, norm_n, status_n


def _unit(
    model: Recogniser, image_nHWC: npt.NDArray[np.uint8], flip: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Embed images; return unit rows and their norms, NaN where the model gave no direction."""
    raw_nD = np.asarray(model.embed(image_nHWC), dtype=np.float32)
    if flip:
        raw_nD = raw_nD + model.embed(np.ascontiguousarray(image_nHWC[:, :, ::-1]))
    norm_n = np.linalg.norm(raw_nD.astype(np.float64), axis=1)
    norm_n[~np.isfinite(norm_n) | (norm_n == 0)] = np.nan
    return (raw_nD / norm_n[:, None]).astype(np.float32), norm_n.astype(np.float32)


_Decoded = tuple[int, "npt.NDArray[np.uint8] | None"]


def _decode(dataset: Source, row: int, size: int) -> _Decoded:
    """Read and decode one image; return (status, RGB image or None)."""
    import simplejpeg

    try:
        data = dataset.read(row)
    except GlintError as error:
        logger.debug("row %d: %s", row, error)  # counted; named in samples.parquet
        return STATUS.index("damaged"), None
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=True)
        if (height, width) != (size, size):
            return STATUS.index("wrong-size"), None
        return 0, simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    except ValueError:
        return STATUS.index("not-a-jpeg"), None


def _finish(rows: _Rows, dataset: Source, out: Path, work: Path, plan: dict[str, Any]) -> None:
    """Write centres and the sample table, move the rows into place, then say so."""
    import pyarrow as pa

    status_N = np.asarray(rows.status_N)
    failures = {name: int((status_N == code).sum()) for code, name in enumerate(STATUS) if code}
    failures = {name: count for name, count in failures.items() if count}
    failed = sum(failures.values())
    if failed == dataset.n:
        raise InputError(
            "GL0402",
            f"none of {dataset.n} images could be embedded: {failures}",
            where=str(out),
            hint=f"the model takes JPEGs of {plan['size']}x{plan['size']} pixels",
        )
    centre_CD = centres(rows.sample_ND, dataset.label, dataset.classes, trim=bool(plan["trim"]))
    with atomic.atomic(out / "centres.npy") as file:
        write_array(file, centre_CD)
    parquet.write(
        out / "samples.parquet",
        pa.table(
            {
                "key": pa.array([str(key) for key in dataset.key], pa.string()),
                "norm": pa.array(np.asarray(rows.norm_N), pa.float32()),
                "status": pa.DictionaryArray.from_arrays(pa.array(status_N), list(STATUS)).cast(
                    pa.string()
                ),
            },
            schema=schemas.EMBEDDED,
        ),
    )
    norm_N = np.array(rows.norm_N)
    with atomic.writing(out):
        (work / "samples.npy").replace(out / "samples.npy")
        atomic.sync_dir(out)  # before embeddings.json says that it is there
    about = {
        **plan,
        "failed": failed,
        "failures": failures,
        "empty_classes": int(np.isnan(centre_CD).any(axis=1).sum()),
        "norm_mean": float(np.nanmean(norm_N)),
        "norm_std": float(np.nanstd(norm_N)),
        "files": {name: _checksum(out / name) for name in ARRAYS},
    }
    atomic.write_json(out / "embeddings.json", about)


def _tidy(work: Path) -> None:
    """Remove what only unfinished embeddings need; whoever calls holds the output alone."""
    shutil.rmtree(work / "pieces", ignore_errors=True)
    for path in work.iterdir():
        if path.name != "lock" and path.is_file():
            path.unlink()


def _refuse_other_plan(out: Path, work: Path, plan: dict[str, Any]) -> None:
    """Raise MismatchError where the folder was begun, or finished, from another plan."""
    for path in (out / "embeddings.json", work / "plan.json"):
        if not path.exists():
            continue
        found = atomic.read_json(path, "GL0402")
        differ = [
            f"{key}: {found.get(key)} there, {value} now"
            for key, value in plan.items()
            if found.get(key) != value
        ]
        if differ:
            raise MismatchError(
                "GL0006",
                "begun from other inputs or options (" + "; ".join(differ) + ")",
                where=str(out),
                hint="choose another --out, or delete this folder",
            )
        return
    atomic.write_json(work / "plan.json", plan)


def _checksum(path: Path) -> str:
    """Return the xxh3-128 of a file. Raises InputError where it cannot be read."""
    import xxhash

    state = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while part := file.read(4 << 20):
                state.update(part)
    except OSError as error:
        raise InputError(
            "GL0402", f"cannot be read: {error}", where=str(path), hint=AGAIN
        ) from None
    return "xxh3:" + state.hexdigest()


def _open(path: Path, rows: int) -> Any:
    """Map a two-dimensional float .npy with `rows` rows. Raises InputError for anything else."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
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

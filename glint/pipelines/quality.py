"""Stage `quality`: a number for each image that says how well a face can be told from it."""

# N images of the dataset, n some of them, D embedding, p pairs

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glint import log, schemas
from glint.errors import InputError, MismatchError, UsageError
from glint.files import atomic, parquet
from glint.jobs import tasks
from glint.jobs.workers import Engine
from glint.jobs.workspace import Workspace, sha256
from glint.log import Progress
from glint.models.quality import Opener, Quality, Sharpness
from glint.pipelines import batches, embed
from glint.results import identities as results
from glint.review import chart, lines, plots
from glint.shards import embeddings, labels
from glint.shards.dataset import Dataset
from glint.shards.embeddings import Embeddings

FORMAT = "glint/quality@1"
TABLE = "quality.parquet"
METHODS = ("norm", "sharpness", "steady", "net")
AGAIN = "run glint quality again"
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)  # of the images, discarded
GENUINE, IMPOSTOR = 200_000, 2_000_000  # most pairs drawn for the curve
FMR = 1e-3  # of the pairs of two people, accepted with no image discarded
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5)
F32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Opened:
    """Where a worker, on whatever machine, finds the dataset and the model."""

    dataset: str
    model: Opener

    def __call__(self) -> tuple[batches.Source, batches.Recogniser]:
        """Open both; the model computes with one thread, or on the GPU."""
        return Dataset(self.dataset), self.model(threads=1)


def run(
    dataset: Dataset,
    out: Path,
    *,
    emb: Embeddings | None = None,
    model: Quality | Sharpness | None = None,
    batch: int = 64,
    workers: int = 2,
    progress: Progress = log.silent,
    task: tasks.Task | None = None,
    engine: Engine | None = None,
    opener: Opened | None = None,
) -> results.Quality | results.EmbedShare:
    """Write quality.parquet, quality.html and, last, quality.json into `out`.

    model: gives the scores; without one they are the norms of `emb`. emb: with them the curve of
    errors over images discarded is drawn, by the labels in force. The same command continues, and
    tasks and engines share the work out, as `glint embed` does. Raises UsageError GL0002 without
    both, BusyError where `out` holds something else, MismatchError GL0006 where it was begun from
    other inputs, InputError where no image has a score.
    """
    if emb is None and model is None:
        raise UsageError("GL0002", "expected a model or embeddings", where="glint quality")
    space = Workspace(out, "quality")
    space.refuse_foreign()
    method = "norm"
    if model is not None:
        net = "steady" if isinstance(model, Quality) and model.steady else "net"
        method = "sharpness" if isinstance(model, Sharpness) else net
    plan = {
        "format": FORMAT,
        "dataset": dataset.digest,
        "method": method,
        "model": model.digest if model is not None else emb.about.get("model") if emb else None,
        "embeddings": emb.about.get("model") if emb else None,
    }
    with space.held(task):
        space.take_up(plan, "GL0305")
    if model is None:
        assert emb is not None
        score_N = _norms(emb, dataset)
    else:
        scores = out / "scores"
        done = embed.embed(
            dataset, model, scores, batch=batch, dtype="float32", workers=workers,
            progress=progress, task=task, engine=engine, opener=opener,
        )  # fmt: skip
        if isinstance(done, results.EmbedShare):
            return done
        score_N = _scores(scores)
    if not np.isfinite(score_N).any():
        raise InputError("GL0402", f"none of {dataset.n} images has a score", where=str(out))
    with space.held():
        about = _write(dataset, out, score_N, emb, plan, space)
    names = ("method", "images", "scored", "mean", "quantiles", "curve")
    return results.Quality(
        **{name: about[name] for name in names}, page=str(out / "quality.html"), out=str(out)
    )


def load(folder: Path, dataset: Dataset) -> F32:
    """Return the quality of every image of a dataset, NaN for one without.

    Raises UsageError GL0001, InputError and MismatchError GL0305 for a folder that does not fit.
    """
    last = folder / "quality.json"
    if not last.is_file():
        raise UsageError(
            "GL0001", "expected the folder of `glint quality`, found no quality.json",
            where=str(folder), hint="make one with: glint quality DATASET --out FOLDER",
        )  # fmt: skip
    about = atomic.read_json(last, "GL0305")
    for name, found, expected in (
        ("format", about.get("format"), FORMAT),
        ("dataset", about.get("dataset"), dataset.digest),
    ):
        if found != expected:
            what = f"made for {name} {found}, expected {expected}"
            raise MismatchError("GL0305", what, where=str(folder), hint=AGAIN)
    if about.get("files", {}).get(TABLE) != sha256(folder / TABLE):
        what = "not the table that was written: its SHA-256 differs"
        raise InputError("GL0305", what, where=str(folder / TABLE), hint=AGAIN)
    table = parquet.read(folder / TABLE, schemas.QUALITY, columns=["quality"], code="GL0305")
    if table.num_rows != dataset.n:
        what = f"expected {dataset.n} rows, found {table.num_rows}"
        raise InputError("GL0305", what, where=str(folder / TABLE))
    column = table.column("quality").to_numpy(zero_copy_only=False)
    return np.asarray(column, np.float32)


def below(folder: Path, dataset: Dataset, least: str) -> npt.NDArray[np.bool_]:
    """Return which images have less quality than `least`, a number or as in 5% of the images.

    An image without a score is below any. A share takes the worst so many of the images that have
    one; of equal ones none is below. Raises UsageError GL0002 for another text, and as `load`.
    """
    score_N = load(folder, dataset)
    found = re.fullmatch(r"\s*([+-]?[0-9.]+(?:[eE][+-]?\d+)?)\s*(%?)\s*", least)
    try:
        value = float(found[1]) if found else np.nan
    except ValueError:
        value = np.nan
    if not np.isfinite(value) or (found and found[2] and not 0 <= value < 100):
        what = f"expected a number or a share as in 5%, found {least!r}"
        raise UsageError("GL0002", what, where="--min-quality")
    if found and found[2]:
        value = float(np.nanquantile(score_N.astype(np.float64), value / 100))
    return np.asarray(~(score_N >= np.float32(value)))


def curve(
    sample_ND: npt.NDArray[Any], target_N: Ints, score_N: F32, seed: int = 0
) -> dict[str, Any] | None:
    """Return the errors that are left when the worst images are discarded (ISO/IEC 29794-1).

    The threshold accepts `FMR` of the pairs of two people with no image discarded, and stays. Of
    the pairs of one person whose worse image is not among the share discarded, `fnmr` are below it;
    `at_random`: the same where the images to discard are drawn. At most `GENUINE` and `IMPOSTOR`
    pairs are drawn by `seed`. None where no identity has two images, or only one identity is there.
    """
    rng = np.random.default_rng(seed)
    row_n = np.flatnonzero(np.isfinite(score_N) & (target_N >= 0))
    if len(row_n):
        finite_n = np.isfinite(np.asarray(sample_ND[row_n], np.float32)).all(axis=1)
        row_n = row_n[finite_n]
    a_p, b_p = _genuine(target_N[row_n], rng)
    if not len(a_p) or len(np.unique(target_N[row_n])) < 2:
        return None
    c_p, d_p = rng.integers(len(row_n), size=(2, IMPOSTOR))
    other_p = target_N[row_n[c_p]] != target_N[row_n[d_p]]
    impostor_p = _cosines(sample_ND, row_n[c_p[other_p]], row_n[d_p[other_p]])
    threshold = float(np.quantile(impostor_p, 1 - FMR))
    wrong_p = _cosines(sample_ND, row_n[a_p], row_n[b_p]) < threshold
    chance_n = rng.random(len(row_n))
    curves = {}
    for name, by_n in (("fnmr", score_N[row_n].astype(np.float64)), ("at_random", chance_n)):
        worse_p = np.minimum(by_n[a_p], by_n[b_p])
        cuts = np.quantile(by_n, SHARES)
        kept = [worse_p >= cut for cut in cuts]
        curves[name] = [float(wrong_p[k].mean()) if k.any() else None for k in kept]
    return {
        "discarded": list(SHARES), **curves, "threshold": threshold, "pairs": len(a_p),
        "pairs_of_two": len(impostor_p),
    }  # fmt: skip


def _genuine(target_n: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Draw pairs of images of one identity, all of them where they are few."""
    order = np.argsort(target_n, kind="stable")
    size_C = np.unique(target_n, return_counts=True)[1]
    first_C = np.concatenate([[0], np.cumsum(size_C)[:-1]])
    pairs_C = size_C * (size_C - 1) // 2
    total = int(pairs_C.sum())
    if total <= GENUINE:
        parts = [
            first + np.stack(np.triu_indices(size, 1))
            for first, size in zip(first_C, size_C)
            if size > 1
        ]
        both = np.concatenate(parts, axis=1) if parts else np.empty((2, 0), np.int64)
    else:
        which = rng.choice(len(size_C), size=GENUINE, p=pairs_C / total)
        a = rng.integers(size_C[which])
        b = (a + 1 + rng.integers(size_C[which] - 1)) % size_C[which]
        both = first_C[which] + np.stack([a, b])
    return order[both[0]], order[both[1]]


def _cosines(sample_ND: npt.NDArray[Any], a_p: Ints, b_p: Ints) -> npt.NDArray[np.float64]:
    """Return the cosine of each pair, a few rows at a time."""
    cosine_p = np.empty(len(a_p))
    for at in range(0, len(a_p), 65536):
        cut = slice(at, at + 65536)
        a_nD = np.asarray(sample_ND[a_p[cut]], np.float32)
        cosine_p[cut] = (a_nD * np.asarray(sample_ND[b_p[cut]], np.float32)).sum(axis=1)
    return cosine_p


def _norms(emb: Embeddings, dataset: Dataset) -> F32:
    """Return the norms of embeddings. Raises InputError GL0402."""
    path = emb.root / "samples.parquet"
    table = parquet.read(path, schemas.EMBEDDED, columns=["key", "norm"], code="GL0402")
    keys = table.column("key").to_pylist()
    if keys != [str(key) for key in dataset.key]:
        raise InputError(
            "GL0402", "its keys are not those of the dataset", where=str(path),
            hint=embeddings.AGAIN,
        )  # fmt: skip
    return np.asarray(table.column("norm").to_numpy(zero_copy_only=False), np.float32)


def _scores(folder: Path) -> F32:
    """Return the scores out of the rows that `embed` made: quality is x / y."""
    embeddings.check_sums(folder, atomic.read_json(folder / "embeddings.json", "GL0402"))
    row_N2 = np.load(folder / "samples.npy", mmap_mode="r", allow_pickle=False)
    with np.errstate(invalid="ignore"):
        return np.asarray(row_N2[:, 0] / row_N2[:, 1], np.float32)


def _write(
    dataset: Dataset,
    out: Path,
    score_N: F32,
    emb: Embeddings | None,
    plan: dict[str, Any],
    space: Workspace,
) -> dict[str, Any]:
    import pyarrow as pa

    version = labels.current(dataset.root, dataset.classes)
    sound_N = np.isfinite(score_N)
    score_n = score_N[sound_N].astype(np.float64)
    found = None
    if emb is not None:
        found = curve(emb.sample_ND, version.sample_target(dataset.label), score_N)
    table = pa.table(
        {
            "key": pa.array([str(key) for key in dataset.key], pa.string()),
            "quality": pa.array(score_N, pa.float32(), mask=~sound_N),
        },
        schema=schemas.QUALITY,
    )
    about = {
        **plan,
        "label_version": version.version,
        "images": dataset.n,
        "scored": len(score_n),
        "mean": float(score_n.mean()),
        "quantiles": {f"{q:g}": float(np.quantile(score_n, q)) for q in QUANTILES},
        "curve": found,
    }
    with atomic.writing(out):
        space.result.unlink(missing_ok=True)
    parquet.write(out / TABLE, table)
    plots.write(out / "quality.html", _page(dataset, score_n, about))
    about = space.finish(about, [TABLE])
    with atomic.writing(out):
        space.plan.unlink(missing_ok=True)
    return about


def _page(dataset: Dataset, score_n: npt.NDArray[np.float64], about: dict[str, Any]) -> plots.Plots:
    start, stop = (float(v) for v in np.quantile(score_n, [0.001, 0.999]))
    stop = stop if stop > start else start + 1
    quantiles = about["quantiles"]
    marks = [(value, f"worst {100 * float(q):g} %") for q, value in quantiles.items()]
    drawn = chart.chart(
        "Quality", about["method"], [("pairs", "images", score_n, True)], marks,
        start=start, stop=stop, step=(stop - start) / 80,
        note="How many images have each quality; the few worst and best stand in the outermost "
        "bars.",
    )  # fmt: skip
    curves, notes = [], ["Quality has no unit of its own: compare images of one model only."]
    if found := about["curve"]:
        x = np.array(found["discarded"])
        values = [
            (words, x, np.array([np.nan if v is None else v for v in found[name]]))
            for words, name in (("by quality", "fnmr"), ("at random", "at_random"))
        ]
        title = f"Pairs of one person that are rejected, at {FMR:g} of strangers accepted"
        axis = "share of the images discarded, the worst first"
        note = (
            "A quality is worth something where its curve falls below the one at random. Images "
            "under a wrong name are rejected whatever their quality."
        )
        drawing = lines.lines(title, axis, values, bottom=0.0, note=note)
        curves = [drawing] if drawing else []
    counts = [(f"{about['scored']:,}", "images with a quality"),
              (f"{about['images'] - about['scored']:,}", "without")]  # fmt: skip
    facts = [("dataset", dataset.name), ("method", about["method"]),
             ("label version", str(about["label_version"]))]  # fmt: skip
    return plots.Plots("Image quality", counts, facts, curves, [drawn], (), notes)


def refuse(out: Path) -> None:
    """Raise BusyError where `out` is not a folder that `run` may write. Writes nothing."""
    Workspace(out, "quality").refuse_foreign()

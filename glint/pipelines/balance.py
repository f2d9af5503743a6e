"""Stage `balance`: how many images of each identity an epoch draws, as a table the stream reads."""

# C targets of the label version in force

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glint import schemas
from glint.errors import BusyError, InputError, MismatchError, UsageError
from glint.files import atomic, parquet, reads
from glint.results import identities as results
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.shards.label_table import LabelTable

FORMAT = "glint/sampling@1"
CORESET = "glint/coreset@1"
Reals = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """How draws follow from counts; the defaults draw every image once.

    power: q of n^q, 1 = image-uniform, 0 = class-balanced. repeat: the share t of an epoch below
    which identities are repeated (LVIS repeat factor max(1, sqrt(t / f))). most: no image is drawn
    more often than this on average. least: identities with fewer images are not drawn. cap: draws
    of one identity per epoch. each: K of P x K: every identity takes turns with K images that stand
    together, whatever it has; 0 = single images. The other options do not go with it, but `least`.
    """

    cap: int | None = None
    least: int = 1
    power: float = 1.0
    repeat: float | None = None
    most: float = 4.0
    each: int = 0

    def __post_init__(self) -> None:
        checks: list[tuple[str, object, Callable[[], bool], str]] = [
            ("--cap", self.cap, lambda: self.cap is None or self.cap >= 1, "at least 1"),
            ("--min", self.least, lambda: self.least >= 0, "at least 0"),
            ("--power", self.power, lambda: 0 <= self.power <= 1, "from 0 to 1"),
            (
                "--repeat",
                self.repeat,
                lambda: self.repeat is None or 0 <= self.repeat <= 1,
                "a share from 0 to 1",
            ),
            ("--max-repeat", self.most, lambda: 1 <= self.most < np.inf, "at least 1"),
            ("--per-identity", self.each, lambda: self.each >= 0, "at least 0"),
            (
                "--per-identity",
                "another option that sets draws",
                lambda: (
                    not self.each
                    or (
                        (self.cap, self.power, self.repeat, self.most)
                        == (None, Options.power, None, Options.most)
                    )
                ),
                "it alone",
            ),
        ]
        for name, value, good, want in checks:
            if not good():
                raise UsageError("GL0002", f"expected {want}, found {value}", where=name)


@dataclass(frozen=True)
class Draws:
    """What an epoch draws of each target: see `Options` and docs/balance.md."""

    weight_C: Reals
    repeat_C: Reals
    draws_C: Reals


def plan(count_C: Counts, options: Options) -> Draws:
    """Turn images per identity into draws per epoch.

    weight = n^q scaled to the same total over the identities kept; repeat = LVIS repeat factor;
    draws = min(weight * repeat, cap, most * n). Draws may be fractions. With `each`, draws = each.
    """
    kept_C = (count_C >= max(options.least, 1)).astype(np.float64)
    images_C = count_C * kept_C
    if options.each:
        draws_C = options.each * kept_C
        return Draws(draws_C, np.ones(len(count_C)), draws_C)
    power_C = np.where(kept_C > 0, np.maximum(images_C, 1.0) ** options.power, 0.0)
    total = power_C.sum()
    weight_C = power_C * (images_C.sum() / total if total else 0.0)
    repeat_C = np.ones(len(count_C))
    if options.repeat is not None and total:
        share_C = np.maximum(images_C, 1.0) / images_C.sum()
        repeat_C = np.clip(np.sqrt(options.repeat / share_C), 1.0, options.most)
    draws_C = np.minimum(weight_C * repeat_C, options.most * images_C)
    if options.cap is not None:
        draws_C = np.minimum(draws_C, float(options.cap))
    return Draws(weight_C, repeat_C, draws_C)


def gini(amount_C: npt.NDArray[Any]) -> float:
    """Return the Gini coefficient of what identities get: 0 = all alike, near 1 = one has all."""
    ascending_C = np.sort(amount_C.astype(np.float64))
    n, total = len(ascending_C), ascending_C.sum()
    if not n or not total:
        return 0.0
    rank_C = np.arange(1, n + 1)
    return float((2 * rank_C - n - 1) @ ascending_C / (n * total))


def tail_share(count_C: Counts, draws_C: Reals) -> float:
    """Return the share of an epoch that the half of identities with the fewest images gets."""
    order = np.argsort(count_C, kind="stable")
    total = draws_C.sum()
    return float(draws_C[order[: len(order) // 2]].sum() / total) if total else 0.0


def balance(
    dataset: Dataset,
    options: Options,
    out: Path | None = None,
    coreset: Path | npt.NDArray[np.bool_] | None = None,
    poor_N: npt.NDArray[np.bool_] | None = None,
) -> results.Balance:
    """Write the sampling table of the label version in force.

    coreset: a folder of `glint coreset`, whose faces alone are counted and drawn, or which samples
    it leaves out. poor_N: samples to leave out as their quality is low. Raises UsageError when the
    options leave nothing to draw or `out` cannot name a file, BusyError when something else has
    that name, InputError and MismatchError GL0305 for a coreset that does not fit.
    """
    import pyarrow as pa

    path = out or dataset.root / "sampling.parquet"
    _refuse_foreign(path)
    version = labels.current(dataset.root, dataset.classes)
    target_n = version.sample_target(dataset.label)
    if isinstance(coreset, Path):
        coreset = _left_out(coreset, dataset, version)
    left_n = np.zeros(dataset.n, dtype=np.bool_)
    for mask_N in (coreset, poor_N):
        left_n |= False if mask_N is None else mask_N
    left_n &= target_n >= 0
    masked_m = np.flatnonzero(left_n)
    masked_m = masked_m[np.argsort(target_n[masked_m], kind="stable")]
    masked_C = np.bincount(target_n[masked_m], minlength=version.classes)
    target_n = np.where(left_n, -1, target_n)
    count_C = np.bincount(target_n[target_n >= 0], minlength=version.classes).astype(np.int64)
    drawn = plan(count_C, options)
    epoch = float(drawn.draws_C.sum())
    if epoch == 0:
        raise UsageError(
            "GL0002",
            f"no identity has {options.least} images, the most is {int(count_C.max(initial=0))}"
            + (f"; {len(masked_m)} images are left out" if len(masked_m) else ""),
            where="--min",
            hint="lower --min-quality, or another coreset" if len(masked_m) else "",
        )
    about = {
        "format": FORMAT,
        "dataset": dataset.digest,
        "label_version": str(version.version),
        "labels": version.digest,
        "each": str(options.each),
        "options": json.dumps(asdict(options), sort_keys=True),
    }
    table = pa.table(
        {
            "label": np.arange(version.classes, dtype=np.int64),
            "count": count_C,
            "weight": drawn.weight_C,
            "repeat": drawn.repeat_C,
            "draws": drawn.draws_C,
        },
        schema=schemas.SAMPLING.with_metadata(about),
    )
    if coreset is not None or poor_N is not None:
        edge = np.concatenate([[0], np.cumsum(masked_C)]).astype(np.int32)
        rows = pa.ListArray.from_arrays(edge, masked_m.astype(np.int64))
        table = table.append_column(schemas.LEFT_OUT, rows)
    atomic.sweep(path.parent, path.name)
    parquet.write(path, table)
    if out is None:
        dataset.publish(path.name)
    some_C = count_C > 0
    return results.Balance(
        identities=version.classes,
        images=int(count_C.sum()),
        epoch_samples=round(epoch),
        never_seen=int((drawn.draws_C == 0).sum()),
        gini_before=gini(count_C[some_C]),
        gini_after=gini(drawn.draws_C[some_C]),
        tail_share=tail_share(count_C[some_C], drawn.draws_C[some_C]),
        label_version=version.version,
        sampling=f"{dataset.name}/{path.name}" if dataset.remote and not out else str(path),
    )


def _version(about: dict[str, Any], now: LabelTable) -> object:
    """Return the number of the version in force where a file was made for what it says."""
    number = about.get("label_version")
    if about.get("labels", now.digest) == now.digest:
        return now.version if "labels" in about else number
    return number if number != now.version else f"another version {number}"


def _left_out(folder: Path, dataset: Dataset, version: LabelTable) -> npt.NDArray[np.bool_]:
    """Return which samples a coreset leaves out. Raises as `balance` does."""
    path, last = folder / "coreset.parquet", folder / "coreset.json"
    if not last.is_file():
        raise UsageError(
            "GL0001",
            "expected the folder of a coreset, found no coreset.json",
            where=str(folder),
            hint="make one with: glint coreset DATASET --embeddings EMB --out FOLDER",
        )
    about = atomic.read_json(last, "GL0305")
    for name, found, expected in (
        ("format", about.get("format"), CORESET),
        ("dataset", about.get("dataset"), dataset.digest),
        ("label version", _version(about, version), version.version),
    ):
        if found != expected:
            raise MismatchError(
                "GL0305",
                f"made for {name} {found}, expected {expected}",
                where=str(folder),
                hint="run glint coreset again",
            )
    table = parquet.read(path, schemas.CORESET, columns=["key", "kept"], code="GL0305")
    if table.num_rows != dataset.n or table.column("kept").null_count:
        raise InputError(
            "GL0305", f"expected {dataset.n} rows, found {table.num_rows}", where=str(path)
        )
    return ~np.asarray(table.column("kept").to_numpy())


def _refuse_foreign(path: Path) -> None:
    """Raise UsageError where `path` cannot name a file, BusyError where it is not our own table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.is_dir():
        raise UsageError("GL0002", f"expected a file, found the folder {path}", where="--out")
    if not path.parent.is_dir():
        raise UsageError("GL0001", f"no such folder: {path.parent}", where="--out")
    if not path.exists() and not path.is_symlink():
        return
    try:
        with reads.open_plain(path) as file:
            about = pq.read_schema(file).metadata or {}
    except (pa.ArrowException, OSError, ValueError):
        about = {}
    if about.get(b"format") != FORMAT.encode():
        raise BusyError(
            "GL0004",
            "the file is no sampling table that glint wrote",
            where=str(path),
            hint="choose another --out, or move this file away",
        )

"""Stage `coreset`: of an identity's faces that look alike, train on one (Face-NMS).

Writes an auditable table and a sampling table that masks the rest; no shard is rewritten.
"""

# N samples, C targets of the label version in force

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import glint
from glint import log, schemas
from glint.errors import UsageError
from glint.files import atomic, parquet
from glint.jobs.workspace import Workspace
from glint.log import Progress
from glint.pipelines import balance
from glint.results import identities as results
from glint.search import nms
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.shards.embeddings import Embeddings

FORMAT = balance.CORESET
SIZES = (1, 2, 5, 10, 20, 50, 100, 200)  # images of an identity, up to so many: the histogram
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """How faces are chosen: by `threshold`, a cosine, or by `ratio`, the share of images kept.

    least: faces that an identity keeps, if it has so many; degrees: faces farther than this from
    the mean of their identity go first, 180 keeps them; centres: above 1, from the dominant of so
    many sub-centres.
    """

    threshold: float | None = None
    ratio: float | None = None
    least: int = 2
    degrees: float = 75.0
    centres: int = 1

    def __post_init__(self) -> None:
        if (self.threshold is None) == (self.ratio is None):
            raise UsageError("GL0002", "expected one of them", where="--keep-ratio and --threshold")
        cosine = 0.0 if self.threshold is None else self.threshold
        ratio = 1.0 if self.ratio is None else self.ratio
        for name, value, good, want in (
            ("--threshold", cosine, -1 <= cosine <= 1, "from -1 to 1"),
            ("--keep-ratio", ratio, 0 < ratio <= 1, "above 0, at most 1"),
            ("--min", self.least, self.least >= 1, "at least 1"),
            ("--outliers", self.degrees, 0 < self.degrees <= 180, "degrees up to 180"),
            ("--sub-centres", self.centres, 1 <= self.centres <= 16, "1 to 16"),
        ):
            if not good:
                raise UsageError("GL0002", f"expected {want}, found {value}", where=name)


def run(
    dataset: Dataset,
    emb: Embeddings,
    out: Path,
    options: Options,
    *,
    poor_N: npt.NDArray[np.bool_] | None = None,
    apply: bool = False,
    dry_run: bool = False,
    progress: Progress = log.silent,
) -> results.Coreset:
    """Choose faces; write coreset.parquet, sampling.parquet and, last, coreset.json into `out`.

    poor_N: samples that take no part, as their quality is low.
    apply: first leave the outliers out in a new label version, which everything follows; where this
    very command made the one in force, that stands. Raises BusyError when `out` holds something
    else or labels change meanwhile, UsageError when a ratio cannot be reached.
    """
    check_out(out)
    now = version = labels.current(dataset.root, dataset.classes)
    why: dict[str, Any] = {
        "stage": "coreset",
        "embeddings": emb.about.get("model"),
        "options": {name: getattr(options, name) for name in ("least", "degrees", "centres")},
    }
    poor_N = np.zeros(dataset.n, np.bool_) if poor_N is None else poor_N
    if poor_N.any():
        why["poor"] = sha256(np.packbits(poor_N).tobytes()).hexdigest()
    made = labels.in_force(dataset.root, dataset.classes)[:1]
    if apply and made and made[0]["why"] == why:  # the same once more: not on top of itself
        version = labels.load(dataset.root, int(made[0]["from"]), dataset.classes)
    target_N = version.sample_target(dataset.label)
    chosen = _choose(emb, target_N, version.classes, options, poor_N & (target_N >= 0), progress)
    result = _counts(chosen, target_N, version.classes)
    if not result["kept"]:
        raise UsageError("GL0002", "no face is left to train on", where=str(emb.root))
    if apply:
        version = _leave_out(dataset, version, now, chosen, why, dry_run)
        target_N = version.sample_target(dataset.label)
    about = {
        "format": FORMAT,
        "glint": glint.__version__,
        "dataset": dataset.digest,
        "label_version": version.version,
        "labels": version.digest,
        "embeddings": emb.about.get("model"),
        "options": asdict(options),
        **result,
    }
    if not dry_run:
        _write(dataset, target_N, chosen, out, about)
    rows = [results.SizeRow(**row) for row in result.pop("by_size")]
    return results.Coreset(
        **{name.replace("-", "_"): value for name, value in result.items()},
        by_size=rows,
        label_version=version.version,
        label_version_before=now.version,
        dry_run=dry_run,
        sampling=str(out / "sampling.parquet"),
        out=str(out),
    )


def _choose(
    emb: Embeddings,
    target_N: Ints,
    classes: int,
    options: Options,
    poor_N: npt.NDArray[np.bool_],
    progress: Progress,
) -> nms.Selection:
    """Choose among the faces that are not poor."""
    row_ND, least = emb.sample_ND, options.least
    ranking = nms.rank(
        row_ND,
        np.where(poor_N, -1, target_N),
        classes,
        degrees=options.degrees,
        centres=options.centres,
        least=least,
        progress=progress,
    )
    if options.threshold is not None:
        chosen = nms.select(row_ND, ranking, options.threshold, least=least, progress=progress)
    else:
        keep = round((options.ratio or 0) * int((target_N >= 0).sum()))
        chosen = nms.select_count(row_ND, ranking, keep, least=least, progress=progress)
    return replace(chosen, reason_N=np.where(poor_N, np.uint8(nms.POOR), chosen.reason_N))


def _leave_out(
    dataset: Dataset,
    base: labels.LabelTable,
    now: labels.LabelTable,
    chosen: nms.Selection,
    why: dict[str, Any],
    dry_run: bool,
) -> labels.LabelTable:
    """Leave the outliers out in a new label version, of `base`; give what is in force then.

    Nothing is written where that is `now` already. Targets stay as they are, as every identity
    keeps a face.
    """
    row = np.flatnonzero(np.asarray(chosen.reason_N) == nms.REASONS.index("outlier"))
    table = base.moved(row, np.full(len(row), -1, np.int64), dataset.label)
    table = labels.settled(dataset.root, replace(table, version=now.version))
    if table.same(now) or dry_run:
        return table
    with labels.changing(dataset.root):
        version = labels.commit(dataset.root, table, why, based_on=now.version)
    return labels.load(dataset.root, version, dataset.classes)


def check_out(out: Path) -> None:
    """Raise BusyError where `out` is not a folder that `run` may write. Writes nothing."""
    Workspace(out, "coreset").refuse_foreign()


def _counts(chosen: nms.Selection, target_N: Ints, classes: int) -> dict[str, Any]:
    """Count what became of the images, and of identities by their size."""
    reason = np.bincount(chosen.reason_N, minlength=len(nms.REASONS))
    count_C = np.bincount(target_N[target_N >= 0], minlength=classes)
    kept_C = np.bincount(target_N[chosen.kept_N], minlength=classes)
    images = int(count_C.sum())
    return {
        "images": images,
        "kept": int(kept_C.sum()),
        "ratio": round(int(kept_C.sum()) / max(images, 1), 6),
        "threshold": round(chosen.threshold, 6),
        **{nms.REASONS[i]: int(reason[i]) for i in (1, 2, 3, 4, nms.POOR)},
        "identities": int((count_C > 0).sum()),
        "identities_kept": int((kept_C > 0).sum()),
        "identities_uncleaned": chosen.ranking.uncleaned,
        "by_size": [
            {
                "images_from": low + 1,
                "images_to": high,
                "identities": int(some_C.sum()),
                "images": int(count_C[some_C].sum()),
                "kept": int(kept_C[some_C].sum()),
            }
            for low, high in zip((0, *SIZES), (*SIZES, None))
            if (some_C := (count_C > low) & (count_C <= (high or count_C.max(initial=0)))).any()
        ],
    }


def _write(
    dataset: Dataset, target_N: Ints, chosen: nms.Selection, out: Path, about: dict[str, Any]
) -> None:
    import pyarrow as pa

    space = Workspace(out, "coreset")
    with space.held():
        space.begin({"format": FORMAT})
        with atomic.writing(out):
            space.result.unlink(missing_ok=True)
        keys = parquet.read(dataset.root / "samples.parquet", schemas.SAMPLES, columns=["key"])
        none_N = chosen.killer_N < 0
        reason = pa.DictionaryArray.from_arrays(chosen.reason_N, pa.array(nms.REASONS))
        table = pa.table(
            {
                "key": keys.column("key"),
                "target": target_N,
                "kept": chosen.kept_N,
                "reason": reason.cast(pa.string()),
                "score": pa.array(chosen.ranking.score_N, mask=np.isnan(chosen.ranking.score_N)),
                "killer": pa.array(chosen.killer_N, mask=none_N),
                "similarity": pa.array(chosen.similarity_N, mask=none_N),
            },
            schema=schemas.CORESET,
        )
        parquet.write(out / "coreset.parquet", table)
        left_N = ~np.asarray(chosen.kept_N)
        balance.balance(dataset, balance.Options(), out / "sampling.parquet", coreset=left_N)
        space.finish(about, ["coreset.parquet"])
        with atomic.writing(out):
            space.plan.unlink()

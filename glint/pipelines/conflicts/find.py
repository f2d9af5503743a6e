"""Stage `conflicts`: embeddings in, a table of identity pairs with verdicts and a report out.

Nothing of the dataset changes here: `glint.pipelines.conflicts.apply` applies and undoes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import glint
from glint import log, schemas
from glint.conflicts import decisions as decided
from glint.conflicts.evidence import Samples
from glint.conflicts.verdicts import Found, Options, find
from glint.errors import BusyError
from glint.files import atomic, parquet
from glint.jobs import workspace
from glint.log import Progress
from glint.pipelines import embed
from glint.pipelines.conflicts import apply, exhibits, outliers, overlap, page
from glint.results import identities as results
from glint.shards import labels
from glint.shards.dataset import Dataset

FORMAT = "glint/conflicts@1"
BEGUN = "_glint/plan.json"  # there while a run is under way, or was stopped
SEARCH = "_glint/search"  # what is searched, until the report stands
TABLES = ("pairs.parquet", "groups.parquet", *outliers.TABLES, *overlap.TABLES)


def run(
    dataset: Dataset,
    emb: embed.Embeddings,
    out: Path,
    options: Options,
    *,
    thumbs: bool = True,
    overwrite: bool = False,
    command: str = "",
    near: bool = True,
    against: Sequence[overlap.Other] = (),
    progress: Progress = log.silent,
) -> results.Conflicts:
    """Find conflicts and write pairs.parquet, groups.parquet, conflicts.json and report.html.

    Beside them inside.parquet and duplicates.parquet; near: also for images that show the same
    picture, which decodes all. against: other datasets, for overlap.parquet and shared.parquet.
    The search goes on where one of the same centres and threshold was stopped.
    Raises BusyError when `out` holds something else or, without `overwrite`, a report that is in
    force or was edited by hand.
    """
    check_out(out, dataset, overwrite=overwrite)
    begun = out / BEGUN
    atomic.make_dir(out / "_glint")
    with atomic.lock(out / "_glint" / "lock"):
        atomic.write_json(begun, {"format": FORMAT})
        samples = Samples(emb.sample_ND, dataset.label, dataset.classes)
        now = labels.current(dataset.root, dataset.classes)
        found = find(
            emb.centre_CD, samples, now.target, options, work=out / SEARCH, progress=progress
        )
        odd = outliers.look(
            dataset, emb, samples, now, found, near=near, seed=options.seed, progress=progress
        )
        both = [
            overlap.look(dataset, emb, samples, now.target, found, one, options, progress=progress)
            for one in against
        ]
        outliers.write(out, dataset, odd)
        overlap.write(out, dataset, both)
        about = _write(dataset, emb, out, found, odd, both, samples, options, command)
        page.write(
            out / "report.html", dataset, emb, samples, found, about,
            thumbs=thumbs, tabs=lambda faces: exhibits.tabs(faces, odd, both),
        )  # fmt: skip
        with atomic.writing(out):
            shutil.rmtree(out / SEARCH)
        begun.unlink()
    return results.Conflicts(
        **about["counts"],
        calibrated=found.scale.calibrated,
        note=found.model.about()["note"] if found.model is not None else "",
        low=found.low,
        engine=found.pairs.engine,
        against=about["against"],
        report=str(out / "report.html"),
        out=str(out),
    )


def check_out(out: Path, dataset: Dataset, *, overwrite: bool = False) -> None:
    """Raise BusyError where `out` is not a folder that `run` may write. Writes nothing.

    Without `overwrite`, a report in force and tables that `run` did not write are kept.
    """
    workspace.refuse_foreign(out, "glint/conflicts", ("conflicts.json", BEGUN), "conflicts")
    path = out / "conflicts.json"
    if (out / decided.NAME).is_file() and (
        out / decided.NAME
    ).stat().st_size:  # not even --overwrite: nothing makes them again
        raise BusyError(
            "GL0004",
            "reviewers decided on this report",
            where=str(out / decided.NAME),
            hint="choose another --out, or move the file away",
        )
    if overwrite or not path.is_file():
        return
    if apply.stands(out, dataset):
        raise BusyError(
            "GL0004",
            "this report is applied to the labels",
            where=str(out),
            hint=f"first run: glint dedup-conflicts undo {out}; or choose another --out, or give "
            "--overwrite",
        )
    written = atomic.read_json(path, "GL0501").get("files")
    for name in TABLES:
        table = out / name
        if (out / BEGUN).exists() or not table.is_file():  # a run that stopped half way left these
            continue
        if not isinstance(written, dict) or _sha256(table) != written.get(name):
            raise BusyError(
                "GL0004",
                "was edited since the report was made",
                where=str(table),
                hint="choose another --out, or give --overwrite",
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + atomic.sha256(file)


def _calibration(found: Found) -> dict[str, Any]:
    """Return the draws and, by images a side, the least scores that merge and mask."""
    sizes, model = [(1, 1), (2, 2), (4, 4), (8, 8), (32, 32)], found.model
    some = sizes if model is not None and np.isfinite(model.cut) else []
    return {
        **found.scale.about(),
        "model": model is not None,
        "merge_from": {f"{n}x{m}": float(model.merge_from(n, m)) for n, m in some if model},
        "mask_from": {f"{n}x{m}": float(model.mask_from(n, m)) for n, m in some if model},
    }


def _write(
    dataset: Dataset,
    emb: embed.Embeddings,
    out: Path,
    found: Found,
    odd: outliers.Inside,
    both: Sequence[overlap.Overlap],
    samples: Samples,
    options: Options,
    command: str,
) -> dict[str, Any]:
    """Write the tables and conflicts.json, which names their digests and comes last."""
    import pyarrow as pa

    pairs, proof = found.pairs, found.evidence
    parquet.write(
        out / "pairs.parquet",
        pa.table(
            {
                "a": pairs.a,
                "b": pairs.b,
                "cosine": pairs.cosine,
                "cross_mean": proof.cross_mean,
                "cross_q10": proof.cross_q10,
                "n_a": found.n_a,
                "n_b": found.n_b,
                "score": proof.score,
                "probability": found.probability,
                "verdict": pa.array(found.verdict.tolist(), pa.string()),
                "reason": pa.array(found.reason, pa.string()),
            },
            schema=schemas.PAIRS,
        ),
    )
    merged = found.groups.merged
    parquet.write(
        out / "groups.parquet",
        pa.table(
            {
                "group": np.repeat(
                    np.arange(len(merged), dtype=np.int64), [len(g) for g in merged]
                ),
                "label": np.concatenate([*merged, np.empty(0, np.int64)]),
            },
            schema=schemas.GROUPS,
        ),
    )
    tally = {name: int((found.verdict == name).sum()) for name in ("merge", "mask", "keep")}
    counts = {
        "pairs": len(pairs.a),
        **tally,
        "groups": len(merged),
        "largest_group": max((len(g) for g in merged), default=0),
        "groups_refused": len(found.groups.refused),
        "expected_wrong_merges": None if np.isnan(found.wrong) else round(found.wrong, 4),
        "identities": dataset.classes,
        "identities_after": dataset.classes - sum(len(g) - 1 for g in merged),
        "images_in_groups": int(sum(samples.count_C[g].sum() for g in merged)),
        "samples_excluded": samples.excluded,
        "classes_excluded": pairs.excluded,
        **odd.counts(),
    }
    about = {
        "format": FORMAT,
        "glint": glint.__version__,
        "command": command,
        "dataset": {
            "path": os.path.relpath(dataset.root, out),
            "absolute": str(dataset.root.resolve()),
            "digest": dataset.digest,
            "label_version": labels.current(dataset.root, dataset.classes).version,
        },
        "embeddings": {
            "path": str(emb.root),
            "model": emb.about.get("model"),
            "name": emb.about.get("name"),
        },
        "options": {
            "threshold": options.threshold,
            "low": found.low,
            "cap": options.cap,
            "seed": options.seed,
            "rate": options.rate,
        },
        "engine": pairs.engine,
        "calibration": _calibration(found),
        "likeness": found.model.about() if found.model is not None else None,
        "counts": counts,
        "refused": [
            {"labels": piece.tolist(), "reason": text} for piece, text in found.groups.refused
        ],
        "against": [one.about() for one in both],
        "files": {name: _sha256(out / name) for name in TABLES if (out / name).is_file()},
    }
    atomic.write_json(out / "conflicts.json", about)
    return about

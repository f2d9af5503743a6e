"""Stage `cluster`: identities of faces without names, and their use as labels.

Reads embeddings, folder after folder: as a stream (OGMC), whose state is saved as it goes, or all
at once by the graph of near faces (`cluster_graph`). The same command goes on, that of a stream
also with one more folder. `apply` puts the identities in force as a label version: no shard is
touched.
"""

# N faces of all folders, n faces of one, k clusters, C labels as sharded

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import glint
from glint import log, schemas
from glint.conflicts.compose import compose, decided
from glint.errors import InputError, MismatchError, UsageError
from glint.evals.clusters import bcubed, pairwise
from glint.files import atomic, parquet
from glint.files.strings import load_arrays
from glint.jobs.workspace import Workspace, sha256
from glint.log import Progress, logger
from glint.pipelines import cluster_graph
from glint.results import identities as results
from glint.search.graph_clusters import GraphRules
from glint.search.online_clusters import BLOCK, ClusterRules, OnlineClusters
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.shards.embeddings import Embeddings, load

FORMAT = "glint/identities@1"
STAGE = "cluster"
STATE = "_glint/state.npz"
TABLES = ("faces.parquet", "clusters.parquet", "edges.parquet")
SAVE = 60.0  # seconds between two states saved
Ints = npt.NDArray[np.int64]


def run(
    folders: Sequence[Path],
    out: Path,
    options: ClusterRules | GraphRules,
    *,
    truth: Path | None = None,
    save: float = SAVE,
    progress: Progress = log.silent,
) -> results.Cluster:
    """Cluster the faces of embedding folders, one after the other, into `out`.

    truth: a table with `key` and `label`, such as a dataset's samples.parquet, to judge by; keys
    are those of the one folder. Raises MismatchError GL0006 where `out` was begun with other
    options or folders that these do not begin with, BusyError where it holds something else.
    """
    space = Workspace(out, "identities")
    space.refuse_foreign()
    if truth is not None and len(folders) != 1:
        raise UsageError("GL0002", f"expected one folder, found {len(folders)}", where="--truth")
    if truth is not None and not truth.is_file():
        raise UsageError("GL0001", "no such file", where=str(truth))
    for folder, times in Counter(folder.resolve() for folder in folders).items():
        if times > 1:
            raise UsageError("GL0002", "the same embeddings twice", where=str(folder))
    found = [_open(folder) for folder in folders]
    sources = [
        {key: emb.about[key] for key in ("dataset", "model", "images", "dim")}
        | {"flip": bool(emb.about.get("flip")), "samples": emb.about["files"]["samples.npy"]}
        for emb in found
    ]
    if len({one["model"] for one in sources}) > 1:
        raise UsageError(
            "GL0002", "embeddings of different models cannot be compared", where=str(folders[-1])
        )
    if len({one["flip"] for one in sources}) > 1:
        what = "embeddings with and without --flip cannot be compared"
        raise UsageError("GL0002", what, where=str(folders[-1]))
    dim, faces = found[0].sample_ND.shape[1], sum(len(emb.sample_ND) for emb in found)
    for folder, emb in zip(folders, found):
        if emb.sample_ND.shape[1] != dim:
            raise InputError(
                "GL0402",
                f"expected {dim} numbers a face as in the first folder, "
                f"found {emb.sample_ND.shape[1]}",
                where=str(folder),
            )
    with space.held():
        _continue(space, sources, options)
        if isinstance(options, GraphRules):
            shot, how = cluster_graph.find(found, space.work / "graph", options, progress)
        else:
            stream = _resume(out, options, dim, faces) or OnlineClusters(dim, options)
            _insert(stream, found, out, save, progress)
            shot, how = stream.snapshot(), {"method": "online"}
        _write(out, found, shot)
        result: dict[str, Any] = {
            **how,
            "faces": int((shot.cluster_N >= 0).sum()),
            "without_embedding": int((shot.cluster_N < 0).sum()),
            "clusters": len(shot.cluster_k),
            "edges": len(shot.edge_m2),
            "identities": len(np.unique(shot.identity_k)),
            "largest": _largest(shot.identity_N),
            "largest_clusters": _largest(shot.identity_k),
        }
        if truth is not None:
            result |= _judged(shot.identity_N, found[0], truth)
        about = {
            "format": FORMAT,
            "glint": glint.__version__,
            "options": _said(options),
            "sources": sources,
            **result,
        }
        space.finish(about, TABLES)
    return results.Cluster(**result, out=str(out))


def check_out(out: Path) -> None:
    """Raise BusyError where `out` is not a folder that `run` may write. Writes nothing."""
    Workspace(out, "identities").refuse_foreign()


def _open(folder: Path) -> Embeddings:
    """Open an embedding folder as of the dataset that it names."""
    about: dict[str, Any] = {}
    if (folder / "embeddings.json").is_file():
        about = atomic.read_json(folder / "embeddings.json", "GL0402")
    try:
        digest, images, classes = about["dataset"], int(about["images"]), int(about["classes"])
    except (KeyError, TypeError, ValueError):
        digest, images, classes = "", 0, 0  # refused by name below
    return load(folder, digest, images=images, classes=classes)


def _begins(sources: list[dict[str, Any]], before: list[dict[str, Any]]) -> bool:
    """Return whether folders begin with those of a plan, by the keys that it knew."""
    return len(before) <= len(sources) and all(
        {key: one.get(key) for key in then} == then for one, then in zip(sources, before)
    )


def _said(options: ClusterRules | GraphRules) -> dict[str, Any]:
    return {**({"method": "graph"} if isinstance(options, GraphRules) else {}), **asdict(options)}


def _continue(
    space: Workspace, sources: list[dict[str, Any]], options: ClusterRules | GraphRules
) -> None:
    """Take up the plan of a folder, or begin one."""
    if space.plan.exists():
        plan = atomic.read_json(space.plan, "GL0006")
        before = plan.get("sources", [])
        if plan.get("options") != _said(options):
            what = f"options {plan.get('options')} there, {_said(options)} now"
        elif isinstance(options, GraphRules) and len(before) != len(sources):
            what = f"{len(before)} folders there, {len(sources)} now; a graph takes all at once"
        elif not _begins(sources, before):
            what = f"{len(before)} folders there, with which these {len(sources)} do not begin"
        else:
            what = ""
        if what:
            hint = "choose another --out; more folders come behind those that were there"
            raise space.other_plan(what, hint)
    space.begin({"format": FORMAT, "options": _said(options), "sources": sources})


def _resume(out: Path, options: ClusterRules, dim: int, faces: int) -> OnlineClusters | None:
    """Take up the state; None where there is none. Raises InputError where it is another's."""
    path = out / STATE
    if not path.exists():
        return None
    try:
        stream = OnlineClusters.resume(load_arrays(path), options)
        if stream.dim != dim or stream.faces > faces:
            raise ValueError(
                f"{stream.faces} faces of {stream.dim} numbers, where the folders have "
                f"{faces} of {dim}"
            )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            "GL0501",
            f"the state of the clusters cannot be read: {error}",
            where=str(path),
            hint="delete this folder and run glint cluster again",
        ) from None
    return stream


def _save(out: Path, stream: OnlineClusters) -> None:
    with atomic.replacing(out / STATE) as file:
        np.savez(file, **stream.state())  # type: ignore[arg-type]


def _insert(
    stream: OnlineClusters,
    found: list[Embeddings],
    out: Path,
    save: float,
    progress: Progress,
) -> None:
    """Insert the faces that the state lacks, in blocks that begin where they always do."""
    seen, first, saved, wait = stream.faces, 0, time.monotonic(), save
    total = sum(len(emb.sample_ND) for emb in found)
    if seen:
        logger.info("continuing: %d of %d faces are clustered already", seen, total)
    for emb in found:
        n = len(emb.sample_ND)
        for at in range(max(0, seen - first), n, BLOCK):
            stream.insert(np.asarray(emb.sample_ND[at : at + BLOCK]))
            progress(first + min(at + BLOCK, n), total, f"{stream.clusters} clusters")
            if (begun := time.monotonic()) - saved >= wait:
                _save(out, stream)  # whole: the more clusters, the longer it takes
                saved = time.monotonic()
                wait = save * max(1.0, (saved - begun) / 3)  # of a minute, a twentieth
        first += n
    if stream.faces > seen:
        _save(out, stream)


def _write(out: Path, found: list[Embeddings], shot: Any) -> None:
    import pyarrow as pa

    key = [
        parquet.read(emb.root / "samples.parquet", schemas.EMBEDDED, columns=["key"], code="GL0402")
        for emb in found
    ]
    size = [len(emb.sample_ND) for emb in found]
    faces = {
        "source": np.repeat(np.arange(len(found), dtype=np.int32), size),
        "key": pa.concat_tables(key).column("key"),
        "cluster": shot.cluster_N,
        "identity": shot.identity_N,
    }
    clusters = {
        "cluster": shot.cluster_k,
        "identity": shot.identity_k,
        "count": shot.count_k,
        "rho": pa.array(shot.rho_k, mask=np.isnan(shot.rho_k)),
    }
    edges = {"a": shot.edge_m2[:, 0], "b": shot.edge_m2[:, 1]}
    with atomic.writing(out):
        (out / "identities.json").unlink(missing_ok=True)
    parquet.write(out / "faces.parquet", pa.table(faces, schema=schemas.FACES))
    parquet.write(out / "clusters.parquet", pa.table(clusters, schema=schemas.CLUSTERS))
    parquet.write(out / "edges.parquet", pa.table(edges, schema=schemas.EDGES))


def _largest(name: Ints) -> int:
    return int(np.unique(name[name >= 0], return_counts=True)[1].max(initial=0))


def _judged(identity_N: Ints, emb: Embeddings, truth: Path) -> dict[str, Any]:
    """Score identities on the faces whose keys the truth knows. Raises InputError for none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    known = parquet.read(truth, columns=["key", "label"], code="GL0402")
    if set(known.column_names) != {"key", "label"}:
        raise InputError("GL0402", "expected columns key and label", where=str(truth))
    keys = parquet.read(emb.root / "samples.parquet", schemas.EMBEDDED, columns=["key"])
    at = pc.index_in(keys.column("key"), value_set=known.column("key"))
    some = np.asarray(at.is_valid()) & (identity_N >= 0)
    if not some.any():
        raise InputError("GL0402", "knows the key of no clustered face", where=str(truth))
    label = known.column("label").cast(pa.string()).take(at).filter(pa.array(some))
    truth_n = label.combine_chunks().dictionary_encode().indices.to_numpy()
    pair, cubed = pairwise(identity_N[some], truth_n), bcubed(identity_N[some], truth_n)
    return {
        "judged": int(some.sum()),
        **{
            f"{name}_{part}": round(getattr(score, part), 6)
            for name, score in (("pairwise", pair), ("bcubed", cubed))
            for part in ("precision", "recall", "f")
        },
    }


def apply(
    folder: Path, root: Path, *, least: int = 2, dry_run: bool = False
) -> results.ClusterApply:
    """Put the identities of a dataset's faces in force as a new label version.

    least: identities with fewer faces, and faces of none, are dropped. What else than clusters the
    labels in force rest on still holds: merges, masks, what was dropped, what was said of single
    images. Raises MismatchError GL0501 for a dataset whose faces are not in `folder`, InputError
    GL0501 where a label as sharded has faces of several identities: the crawl must be sharded with
    --unlabelled; BusyError GL0309 where the labels were changed meanwhile.
    """
    dataset = Dataset(root)
    now = labels.unchecked(dataset.root, dataset.classes)
    identity_n, mark = _identities(folder, dataset)
    label_n = dataset.label.copy()
    label_n[now.row] = -1  # what reviewers said of an image goes before its cluster
    name_C, faces_C = _names(dataset.classes, label_n, identity_n, str(folder))
    label_n = now.sample_label(dataset.label)
    images_C = np.bincount(label_n[label_n >= 0], minlength=dataset.classes)
    moved = now.label[now.label >= 0]
    faces_C = faces_C + np.bincount(moved, minlength=dataset.classes)
    kept = decided(_steps(dataset), dataset.classes)
    made = compose(name_C, faces_C, images_C, (now.target, now.masks), kept, least)
    table = labels.settled(
        dataset.root, labels.given(made.target_C, made.mask_m2, now.row, now.label)
    )
    result = partial(
        results.ClusterApply,
        version_before=now.version,
        classes_before=now.classes,
        classes=table.classes,
        faces=made.faces,
        identities_dropped=made.small,
        faces_dropped=dataset.n - made.faces,
        dry_run=dry_run,
        dataset=str(root),
        report=str(folder),
    )
    why = {"stage": STAGE, "report": mark, "min": least}
    if _why(dataset) == why or (now.version and table.same(now)):
        if not dry_run:
            labels.complete(dataset.root)
        return result(version=now.version, applied=False, already=True)
    if not table.classes:
        raise UsageError("GL0002", f"no identity has {least} faces", where="--min")
    if dry_run:
        return result(version=now.version, applied=False, already=False)
    with labels.changing(dataset.root):
        version = labels.commit(dataset.root, table, why, based_on=now.version)
    return result(version=version, applied=True, already=False)


def _steps(dataset: Dataset) -> list[tuple[Ints, Ints]]:
    """Return the targets before and after each change in force that was not made by clusters."""

    @cache
    def target(version: int) -> Ints:
        return labels.load(dataset.root, version, dataset.classes).target

    lines = labels.in_force(dataset.root, dataset.classes)
    return [
        (target(int(line["from"])), target(int(line["version"])))
        for line in lines
        if (line.get("why") or {}).get("stage") != STAGE
    ]


def undo(folder: Path, root: Path) -> results.ClusterUndo:
    """Put the labels from before `apply` back in force. Raises InputError GL0502 if not applied.

    Raises what `labels.undo` raises, too.
    """
    dataset = Dataset(root)
    now = labels.unchecked(dataset.root, dataset.classes)
    labels.complete(dataset.root)
    why = _why(dataset)
    if why.get("stage") != STAGE or why.get("report") != _mark(folder):
        raise InputError(
            "GL0502",
            f"these identities are not in force (the labels stand at version {now.version})",
            where=str(folder),
            hint="what was applied later must be undone first",
        )
    version = labels.undo(dataset.root, based_on=now.version)
    return results.ClusterUndo(
        version_before=now.version,
        version=version,
        classes_before=now.classes,
        classes=labels.load(dataset.root, version, dataset.classes).classes,
        dataset=str(root),
        report=str(folder),
    )


def _why(dataset: Dataset) -> dict[str, Any]:
    """Return why the label version in force was made, nothing where the labels are as sharded."""
    lines = labels.in_force(dataset.root, dataset.classes)
    return dict(lines[0].get("why") or {}) if lines else {}


def _mark(folder: Path) -> str:
    if not (folder / "identities.json").is_file():
        raise InputError(
            "GL0501",
            "expected the folder of identities, found no identities.json",
            where=str(folder),
            hint="make one with: glint cluster EMB --out FOLDER",
        )
    return sha256(folder / "identities.json")


def _identities(folder: Path, dataset: Dataset) -> tuple[Ints, str]:
    """Read the identity of every sample of a dataset, -1 for none; and the folder's digest."""
    mark = _mark(folder)
    about = atomic.read_json(folder / "identities.json", "GL0501")
    if about.get("format") != FORMAT:
        raise InputError(
            "GL0501",
            f"expected format {FORMAT!r}, found {about.get('format')!r}",
            where=str(folder),
        )
    number = [i for i, one in enumerate(about["sources"]) if one["dataset"] == dataset.digest]
    if not number:
        raise MismatchError(
            "GL0501",
            f"made from datasets {', '.join(str(one['dataset']) for one in about['sources'])}; "
            f"this is {dataset.digest}",
            where=str(dataset.root),
            hint="run glint embed and glint cluster on this dataset",
        )
    path = folder / "faces.parquet"
    if sha256(path) != about.get("files", {}).get("faces.parquet"):
        raise InputError("GL0501", "is not as glint cluster wrote it", where=str(path))
    table = parquet.read(path, schemas.FACES, columns=["source", "identity"], code="GL0501")
    identity_n = table.column("identity").to_numpy()[
        table.column("source").to_numpy() == number[-1]
    ]
    if len(identity_n) != dataset.n:
        raise InputError(
            "GL0501", f"expected {dataset.n} faces, found {len(identity_n)}", where=str(path)
        )
    return identity_n, mark


def _names(classes: int, label_n: Ints, identity_n: Ints, where: str) -> tuple[Ints, Ints]:
    """Return the identity of the faces of each label, -1 = none, and how many these are.

    label_n: -1 for a face that has no say. Raises InputError GL0501.
    """
    some = np.flatnonzero((identity_n >= 0) & (label_n >= 0))
    label_m, identity_m = label_n[some], identity_n[some]
    name_C = np.full(classes, -1, np.int64)
    name_C[label_m] = identity_m
    wrong = np.flatnonzero(name_C[label_m] != identity_m)
    if wrong.size:
        label = int(label_m[wrong[0]])
        raise InputError(
            "GL0501",
            f"label {label} has faces of the identities {identity_m[wrong[0]]} and "
            f"{name_C[label]}; so have {len(np.unique(label_m[wrong]))} labels",
            where=where,
            hint="shard the images with: glint shard SRC OUT --unlabelled",
        )
    return name_C, np.bincount(label_m, minlength=classes)

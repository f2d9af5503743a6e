"""Identities of all faces of some embedding folders at once, by the graph of those that are near.

In the folder that it is given: blocks of near pairs that are done, which the same command takes up,
and, while it runs, the rows of several folders as one file and the sums of clusters.
"""

# N faces of all folders, n faces of one, D embedding

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glint.errors import InputError, UsageError
from glint.files import atomic
from glint.files.strings import new_array
from glint.log import Progress, logger
from glint.search import graph_clusters, neighbours
from glint.search.graph_clusters import GraphRules
from glint.search.online_clusters import ClusterRules, Snapshot
from glint.shards.embeddings import Embeddings

COPY = 65536  # rows copied at once


def rules(method: str, given: dict[str, Any]) -> ClusterRules | GraphRules:
    """Return the rules of a method with some values given. Raises UsageError GL0002."""
    kinds: dict[str, type[ClusterRules] | type[GraphRules]]
    kinds = {"online": ClusterRules, "graph": GraphRules}
    if method not in kinds:
        raise UsageError("GL0002", f"expected online or graph, found {method!r}", where="--method")
    for name in given:
        if name not in kinds[method].__dataclass_fields__:
            what = f"says nothing to --method {method}"
            raise UsageError("GL0002", what, where=f"--{name}")
    return kinds[method](**given)


def find(
    found: Sequence[Embeddings], work: Path, rules: GraphRules, progress: Progress
) -> tuple[Snapshot, dict[str, Any]]:
    """Cluster all faces; return clusters and what is to be said of the graph.

    Raises InputError GL0504 where the measured recall of near pairs is under `rules.recall`.
    """
    atomic.own_dir(work)
    x_ND = _rows(found, work / "rows.npy")
    exact = len(x_ND) <= rules.exact
    said: dict[str, Any] = {"method": "graph", "exact": exact, "recall": 1.0, "recall_faces": 1.0}
    if exact:
        near = neighbours.exact(x_ND, rules.edge, work=work / "pairs", progress=progress)
    else:
        near = neighbours.nearly(x_ND, rules.edge, work, seed=rules.seed, progress=progress)
        share = neighbours.recall(x_ND, near, rules.edge, seed=rules.seed)
        if not share.pairs:
            logger.warning("no pair is near among %d faces asked, of %d", share.faces, len(x_ND))
        elif min(share.of_pairs, share.of_faces) < rules.recall:
            raise InputError(
                "GL0504",
                f"found {share.of_pairs:.4f} of {share.pairs} pairs near {share.faces} faces, a "
                f"face on average {share.of_faces:.4f}; expected {rules.recall}",
                where="--method graph",
                hint=f"with another --out: --exact {len(x_ND)} finds all, a higher --edge asks for "
                "fewer; or a lower --recall",
            )
        said |= {
            "recall": _number(share.of_pairs),
            "recall_faces": _number(share.of_faces),
            "recall_pairs": share.pairs,
        }
    shot = graph_clusters.cluster(x_ND, near, rules, work)
    pairs = len(near.a)
    with atomic.writing(work):
        for path in (*work.glob("*.npy"), work / "near.jsonl"):
            path.unlink(missing_ok=True)
    return shot, {**said, "pairs": pairs}


def _number(share: float) -> float | None:
    return None if math.isnan(share) else round(share, 6)


def _rows(found: Sequence[Embeddings], path: Path) -> npt.NDArray[Any]:
    """Return the rows of all folders: as mapped, or copied into one file."""
    if len(found) == 1:
        return found[0].sample_ND
    parts = [emb.sample_ND for emb in found]
    shape = sum(map(len, parts)), parts[0].shape[1]
    with atomic.writing(path):
        x_ND = new_array(path, np.result_type(*parts), shape)
    first = 0
    for part in parts:
        for at in range(0, len(part), COPY):
            rows = part[at : at + COPY]
            x_ND[first + at : first + at + len(rows)] = rows
        first += len(part)
    return x_ND

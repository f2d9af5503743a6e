"""How well clusters fit known identities: pairwise and BCubed F, as in the clustering papers."""

# n faces, p predicted clusters, t true identities, m cells of their contingency table

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """Precision, recall, and F, their harmonic mean."""

    precision: float
    recall: float

    @property
    def f(self) -> float:
        """Return 2 P R / (P + R); 0 where both are."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def pairwise(cluster_n: Ints, truth_n: Ints) -> Score:
    """Judge all pairs of faces: precision of those put together, recall of those that belong so.

    A clustering without a pair is precise, and a truth without a pair is recalled: 1.
    """
    cell_m, cluster_m, truth_m = _cells(cluster_n, truth_n)
    n = len(cluster_n)
    hit = int((cell_m**2).sum()) - n
    made, real = (int((np.bincount(one, cell_m) ** 2).sum()) - n for one in (cluster_m, truth_m))
    return Score(hit / made if made else 1.0, hit / real if real else 1.0)


def bcubed(cluster_n: Ints, truth_n: Ints) -> Score:
    """Judge face by face: the share of its cluster, and of its identity, that it shares with both.

    Source: Amigo et al. 2009.
    """
    cell_m, cluster_m, truth_m = _cells(cluster_n, truth_n)
    made, real = (np.bincount(one, cell_m)[one] for one in (cluster_m, truth_m))
    n = max(len(cluster_n), 1)
    square_m = cell_m.astype(np.float64) ** 2
    return Score(float((square_m / made).sum() / n), float((square_m / real).sum() / n))


def _cells(cluster_n: Ints, truth_n: Ints) -> tuple[Ints, Ints, Ints]:
    """Count the faces of each cluster and identity that meet: counts, clusters, identities."""
    cluster = np.unique(cluster_n, return_inverse=True)[1].reshape(-1)
    truth = np.unique(truth_n, return_inverse=True)[1].reshape(-1)
    width = int(truth.max(initial=0)) + 1
    pair_m, cell_m = np.unique(cluster * width + truth, return_counts=True)
    return cell_m.astype(np.int64), pair_m // width, pair_m % width

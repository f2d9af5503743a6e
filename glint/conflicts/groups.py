"""Pairs to groups: connected components that are held together everywhere, not by a chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]
Strength = Callable[[Labels, Labels], tuple[Reals, Reals]]


@dataclass(frozen=True)
class Groups:
    """Groups to merge (each sorted, ordered by first label) and the components refused.

    refused: component -> why, in words a user can read.
    """

    merged: list[Labels]
    refused: list[tuple[Labels, str]]


def components(a: Labels, b: Labels) -> list[Labels]:
    """Return the connected components of the pairs, each sorted, ordered by smallest label."""
    if len(a) == 0:
        return []
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    label, index = np.unique(np.concatenate([a, b]), return_inverse=True)
    link = (np.ones(len(a), np.int8), (index[: len(a)], index[len(a) :]))
    _, part = connected_components(coo_matrix(link, shape=(len(label),) * 2), directed=False)
    order = np.argsort(part, kind="stable")
    pieces = np.split(label[order], np.flatnonzero(np.diff(part[order])) + 1)
    return sorted(pieces, key=lambda piece: int(piece[0]))


def guarded(a: Labels, b: Labels, strength: Strength, *, cap: int) -> Groups:
    """Merge a component only where all its pairs are strong and it has at most `cap` labels.

    strength(a, b): how alike the labels of each pair are, and the least that will do; asked only
    for components of three or more (a pair alone has passed already). A component is merged whole
    or not at all, so the answer does not depend on the order of the pairs.
    """
    merged: list[Labels] = []
    refused: list[tuple[Labels, str]] = []
    for piece in components(a, b):
        if len(piece) > cap:
            refused.append((piece, f"{len(piece)} identities in one group, more than {cap}"))
            continue
        if len(piece) > 2:
            i, j = np.triu_indices(len(piece), 1)
            value, least = strength(piece[i], piece[j])
            lack = np.where(np.isnan(value), np.inf, least - value)
            worst = int(np.argmax(lack))
            if lack[worst] > 0:
                refused.append(
                    (
                        piece,
                        f"a chain: {piece[i[worst]]} and {piece[j[worst]]} show "
                        f"{value[worst]:.3f}, expected at least {least[worst]:.3f}",
                    )
                )
                continue
        merged.append(piece)
    return Groups(merged, refused)

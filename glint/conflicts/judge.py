"""The judge: what to do with a pair of identities, and how likely it is one person.

Fitted once, to the pairs that a search found; then it judges any pair of the same kind.
"""

# K pairs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from glint.conflicts.chance import MAY_BE, Compared, Likeness, halves_cosine
from glint.conflicts.evidence import Reals


@dataclass(frozen=True)
class Judge:
    """Judge pairs of identities by a model of likeness, by a user's threshold, or by both.

    likeness: None where too few identities can be split to calibrate: then nothing masks, and
    nothing merges without a threshold. threshold: merge from this centre cosine on, instead of
    where the model does. low: the centre cosine that the pairs were searched from.
    """

    likeness: Likeness | None
    low: float
    threshold: float | None = None

    def judge(self, pairs: Compared) -> tuple[npt.NDArray[np.str_], Reals]:
        """Return the verdict of K pairs (merge, mask or keep) and P(one person).

        The probability is NaN where there is no model of likeness.
        """
        probability = np.full(len(pairs.cosine_K), np.nan)
        same = np.zeros(len(probability), bool)
        if self.likeness is not None:
            probability, same = self.likeness.probability(pairs), self.likeness.merges(pairs)
        if self.threshold is not None:
            same = pairs.cosine_K >= self.threshold
        may_be = probability >= MAY_BE
        return np.where(same, "merge", np.where(may_be, "mask", "keep")), probability

    def together(self, pairs: Compared) -> tuple[Reals, Reals]:
        """Return how strongly K pairs of one group are held together, and the least that will do.

        By the probability, or by the centre cosine where that is what merges.
        """
        if self.threshold is not None or self.likeness is None:
            return pairs.cosine_K, np.full(len(pairs.cosine_K), self.low)
        return self.likeness.probability(pairs), np.full(len(pairs.cosine_K), MAY_BE)

    def merge_cosine(self, n: Any, m: Any) -> Reals:
        """Return the centre cosine from which n and m images merge; infinite where none does."""
        if self.threshold is not None:
            return np.full(np.shape(n), self.threshold)
        if self.likeness is None:
            return np.full(np.shape(n), np.inf)
        halves = halves_cosine(self.likeness.rho, n, m)
        return np.asarray(self.likeness.merge_from(n, m) * halves)

    def rare_cosine(self, n: Any, m: Any) -> Reals:
        """Return the centre cosine from which two people of n and m images are rare; or infinite.

        However few pairs of one person a set holds: it is where the law of two people was fitted
        up to, less where pairs merge already.
        """
        if self.likeness is None:
            return self.merge_cosine(n, m)
        halves = halves_cosine(self.likeness.rho, n, m)
        return np.minimum(self.likeness.rare_from(n, m) * halves, self.merge_cosine(n, m))

    @property
    def note(self) -> str:
        """Return what a reader must know of how well the model fits; empty where it does."""
        return "" if self.likeness is None else str(self.likeness.about()["note"])

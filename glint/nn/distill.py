"""How far embeddings are from a teacher's: the angular losses of VarGFaceNet (arXiv 1910.04985)."""

# n images, D embedding

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

LOSSES = ("chord", "angular")


def distance(feature_nD: Tensor, target_nD: Tensor, loss: str = "chord") -> Tensor:
    """Return the mean distance of the directions of two embeddings of the same images.

    chord: |f/|f| - t/|t||^2 = 2 (1 - cos), equation 5 there; angular: (1 - cos)^2, equation 4.
    Both vanish where the directions agree, the second one's gradient with 1 - cos as well. Summed
    over D, not averaged. Lengths do not matter. ValueError for another loss.
    """
    chord_n = (normalize(feature_nD) - normalize(target_nD)).square().sum(1)
    if loss == "angular":
        return (chord_n / 2).square().mean()
    if loss != "chord":
        raise ValueError(f"expected one of {LOSSES}, found {loss!r}")
    return chord_n.mean()

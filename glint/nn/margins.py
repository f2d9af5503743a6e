"""Margins on the target cosine: each gives the new cosine and its derivative.

The scale is not here: a target logit is scale * margin(cosine). Derivatives are written out because
the head's backward pass is hand-written (`glint.nn.heads.softmax`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from glint.errors import UsageError

# N samples over all ranks


class Margin(Protocol):
    """Map target cosines c_y (N) to (z_y / scale, d z_y / d c_y / scale), both (N).

    norm_N: length of each feature before normalisation, for margins that depend on it.
    """

    def __call__(self, cosine_N: Tensor, norm_N: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class CosFace:
    """Subtract m from the target cosine (CosFace, arXiv 1801.09414, eq. 4); m = 0 is no margin."""

    m: float = 0.4

    def __call__(self, cosine_N: Tensor, norm_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return c - m and 1."""
        return cosine_N - self.m, torch.ones_like(cosine_N)


@dataclass(frozen=True)
class ArcFace:
    """Add m radians to the target angle (ArcFace, arXiv 1801.07698, eq. 3).

    Where theta + m > pi, cos(theta + m) would rise again; there the margin is c - m sin(m), which
    keeps z growing with c. With straight_through the value is plain cos(theta + m) everywhere and
    the derivative is 1, as in insightface since December 2022.
    """

    m: float = 0.5
    straight_through: bool = False

    def __call__(self, cosine_N: Tensor, norm_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos(theta + m) and sin(theta + m) / sin(theta), guarded beyond pi."""
        cosine_N = cosine_N.clamp(-1.0, 1.0)
        sine_N = (1 - cosine_N * cosine_N).sqrt()
        moved_N = cosine_N * math.cos(self.m) - sine_N * math.sin(self.m)
        if self.straight_through:
            return moved_N, torch.ones_like(cosine_N)
        slope_N = math.cos(self.m) + cosine_N * math.sin(self.m) / _not_zero(sine_N)
        beyond_N = cosine_N < -math.cos(self.m)
        moved_N = torch.where(beyond_N, cosine_N - self.m * math.sin(self.m), moved_N)
        return moved_N, torch.where(beyond_N, torch.ones_like(slope_N), slope_N)


@dataclass(frozen=True)
class Combined:
    """Take cos(m1 theta + m2) - m3 (ArcFace, arXiv 1801.07698, eq. 4).

    Beyond phi = m1 theta + m2 = pi the cosine is continued as SphereFace does (arXiv 1704.08063,
    eq. 7): (-1)^k cos(phi) - 2k with k = floor(phi / pi), which never rises with theta.
    """

    m1: float = 1.0
    m2: float = 0.0
    m3: float = 0.0

    def __call__(self, cosine_N: Tensor, norm_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return psi(m1 theta + m2) - m3 and m1 |sin(phi)| / sin(theta)."""
        cosine_N = cosine_N.clamp(-1.0, 1.0)
        sine_N = _not_zero((1 - cosine_N * cosine_N).sqrt())
        phi_N = self.m1 * torch.arccos(cosine_N) + self.m2
        turn_N = torch.floor(phi_N / math.pi)
        sign_N = 1 - 2 * (turn_N % 2)
        moved_N = sign_N * torch.cos(phi_N) - 2 * turn_N - self.m3
        return moved_N, self.m1 * torch.sin(phi_N).abs() / sine_N


@dataclass(frozen=True)
class AdaFace:
    """Let the feature's length say how good the image is (AdaFace, arXiv 2204.00964, eq. 8).

    z = clip(h (|f| - mean) / (std + 1e-3), -1, 1) over the global batch; the target becomes
    cos(theta - m z) - (m + m z), its angle kept inside [0, pi]. The paper smooths mean and std
    over steps; here they are those of the batch, so that a margin has no state to save.
    """

    m: float = 0.4
    h: float = 0.333

    def __call__(self, cosine_N: Tensor, norm_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos(theta - m z) - m - m z and sin(theta - m z) / sin(theta), 0 where clipped."""
        length_N = norm_N.clamp(1e-3, 100.0)
        std = length_N.std(correction=0)
        z_N = (self.h * (length_N - length_N.mean()) / (std + 1e-3)).clamp(-1.0, 1.0)
        cosine_N = cosine_N.clamp(-1.0, 1.0)
        sine_N = _not_zero((1 - cosine_N * cosine_N).sqrt())
        angle_N = torch.arccos(cosine_N) - self.m * z_N
        inside_N = angle_N.clamp(0.0, math.pi)
        slope_N = torch.sin(inside_N) / sine_N
        slope_N = torch.where(inside_N == angle_N, slope_N, torch.zeros_like(slope_N))
        return torch.cos(inside_N) - self.m * (1 + z_N), slope_N


def margin(
    kind: str,
    *,
    m: float | None = None,
    m1: float = 1.0,
    m2: float = 0.0,
    m3: float = 0.0,
    straight_through: bool = False,
) -> Margin:
    """Make the margin that a recipe names: "cosface", "arcface", "adaface" or "combined".

    m is for the first three (default 0.4, 0.5, 0.4), m1 m2 m3 for the last. Raises UsageError
    (GL0002) for another name.
    """
    if kind == "cosface":
        return CosFace(0.4 if m is None else m)
    if kind == "arcface":
        return ArcFace(0.5 if m is None else m, straight_through)
    if kind == "adaface":
        return AdaFace(0.4 if m is None else m)
    if kind == "combined":
        return Combined(m1, m2, m3)
    raise UsageError(
        "GL0002", f"margin is {kind!r}, expected cosface, arcface, adaface or combined"
    )


def _not_zero(sine_N: Tensor) -> Tensor:
    """Keep a sine away from 0, where dc/dx vanishes as fast as 1/sine grows."""
    return sine_N.clamp_min(math.sqrt(torch.finfo(sine_N.dtype).eps))

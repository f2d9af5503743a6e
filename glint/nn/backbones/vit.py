"""Vision transformers of arcface_torch for 112x112 faces: 144 patches of 9x9, no class token.

Attribute names are arcface_torch's, so that its published state dicts load key for key.
"""

# n batch, T patches (K of them kept), D width, E embedding, h attention heads

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from glint.nn.backbones.parts import SIZE, full_precision, require_faces

PATCH = 9  # pixels; 12 x 12 patches cover 108 x 108, the last 4 rows and columns are not seen


class PatchEmbed(nn.Module):
    """Cut an image into patches and project each to `width` numbers: (n, T, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, image_nCHW: Tensor) -> Tensor:
        x_nDHW: Tensor = self.proj(image_nCHW)
        return x_nDHW.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention over patches; in float32 between its two projections unless `half`."""

    def __init__(self, width: int, heads: int, half: bool) -> None:
        super().__init__()
        self.heads = heads
        self.low = half
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x_nTD: Tensor) -> Tensor:
        n, patches, width = x_nTD.shape
        qkv = self.qkv(x_nTD).reshape(n, patches, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.low or q.dtype in (torch.float32, torch.float64):
            y = _attend(q, k, v)
        else:
            with torch.autocast(x_nTD.device.type, enabled=False):
                y = _attend(q.float(), k.float(), v.float())
        y_nTD: Tensor = self.proj(y.transpose(1, 2).reshape(n, patches, width))
        return y_nTD


def _attend(q_nhTd: Tensor, k_nhTd: Tensor, v_nhTd: Tensor) -> Tensor:
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        # the fused kernel has no ONNX form before operator set 14
        cosine = q_nhTd @ k_nhTd.transpose(-2, -1) * q_nhTd.shape[-1] ** -0.5
        y: Tensor = cosine.softmax(-1) @ v_nhTd
        return y
    return nn.functional.scaled_dot_product_attention(q_nhTd, k_nhTd, v_nhTd)


class Mlp(nn.Module):
    """Two linear layers, four times as wide between them, with ReLU6."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = nn.ReLU6()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x_nTD: Tensor) -> Tensor:
        y_nTD: Tensor = self.fc2(self.act(self.fc1(x_nTD)))
        return y_nTD


class DropPath(nn.Module):
    """Leave a branch out for a share of the images while training (arXiv 1603.09382)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x_nTD: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return x_nTD
        kept_n11 = x_nTD.new_empty(len(x_nTD), 1, 1).bernoulli_(1 - self.share)
        return x_nTD * kept_n11 / (1 - self.share)


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and added to what came in."""

    def __init__(self, width: int, heads: int, drop_path: float, half: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, half)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x_nTD: Tensor) -> Tensor:
        x_nTD = x_nTD + self.drop_path(self.attn(self.norm1(x_nTD)))
        y_nTD: Tensor = x_nTD + self.drop_path(self.mlp(self.norm2(x_nTD)))
        return y_nTD


class ViT(nn.Module):
    """Map (n, 3, 112, 112) crops to (n, E) un-normalised embeddings.

    width: numbers per patch; drop_path: of the last block, the share rises from 0 at the first;
    mask: share of patches that play no part in a training step, int(T * (1 - mask)) are kept and
    a learnt token stands for the others; checkpoint: compute blocks again in the backward pass
    instead of keeping their activations; half_attention: attend in autocast's precision.
    """

    def __init__(
        self,
        embedding: int = 512,
        *,
        width: int,
        depth: int,
        heads: int = 8,
        drop_path: float = 0.0,
        mask: float = 0.0,
        checkpoint: bool = False,
        half_attention: bool = False,
    ) -> None:
        super().__init__()
        patches = (SIZE // PATCH) ** 2
        self.mask = mask
        self.checkpoint = checkpoint
        self.patch_embed = PatchEmbed(width)
        self.pos_embed = nn.Parameter(torch.empty(1, patches, width))
        # without masks it takes no part: a parameter without gradient would stop DDP
        self.mask_token = nn.Parameter(torch.empty(1, 1, width), requires_grad=mask > 0)
        step = drop_path / max(1, depth - 1)
        self.blocks = nn.ModuleList(
            Block(width, heads, i * step, half_attention) for i in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(width * patches, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, embedding, bias=False),
            nn.BatchNorm1d(embedding, eps=2e-5),
        )
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image_nCHW: Tensor) -> Tensor:
        require_faces(image_nCHW)
        x_nTD: Tensor = self.patch_embed(image_nCHW) + self.pos_embed
        place_nT = None
        if self.training and self.mask > 0:
            x_nTD, place_nT = self._kept(x_nTD)
        for block in self.blocks:
            if self.checkpoint and self.training:
                x_nTD = recomputed(block, x_nTD, use_reentrant=False)
            else:
                x_nTD = block(x_nTD)
        x_nTD = full_precision(self.norm, x_nTD, self.norm.weight)
        if place_nT is not None:
            x_nTD = self._filled(x_nTD, place_nT)
        weight = self.feature[0].weight
        assert isinstance(weight, Tensor)
        return full_precision(self.feature, x_nTD.flatten(1), weight)

    def _kept(self, x_nTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a random share of each image's patches; give them and where each one was."""
        n, patches, width = x_nTD.shape
        keep = max(1, int(patches * (1 - self.mask)))
        order_nT = torch.rand(n, patches, device=x_nTD.device).argsort(dim=1)
        kept_nK = order_nT[:, :keep]
        x_nKD = x_nTD.gather(1, kept_nK[:, :, None].expand(-1, -1, width))
        return x_nKD, kept_nK

    def _filled(self, x_nKD: Tensor, kept_nK: Tensor) -> Tensor:
        """Put kept patches back where they were, among copies of the mask token."""
        n, _, width = x_nKD.shape
        token_nTD = self.mask_token.to(x_nKD.dtype).expand(n, self.pos_embed.shape[1], width)
        return token_nTD.scatter(1, kept_nK[:, :, None].expand(-1, -1, width), x_nKD)

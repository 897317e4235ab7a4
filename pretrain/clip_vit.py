"""CLIP's image tower (Radford et al., 2021): the frozen teacher of feature-target methods.

Parameters have the names of OpenAI's weights (`visual.*`), so the real ViT-B/16 loads unchanged. `ln_post`
and the projection are applied to every token, as DTM does (vqkd_teacher/clip/model.py@322df2e).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


class QuickGELU(nn.Module):
    """`x * sigmoid(1.702 x)`, the activation of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    """CLIP's pre-norm block; LayerNorm eps is PyTorch's default 1e-5 here."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width), gelu=QuickGELU(), c_proj=nn.Linear(4 * width, width)
            )
        )
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=attn_mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of CLIP blocks over `[B, N, width]`."""

    def __init__(self, width: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, num_heads) for _ in range(depth))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, attn_mask)
        return x


class ClipVisual(nn.Module):
    """The image tower.

    Args:
        output_dim: width of the shared image-text space.
    """

    def __init__(
        self, *, img_size: int, patch_size: int, width: int, depth: int, num_heads: int, output_dim: int
    ) -> None:
        super().__init__()
        num_patches = (img_size // patch_size) ** 2
        scale = width**-0.5
        self.output_dim = output_dim
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(num_patches + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, depth, num_heads)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, output_dim))

    def forward(self, images: Tensor, *, project: bool = True) -> Tensor:
        """All tokens, class token first: `[B, 1+N, output_dim]`, or `[B, 1+N, width]` unprojected."""
        x = self.conv1(images).flatten(2).transpose(1, 2)  # [B, N, width]
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1) + self.positional_embedding
        x = self.ln_post(self.transformer(self.ln_pre(x)))
        return x @ self.proj if project else x

"""BootMAE's decoder: each of its blocks also attends to features of the encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from mimbench.arch import transformer_flops
from mimbench.vit import LayerNorm, sincos_position_embedding
from pretrain import weight_init
from pretrain.masking import gather_tokens


class Attention(nn.Module):
    """Attention of x to a context; queries and values have a bias, keys have none.

    A head has `dim // num_heads` channels. If this division has a remainder, all heads together are narrower
    than x.
    """

    def __init__(self, dim: int, context_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, width = num_heads, dim // num_heads * num_heads
        self.q = nn.Linear(dim, width)
        self.kv = nn.Linear(context_dim, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        k, v = self.kv(context).chunk(2, dim=2)
        q, k, v = (
            t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in (self.q(x), k, v + self.v_bias)
        )  # each [B, heads, N, d]
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class DecoderBlock(nn.Module):
    """Self-attention, attention to the encoder's features, MLP."""

    def __init__(self, dim: int, context_dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = LayerNorm(dim), Attention(dim, dim, num_heads)
        self.norm2, self.mlp = LayerNorm(dim), Mlp(dim, 4 * dim)
        self.norm3, self.norm4 = LayerNorm(dim), LayerNorm(context_dim)
        self.cross_attn = Attention(dim, context_dim, num_heads)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn(normed, normed)
        x = x + self.cross_attn(self.norm3(x), self.norm4(context))
        return x + self.mlp(self.norm2(x))


class TargetAwareDecoder(nn.Module):
    """Decodes visible tokens and mask tokens; each block also attends to features of one encoder block.

    Only mask tokens get positions: the visible tokens have them from the encoder
    (models/modeling_pretrain_bootmae.py@d604b18).
    """

    def __init__(self, encoder_dim: int, grid_size: int, *, dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(weight_init.narrow_normal_(torch.zeros(1, 1, dim)))
        self.pos_embed = nn.Parameter(
            sincos_position_embedding(dim, grid_size, cls_token=False), requires_grad=False
        )
        self.blocks = nn.ModuleList(DecoderBlock(dim, encoder_dim, num_heads) for _ in range(depth))
        self.norm = LayerNorm(dim)

    def forward(self, latent: Tensor, context: Tensor, ids: Tensor) -> Tensor:
        """Tokens `[B, N, dim]` in raster order.

        Args:
            latent: the encoder's output for class token and visible patches, `[B, 1+V, D]`.
            context: the encoder features that the blocks attend to, `[B, 1+V, D]`.
            ids: all patches, `[B, N]`: the V visible ones in the order of `latent`, then the masked ones.
        """
        x = self.embed(latent)  # [B, 1+V, dim]
        positions = gather_tokens(self.pos_embed.expand(len(x), -1, -1), ids[:, x.shape[1] - 1 :])
        patches = torch.cat([x[:, 1:], self.mask_token + positions], dim=1)  # [B, N, dim], visible ones first
        x = torch.cat([x[:, :1], gather_tokens(patches, ids.argsort(dim=1))], dim=1)
        for block in self.blocks:
            x = block(x, context)
        return self.norm(x)[:, 1:]


def target_aware_decoder_flops(
    encoder_dim: int, num_tokens: int, num_visible: int, *, dim: int, depth: int
) -> float:
    """Forward FLOPs of the decoder above on `num_tokens` tokens; `num_visible` come from the encoder."""
    cross = 2 * num_tokens * dim**2 + 2 * num_visible * encoder_dim * dim + 2 * num_tokens * num_visible * dim
    embed = num_visible * encoder_dim * dim
    return transformer_flops(dim, depth, num_tokens) + 2.0 * (depth * cross + embed)

"""MAE's light decoder: visible tokens and mask tokens, a few blocks, a linear prediction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mimbench.vit import Block, LayerNorm, sincos_position_embedding
from pretrain.masking import gather_tokens


class MAEDecoder(nn.Module):
    """Predict every patch from the encoder's visible tokens (MAE, section 3; models_mae.py@efb2a80).

    Args:
        encoder_dim: width D of the encoder's tokens.
        grid_size: side G of the patch grid.
        out_dim: numbers predicted for each patch.
    """

    def __init__(
        self, encoder_dim: int, grid_size: int, *, dim: int, depth: int, num_heads: int, out_dim: int
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(sincos_position_embedding(dim, grid_size), requires_grad=False)
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(depth))
        self.norm = LayerNorm(dim)
        self.pred = nn.Linear(dim, out_dim)

    @classmethod
    def of(cls, recipe: Any, out_dim: int) -> MAEDecoder:
        """The decoder for a recipe with `decoder_dim`, `decoder_depth` and `decoder_heads`."""
        size = {"dim": recipe.decoder_dim, "depth": recipe.decoder_depth, "num_heads": recipe.decoder_heads}
        config = recipe.vit_config()
        return cls(config.embed_dim, config.grid_size, **size, out_dim=out_dim)

    def forward(self, latent: Tensor, ids_restore: Tensor) -> Tensor:
        """From latent `[B, 1+K, D]` to predictions `[B, N, out_dim]` in raster order."""
        x = self.embed(latent)  # [B, 1+K, Dd]
        batch, num_patches = ids_restore.shape
        mask_tokens = self.mask_token.expand(batch, num_patches + 1 - x.shape[1], -1)
        patches = torch.cat([x[:, 1:], mask_tokens], dim=1)  # [B, N, Dd], visible ones first
        x = torch.cat([x[:, :1], gather_tokens(patches, ids_restore)], dim=1) + self.pos_embed  # [B, 1+N, Dd]
        for block in self.blocks:
            x = block(x)
        return self.pred(self.norm(x))[:, 1:]

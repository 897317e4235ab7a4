"""The student of the BEiT family: a ViT that sees a learned mask token instead of every masked patch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mimbench.recipe import PretrainRecipe
from mimbench.vit import ViT
from pretrain import weight_init


class MaskedViT(nn.Module):
    """A ViT and its mask token, initialised as in BEiT: narrow normal, residual branches rescaled by depth.

    Args:
        positions: `absolute` (learned), or relative position tables: one `shared` by all blocks, or this one
            and another in each block (`block+shared`).
        layer_scale_init: None for no layer scale.
        key_bias: False in the BEiT family: queries and values have a bias, keys have none.
    """

    def __init__(
        self,
        recipe: PretrainRecipe,
        *,
        positions: Literal["absolute", "shared", "block+shared"],
        layer_scale_init: float | None,
        key_bias: bool = False,
    ) -> None:
        super().__init__()
        config = recipe.vit_config(
            pos_embed="learned" if positions == "absolute" else "none",
            rel_pos="none" if positions == "absolute" else positions,
            layer_scale_init=layer_scale_init,
            key_bias=key_bias,
        )
        self.encoder = ViT(config, drop_path=recipe.drop_path)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.encoder.apply(weight_init.beit)
        for token in (self.encoder.cls_token, self.encoder.pos_embed, self.mask_token):
            if token is not None:
                weight_init.narrow_normal_(token)
        weight_init.rescale_residual_branches(self.encoder)

    @property
    def grid_size(self) -> int:
        return self.encoder.config.grid_size

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """All tokens after the final norm, `[B, 1+N, D]`; mask `[B, N]`, 1 = masked."""
        x = self.encoder.embed(images, mask, self.mask_token)
        return self.encoder.norm(self.encoder.encode(x)[-1])

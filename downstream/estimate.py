"""Cost of the tasks, for the plan: FLOPs of the encoder, images in training. Numbers only, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mimbench.arch import patch_embed_flops, size_of, transformer_flops


def encoder_flops(
    recipe: Mapping[str, Any], arch: str, patch_size: int, num_blocks: int | None = None
) -> float:
    """FLOPs of the forward pass of the encoder, or of its first `num_blocks` blocks, on one image."""
    dim, depth, _ = size_of(arch)
    cells = (recipe["img_size"] // patch_size) ** 2
    blocks = transformer_flops(dim, depth if num_blocks is None else num_blocks, cells + 1)
    return patch_embed_flops(dim, cells, patch_size) + blocks


def epoch_images(recipe: Mapping[str, Any], data_size: int) -> int:
    """Images seen in the recipe's `epochs`; `data_size` counts the images that the task trains on."""
    return round(recipe["epochs"] * data_size)

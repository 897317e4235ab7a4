"""Which patches a student sees: random masking (MAE) and block-wise masking (BEiT)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor


def gather_tokens(x: Tensor, ids: Tensor) -> Tensor:
    """The tokens of x `[B, N, D]` at ids `[B, K]`, in the order of ids: `[B, K, D]`."""
    return x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def random_masking(
    batch: int, num_patches: int, mask_ratio: float, device: torch.device, noise: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep `int(N * (1 - mask_ratio))` random patches of each image (MAE, models_mae.py@efb2a80).

    Args:
        noise: `[B, N]`; the patches with the smallest noise are kept. Default: drawn uniformly.

    Returns:
        ids_keep `[B, K]` in the order of the noise; ids_restore `[B, N]`, which undoes the shuffle; mask
        `[B, N]` in raster order, 1 = masked.
    """
    num_keep = int(num_patches * (1 - mask_ratio))
    if noise is None:
        noise = torch.rand(batch, num_patches, device=device)
    ids_shuffle = noise.argsort(dim=1)
    ids_restore = ids_shuffle.argsort(dim=1)
    mask = (ids_restore >= num_keep).float()
    return ids_shuffle[:, :num_keep], ids_restore, mask


def block_mask(
    grid_size: int,
    num_masked: float,
    min_block: int,
    *,
    max_block: int | None = None,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    exact: bool = True,
) -> Tensor:
    """One image's block-wise mask `[G * G]` of booleans, True = masked (BEiT, Algorithm 1).

    Drawn from Python's `random`. Blocks of area U(min_block, remaining) and log-uniform aspect ratio are
    placed until `num_masked` cells are covered. A block is accepted if it adds at least one new cell and at
    most the remaining number; `max_block` caps both.

    Args:
        num_masked: cells to mask; a whole number if `exact`.
        min_block: smallest area of a block, in cells.
        max_block: largest area of a block, in cells; default: the number that remains to be covered.
        exact: if no block fits in ten attempts, mask random cells for the rest (BEiT v2 and DTM,
            utils/masking_generator.py@322df2e) instead of stopping early (BEiT).
    """
    mask = [[False] * grid_size for _ in range(grid_size)]
    count = 0
    log_aspect = math.log(aspect[0]), math.log(aspect[1])
    while count < num_masked:
        largest = min(num_masked - count, max_block or num_masked)
        added = _place_block(mask, grid_size, largest, min_block, log_aspect)
        if added == 0:
            break
        count += added
    flat = torch.tensor(mask).flatten()
    if exact and count < num_masked:
        free = (~flat).nonzero().flatten().tolist()
        flat[random.sample(free, int(num_masked) - count)] = True
    return flat


def _place_block(
    mask: list[list[bool]], grid_size: int, remaining: float, min_block: int, log_aspect: tuple[float, float]
) -> int:
    """Try ten times to place one block. Returns the number of newly masked cells (0: no block fitted)."""
    for _ in range(10):
        area = random.uniform(min_block, remaining)
        ratio = math.exp(random.uniform(*log_aspect))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if not (0 < height < grid_size and 0 < width < grid_size):
            continue
        top, left = random.randint(0, grid_size - height), random.randint(0, grid_size - width)
        rows = [row[left : left + width] for row in mask[top : top + height]]
        added = height * width - sum(map(sum, rows))
        if 0 < added <= remaining:
            for row in mask[top : top + height]:
                row[left : left + width] = [True] * width
            return added
    return 0


def block_masks(
    batch: int,
    grid_size: int,
    num_masked: float | Sequence[float],
    min_block: int,
    device: torch.device,
    *,
    max_block: int | None = None,
    exact: bool = True,
) -> Tensor:
    """A batch of block-wise masks `[B, G * G]`, 1.0 = masked; see `block_mask`.

    Args:
        num_masked: one number for every image, or a list with one for each.
    """
    counts = num_masked if isinstance(num_masked, Sequence) else [num_masked] * batch
    masks = torch.stack(
        [block_mask(grid_size, count, min_block, max_block=max_block, exact=exact) for count in counts]
    ).float()
    if device.type == "cuda":
        masks = masks.pin_memory()
    return masks.to(device, non_blocking=True)

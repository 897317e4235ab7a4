"""Histograms of oriented gradients as a target (MaskFeat: Wei et al., CVPR 2022, section 3.2).

Follows facebookresearch/SlowFast@287ec00 (`HOGLayerC`); golden: tests/golden/hog_tiny.npz.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.errors import UserError

CELL_SIZE = 8  # pixels
NUM_BINS = 9  # over 180 degrees


def hog_dim(patch_size: int) -> int:
    """Numbers in the target of a patch: colour channels x bins x cells.

    Raises:
        UserError: the patch is not a whole number of cells.
    """
    if patch_size < 1 or patch_size % CELL_SIZE:
        remedy = f"The HOG target needs a multiple of its cells, {CELL_SIZE} pixels."
        raise UserError("patch_size", patch_size, remedy=remedy)
    return 3 * NUM_BINS * (patch_size // CELL_SIZE) ** 2


@torch.no_grad()
def hog(images: Tensor, patch_size: int) -> Tensor:
    """The HOG of normalised images `[B, 3, H, W]`: `[B, N, 27 * cells in a patch]`.

    Sobel gradients of each channel. Each pixel adds its magnitude to one of 9 bins of unsigned direction. The
    bins are summed over cells of 8 x 8 pixels; the bins of a cell and channel are scaled to unit L2 norm.
    Order within a patch: channel and bin (slowest), cell row, cell column.

    Raises:
        UserError: the patch is not a whole number of cells.
    """
    dim = hog_dim(patch_size)
    x = F.pad(images.float(), (1, 1, 1, 1), mode="reflect")  # [B, 3, H+2, W+2]
    across, down = x[..., :-2] - x[..., 2:], x[..., :-2, :] - x[..., 2:, :]
    gx = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]  # [B, 3, H, W]
    gy = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    magnitude = (gx.square() + gy.square()).sqrt()
    bins = (torch.atan2(gx, gy) / math.pi * NUM_BINS).floor().long()  # -9..9 over the full turn

    index = _cells(bins + NUM_BINS)
    full_turn = magnitude.new_zeros(*index.shape[:4], 3 * NUM_BINS)  # 0..18, and room to fold it
    full_turn = full_turn.scatter_add(4, index, _cells(magnitude))
    histogram = F.normalize(full_turn.unflatten(4, (3, NUM_BINS)).sum(dim=4), dim=4)  # [B, 3, H/8, W/8, 9]

    batch, _, rows, columns, _ = histogram.shape
    k = patch_size // CELL_SIZE
    x = histogram.reshape(batch, 3, rows // k, k, columns // k, k, NUM_BINS)
    return x.permute(0, 2, 4, 1, 6, 3, 5).reshape(batch, -1, dim)


def _cells(x: Tensor) -> Tensor:
    """`[B, 3, H, W]` to `[B, 3, H/8, W/8, 64]`."""
    x = x.unflatten(3, (-1, CELL_SIZE)).unflatten(2, (-1, CELL_SIZE))  # [B, 3, H/8, 8, W/8, 8]
    return x.transpose(3, 4).flatten(4)

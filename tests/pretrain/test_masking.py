"""Masks: exact counts, on every grid; what is drawn follows Python's and torch's generators."""

from __future__ import annotations

import math
import random

import pytest
import torch

from pretrain.masking import block_mask, block_masks, random_masking

CPU = torch.device("cpu")


@pytest.mark.parametrize("mask_ratio", [0.0, 0.3, 0.6, 0.75, 0.95])
@pytest.mark.parametrize("num_patches", [16, 49, 196])
def test_random_masking_keeps_the_truncated_share(num_patches: int, mask_ratio: float) -> None:
    ids_keep, ids_restore, mask = random_masking(3, num_patches, mask_ratio, CPU)
    num_keep = int(num_patches * (1 - mask_ratio))
    assert ids_keep.shape == (3, num_keep)
    assert (mask.sum(dim=1) == num_patches - num_keep).all()
    assert torch.equal(ids_restore.sort(dim=1).values, torch.arange(num_patches).expand(3, -1))
    x = torch.randn(3, num_patches)
    visible = x.gather(1, ids_keep)
    padded = torch.cat([visible, torch.zeros(3, num_patches - num_keep)], dim=1)
    assert torch.equal(padded.gather(1, ids_restore), x * (1 - mask))


def test_random_masking_is_uniform() -> None:
    torch.manual_seed(0)
    frequency = random_masking(4000, 16, 0.75, CPU)[2].mean(dim=0)
    assert frequency.min() > 0.72 and frequency.max() < 0.78


@pytest.mark.parametrize(
    ("grid_size", "num_masked", "min_block"), [(14, 75, 16), (14, 147, 16), (8, 24, 5), (4, 6, 2), (4, 16, 2)]
)
def test_block_masks_are_exact(grid_size: int, num_masked: int, min_block: int) -> None:
    random.seed(0)
    masks = block_masks(200, grid_size, num_masked, min_block, CPU)
    assert masks.shape == (200, grid_size**2) and set(masks.unique().tolist()) <= {0.0, 1.0}
    assert (masks.sum(dim=1) == num_masked).all()
    assert num_masked == grid_size**2 or len(masks.unique(dim=0)) > 20


def test_blocks_without_top_up_stop_early() -> None:
    """BEiT's own masks: at most 75, 75 in about 70 % of the images, mean 74.5."""
    random.seed(0)
    counts = torch.tensor([int(block_mask(14, 75, 16, exact=False).sum()) for _ in range(1000)])
    assert counts.max() == 75 and counts.min() >= 60
    assert (counts == 75).float().mean().item() == pytest.approx(0.7, abs=0.06)
    assert counts.float().mean().item() == pytest.approx(74.5, abs=0.2)


def test_first_block_is_a_rectangle_of_allowed_shape() -> None:
    random.seed(0)
    for _ in range(200):
        mask = block_mask(14, 16, 16, exact=False).reshape(14, 14)  # room for one block of 16 only
        rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
        if len(rows) == 0:
            continue
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        ratio = height / width
        assert 0.3 * 0.6 < ratio < 1 / 0.3 / 0.6
        assert mask.sum() <= 16 and math.isfinite(ratio)


def test_blocks_reach_the_last_row_and_column() -> None:
    random.seed(0)
    masks = block_masks(300, 14, 75, 16, CPU).reshape(-1, 14, 14).mean(dim=0)
    assert masks[-1].min() > 0 and masks[:, -1].min() > 0
    assert masks[0].mean().item() == pytest.approx(masks[-1].mean().item(), abs=0.05)


def test_masks_repeat_under_a_seed() -> None:
    drawn = []
    for seed in (3, 3, 4):
        random.seed(seed)
        drawn.append(block_masks(4, 14, 75, 16, CPU))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])

"""HOG against numbers of the official code on random images; how they were made: README.md beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.hog import hog

GOLDEN = Path(__file__).parent / "hog_tiny.npz"


@pytest.mark.parametrize("patch_size", [8, 16, 32])
def test_hog_is_the_official_codes(patch_size: int) -> None:
    golden = np.load(GOLDEN)
    ours = hog(torch.tensor(golden["imgs"].astype(np.float32)), patch_size).numpy()
    official = golden["hog"].reshape(3, 27, 4, 4)  # [B, channel and bin, cell row, cell column]
    k, side = patch_size // 8, 32 // patch_size
    assert ours.shape == (3, side * side, 27 * k * k)
    for row in range(side):
        for column in range(side):
            cells = official[:, :, row * k : (row + 1) * k, column * k : (column + 1) * k]
            np.testing.assert_allclose(ours[:, row * side + column], cells.reshape(3, -1), atol=1e-6, rtol=0)

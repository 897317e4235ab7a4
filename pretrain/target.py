"""What a student is asked to predict: pixels."""

from __future__ import annotations

from torch import Tensor


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Pictures `[B, 3, H, W]` to patches `[B, N, p*p*3]`; within a patch: row, column, channel (fastest)."""
    batch, channels, height, width = images.shape
    p = patch_size
    x = images.reshape(batch, channels, height // p, p, width // p, p)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, (height // p) * (width // p), p * p * channels)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """The exact inverse of `patchify` for square pictures."""
    batch, num_patches, _ = patches.shape
    p, side = patch_size, round(num_patches**0.5)
    x = patches.reshape(batch, side, side, p, p, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, side * p, side * p)


def standardise(target: Tensor, eps: float = 1e-6) -> Tensor:
    """Zero mean, unit (unbiased) variance over the last axis: MAE's `norm_pix_loss`."""
    mean, var = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
    return (target - mean) / (var + eps).sqrt()

"""Targets for a student, and the errors of its predictions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Images `[B, 3, H, W]` to patches `[B, N, p*p*3]`; within a patch: row, column, channel (fastest)."""
    batch, channels, height, width = images.shape
    p = patch_size
    x = images.reshape(batch, channels, height // p, p, width // p, p)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, (height // p) * (width // p), p * p * channels)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """The exact inverse of `patchify` for square images."""
    batch, num_patches, _ = patches.shape
    p, side = patch_size, round(num_patches**0.5)
    x = patches.reshape(batch, side, side, p, p, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, side * p, side * p)


def standardise(target: Tensor, eps: float = 1e-6) -> Tensor:
    """Zero mean, unit (unbiased) variance over the last axis: MAE's `norm_pix_loss`."""
    mean, var = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
    return (target - mean) / (var + eps).sqrt()


def pixel_target(images: Tensor, patch_size: int, *, norm_pix_loss: bool) -> Tensor:
    """MAE's target: the pixels of every patch, `[B, N, p*p*3]`; standardised per patch if `norm_pix_loss`."""
    target = patchify(images, patch_size)
    return standardise(target) if norm_pix_loss else target


def standardise_channels(patches: Tensor) -> Tensor:
    """BootMAE's pixels: patches `[B, N, p*p*3]`, each channel with zero mean and unit (biased) variance."""
    x = patches.unflatten(2, (-1, 3))  # [B, N, p*p, 3]
    var, mean = torch.var_mean(x, dim=2, keepdim=True, correction=0)
    return ((x - mean) / (var + 1e-5).sqrt()).flatten(2)


def squared_error(pred: Tensor, target: Tensor) -> Tensor:
    """Squared difference, averaged over the channels: pred and target `[..., N, C]` to `[..., N]`."""
    return (pred - target).square().mean(dim=-1)


def cosine_error(pred: Tensor, target: Tensor) -> Tensor:
    """`2 - 2 cos` of each token, the squared distance of unit vectors: both `[B, N, C]`, to `[B, N]`."""
    pred, target = F.normalize(pred.float(), dim=-1), F.normalize(target.float(), dim=-1)
    return 2 - 2 * (pred * target).sum(dim=-1)


def masked_mean(error: Tensor, mask: Tensor) -> Tensor:
    """Mean of error `[B, N]` over the masked patches of the whole batch; mask `[B, N]`, 1 = masked."""
    return (error * mask).sum() / mask.sum()

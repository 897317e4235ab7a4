"""Makes a pyramid of four strides from four maps of one stride, as in BEiT's and iBOT's downstream codes."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.dist import get_world_size
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn


def batch_norm() -> dict[str, str]:
    """The mm-series config of batch norm in new layers: synchronised if several processes train."""
    return {"type": "SyncBN" if get_world_size() > 1 else "BN"}


@MODELS.register_module()
class MultiTapPyramid(BaseModule):
    """Rescales four taps by 4, 2, 1 and 1/2.

    In this order: deconvolution, batch norm, GELU, deconvolution; one deconvolution; identity; max pooling.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        norm = nn.SyncBatchNorm if get_world_size() > 1 else nn.BatchNorm2d
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(embed_dim, embed_dim, 2, stride=2),
            norm(embed_dim),
            nn.GELU(),
            nn.ConvTranspose2d(embed_dim, embed_dim, 2, stride=2),
        )
        self.up2 = nn.ConvTranspose2d(embed_dim, embed_dim, 2, stride=2)
        self.down2 = nn.MaxPool2d(2, stride=2)

    def forward(self, taps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Four maps `[B, D, h, w]` to `[B, D, 4h, 4w]`, `[B, D, 2h, 2w]`, the same, `[B, D, h/2, w/2]`."""
        first, second, third, fourth = taps
        return self.up4(first), self.up2(second), third, self.down2(fourth)

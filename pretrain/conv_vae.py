"""Encoder and decoder of image tokenizers: DALL-E's (Ramesh et al., ICML 2021, arXiv 2102.12092).

Follows openai/DALL-E's two networks, from their copy in microsoft/unilm@768a3c8 (beit/dall_e): groups of
bottleneck blocks, one resolution per group, every residual branch scaled by 1 / (number of blocks)^2.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


class Conv(nn.Conv2d):
    """Stride 1, same size; normal weights of variance 1 / fan-in, zero bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        nn.init.normal_(self.weight, std=1 / math.sqrt(in_channels * kernel_size**2))
        nn.init.zeros_(self.bias)


class Bottleneck(nn.Module):
    """`skip(x) + gain * convs(x)`: four convolutions, each after a ReLU; between them a quarter of the width.

    Args:
        kernel_sizes: of the four convolutions; the encoder's last is 1, the decoder's first is 1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_sizes: tuple[int, ...], gain: float
    ) -> None:
        super().__init__()
        self.gain = gain
        hidden = out_channels // 4
        widths = [in_channels, hidden, hidden, hidden, out_channels]
        self.skip = Conv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.convs = nn.ModuleList(map(Conv, widths[:-1], widths[1:], kernel_sizes))

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        for conv in self.convs:
            residual = conv(F.relu(residual))
        return self.skip(x) + self.gain * residual


class Groups(nn.ModuleList):
    """`num_blocks` bottlenecks for each of `widths[1:]`; `widths[0]` is the input width of the first."""

    def __init__(self, widths: list[int], num_blocks: int, kernel_sizes: tuple[int, ...]) -> None:
        gain = 1 / ((len(widths) - 1) * num_blocks) ** 2
        super().__init__(
            nn.Sequential(
                Bottleneck(before, width, kernel_sizes, gain),
                *(Bottleneck(width, width, kernel_sizes, gain) for _ in range(num_blocks - 1)),
            )
            for before, width in zip(widths[:-1], widths[1:], strict=True)
        )


class ConvEncoder(nn.Module):
    """Images `[B, 3, H, W]` to `[B, out_channels, H / patch_size, W / patch_size]`.

    Args:
        width: channels of the first group; they double with every further group.
        patch_size: a power of two.
        num_blocks: per group.
    """

    def __init__(self, *, width: int, out_channels: int, patch_size: int, num_blocks: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(patch_size.bit_length())]
        self.stem = Conv(3, width, 7)
        self.groups = Groups([width, *widths], num_blocks, (3, 3, 3, 1))
        self.head = Conv(widths[-1], out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for i, group in enumerate(self.groups):
            x = group(F.max_pool2d(x, 2) if i > 0 else x)
        return self.head(F.relu(x))


class ConvDecoder(nn.Module):
    """The mirror of `ConvEncoder`: `[B, in_channels, h, w]` to `[B, out_channels, h * p, w * p]`."""

    def __init__(
        self, *, width: int, in_channels: int, out_channels: int, patch_size: int, num_blocks: int
    ) -> None:
        super().__init__()
        widths = [width * 2**i for i in reversed(range(patch_size.bit_length()))]
        self.stem = Conv(in_channels, width // 2, 1)
        self.groups = Groups([width // 2, *widths], num_blocks, (1, 3, 3, 3))
        self.head = Conv(width, out_channels, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.stem(z)
        for i, group in enumerate(self.groups):
            x = group(F.interpolate(x, scale_factor=2.0) if i > 0 else x)
        return self.head(F.relu(x))


def conv_flops(width: int, channels: int, img_size: int, patch_size: int, num_blocks: int) -> float:
    """Forward FLOPs of `ConvEncoder` on one image; the decoder needs nearly the same.

    Args:
        channels: channels per patch that the encoder gives (or the decoder takes).
    """
    macs = 3 * width * 49 * img_size**2
    before, side = width, img_size
    for group in range(patch_size.bit_length()):
        after = width * 2**group
        quarter, skip = after // 4, before * after if before != after else 0
        macs += side**2 * (skip + before * quarter * 9 + 18 * quarter**2 + quarter * after)
        again = (num_blocks - 1) * (after * quarter * 9 + 18 * quarter**2 + quarter * after)
        macs += side**2 * again
        before, side = after, side // 2
    return 2.0 * (macs + before * channels * (img_size // patch_size) ** 2)

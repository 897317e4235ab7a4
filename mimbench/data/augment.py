"""Augmentation: pretraining's own light transform, and timm's for classification."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
RATIO = (3 / 4, 4 / 3)
JITTERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)  # Color is saturation


class PretrainAugment:
    """Optional colour jitter, random resized crop, horizontal flip; gives uint8, normalised on the device.

    The crop follows torchvision's RandomResizedCrop: bicubic, aspect ratio 3/4 to 4/3. All random draws come
    from Python's global generator, which the loader seeds for each step.

    Args:
        img_size: side of the result, in pixels.
        min_crop_scale: lower bound of the crop's share of the image's area.
        color_jitter: brightness, contrast, saturation each vary by this share, in random order; 0 = off.
        hflip: probability of the flip.
    """

    def __init__(self, img_size: int, min_crop_scale: float, color_jitter: float, hflip: float = 0.5) -> None:
        self.img_size, self.min_crop_scale = img_size, min_crop_scale
        self.color_jitter, self.hflip = color_jitter, hflip

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB image to [3, img_size, img_size] of uint8."""
        image = self.crop(image).resize((self.img_size, self.img_size), Image.Resampling.BICUBIC)
        if random.random() < self.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # [3, H, W]; batching makes it contiguous

    def crop(self, image: Image.Image) -> Image.Image:
        """Jitter the colours and cut a random crop, not yet resized."""
        if self.color_jitter > 0:
            low, high = max(0.0, 1 - self.color_jitter), 1 + self.color_jitter
            for enhance in random.sample(JITTERS, k=3):
                image = enhance(image).enhance(random.uniform(low, high))
        top, left, height, width = crop_box(image.width, image.height, (self.min_crop_scale, 1.0))
        # Cut first, as torchvision does: with `resize(box=...)` bicubic would use pixels outside the crop.
        return image.crop((left, top, left + width, top + height))


def crop_box(width: int, height: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """A random crop's top, left, height and width, by the rule of torchvision's RandomResizedCrop.

    It tries ten times; then it takes the largest central crop with an allowed aspect ratio.
    """
    log_ratio = math.log(RATIO[0]), math.log(RATIO[1])
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        ratio = math.exp(random.uniform(*log_ratio))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    w, h = width, height
    if width / height < RATIO[0]:
        h = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(height * RATIO[1])
    return (height - h) // 2, (width - w) // 2, h, w


@lru_cache
def _scale_and_shift(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
    return 1 / (255 * std), -mean / std


def normalise(images: Tensor) -> Tensor:
    """[B, 3, H, W] of uint8 to float32 with ImageNet's mean and standard deviation, on the same device."""
    scale, shift = _scale_and_shift(images.device)
    return images.float().mul_(scale).add_(shift)


def finetune_transform(
    img_size: int,
    auto_augment: str | None = "rand-m9-mstd0.5-inc1",
    random_erase: float = 0.25,
    *,
    min_crop_scale: float = 0.08,
    hflip: float = 0.5,
    color_jitter: float = 0.0,
) -> Callable[[Image.Image], Tensor]:
    """timm's training transform for classification: crop, flip, RandAugment, normalisation, random erasing.

    Args:
        auto_augment: timm's policy string; None = off. `color_jitter` applies only if this is None.
        random_erase: probability that one rectangle is replaced by noise.
    """
    from timm.data import create_transform

    transform = create_transform(
        input_size=img_size,
        is_training=True,
        scale=(min_crop_scale, 1.0),
        ratio=RATIO,
        hflip=hflip,
        color_jitter=color_jitter or None,  # type: ignore[arg-type]
        auto_augment=auto_augment,
        interpolation="bicubic",
        re_prob=random_erase,
        re_mode="pixel",
        re_count=1,
        mean=MEAN,
        std=STD,
    )
    for step in transform.transforms:
        for op in getattr(step, "ops", ()):  # RandAugment's
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's operation. At its highest level it keeps 0 bits: return black, because Pillow >= 13 raises."""
    if bits < 1:
        return Image.new(image.mode, image.size)
    return image if bits >= 8 else ImageOps.posterize(image, bits)


def eval_transform(img_size: int, crop_pct: float = 0.875) -> Callable[[Image.Image], Tensor]:
    """Resize the shorter side to `img_size / crop_pct`, cut the centre, normalise; bicubic."""
    from timm.data import create_transform

    return create_transform(
        input_size=img_size, is_training=False, interpolation="bicubic", crop_pct=crop_pct, mean=MEAN, std=STD
    )

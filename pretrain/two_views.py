"""One crop at two resolutions: for the student, and for the tokenizer that makes its targets."""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mimbench.data.augment import PretrainAugment


class TwoViews(PretrainAugment):
    """BEiT's augmentation (datasets.py@768a3c8): the same jitter, crop and flip, resized twice.

    Args:
        token_size: side of the tokenizer's image, in pixels. It is resized by Lanczos, the student's image by
            bicubic interpolation.
    """

    def __init__(self, img_size: int, token_size: int, min_crop_scale: float, color_jitter: float) -> None:
        super().__init__(img_size, min_crop_scale, color_jitter)
        self.token_size = token_size

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """RGB image to `[3, img_size, img_size]` and `[3, token_size, token_size]` of uint8."""
        image = self.crop(image)
        if random.random() < self.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        filters = Image.Resampling.BICUBIC, Image.Resampling.LANCZOS
        views = map(image.resize, ((s, s) for s in (self.img_size, self.token_size)), filters)
        student, tokenizer = (torch.from_numpy(np.array(view)).permute(2, 0, 1) for view in views)
        return student, tokenizer

"""Augmentation against torchvision's and timm's own."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import Compose, Normalize, RandomResizedCrop, ToTensor
from torchvision.transforms.functional import InterpolationMode, resized_crop, to_tensor

from mimbench.data import augment
from mimbench.data.augment import (
    MEAN,
    STD,
    PretrainAugment,
    crop_box,
    eval_transform,
    finetune_transform,
    normalise,
)


def noise_image(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("width", "height", "low"), [(64, 64, 0.2), (96, 48, 0.08), (40, 60, 0.67)])
def test_crops_are_distributed_as_torchvisions(width: int, height: int, low: float) -> None:
    random.seed(0)
    torch.manual_seed(0)
    ours = np.array([crop_box(width, height, (low, 1.0)) for _ in range(3000)])
    image = noise_image(width, height)
    theirs = np.array([RandomResizedCrop.get_params(image, [low, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)])
    for draws in (ours, theirs):
        assert (draws >= 0).all()
        assert (draws[:, 0] + draws[:, 2] <= height).all() and (draws[:, 1] + draws[:, 3] <= width).all()
    quantities = [*zip(ours.T, theirs.T, strict=True), (ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])]
    for mine, other in quantities:  # top, left, height, width, area
        assert ks_2samp(mine, other).pvalue > 1e-3


@pytest.mark.parametrize(("width", "height"), [(300, 10), (10, 300), (64, 64)])
def test_fallback_is_torchvisions(width: int, height: int) -> None:
    image = noise_image(width, height)
    impossible = [2.0, 2.0]  # no crop has twice the area: all ten tries fail
    assert crop_box(width, height, (2.0, 2.0)) == RandomResizedCrop.get_params(
        image, impossible, [3 / 4, 4 / 3]
    )


def test_pixels_are_torchvisions() -> None:
    image = noise_image(80, 70)
    random.seed(3)
    ours = PretrainAugment(32, 0.2, 0.0, hflip=0.0)(image)
    random.seed(3)
    box = crop_box(80, 70, (0.2, 1.0))
    theirs = to_tensor(resized_crop(image, *box, [32, 32], InterpolationMode.BICUBIC))
    assert ours.dtype == torch.uint8 and torch.equal(ours, (theirs * 255).round().byte())


def test_flip() -> None:
    image = noise_image()
    random.seed(1)
    plain = PretrainAugment(32, 0.2, 0.0, hflip=0.0)(image)
    random.seed(1)
    flipped = PretrainAugment(32, 0.2, 0.0, hflip=1.0)(image)
    assert torch.equal(plain.flip(-1), flipped)


def test_jitter_changes_colours_within_its_range() -> None:
    grey = Image.new("RGB", (16, 16), (100, 100, 100))
    random.seed(0)
    levels = [float(PretrainAugment(16, 1.0, 0.4)(grey).float().mean()) for _ in range(300)]
    assert 60 <= min(levels) < 65 and 135 < max(levels) <= 140  # brightness times 0.6 to 1.4
    assert PretrainAugment(16, 1.0, 0.0)(grey).unique().tolist() == [100]


def test_draws_only_from_pythons_generator() -> None:
    transform = PretrainAugment(32, 0.2, 0.4)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    random.seed(5)
    first = transform(noise_image())
    random.seed(5)
    assert torch.equal(first, transform(noise_image()))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


def test_normalise_is_to_tensor_and_normalize() -> None:
    images = [noise_image(seed=seed) for seed in range(3)]
    reference = Compose([ToTensor(), Normalize(MEAN, STD)])
    batch = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    torch.testing.assert_close(
        normalise(batch), torch.stack([reference(image) for image in images]), atol=1e-6, rtol=1e-5
    )
    assert augment.MEAN == (0.485, 0.456, 0.406)


def test_finetune_transform() -> None:
    transform = finetune_transform(32, random_erase=1.0)
    steps = {type(step).__name__: step for step in transform.transforms}  # type: ignore[attr-defined]
    assert "RandAugment" in steps and "RandomErasing" in steps
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    first = transform(noise_image())
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    assert first.shape == (3, 32, 32) and torch.equal(first, transform(noise_image()))
    plain = {type(step).__name__ for step in finetune_transform(32, None, 0.0).transforms}  # type: ignore[attr-defined]
    assert not plain & {"RandAugment", "RandomErasing", "ColorJitter"}


def test_posterize_to_no_bits_is_black() -> None:
    transform = finetune_transform(32, "rand-m10-inc1-n8", 0.0)  # level 10 keeps 0 bits
    ops = next(step.ops for step in transform.transforms if hasattr(step, "ops"))  # type: ignore[attr-defined]
    posterize = next(op for op in ops if op.name == "PosterizeIncreasing")
    posterize.prob = 1.0
    assert not np.asarray(posterize(noise_image())).any()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    for seed in range(30):
        assert transform(noise_image(seed=seed)).isfinite().all()


def test_eval_transform_cuts_the_centre() -> None:
    image = noise_image(128, 64)
    out = eval_transform(64, crop_pct=1.0)(image)
    expected = Compose([ToTensor(), Normalize(MEAN, STD)])(image.crop((32, 0, 96, 64)))
    torch.testing.assert_close(out, expected)
    smaller = image.resize((146, 73), Image.Resampling.BICUBIC)  # 64 / 0.875 = 73
    left, top = round((146 - 64) / 2), round((73 - 64) / 2)
    expected = Compose([ToTensor(), Normalize(MEAN, STD)])(smaller.crop((left, top, left + 64, top + 64)))
    torch.testing.assert_close(eval_transform(64)(image), expected)

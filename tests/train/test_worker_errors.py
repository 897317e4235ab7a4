"""Errors of a DataLoader's worker processes arrive as they were raised."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from mimbench.data.decode import CorruptImage
from mimbench.data.image_folder import ImageFolder, LabelledImages
from mimbench.errors import RunFailed, UserError
from mimbench.train.loader import train_loader
from mimbench.train.worker_errors import Loader

ROOT = Path(__file__).resolve().parents[2]
ERRORS = [
    UserError("a.png", 151, remedy="Labels are 0 to 150."),
    UserError("image", 'it\'s "here".jpg', allowed=["it's here.jpg"], remedy="Replace it."),
    UserError("data: train", ("x", 1.5), remedy="Its field has a colon."),
    UserError("data", remedy="There is none."),
    CorruptImage("image", "Traceback (most recent call last):\nUserError: a.jpg", remedy="Replace it."),
    RunFailed("The disk is full: /data could not be written."),
]


class Numbers:
    """Items 0 to 7; the one at `bad` cannot be made."""

    def __init__(self, error: Exception | None = None, bad: int = 5) -> None:
        self.error, self.bad = error, bad

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        if index == self.bad and self.error:
            try:
                raise KeyError("the cause")
            except KeyError as cause:
                raise self.error from cause
        return torch.tensor(index)


class Together(Numbers):
    """Items that are fetched a batch at a time."""

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        return [self[index] for index in indices]


def loaders(dataset: Any, num_workers: int) -> dict[str, Any]:
    """Every way in which the project loads data."""
    return {
        "training": train_loader(dataset, batch_size=4, seed=0, first=0, last=2, num_workers=num_workers),
        "evaluation": Loader(Subset(dataset, range(8)), batch_size=3, num_workers=num_workers),
        "single items": Loader(dataset, batch_size=None, num_workers=num_workers),
    }


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", ["training", "evaluation", "single items"])
def test_an_error_keeps_its_kind_message_and_parts(kind: str, num_workers: int) -> None:
    for error in ERRORS if kind == "training" else ERRORS[:1]:
        with pytest.raises(type(error)) as caught:
            list(loaders(Together(error), num_workers)[kind])
        found = caught.value
        assert (type(found), str(found)) == (type(error), str(error))
        if isinstance(error, UserError):
            assert isinstance(found, UserError)
            parts = (found.field, found.value, found.allowed, found.remedy)
            assert parts == (error.field, error.value, error.allowed, error.remedy)
        if num_workers:
            assert "the cause" in str(found.__cause__) and "__getitem__" in str(found.__cause__)


@pytest.mark.parametrize("dataset", [Numbers(), Together()])
def test_batches_are_the_same_in_any_process(dataset: Numbers) -> None:
    alone, processes = loaders(dataset, 0), loaders(dataset, 2)
    for kind in alone:
        assert [batch.tolist() for batch in alone[kind]] == [batch.tolist() for batch in processes[kind]]


def test_other_errors_stay_what_torch_makes_of_them() -> None:
    with pytest.raises(ValueError, match="Caught ValueError in DataLoader worker process 0"):
        list(Loader(Numbers(ValueError("no")), batch_size=4, num_workers=1))


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / split / "a" / "0.jpg")
    corrupt = tmp_path / "val" / "a" / "1.jpg"
    corrupt.write_bytes(b"\xff\xd8\xff")
    images = LabelledImages(ImageFolder(tmp_path, "val"), lambda image: torch.zeros(1))
    with pytest.raises(CorruptImage, match="--skip-corrupt") as caught:
        list(Loader(images, batch_size=2, num_workers=1))
    assert caught.value.value == str(corrupt)


def test_nothing_loads_data_past_it() -> None:
    for top in ("mimbench", "pretrain", "downstream"):
        for file in (ROOT / top).rglob("*.py"):
            assert not re.search(r"\bDataLoader\(", file.read_text()), (
                f"{file} builds a DataLoader: take Loader"
            )

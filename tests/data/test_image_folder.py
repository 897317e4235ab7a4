"""Images as training sees them: labels, the labelled subset, captions, and images that cannot be read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimbench.data import image_folder
from mimbench.data.augment import PretrainAugment, eval_transform
from mimbench.data.captions import UNKNOWN, Tokenizer
from mimbench.data.decode import CorruptImage
from mimbench.data.image_folder import (
    CaptionedImages,
    ImageFolder,
    LabelledImages,
    PretrainImages,
)
from mimbench.errors import UserError
from mimbench.train.worker_errors import Loader


@pytest.fixture
def root(smoke_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(smoke_data / "imagenet", tmp_path / "imagenet"))


def spoil(root: Path, class_name: str = "dotted-disc") -> Path:
    path = min((root / "train" / class_name).glob("*.jpg"))
    path.write_bytes(path.read_bytes()[:300])
    return path


def test_labels_follow_the_class_folders(root: Path) -> None:
    folder = ImageFolder(root, "train")
    assert len(folder) == 48 and folder.classes == sorted(path.name for path in (root / "train").iterdir())
    assert all(path.parent.name == folder.classes[label] for path, label in folder.samples)


def test_val_takes_its_labels_from_train(root: Path) -> None:
    shutil.rmtree(root / "val" / "checked-cross")
    folder = ImageFolder(root, "val")
    assert len(folder) == 22
    assert all(path.parent.name == folder.classes[label] for path, label in folder.samples)
    assert folder.classes == ImageFolder(root, "train").classes


def test_unknown_class_in_val(root: Path) -> None:
    (root / "val" / "dotted-disk").mkdir()
    with pytest.raises(UserError, match="Did you mean 'dotted-disc'"):
        ImageFolder(root, "val")


def test_subset(root: Path) -> None:
    folder = ImageFolder(root, "train", labelled=True)
    assert [folder.name(i) for i in range(len(folder))] == (root / "train_labelled.txt").read_text().split()
    assert np.bincount([label for _, label in folder.samples]).tolist() == [2] * 12
    (root / "train_labelled.txt").write_text("train/dotted-disc/0000.jpg\ntrain/dotted-disc/gone.jpg\n")
    with pytest.raises(UserError, match=r"gone\.jpg"):
        ImageFolder(root, "train", labelled=True)


def test_missing_or_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        ImageFolder(tmp_path, "train")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="hold no images"):
        ImageFolder(tmp_path, "train")


def test_cache_holds_no_more_than_its_budget(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folder, "CACHE_BYTES", 5 * 32 * 32 * 4)
    folder = ImageFolder(root, "train")
    before = [np.asarray(folder.load(index)) for index in range(len(folder))]
    shutil.rmtree(root / "train")
    for index in range(5):
        assert np.array_equal(folder.load(index), before[index])
    with pytest.raises(FileNotFoundError):
        folder.load(5)


def test_other_modes_become_rgb(root: Path) -> None:
    for name, mode in (("grey.png", "L"), ("palette.png", "P"), ("alpha.png", "RGBA"), ("cmyk.jpg", "CMYK")):
        Image.new(mode, (20, 10)).save(root / "train" / "dotted-disc" / name)
    folder = ImageFolder(root, "train")
    for index in range(len(folder)):
        assert folder.load(index).mode == "RGB"


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("class_name", ["dotted-disc", "dotted 'disc' \"é\\"])
def test_corrupt_image_is_named(root: Path, num_workers: int, class_name: str) -> None:
    for split in ("train", "val"):
        (root / split / "dotted-disc").rename(root / split / class_name)
    path = spoil(root, class_name)
    images = PretrainImages(ImageFolder(root, "train"), PretrainAugment(32, 0.2, 0.0))
    with pytest.raises(CorruptImage, match="--skip-corrupt") as caught:
        list(Loader(images, batch_size=48, num_workers=num_workers))
    assert caught.value.value == str(path)
    assert str(caught.value).startswith(f"image: {str(path)!r} is not valid. It cannot be decoded")


def test_skip_corrupt_leaves_it_out_and_says_so(root: Path) -> None:
    path = spoil(root)
    folder = ImageFolder(root, "train", skip_corrupt=True)
    assert folder.skipped == [path.relative_to(root).as_posix()]
    assert len(folder) == 47 and path not in dict(folder.samples)
    assert ImageFolder(root, "val", skip_corrupt=True).skipped == []


def test_captioned_images(root: Path) -> None:
    dataset = CaptionedImages(ImageFolder(root, "train"), PretrainAugment(32, 0.2, 0.0))
    images, tokens = next(iter(Loader(dataset, batch_size=4)))
    assert images.shape == (4, 3, 32, 32) and images.dtype == torch.uint8
    assert tokens.shape == (4, 24) and tokens.dtype == torch.int64
    assert (tokens == dataset.tokenizer.eos).sum(1).tolist() == [1] * 4
    first = " ".join(dataset.tokenizer.words[index] for index in tokens[0] if index > UNKNOWN)
    assert first == dataset.captions[0].replace(",", "")


def test_captions_are_needed(root: Path) -> None:
    (root / "captions.json").write_text("{}")
    with pytest.raises(UserError, match="has no caption"):
        CaptionedImages(ImageFolder(root, "train"), PretrainAugment(32, 0.2, 0.0))
    (root / "captions.json").unlink()
    with pytest.raises(UserError, match="does not exist"):
        CaptionedImages(ImageFolder(root, "train"), PretrainAugment(32, 0.2, 0.0))


def test_labelled_images(root: Path) -> None:
    dataset = LabelledImages(ImageFolder(root, "val"), eval_transform(32))
    images, labels = next(iter(Loader(dataset, batch_size=24)))
    assert images.shape == (24, 3, 32, 32) and images.dtype == torch.float32
    assert labels.tolist() == [label for label in range(12) for _ in range(2)]


def test_tokenizer() -> None:
    tokenizer = Tokenizer.build(["A red disc, left", "a blue disc"], length=5)
    assert tokenizer.words == ("<pad>", "<eos>", "<unknown>", "a", "blue", "disc", "left", "red")
    assert tokenizer == Tokenizer.build(["a blue disc", "A red disc, left"], length=5)
    assert tokenizer.encode("a red disc") == [3, 7, 5, 1, 0]
    assert tokenizer.encode("a green disc") == [3, 2, 5, 1, 0]
    assert tokenizer.encode("a red disc a red disc") == [3, 7, 5, 3, 1]  # cut, and still ended

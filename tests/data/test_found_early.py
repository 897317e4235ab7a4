"""Images that cannot be read are named before anything is computed, and sound ones are not decoded for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimbench.data import EXTENSIONS, files, look, memory
from mimbench.data.check import check
from mimbench.data.dataset import Dataset
from mimbench.errors import UserError

TRAIN = {"imagenet": "train/*/*.jpg", "ade20k": "images/training/*.jpg", "coco": "train2017/*.jpg"}
VAL = {"imagenet": "val/*/*.jpg", "ade20k": "images/validation/*.jpg", "coco": "val2017/*.jpg"}


@pytest.fixture
def root(smoke_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "FRESH_NS", 0)
    return Path(shutil.copytree(smoke_data, tmp_path / "data"))


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8))


def suspect(path: Path) -> int:
    """As found out on its own; what is found while the file is hashed must not contradict it."""
    found = look.ENDS.at(str(path))[files.SUSPECT]
    ends: list[bytes] = []
    files.hash_file(str(path), None, ends)
    assert files.is_suspect(ends[0], ends[1], path.stat().st_size) in (found, -1)
    return found


@pytest.mark.parametrize("suffix", EXTENSIONS)
def test_files_that_are_cut_off_are_suspected_and_others_not(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    noise().convert("L" if suffix == ".pgm" else "RGB").save(path)
    content = path.read_bytes()
    assert suspect(path) == 0
    for end in (len(content) - 60, len(content) // 2, 40, 7, 0):
        path.write_bytes(content[:end])
        assert suspect(path) == 1, end


KINDS = {
    "GIF": {"format": "GIF"},
    "JPEG 2000": {"format": "JPEG2000"},
    "1 bit": {"format": "PPM"},
    "LZW": {"format": "TIFF", "compression": "tiff_lzw"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_other_kinds_that_are_cut_off_are_suspected(tmp_path: Path, kind: str) -> None:
    """Where neither the end nor the header tells, a file is decoded."""
    path = tmp_path / "x"
    noise().convert("1" if kind == "1 bit" else "RGB").save(path, **KINDS[kind])
    content = path.read_bytes()
    for end in (len(content) - 20, len(content) // 2):
        path.write_bytes(content[:end])
        assert suspect(path) == 1, end
        assert look.SUSPECTS.at(str(path))[files.DECODES] == 0, end


@pytest.mark.parametrize("text", ["P2 3 2 255\n1 2 3 4", "P5 3 2 99\n1234", "P6 3 2 99\n" + 17 * "x"])
def test_portable_maps_that_are_cut_off_are_suspected(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.pgm"
    path.write_text(text)
    assert suspect(path) == 1 and look.SUSPECTS.at(str(path))[files.DECODES] == 0


@pytest.mark.parametrize(("end", "expected"), [(bytes(9), 0), (b"more", 1)])
def test_jpegs_with_something_after_their_end(root: Path, end: bytes, expected: int) -> None:
    """They are read: a suspicion alone refuses nothing."""
    image = sorted((root / "imagenet").glob(TRAIN["imagenet"]))[0]
    image.write_bytes(image.read_bytes() + end)
    assert suspect(image) == expected
    Dataset(root / "imagenet", None).require("imagenet", labels=False)


@pytest.mark.parametrize("trust_stat", [False, True])
@pytest.mark.parametrize("role", TRAIN)
def test_an_image_of_train_that_is_cut_off_is_named_at_the_start(
    root: Path, tmp_path: Path, role: str, trust_stat: bool
) -> None:
    image = sorted((root / role).glob(TRAIN[role]))[-1]
    image.write_bytes(image.read_bytes()[:-40])
    data = Dataset(root / role, tmp_path / "cache")
    labels = role != "imagenet"  # the list has other images
    data.identity(role, labels=labels, trust_stat=trust_stat)
    for _ in range(2):
        with pytest.raises(UserError, match=f"{image}.*cannot be decoded.*--skip-corrupt"):
            data.require(role, labels=labels)
    assert not check(root / role).ok


def test_sound_images_are_not_decoded(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Path] = []
    real = look.decode
    monkeypatch.setattr(look, "decode", lambda path, **how: decoded.append(path) or real(path, **how))
    image = sorted((root / "imagenet").glob(TRAIN["imagenet"]))[0]
    image.write_bytes(image.read_bytes() + b"more")
    for _ in range(2):
        data = Dataset(root / "imagenet", tmp_path / "cache")
        data.identity("imagenet", labels=False)
        data.require("imagenet", labels=False)
    assert decoded == [image], "the one that is suspected, once"


@pytest.mark.parametrize("kind", ["float", "32 bits"])
def test_pictures_of_unknown_range_are_named_at_the_start(root: Path, kind: str) -> None:
    image = sorted((root / "imagenet").glob(TRAIN["imagenet"]))[3].with_name("odd.tif")
    pixels = np.full((9, 9), 70_000)
    Image.fromarray(pixels.astype(np.float32 if kind == "float" else np.int32)).save(image)
    why = "floating-point numbers" if kind == "float" else "have 32 bits"
    with pytest.raises(UserError, match=f"odd.tif.*{why}, of unknown range"):
        Dataset(root / "imagenet", None).require("imagenet", labels=False)
    (message,) = check(root / "imagenet").first["unreadable image"]
    assert "odd.tif" in message and why in message


def test_the_check_says_what_a_mask_of_colours_is(root: Path) -> None:
    file = sorted((root / "ade20k").glob("annotations/training/*.png"))[0]
    Image.new("RGB", (64, 64)).save(file)
    (message,) = check(root / "ade20k").first["unreadable annotation"]
    assert message == f"{file}: It is a RGB image, not one label a pixel."


@pytest.mark.parametrize("pattern", [TRAIN, VAL])
@pytest.mark.parametrize("role", TRAIN)
def test_a_split_without_an_image_is_named_at_the_start(
    root: Path, role: str, pattern: dict[str, str]
) -> None:
    found = sorted((root / role).glob(pattern[role]))
    for image in found[1:]:
        image.write_bytes(b"x")
    Dataset(root / role, None, skip_corrupt=True).require(role, labels=True)
    found[0].write_bytes(b"x")
    with pytest.raises(UserError, match=f"No image in it can be used. {found[0]}: It cannot be decoded"):
        Dataset(root / role, None, skip_corrupt=True).require(role, labels=True)


def test_an_image_whose_label_map_does_not_decode_is_none(root: Path) -> None:
    found = sorted((root / "ade20k").glob("annotations/validation/*.png"))
    for file in found:
        file.write_bytes(b"x")
    with pytest.raises(UserError, match=f"No image in it can be used. {found[0]}: It cannot be decoded"):
        Dataset(root / "ade20k", None, skip_corrupt=True).require("ade20k", labels=True)

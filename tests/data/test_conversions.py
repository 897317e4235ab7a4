"""What a run converts while it reads images is counted, and recorded in its result."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimbench.atomic import file_digest
from mimbench.data import files, heads, look, memory
from mimbench.data.check import check
from mimbench.data.dataset import Dataset
from mimbench.data.decode import decode
from mimbench.errors import RunFailed
from mimbench.execute import inputs, worker
from mimbench.store.folder import Inputs
from mimbench.store.remarks import remarks
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec, Stage

OLD = 1_600_000_000  # a time of modification that is trusted
GREY = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257


def png(bits: int, color: int, channels: int) -> bytes:
    """A PNG file of 16 x 16 pixels, by its specification."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"".join(b"\0" + bytes(16 * channels * bits // 8) for _ in range(16))
    header = struct.pack(">IIBBBBB", 16, 16, bits, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def saved(image: Image.Image, form: str, **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **how)  # type: ignore[arg-type]
    return file.getvalue()


PLAIN = Image.fromarray(GREY.astype(np.uint8))
FORMS = {
    "grey.png": (png(16, 0, 1), 1),
    "colours.png": (png(16, 2, 3), 1),
    "alpha.png": (png(16, 6, 4), 1),
    "grey.tif": (saved(Image.fromarray(GREY), "TIFF"), 1),
    "grey.ppm": (b"P5\n16 16\n65535\n" + GREY.astype(">u2").tobytes(), 1),
    "colours.ppm": (b"P6\n16 16\n65535\n" + np.repeat(GREY, 3).astype(">u2").tobytes(), 1),
    "misnamed.jpg": (png(16, 0, 1), 1),
    "plain.png": (png(8, 0, 1), 0),
    "plain.jpg": (saved(PLAIN, "JPEG"), 0),
    "plain.bmp": (saved(PLAIN, "BMP"), 0),
    "plain.webp": (saved(PLAIN, "WEBP"), 0),
    "plain.tif": (saved(PLAIN, "TIFF"), 0),
    "plain.ppm": (b"P5\n16 16\n255\n" + bytes(256), 0),
    "broken.jpg": (b"x" * 40, 0),
    "empty.jpg": (b"", 0),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_format_says_whether_it_has_16_bits(tmp_path: Path, name: str) -> None:
    content, deep = FORMS[name]
    (tmp_path / name).write_bytes(content)
    assert look.DEPTH.at(str(tmp_path / name))[files.DEEP] == deep
    if name.split(".")[0] not in ("broken", "empty"):
        assert look.SIZES.at(str(tmp_path / name))[:6] == (-1, 16, 16, -1, deep, 0)
        assert decode(tmp_path / name).dtype == np.uint8


@pytest.fixture
def root(smoke_data: Path, tmp_path: Path) -> Path:
    """Data of the user's own. Two images of `train` and one of `val` have 16 bits; one is turned."""
    root = tmp_path / "own"
    shutil.copytree(smoke_data, root, ignore=shutil.ignore_patterns("toy.json", "manifest.json"))
    (root / "imagenet" / "train_labelled.txt").unlink()
    grey = Image.fromarray(np.tile(GREY, (4, 4)))
    for split, count in (("train", 2), ("val", 1)):
        for image in sorted((root / "imagenet" / split).rglob("*.jpg"))[:count]:
            image.write_bytes(saved(grey, "PNG"))
    exif = Image.Exif()
    exif[heads.ORIENTATION] = 3
    image = sorted((root / "ade20k" / "images" / "training").rglob("*.jpg"))[0]
    with Image.open(image) as found:
        image.write_bytes(saved(found.copy(), "JPEG", exif=exif))
    for file in root.rglob("*"):
        os.utime(file, (OLD, OLD))
    return root


SCALED = "images with 16 bits a channel, scaled to 8"


def checked(
    root: Path, role: str, stage: Stage, store: Path, *, trust_stat: bool = False
) -> dict[str, object]:
    """What the check before a run puts into the run's details."""
    from mimbench import paths

    place = root / role
    found = Dataset(place, paths.cache()).identity(role, labels=stage == "downstream", trust_stat=trust_stat)
    spec = RunSpec(stage, "x", "vit_smoke", {}, {role: found.digest}, 0)
    folder = RunStore(store).create(spec, Inputs(data={role: str(place)}))
    inputs.check(folder)
    once = dict(folder.details)
    inputs.check(folder)
    assert folder.details == once
    return folder.details


@pytest.mark.parametrize("trust_stat", [False, True])
def test_a_run_records_what_it_converts(root: Path, tmp_path: Path, trust_stat: bool) -> None:
    first = sorted((root / "imagenet" / "train").rglob("*.jpg"))[0].relative_to(root / "imagenet")
    for stage, count in (("pretrain", 2), ("downstream", 3)):
        details = checked(root, "imagenet", stage, tmp_path / "runs", trust_stat=trust_stat)  # type: ignore[arg-type]
        (note,) = details["converted_images"]  # type: ignore[misc]
        assert note == f"{SCALED}: {count} (first: {first})"
        assert note in remarks(details)
    dense = checked(root, "ade20k", "downstream", tmp_path / "runs", trust_stat=trust_stat)
    (turned,) = dense["converted_images"]  # type: ignore[misc]
    assert turned.startswith("images turned as their EXIF orientation says: 1 (first: images/training/")
    assert "converted_images" not in checked(root, "coco", "downstream", tmp_path / "runs")


def test_a_loaded_teachers_file_that_changed_fails_the_run_that_reads_it(tmp_path: Path) -> None:
    """The teacher is done, but each run that starts from it reads the file again."""
    store, file = RunStore(tmp_path / "runs"), tmp_path / "clip.pt"
    file.write_bytes(b"weights")
    read = {"weights clip": file_digest(file, field="")}
    teacher = RunSpec("teacher", "clip", "vit_smoke", {}, read, 0)
    store.create(teacher, Inputs(weights={"clip": str(file)}))
    child = RunSpec("pretrain", "dtm", "vit_smoke", {}, {}, 0, {"teacher": teacher.key})
    folder = store.create(child, Inputs())
    inputs.check(folder)
    file.write_bytes(b"others!")
    with pytest.raises(inputs.Changed, match=rf"--weights clip, {file}.*It has changed"):
        inputs.check(folder)


@pytest.mark.parametrize("trust_stat", [False, True])
@pytest.mark.parametrize("change", ["content", "new", "gone"])
def test_a_file_that_changed_during_a_run_is_named(
    root: Path, tmp_path: Path, change: str, trust_stat: bool
) -> None:
    from mimbench import paths

    place = root / "imagenet"
    found = Dataset(place, paths.cache()).identity("imagenet", labels=False, trust_stat=trust_stat)
    spec = RunSpec("pretrain", "x", "vit_smoke", {}, {"imagenet": found.digest}, 0)
    folder = RunStore(tmp_path / "runs").create(spec, Inputs(data={"imagenet": str(place)}))
    inputs.check(folder)
    image = sorted((place / "train").rglob("*.jpg"))[4]
    if change == "content":
        image.write_bytes(image.read_bytes() + b"x")
    elif change == "gone":
        image.unlink()
    else:
        image = Path(shutil.copy(image, image.with_name("new.jpg")))
    with pytest.raises(RunFailed) as caught:
        worker._check_again(folder)
    what = f"--data imagenet, {place} (first: {image})"
    assert str(caught.value) == f"What it reads changed while it ran: {what}. Run the command again."
    assert f"--data imagenet, {place}: It has changed (first: {image}). Run" in str(caught.value.__cause__)


def test_the_check_of_data_notes_the_same(root: Path) -> None:
    notes = check(root, full=True).notes
    assert any(f"imagenet: {SCALED}: 3" in note for note in notes)
    assert any("ade20k: images turned as their EXIF orientation says: 1" in note for note in notes)


def test_it_costs_nothing_once_the_files_are_hashed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JPEG and PNG files tell by the bytes that are hashed anyway: no file is opened again."""
    monkeypatch.setattr(memory, "FRESH_NS", 0)
    Dataset(root / "imagenet", tmp_path / "cache").identity("imagenet", labels=True)
    monkeypatch.setattr(files, "hash_file", None)
    monkeypatch.setattr(look, "DEPTH", files.Look((files.DEEP,), None))  # type: ignore[arg-type]
    again = Dataset(root / "imagenet", tmp_path / "cache")
    assert len(again.conversions("imagenet", labels=True)) == 1
    assert again.conversions("imagenet", labels=False)[0].startswith(f"{SCALED}: 2 ")


def test_images_that_are_left_out_do_not_count(root: Path, tmp_path: Path) -> None:
    image = sorted((root / "imagenet" / "train").rglob("*.jpg"))[0]
    image.write_bytes(image.read_bytes()[:60])
    found = Dataset(root / "imagenet", None, skip_corrupt=True)
    assert len(found.identity("imagenet", labels=False).left_out) == 1
    assert found.conversions("imagenet", labels=False)[0].startswith(f"{SCALED}: 1 ")

"""The rules of COCO's annotations, ADE20K's label maps and ImageNet's lists, one entry at a time."""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mimbench.data import EXTENSIONS, ade20k, coco, decode, imagenet, look
from mimbench.data.check import check
from mimbench.data.dataset import Dataset
from mimbench.data.decode import CorruptImage
from mimbench.errors import UserError

SQUARE = [[10, 10, 20, 10, 20, 20, 10, 20]]


def document() -> dict[str, Any]:
    entry = {"image_id": 1, "category_id": 3, "bbox": [10, 10, 10, 10], "area": 100, "iscrowd": 0}
    return {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 64, "height": 48}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [{"id": i, "segmentation": copy.deepcopy(SQUARE), **entry} for i in (1, 2)],
    }


def read(tmp_path: Path, change: Callable[[dict[str, Any]], Any] = lambda found: None) -> coco.Instances:
    found = document()
    change(found)
    for split in ("train", "val"):
        file = coco.source_of(tmp_path, split)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
    return coco.read(tmp_path, "train")


def entry(**values: Any) -> Callable[[dict[str, Any]], None]:
    """Sets fields of the first annotation; None deletes one."""

    def change(found: dict[str, Any]) -> None:
        for name, value in values.items():
            found["annotations"][0][name] = value
            if value is None:
                del found["annotations"][0][name]

    return change


def test_a_sound_file_stays_as_it_is(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert (found.problems, found.converted, found.document) == ([], {}, document())


CONVERTED = {
    "no area": (entry(area=None), "areas computed", {"area": 100.0}),
    "no iscrowd": (entry(iscrowd=None), "taken as 0", {"iscrowd": 0}),
    "id 0": (entry(id=0), "renumbered from 1: 1 (first: annotation 0)", {"id": 1}),
    "negative id": (entry(id=-4), "renumbered from 1: 1 (first: annotation -4)", {"id": 1}),
    "beyond right": (entry(bbox=[60, 10, 10, 10]), "cut at the edge", {"bbox": [60, 10, 4, 10]}),
    "beyond left": (entry(bbox=[-6, 10, 10, 10]), "cut at the edge", {"bbox": [0, 10, 4, 10]}),
    "two points": (
        entry(segmentation=[*SQUARE, [1, 1, 9, 9]]),
        "polygons of no area",
        {"segmentation": SQUARE},
    ),
    "odd numbers": (
        entry(segmentation=[*SQUARE, [1, 1, 9, 9, 3]]),
        "no area",
        {"segmentation": SQUARE},
    ),
    "on a line": (entry(segmentation=[*SQUARE, [1, 1, 5, 5, 9, 9]]), "no area", {"segmentation": SQUARE}),
}
LEFT_OUT = {
    "no size": (entry(bbox=[10, 10, 0, 10]), "a box of no size"),
    "outside": (entry(bbox=[70, 10, 10, 10]), "with a box outside of their image"),
    "no polygon": (entry(segmentation=[[1, 1, 9, 9]]), "with no polygon that has an area"),
    "no pixel": (entry(segmentation={"size": [48, 64], "counts": [48 * 64]}), "a mask of no pixel"),
}
REFUSED = {
    "a nan box": (entry(bbox=[1, 2, float("nan"), 4]), "annotation 1", "bbox must be"),
    "a text box": (entry(bbox="1, 2"), "annotation 1", "bbox must be"),
    "a short box": (entry(bbox=[1, 2, 3]), "annotation 1", "bbox must be"),
    "no segmentation": (entry(segmentation=None), "annotation 1", "polygons or run lengths"),
    "empty segmentation": (entry(segmentation=[]), "annotation 1", "polygons or run lengths"),
    "infinite polygon": (entry(segmentation=[[1e400] * 6]), "annotation 1", "not a number"),
    "runs of another size": (entry(segmentation={"size": [8, 8], "counts": [64]}), "annotation 1", "size"),
    "runs too short": (entry(segmentation={"size": [48, 64], "counts": [9]}), "annotation 1", "9 pixels"),
    "runs that are none": (entry(segmentation={"size": [48, 64], "counts": "?!x"}), "annotation 1", "pixels"),
    "runs of texts": (entry(segmentation={"size": [48, 64], "counts": ["a"]}), "annotation 1", "numbers"),
    "crowd of two": (entry(iscrowd=2), "annotation 1", "iscrowd must be 0 or 1"),
    "area as text": (entry(area="big"), "annotation 1", "area must be a number"),
    "an id that is a list": (entry(id=[1]), "annotations[0]", "id must be a whole number"),
    "an image's id as text": (lambda d: d["images"][0].update(id="1"), "images[0]", "id must be"),
    "a width as text": (lambda d: d["images"][0].update(width="64"), "images[0]", "width must be"),
    "a width of zero": (lambda d: d["images"][0].update(width=0), "images[0]", "width must be"),
    "a path outside": (lambda d: d["images"][0].update(file_name="../1.jpg"), "images[0]", "points outside"),
    "an absolute path": (lambda d: d["images"][0].update(file_name="/etc/x"), "images[0]", "points outside"),
    "a name that is none": (lambda d: d["categories"][0].update(name=None), "categories[0]", "be a text"),
    "an unknown category": (entry(category_id=9), "annotation 1", "category, 9, is not listed"),
    "an unknown image": (entry(image_id=9), "annotation 1", "image, 9, is not listed"),
    "an id twice": (entry(id=2), "annotation 2", "2 annotations have this id"),
    "a category twice": (lambda d: d["categories"][1].update(name="cat"), "cat", "2 categories have"),
    "an image's name twice": (
        lambda d: d["images"].append({**d["images"][0], "id": 2}), "1.jpg", "2 images have this file_name",
    ),
    "no images": (lambda d: d.update(images=[], annotations=[]), "", "no images"),
    "no categories": (lambda d: d.update(categories=[], annotations=[]), "", "no categories"),
    "no annotations": (lambda d: d.update(annotations=[]), "", "no annotation that can be used"),
    "a list that is none": (lambda d: d.update(images=5), "", "lacks the list 'images'"),
    "an entry that is none": (lambda d: d["annotations"].append(7), "annotations[2]", "must be an object"),
    "a missing field": (lambda d: d["images"][0].pop("height"), "images[0]", "lacks height"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERTED)
def test_coco_what_can_be_mended_is_mended_and_said(tmp_path: Path, name: str) -> None:
    change, words, expected = CONVERTED[name]
    found = read(tmp_path, change)
    assert not found.problems and len(found.document["annotations"]) == 2
    assert {key: found.document["annotations"][0][key] for key in expected} == expected
    (note,) = found.notes
    assert words in note and str(found.source) in note and "annotation" in note


@pytest.mark.parametrize("name", LEFT_OUT)
def test_coco_what_cannot_be_used_is_left_out_and_said(tmp_path: Path, name: str) -> None:
    change, words = LEFT_OUT[name]
    found = read(tmp_path, change)
    assert not found.problems and [each["id"] for each in found.document["annotations"]] == [2]
    assert words in found.notes[0] and "annotation 1" in found.notes[0]


@pytest.mark.parametrize("name", REFUSED)
def test_coco_what_is_wrong_is_named(tmp_path: Path, name: str) -> None:
    change, place, message = REFUSED[name]
    found = read(tmp_path, change)
    assert found.problems and found.problems[0].entry == place and message in found.problems[0].message
    with pytest.raises(UserError, match="--data coco, .*instances_train2017.json") as caught:
        coco.both(tmp_path)
    assert place in caught.value.field


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b"[]", b"5"])
def test_coco_a_file_that_is_no_annotation_file(tmp_path: Path, content: bytes) -> None:
    read(tmp_path)
    coco.source_of(tmp_path, "train").write_bytes(content)
    assert coco.read(tmp_path, "train").problems[0].kind == "bad JSON"


def test_coco_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    read(tmp_path)
    file = coco.source_of(tmp_path, "train")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert coco.both(tmp_path)["train"].document == document()


def test_coco_both_splits_have_the_same_categories(tmp_path: Path) -> None:
    read(tmp_path)
    file = coco.source_of(tmp_path, "val")
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "categories": values["categories"][::-1]}))
    with pytest.raises(UserError, match="instances_val2017.json.*same categories, in the same order"):
        coco.both(tmp_path)


# -- label maps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_labels_are_read_whole(tmp_path: Path, mode: str) -> None:
    values = np.array([[0, 1], [255, 3]], np.uint16)
    image = Image.fromarray(values if mode == "I;16" else values.astype(np.uint8))
    if mode == "P":
        image.putpalette([i for i in range(256) for _ in range(3)])
    image.save(tmp_path / "x.png")
    assert ade20k.read_labels(tmp_path / "x.png", 3).tolist() == [[255, 0], [255, 2]]
    with pytest.raises(UserError, match="labels are 0 .other. to 2, and 255") as caught:
        ade20k.read_labels(tmp_path / "x.png", 2)
    assert caught.value.value == 3


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_labels_of_few_bits_are_not_scaled(tmp_path: Path, bits: int) -> None:
    """Grey of 2 and 4 bits becomes 0 to 255 in Pillow; labels are the numbers that the file holds."""
    labels = np.arange(16).reshape(2, 8) % 2**bits
    rows = b""
    for row in labels:
        packed = int("".join(f"{label:0{bits}b}" for label in row), 2)
        rows += b"\0" + packed.to_bytes(bits, "big")
    header = struct.pack(">IIBBBBB", 8, 2, bits, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        png += (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )
    (tmp_path / "x.png").write_bytes(png)
    assert ade20k.read_labels(tmp_path / "x.png", 150).tolist() == np.where(labels, labels - 1, 255).tolist()
    assert look.LABELS.at(str(tmp_path / "x.png"))[:4] == (1, 8, 2, 2**bits - 1)


def test_a_label_beyond_8_bits_is_not_another_label(tmp_path: Path) -> None:
    Image.fromarray(np.array([[1, 257]], np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(UserError) as caught:
        ade20k.read_labels(tmp_path / "x.png", 150)
    assert caught.value.value == 257
    assert look.LABELS.at(str(tmp_path / "x.png"))[:4] == (1, 2, 1, 257)


def test_a_label_map_of_colours_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(CorruptImage, match="a RGB image, not one label a pixel"):
        ade20k.read_labels(tmp_path / "x.png", 3)
    assert look.LABELS.at(str(tmp_path / "x.png"))[0] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"one\n", "Name 2 to 254"),
        (b"\n", "Name 2 to 254"),
        ("\n".join(map(str, range(255))).encode(), "Name 2 to 254"),
        (b"a\nb\na\n", "name each once"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_classes_that_cannot_be(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "classes.txt").write_bytes(text)
    with pytest.raises(UserError, match=message):
        ade20k.classes(tmp_path)


def test_classes_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfwall\nsky\n")
    assert ade20k.classes(tmp_path) == ["wall", "sky"] and ade20k.num_classes(tmp_path / "none") == 150


# -- images --------------------------------------------------------------------------------------------------


def test_16_bit_grey_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save(tmp_path / "x.png")
    found = decode.decode(tmp_path / "x.png")
    assert found.dtype == np.uint8 and found[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (found[..., 0] == found[..., 1]).all() and (found[..., 0] == found[..., 2]).all()


@pytest.mark.parametrize("pixels", [np.ones((2, 2), np.float32), np.full((2, 2), 10**6, np.int32)])
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    with pytest.raises(CorruptImage, match="unknown range.*convert it to 8 bits"):
        decode.decode(tmp_path / "x.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_where_it_is_asked_for(tmp_path: Path, orientation: int) -> None:
    """As mmcv reads an image, with OpenCV, which applies EXIF's orientation."""
    import cv2

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "x.jpg", exif=exif, quality=95)
    shown = decode.decode(tmp_path / "x.jpg", upright=True)
    expected = cv2.imread(str(tmp_path / "x.jpg"))[..., ::-1]
    assert shown.shape == expected.shape and np.abs(shown.astype(int) - expected).mean() < 2
    assert decode.decode(tmp_path / "x.jpg").shape == (16, 32, 3)
    assert look.SIZES.at(str(tmp_path / "x.jpg"))[1:3] == shown.shape[1::-1]


# -- lists of labelled images -------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder, names in {"cat": ("1.jpg", "2.jpg"), "dog": ("2.jpg", "n02_7.JPEG")}.items():
        (tmp_path / "train" / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / "train" / folder / name).touch()
    return tmp_path


def test_a_list_in_any_of_its_forms(root: Path) -> None:
    assert imagenet.listed(root) is None
    lines = "\ufefftrain/dog/2.jpg\n\n  ./train/cat/1.jpg \ncat/2.jpg\nn02_7.JPEG\n"
    (root / imagenet.LABELLED).write_text(lines, encoding="utf-8")
    expected = ["train/dog/2.jpg", "train/cat/1.jpg", "train/cat/2.jpg", "train/dog/n02_7.JPEG"]
    assert imagenet.listed(root) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"2.jpg\n", "line 1 of .*Several classes have an image of that name .cat, dog.*train/cat/1.jpg"),
        (b"train/cat/1.jpg\n9.jpg\n", "line 2 of .*no such image.*Write train/<class>/<image>"),
        (b"val/cat/1.jpg\n", "line 1 of .*no such image"),
        (b"../train/cat/1.jpg\n", "line 1 of .*no such image"),
        (b"\n \n", "lists no images"),
        (b"cat/1.jpg\n\ntrain/cat/1.jpg\n", "line 3 of .*'train/cat/1.jpg'.*Line 1 names the same image"),
        (b"cat/1.jpg\ncat/2.jpg\n", "train_labelled.txt.*All its images are of the class 'cat'"),
        (b"\xff\n", "not UTF-8"),
    ],
)
def test_a_list_that_cannot_be(root: Path, text: bytes, message: str) -> None:
    (root / imagenet.LABELLED).write_bytes(text)
    with pytest.raises(UserError, match=message):
        imagenet.listed(root)
    assert check(root).counts["broken reference"] == 1


def test_flat_and_nested_folders_are_told_apart(root: Path) -> None:
    (root / "val").mkdir()
    (root / "val" / "1.jpg").touch()
    (flat,) = imagenet.layout(root)
    assert "holds images, but no class folders" in flat.message
    (root / "val" / "1.jpg").unlink()
    (root / "val" / "all" / "cat").mkdir(parents=True)
    nested = next(imagenet.layout(root))
    assert "is a folder in a class folder" in nested.message


@pytest.mark.parametrize("split", imagenet.SPLITS)
@pytest.mark.parametrize("odd", ["images/1.jpg", "1.jfif", "1.gif"])
def test_a_class_whose_images_are_not_read_is_named(root: Path, split: str, odd: str) -> None:
    shutil.copytree(root / "train", root / "val")
    for file in (root / split / "dog").iterdir():
        file.unlink()
    (root / split / "dog" / odd).parent.mkdir(exist_ok=True)
    (root / split / "dog" / odd).touch()
    (problem,) = imagenet.layout(root)
    assert problem.entry == str(root / split / "dog")
    assert str(Path(odd).parts[0]) in problem.message and "It holds no images" in problem.message
    assert not check(root).ok
    with pytest.raises(UserError, match=f"{split}/dog(/images)?: It "):
        Dataset(root, None).require("imagenet", labels=True)


def test_a_folder_of_images_beside_images_is_named(root: Path) -> None:
    (root / "train" / "dog" / "more").mkdir()
    Dataset(root, None).identity("imagenet", labels=False)
    (root / "train" / "dog" / "more" / "3.jpg").touch()
    with pytest.raises(UserError, match="train/dog/more: It is a folder of images in a class folder"):
        Dataset(root, None).identity("imagenet", labels=False)
    assert "nested folder" in check(root).counts


def test_a_class_without_images_of_val_is_allowed_and_said(smoke_data: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(smoke_data / "imagenet", tmp_path / "imagenet"))
    folder = sorted((root / "val").iterdir())[0]
    shutil.rmtree(folder)
    folder.mkdir()
    found = Dataset(root, None)
    found.require("imagenet", labels=True)
    (note,) = found.conversions("imagenet", labels=True)
    assert note == f"classes without images in val, never measured: 1 (first: {folder.name})"


@pytest.mark.parametrize("suffix", EXTENSIONS)
def test_the_suffixes_are_torchvisions(suffix: str, tmp_path: Path) -> None:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert suffix in IMG_EXTENSIONS and len(EXTENSIONS) == len(IMG_EXTENSIONS)
    image = Image.new("RGB" if suffix != ".pgm" else "L", (9, 8))
    image.save(tmp_path / f"x{suffix}")
    assert decode.decode(tmp_path / f"x{suffix}").shape == (8, 9, 3)


def test_a_task_needs_two_classes(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="two class folders"):
        imagenet.classes_for_labels(tmp_path)


CAPTIONS: dict[str, tuple[str, str]] = {
    "one is missing": ("{}", "captions.json: 'train/a/1.jpg' has no caption. Add one"),
    "two of one image": ('{"train/a/1.jpg": "a", "train/a/1.jpg": "b"}', "has 'train/a/1.jpg' twice"),
    "no texts": ('{"train/a/1.jpg": 3}', "Write {"),
    "cut off": ('{"train', "It is not JSON"),
    "no text": ('{"train/a/1.jpg": ""}', "caption of train/a/1.jpg in .*'' is not valid. It has no word"),
    "another script": (
        '{"train/a/1.jpg": "一只小猫!"}',
        "It has no word: words are made of the letters a to z",
    ),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions_are_checked_before_a_run(tmp_path: Path, name: str) -> None:
    text, message = CAPTIONS[name]
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "train" / "a" / "1.jpg")
    file = tmp_path / "captions.json"
    file.write_text('\ufeff{"train/a/1.jpg": "a cat"}', encoding="utf-8")
    Dataset(tmp_path, None).require("captions", labels=False)
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        Dataset(tmp_path, None).require("captions", labels=False)


def captioned(root: Path, name: str, caption: str) -> Path:
    (root / "train" / "a").mkdir(parents=True)
    (root / "val" / "a").mkdir(parents=True)
    for file in (os.fsencode(root / name), os.fsencode(root / "val/a/1.jpg")):
        with open(file, "wb") as opened:
            Image.new("RGB", (9, 9)).save(opened, "JPEG")
    (root / "captions.json").write_text(json.dumps({name: caption}))
    return root


def test_the_check_finds_captions_without_words(tmp_path: Path) -> None:
    report = check(captioned(tmp_path, "train/a/1.jpg", "小猫"))
    assert report.counts == {"caption without words": 1}


def test_captions_that_are_cut_are_said(tmp_path: Path) -> None:
    root = captioned(tmp_path, "train/a/1.jpg", "a cat " * 11 + "x")
    found = Dataset(root, None)
    assert found.conversions("captions", labels=False) == []
    (root / "captions.json").write_text(json.dumps({"train/a/1.jpg": "a cat " * 12}))
    note = "captions cut after 23 words: 1 (first: train/a/1.jpg)"
    assert found.conversions("captions", labels=False) == [note]
    assert any(note in line for line in check(root).notes)


def test_names_that_are_no_text_are_checked(tmp_path: Path) -> None:
    """Linux lets a name have any bytes; JSON gives them back as Python writes them."""
    root = captioned(tmp_path, "train/a/d\udce4.jpg", "a cat")
    assert check(root).ok
    Dataset(root, None).require("captions", labels=False)


def test_a_folder_with_the_name_of_an_image_is_named(tmp_path: Path) -> None:
    for split in ade20k.SPLITS:
        for part, suffix in (("images", ".jpg"), ("annotations", ".png")):
            (tmp_path / part / split).mkdir(parents=True)
            (tmp_path / part / split / f"1{suffix}").touch()
    assert list(ade20k.layout(tmp_path)) == []
    (tmp_path / "images" / "training" / "2.jpg").mkdir()
    (problem,) = ade20k.layout(tmp_path)
    assert problem.entry.endswith("images/training/2.jpg") and "It is a folder" in problem.message

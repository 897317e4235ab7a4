"""`mimbench data check`: one deliberately broken dataset for each kind of violation."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mimbench.data.check import check, print_report, require
from mimbench.data.dataset import Dataset
from mimbench.errors import UserError

TRAIN_JSON = "coco/annotations/instances_train2017.json"


@pytest.fixture
def data(smoke_data: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(smoke_data, tmp_path / "data"))


def first(root: Path, pattern: str) -> Path:
    return min(root.glob(pattern))


def repeat(file: Path, more: str) -> None:
    """Begin the file's object with one more entry."""
    file.write_text("{" + more + ", " + file.read_text().lstrip().removeprefix("{"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def annotation(**values: Any) -> Callable[[Path], None]:
    """Set fields of the first annotation of train."""
    return lambda root: edit_json(root / TRAIN_JSON, lambda d: d["annotations"][0].update(values))


def relabel(root: Path, value: int) -> None:
    path = first(root, "ade20k/annotations/training/*.png")
    Image.fromarray(np.full((64, 64), value, dtype=np.uint8)).save(path)


def blank_split(root: Path) -> None:
    for path in (root / "ade20k/annotations/validation").iterdir():
        Image.fromarray(np.zeros((64, 64), dtype=np.uint8)).save(path)


def retype(path: Path, suffix: str) -> None:
    with Image.open(path) as image:
        image.save(path.with_suffix(suffix))
    path.unlink()


def resize(path: Path) -> None:
    Image.open(path).resize((40, 40), Image.Resampling.NEAREST).save(path)


def half_captions(root: Path) -> None:
    edit_json(root / "imagenet/captions.json", lambda captions: captions.pop(min(captions)))


BROKEN: dict[str, tuple[str, Callable[[Path], object]]] = {
    "imagenet no val": ("missing folder", lambda r: shutil.rmtree(r / "imagenet/val")),
    "imagenet truncated": ("unreadable image", lambda r: truncate(first(r, "imagenet/train/*/*.jpg"))),
    "imagenet not an image": (
        "unreadable image",
        lambda r: first(r, "imagenet/val/*/*.jpg").write_text("no"),
    ),
    "imagenet class order": (
        "class order",
        lambda r: (r / "imagenet/val/dotted-disc").rename(r / "imagenet/val/a-disc"),
    ),
    "imagenet labelled": (
        "broken reference",
        lambda r: (r / "imagenet/train_labelled.txt").write_text("train/dotted-disc/gone.jpg\n"),
    ),
    "imagenet labelled in val": (
        "broken reference",
        lambda r: (r / "imagenet/train_labelled.txt").write_text("val/dotted-disc/0000.jpg\n"),
    ),
    "captions json": ("bad JSON", lambda r: truncate(r / "imagenet/captions.json")),
    "captions lacking": ("image without caption", half_captions),
    "ade no annotations": ("missing folder", lambda r: shutil.rmtree(r / "ade20k/annotations/training")),
    "ade no annotation": (
        "image without annotation",
        lambda r: first(r, "ade20k/annotations/training/*.png").unlink(),
    ),
    "ade truncated": ("unreadable image", lambda r: truncate(first(r, "ade20k/images/validation/*.jpg"))),
    "ade truncated png": (
        "unreadable annotation",
        lambda r: truncate(first(r, "ade20k/annotations/*/*.png")),
    ),
    "ade coloured": (
        "unreadable annotation",
        lambda r: Image.new("RGB", (64, 64)).save(first(r, "ade20k/annotations/training/*.png")),
    ),
    "ade size": ("size mismatch", lambda r: resize(first(r, "ade20k/annotations/training/*.png"))),
    "ade range": ("label out of range", lambda r: relabel(r, 16)),
    "ade blank": ("empty mask", blank_split),
    "ade image type": (
        "wrong file type",
        lambda r: retype(first(r, "ade20k/images/training/*.jpg"), ".png"),
    ),
    "ade annotation type": (
        "wrong file type",
        lambda r: retype(first(r, "ade20k/annotations/validation/*.png"), ".tif"),
    ),
    "ade suffix's case": (
        "wrong file type",
        lambda r: retype(first(r, "ade20k/images/validation/*.jpg"), ".JPG"),
    ),
    "ade class twice": (
        "class order",
        lambda r: (r / "ade20k/classes.txt").write_text("wall\nsky\nwall\n" * 9),
    ),
    "coco no images": ("missing folder", lambda r: shutil.rmtree(r / "coco/val2017")),
    "coco no file": ("missing file", lambda r: (r / TRAIN_JSON).unlink()),
    "coco json": ("bad JSON", lambda r: truncate(r / TRAIN_JSON)),
    "coco field": (
        "bad JSON",
        lambda r: edit_json(r / TRAIN_JSON, lambda d: d["annotations"][3].pop("bbox")),
    ),
    "coco part": ("bad JSON", lambda r: edit_json(r / TRAIN_JSON, lambda d: d.pop("categories"))),
    "coco null part": ("bad JSON", lambda r: edit_json(r / TRAIN_JSON, lambda d: d.update(images=None))),
    "coco entry": ("bad JSON", lambda r: edit_json(r / TRAIN_JSON, lambda d: d["images"].append(5))),
    "coco part twice": ("bad JSON", lambda r: repeat(r / TRAIN_JSON, '"annotations": []')),
    "coco field twice": ("bad JSON", lambda r: repeat(r / TRAIN_JSON, '"more": {"a": 1, "a": 2}')),
    "coco list": ("bad JSON", lambda r: (r / TRAIN_JSON).write_text("[]")),
    "coco bbox": ("bad JSON", annotation(bbox=[1, 2])),
    "coco truncated": ("unreadable image", lambda r: truncate(first(r, "coco/train2017/*.jpg"))),
    "coco size": (
        "size mismatch",
        lambda r: edit_json(r / TRAIN_JSON, lambda d: d["images"][0].update(width=640, height=640)),
    ),
    "coco mask size": ("unreadable mask", annotation(segmentation={"size": [8, 8], "counts": [60, 4]})),
    "coco mask length": ("unreadable mask", annotation(segmentation={"size": [64, 64], "counts": [60, 4]})),
    "coco mask kind": ("unreadable mask", annotation(segmentation=None)),
    "coco no polygon": ("unreadable mask", annotation(segmentation=[])),
    "coco category": ("unknown category", annotation(category_id=99)),
    "coco image": ("broken reference", annotation(image_id=10**6)),
    "coco image gone": ("broken reference", lambda r: first(r, "coco/train2017/*.jpg").unlink()),
    "coco ids": (
        "duplicate id",
        lambda r: edit_json(
            r / TRAIN_JSON, lambda d: d["annotations"][1].update(id=d["annotations"][0]["id"])
        ),
    ),
    "coco class order": (
        "class order",
        lambda r: edit_json(r / TRAIN_JSON, lambda d: d["categories"].reverse()),
    ),
}

NOTED: dict[str, tuple[str, Callable[[Path], object]]] = {  # allowed, or converted by a run
    "imagenet empty class": (
        "holds no images: it is never measured",
        lambda r: [p.unlink() for p in (r / "imagenet/val/dotted-disc").iterdir()],
    ),
    "imagenet missing class": (
        "it is trained and never measured",
        lambda r: shutil.rmtree(r / "imagenet/val/dotted-disc"),
    ),
    "captions extra": (
        "that are not there: 1 (first: x)",
        lambda r: edit_json(r / "imagenet/captions.json", lambda captions: captions.update(x="a disc")),
    ),
    "ade no image": (
        "",
        lambda r: first(r, "ade20k/images/training/*.jpg").unlink(),
    ),
    "coco unlisted": (
        "does not list: 1",
        lambda r: shutil.copy(first(r, "coco/train2017/*.jpg"), r / "coco/train2017/new.jpg"),
    ),
    "coco box beyond": ("cut at the edge", annotation(bbox=[60.0, 3.0, 9.0, 9.0])),
    "coco box negative": ("cut at the edge", annotation(bbox=[-2.0, 3.0, 9.0, 9.0])),
    "coco box flat": ("a box of no size", annotation(bbox=[3.0, 3.0, 0.0, 9.0])),
    "coco flat polygon": ("with no polygon that has an area", annotation(segmentation=[[1, 1, 5, 5, 9, 9]])),
    "coco empty runs": ("a mask of no pixel", annotation(segmentation={"size": [64, 64], "counts": [4096]})),
}


@pytest.mark.parametrize("name", BROKEN)
def test_violation_is_found(name: str, data: Path) -> None:
    kind, spoil = BROKEN[name]
    spoil(data)
    report = check(data)
    assert not report.ok
    assert kind in report.counts, report.counts
    assert str(data) in report.first[kind][0], "a violation names the file"


@pytest.mark.parametrize("name", NOTED)
def test_what_a_run_takes_is_a_note(name: str, data: Path) -> None:
    words, change = NOTED[name]
    change(data)
    report = check(data)
    assert report.ok, report.first
    assert not words or any(words in note and str(data) in note for note in report.notes), report.notes


def test_sound_data_has_none(smoke_data: Path) -> None:
    report = check(smoke_data)
    assert report.ok, report.first
    assert sorted(report.formats.values()) == ["ade20k", "coco", "imagenet"]
    assert report.images == len(list(smoke_data.rglob("*.jpg")))


@pytest.mark.parametrize("name", ["cifar10-mini", "ade-mini", "coco-mini"])
def test_real_images_have_none(name: str, shared_data: Path) -> None:
    report = check(shared_data / name)
    assert report.ok, report.first


def test_report_shows_the_first_and_counts_the_rest(data: Path) -> None:
    for path in (data / "ade20k/annotations/training").iterdir():
        Image.fromarray(np.full((64, 64), 99, dtype=np.uint8)).save(path)
    report = check(data / "ade20k", limit=2)
    assert report.counts["label out of range"] == 8 and len(report.first["label out of range"]) == 2
    text = io.StringIO()
    print_report(report, Console(file=text, width=60))
    assert "label out of range: 8" in text.getvalue() and "... and 6 more" in text.getvalue()
    assert "data check" not in text.getvalue()  # the check does not advise itself; a run's start does
    assert report.first["label out of range"][0] in text.getvalue()  # whole: a path is not broken over lines


def test_unlabelled_image_is_a_note(data: Path) -> None:
    relabel(data, 0)
    report = check(data / "ade20k")
    assert report.ok and "annotations/training that label no pixel: 1" in report.notes[0]


def test_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        check(tmp_path / "gone")
    with pytest.raises(UserError, match="known layouts"):
        check(tmp_path)


def test_a_folder_of_source_code_is_no_data_set(data: Path) -> None:
    (data / "program" / "train" / "__pycache__").mkdir(parents=True)
    report = check(data)
    assert data / "imagenet" in report.formats and data / "program" not in report.formats
    assert check(data / "program").counts["empty folder"] == 1  # asked for directly, it is meant as one


@pytest.mark.parametrize("role", ["imagenet", "ade20k", "coco", "captions"])
def test_require_accepts_sound_data(role: str, smoke_data: Path) -> None:
    require(role, smoke_data / role.replace("captions", "imagenet"))


@pytest.mark.parametrize(
    ("role", "folder", "spoil", "message"),
    [
        ("imagenet", "gone", None, "no such folder"),
        ("imagenet", "coco", None, "looks like coco"),
        ("coco", "ade20k", None, "looks like ade20k"),
        ("imagenet", "imagenet", "imagenet/train", "train.*no such folder"),
        ("ade20k", "ade20k", "ade20k/annotations", "annotations.*no such folder"),
        ("coco", "coco", TRAIN_JSON, "instances_train2017.json.*no such file"),
        ("captions", "imagenet", "imagenet/captions.json", "does not exist"),
        ("imagnet", "imagenet", None, "Did you mean 'imagenet'"),
        ("imagenet", ".", None, "/data/train.*no such folder.*Did you mean '.*/data/imagenet'"),
        ("captions", ".", None, "Did you mean '.*/data/imagenet'"),
        ("coco", ".", None, "Did you mean '.*/data/coco'"),
    ],
)
def test_require_stops_before_a_run(
    role: str, folder: str, spoil: str | None, message: str, data: Path
) -> None:
    if spoil is not None:
        path = data / spoil
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=message):
        require(role, data / folder)


def test_require_finds_empty_folders_and_broken_json(data: Path) -> None:
    truncate(data / TRAIN_JSON)
    with pytest.raises(UserError, match="not JSON"):
        require("coco", data / "coco")
    for name in ("train", "val"):
        (data / "empty" / name).mkdir(parents=True)
    with pytest.raises(UserError, match="no class folders"):
        require("imagenet", data / "empty")


@pytest.mark.parametrize(
    ("part", "suffix"),
    [("images/validation", ".png"), ("images/training", ".JPG"), ("annotations/training", ".tif")],
)
def test_require_refuses_what_segmentation_would_not_read(part: str, suffix: str, data: Path) -> None:
    folder = data / "ade20k" / part
    file = first(folder, "*")
    retype(file, suffix)
    allowed = file.suffix
    named = f"--data ade20k: '{file.with_suffix(suffix)}'.* Only {allowed} files are read in {folder}"
    with pytest.raises(UserError, match=named):
        require("ade20k", data / "ade20k")
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(UserError, match=f"{folder} holds no {allowed} files"):
        require("ade20k", data / "ade20k")


@pytest.mark.parametrize(
    ("text", "lacking"),
    [
        ('{"images": [], "categories": []}', "annotations"),
        ('{"images": [], "annotations": [], "categories": null}', "categories"),
        ("[]", "images, annotations, categories"),
    ],
)
def test_require_wants_the_parts_of_cocos_json(text: str, lacking: str, data: Path) -> None:
    path = data / "coco/annotations/instances_val2017.json"
    path.write_text(text)
    with pytest.raises(UserError, match=f"{path}.*{lacking}"):
        require("coco", data / "coco")


@pytest.mark.parametrize(
    "line", ["train/dotted-disc/gone.jpg", "val/dotted-disc/0000.jpg", "0000.jpg", "../x/0000.jpg"]
)
def test_require_wants_every_labelled_image(line: str, data: Path) -> None:
    root = data / "imagenet"
    listed = root / "train_labelled.txt"
    listed.write_text(f"train/dotted-disc/0000.jpg\n\n  ./train/dotted-disc/0001.jpg\n{line}\n")
    with pytest.raises(UserError, match=f"line 4 of {listed}: '{line}' is not valid.*remove the line"):
        Dataset(root, None).identity("imagenet", labels=True)
    assert not check(root).ok
    require("imagenet", root)  # a pretraining does not read the list
    Dataset(root, None).require("imagenet", labels=False)

"""What lies in a dataset's folders besides the files of its format: it is left out everywhere, or named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimbench.data import Problem, ade20k, coco, imagenet
from mimbench.data.check import check, require
from mimbench.data.dataset import Dataset
from mimbench.data.image_folder import read_captions
from mimbench.data.walk import walk
from mimbench.errors import UserError
from mimbench.plan.datasets import Data
from mimbench.plan.request import Request


@pytest.fixture
def root(smoke_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(smoke_data, tmp_path / "data"))


def first(root: Path, pattern: str) -> Path:
    return min(root.glob(pattern))


def refuses(role: str, root: Path, entry: Path) -> None:
    """The check and the start of a command both name `entry`."""
    report = check(root)
    assert any(str(entry) in message for found in report.first.values() for message in found), report.first
    with pytest.raises(UserError) as error:
        require(role, root)
        Dataset(root, None).identity(role, labels=True)
        Dataset(root, None).require(role, labels=True)
    assert str(entry) in str(error.value)


ODD: dict[str, Callable[[Path], object]] = {
    "a link to nothing": lambda file: file.symlink_to("/nowhere"),
    "a folder": lambda file: file.mkdir(),
    "a pipe": os.mkfifo,
    "a link to itself": lambda file: file.symlink_to(file.name),
}
LISTS = {
    "imagenet/train_labelled.txt": "imagenet",
    "ade20k/classes.txt": "ade20k",
    "imagenet/captions.json": "captions",
    "coco/annotations/instances_val2017.json": "coco",
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", LISTS)
def test_a_list_that_is_no_ordinary_file_is_named(root: Path, name: str, odd: str) -> None:
    """It is there: a run must not do as if there were none."""
    (root / name).unlink()
    ODD[odd](root / name)
    refuses(LISTS[name], root / name.split("/")[0], root / name)


@pytest.mark.parametrize("odd", ODD)
def test_readers_name_a_list_that_is_no_ordinary_file(tmp_path: Path, odd: str) -> None:
    (tmp_path / "annotations").mkdir()
    readers: dict[str, Callable[[Path], object]] = {
        "train_labelled.txt": imagenet.listed,
        "classes.txt": ade20k.num_classes,
        "captions.json": read_captions,
        "annotations/instances_train2017.json": coco.both,
    }
    for name, read in readers.items():
        ODD[odd](tmp_path / name)
        with pytest.raises(UserError, match=name):
            read(tmp_path)


@pytest.mark.parametrize("odd", ODD)
def test_captions_of_the_users_are_not_replaced_by_our_own_data(root: Path, tmp_path: Path, odd: str) -> None:
    file = root / "imagenet" / "captions.json"
    data = Data(Request(scale="smoke", data={"imagenet": root / "imagenet"}), lambda: tmp_path / "toy")
    assert data.path("captions") == root / "imagenet"
    file.unlink()
    assert data.path("captions") == tmp_path / "toy" / "imagenet"
    ODD[odd](file)
    with pytest.raises(UserError, match=f"{file}.*(ordinary file|cannot be read)"):
        data.path("captions")


def hide(root: Path, folder: str) -> None:
    """Copy an image and its map into a hidden folder, as Jupyter does; the map has other labels."""
    for part, suffix in (("images", ".jpg"), ("annotations", ".png")):
        place = root / part / "training" / folder
        place.mkdir(parents=True)
        shutil.copy(first(root, f"{part}/training/*{suffix}"), place / f"0-checkpoint{suffix}")
    Image.fromarray(1 - np.asarray(Image.open(place / "0-checkpoint.png")) % 2).save(
        place / "0-checkpoint.png"
    )


@pytest.mark.parametrize("folder", [".ipynb_checkpoints", "scenes/.x", ".x/scenes"])
@pytest.mark.parametrize("is_nested", [False, True])
def test_segmentation_reads_the_files_of_its_identity(root: Path, folder: str, is_nested: bool) -> None:
    from downstream.segmentation import TASK, build_dataset

    root = root / "ade20k"
    if is_nested:
        for part in ("images", "annotations"):
            (root / part / "training" / "b").mkdir()
            for file in sorted((root / part / "training").glob("*.*"))[:3]:
                file.rename(file.parent / "b" / file.name)
    before = Dataset(root, None).identity("ade20k", labels=True)
    hide(root, folder)
    dataset = build_dataset(root, "training", TASK.recipes()["smoke"])
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    paths = [path for info in infos for path in (info["img_path"], info["seg_map_path"])]
    read = [
        f"{folder.path}/{os.fsdecode(name)}"
        for folder in Dataset(root, None).reads("ade20k", labels=True)[0]
        for name in folder.each()
        if folder.path.split("/")[1:2] == ["training"]
    ]
    assert sorted(os.path.relpath(path, root) for path in paths) == sorted(read)
    images = [info["img_path"] for info in infos]
    assert images == sorted(images) and all(info["reduce_zero_label"] for info in infos)
    assert Dataset(root, None).identity("ade20k", labels=True) == before
    assert check(root).ok


@pytest.mark.parametrize("split", imagenet.SPLITS)
@pytest.mark.parametrize("kind", ["deep", "a link", "a link to a folder of folders", "round in a circle"])
def test_images_that_torchvision_would_read_are_not_dropped(root: Path, split: str, kind: str) -> None:
    from torchvision.datasets import ImageFolder

    root = root / "imagenet"
    (root / "train_labelled.txt").unlink()
    folder = first(root / split, "*")
    place, entry = {
        "deep": (folder / "a/b", folder / "a/b"),
        "a link": (root / "other", folder / "more"),
        "a link to a folder of folders": (root / "other/b", folder / "more/b"),
        "round in a circle": (folder, folder / "more"),
    }[kind]
    moved = first(folder, "*.jpg")
    place.mkdir(parents=True, exist_ok=True)
    moved.rename(place / moved.name)
    if kind != "deep":
        (folder / "more").symlink_to({"round in a circle": "."}.get(kind, root / "other"))
    samples = [path for path, _ in ImageFolder(str(root / split)).samples]
    assert any(path.startswith(f"{entry}/") for path in samples)
    refuses("imagenet", root, entry)


@pytest.mark.parametrize("splits", [("train",), ("val",), imagenet.SPLITS])
def test_a_class_that_is_a_link_to_nothing_is_named(root: Path, splits: tuple[str, ...]) -> None:
    root = root / "imagenet"
    name = first(root / "val", "*").name
    (root / "train_labelled.txt").unlink()
    for split in splits:
        shutil.rmtree(root / split / name)
        (root / split / name).symlink_to("/nowhere" if split == "val" else name)
    refuses("imagenet", root, root / splits[0] / name)


@pytest.mark.parametrize("name", ["sub/1.JPG", "sub/deep/1.png", "sub/1.jpeg"])
def test_images_of_another_suffix_are_named_on_every_level(root: Path, name: str) -> None:
    place = root / "ade20k/images/training" / name
    place.parent.mkdir(parents=True)
    place.touch()
    refuses("ade20k", root / "ade20k", place)


@pytest.mark.parametrize("to", [".", "..", "/nowhere"])
def test_links_to_a_folder_above_or_to_nothing_are_named(root: Path, to: str) -> None:
    for part in ("images", "annotations"):
        (root / "ade20k" / part / "training" / "loop").symlink_to(to)
    refuses("ade20k", root / "ade20k", root / "ade20k/images/training/loop")
    assert check(root / "ade20k").images == 12


def test_folders_are_walked_in_order_and_links_are_followed(tmp_path: Path) -> None:
    for name in ("top/b/1", "top/a/c/2", "away/3", "top/.x/4", "top/a/.5"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "top/link").symlink_to(tmp_path / "away")
    problems: list[Problem] = []
    found = [(os.path.relpath(folder, tmp_path), names) for folder, names in walk(tmp_path / "top", problems)]
    assert found == [("top", []), ("top/a", []), ("top/a/c", ["2"]), ("top/b", ["1"]), ("top/link", ["3"])]
    assert not problems
    assert list(walk(tmp_path / "gone", problems)) == [] and problems[0].kind == "unreadable folder"


@pytest.mark.parametrize("content", ["junk", None])
def test_the_check_does_not_look_at_images_that_no_run_reads(root: Path, content: str | None) -> None:
    root = root / "coco"
    source = coco.source_of(root, "train")
    document = json.loads(source.read_text())
    image = document["images"][0]
    document["annotations"] = [each for each in document["annotations"] if each["image_id"] != image["id"]]
    source.write_text(json.dumps(document))
    file = root / "train2017" / image["file_name"]
    file.unlink() if content is None else file.write_text(content)
    report = check(root)
    assert report.ok, report.first
    assert any(f"not read: 1 (first: {image['file_name']})" in note for note in report.notes)
    Dataset(root, None).require("coco", labels=True)


@pytest.mark.parametrize("value", [-1, -300])
def test_negative_labels_are_named(root: Path, value: int) -> None:
    """A map may be a TIFF of 32 bits, whatever its name says."""
    file = first(root, "ade20k/annotations/training/*.png")
    labels = np.asarray(Image.open(file)).astype(np.int32)
    for changed in (np.where(np.arange(labels.shape[1]) == 3, value, labels), np.full_like(labels, value)):
        Image.fromarray(changed.astype(np.int32)).save(file, "TIFF")
        refuses("ade20k", root / "ade20k", file)
        assert check(root / "ade20k").counts == {"label out of range": 1}


def test_a_pretraining_does_not_read_the_labelled_list(root: Path) -> None:
    (root / "imagenet" / "train_labelled.txt").write_text("no image\n")
    data = Data(Request(scale="smoke", data={"imagenet": root / "imagenet"}), Path)
    assert data.size("imagenet", labelled=False) == 48 and data.identity("imagenet", labels=False).digest
    with pytest.raises(UserError, match="line 1 of .*train_labelled.txt"):
        data.identity("imagenet", labels=True)


def test_a_thin_image_is_refused_by_dense_tasks(root: Path) -> None:
    image = first(root, "ade20k/images/validation/*.jpg")
    Image.new("RGB", (707, 7)).save(image)
    Image.new("L", (707, 7), 1).save(root / f"ade20k/annotations/validation/{image.stem}.png")
    assert "thin image" in check(root / "ade20k").counts
    with pytest.raises(UserError, match=rf"{image.name}.*707x7 pixels: too thin"):
        Dataset(root / "ade20k", None).require("ade20k", labels=True)
    Image.new("RGB", (700, 7)).save(image)
    Image.new("L", (700, 7), 1).save(root / f"ade20k/annotations/validation/{image.stem}.png")
    Dataset(root / "ade20k", None).require("ade20k", labels=True)


@pytest.mark.parametrize("name", ["x", "picture.jfif", "moving.gif"])
@pytest.mark.parametrize("is_there", [True, False])
def test_an_image_of_any_name_is_decoded(root: Path, name: str, is_there: bool) -> None:
    """COCO's file names need no ending of an image."""
    coco_root = root / "coco"
    (coco_root / "toy.json").unlink(missing_ok=True)
    file = coco_root / "annotations/instances_val2017.json"
    document = json.loads(file.read_text())
    used = {entry["image_id"] for entry in document["annotations"]}
    entry = next(entry for entry in document["images"] if entry["id"] in used)
    image = coco_root / "val2017" / entry["file_name"]
    entry["file_name"] = name
    file.write_text(json.dumps(document))
    content = image.read_bytes()
    image.unlink()
    if is_there:
        (image.parent / name).write_bytes(content[: len(content) // 2])
    assert not check(coco_root).ok
    left = Dataset(coco_root, None, skip_corrupt=True)
    assert left.identity("coco", labels=True).left_out == (f"val2017/{name}",)
    left.require("coco", labels=True)
    with pytest.raises(UserError, match=name):
        strict = Dataset(coco_root, None)
        strict.identity("coco", labels=True)
        strict.require("coco", labels=True)


def test_a_plan_refuses_what_a_task_refuses(root: Path) -> None:
    """A flat validation folder is found by its names, so a plan need not wait for the run."""
    val = root / "imagenet" / "val"
    for image in list(val.glob("*/*.jpg")):
        image.rename(val / f"{image.parent.name}-{image.name}")
    data = Data(Request(data={"imagenet": root / "imagenet"}), Path)
    data.identity("imagenet", labels=False)
    with pytest.raises(UserError, match="val"):
        data.identity("imagenet", labels=True)

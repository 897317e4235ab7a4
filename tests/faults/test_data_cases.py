"""Small datasets on which earlier versions failed, or gave a wrong number without a word."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimbench.data import check
from mimbench.data.dataset import Dataset
from mimbench.errors import UserError
from tests.conftest import SHARED
from tests.downstream.conftest import encoder_file, task_folder

__all__ = ["encoder_file", "task_folder"]  # fixtures
ROLES = {"coco": "coco", "ade": "ade20k", "img": "imagenet"}


@pytest.fixture(scope="module")
def cases() -> Path:
    if not (SHARED / "cases").is_dir():
        pytest.skip(f"no cases at {SHARED / 'cases'}")
    return SHARED / "cases"


def refuse(root: Path, cache: Path | None = None) -> None:
    """As a command does before anything runs: the quick check, the plan, then the check of what is read."""
    role = ROLES[root.name.partition("_")[0]]
    check.require(role, root)
    data = Dataset(root, cache)
    data.identity(role, labels=True)
    data.require(role, labels=True)


REFUSED = {
    "coco_seg_empty": "instances_train2017.json, annotation 1: segmentation must be",
    "coco_seg_missing": "instances_train2017.json, annotation 1: segmentation must be",
    "coco_dup_ids_train": "annotation 1: 2 annotations have this id",
    "coco_missing_image": "train2017/000003.jpg.*No such file",
    "ade_300_classes": "classes.txt: 300 is not valid. Name 2 to 254 classes",
    "ade_one_class": "classes.txt: 1 is not valid. Name 2 to 254 classes",
    "ade_size_train": "annotations/training/000.png: It is 40x64 pixels; its image is 64x64",
    "ade_size_val": "annotations/validation/000.png: It is 32x32 pixels; its image is 64x64",
    "ade_missing_mask": "annotations/training/002.png.*No such file",
    "img_one_percent": "line 1 of .*'000.jpg' is not valid. Several classes.*Write train/<class>/<image>",
    "img_val_corrupt": "val/box/001.jpg' is not valid. It cannot be decoded",
}
SOUND = ["coco_no_area", "coco_no_iscrowd", "coco_quirks", "coco_id0", "coco_exif", "coco_rle_only",
         "coco_plain", "ade_plain", "ade_255", "ade_exif", "ade_exif_square",
         "img_plain", "img_quirks", "img_labelled", "img_dsstore"]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_named_before_anything_runs(cases: Path, case: str) -> None:
    with pytest.raises(UserError, match=REFUSED[case]):
        refuse(cases / case)


@pytest.mark.parametrize("case", SOUND)
def test_it_is_accepted_by_the_check_and_at_the_start(cases: Path, case: str) -> None:
    refuse(cases / case)
    report = check.check(cases / case)
    assert report.ok, report.first


@pytest.mark.parametrize("case", [case for case in REFUSED if case.startswith(("coco", "ade", "img_one"))])
def test_the_check_refuses_what_a_run_refuses(cases: Path, case: str) -> None:
    assert not check.check(cases / case).ok


def run(task_folder: Callable[..., Any], root: Path, skip_corrupt: bool = False, **changes: Any) -> Any:
    """A task's run at scale smoke on a case; its folder and metrics."""
    from mimbench import catalog

    role = ROLES[root.name.partition("_")[0]]
    name = {"coco": "detection", "ade20k": "segmentation"}[role]
    task = catalog.task(name)
    recipe = task.recipes()["smoke"]
    folder = task_folder(
        name, role, recipe.vary("test", **changes) if changes else recipe, root, skip_corrupt
    )
    return folder, task.run(folder)


@pytest.mark.parametrize("case", ["coco_no_area", "coco_no_iscrowd", "coco_id0"])
def test_what_is_filled_in_gives_the_number_of_the_sound_file(cases: Path, task_folder, case: str) -> None:
    (plain, expected), (folder, found) = (run(task_folder, cases / name) for name in ("coco_plain", case))
    assert found == expected and folder.details["converted"] and "converted" not in plain.details


def test_void_labels_give_the_number_of_the_sound_file(cases: Path, task_folder) -> None:
    assert run(task_folder, cases / "ade_255")[1] == run(task_folder, cases / "ade_plain")[1]


def test_a_degenerate_polygon_is_left_out_and_said(cases: Path, task_folder) -> None:
    folder, found = run(task_folder, cases / "coco_quirks")
    assert set(found) == {"box_ap", "box_ap50", "mask_ap", "mask_ap50"}
    assert any("polygons of no area" in note for note in folder.details["converted"])


def test_a_missing_image_is_skipped_and_recorded(cases: Path, task_folder) -> None:
    root = cases / "coco_missing_image"
    found = Dataset(root, None, skip_corrupt=True)
    assert found.identity("coco", labels=True).left_out == ("train2017/000003.jpg",)
    found.require("coco", labels=True)
    folder, _ = run(task_folder, root, skip_corrupt=True)
    assert folder.details["skipped_images"] == [str(root / "train2017" / "000003.jpg")]


@pytest.mark.parametrize("case", ["ade_exif", "coco_exif"])
def test_dense_tasks_see_images_upright(cases: Path, case: str) -> None:
    from downstream import detection, segmentation
    from mimbench import catalog

    name = "segmentation" if case.startswith("ade") else "detection"
    module = segmentation if name == "segmentation" else detection
    split = "validation" if name == "segmentation" else "val"
    dataset = module.build_dataset(cases / case, split, catalog.task(name).recipes()["smoke"])
    for index in range(len(dataset)):
        info, item = dataset.get_data_info(index), dataset[index]["data_samples"]
        if name == "detection":
            assert item.ori_shape == (info["height"], info["width"])
        else:
            assert item.gt_sem_seg.data.shape[-2:] == item.ori_shape


def test_another_list_of_the_same_length_is_another_run(cases: Path, tmp_path: Path) -> None:
    root = tmp_path / "img_labelled"
    shutil.copytree(cases / "img_labelled", root)
    before = Dataset(root, None).identity("imagenet", labels=True).digest
    listed = root / "train_labelled.txt"
    text = listed.read_text()
    other = "".join(f"train/disc/{i:03}.jpg\n" for i in range(8, 12))
    other += "".join(f"train/bar/{i:03}.jpg\n" for i in range(4, 12))
    assert len(other) == len(text), "the case is about equal sizes"
    listed.write_text(other)
    assert Dataset(root, None).identity("imagenet", labels=True).digest != before


def test_what_a_pretraining_does_not_read_costs_nothing(cases: Path, tmp_path: Path) -> None:
    root = tmp_path / "img_plain"
    shutil.copytree(cases / "img_plain", root)
    before = Dataset(root, None).identity("imagenet", labels=False)
    (root / ".DS_Store").touch()
    (root / "README").touch()
    image = next((root / "val").rglob("*.jpg"))
    image.write_bytes(image.read_bytes() + b"\n")
    assert Dataset(root, None).identity("imagenet", labels=False) == before
    assert Dataset(root, None, skip_corrupt=True).identity("imagenet", labels=False) == before


def test_class_folders_may_be_links(cases: Path, tmp_path: Path) -> None:
    root = tmp_path / "img_links"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        for folder in (cases / "img_symlinks_full" / split).iterdir():
            (root / split / folder.name).symlink_to(folder)
    refuse(root)
    assert Dataset(root, None).count("imagenet", labels=False) == len(
        list((cases / "img_symlinks_full" / "train").rglob("*.jpg"))
    )


def test_conversions_stand_in_the_result(cases: Path, task_folder) -> None:
    folder, metrics = run(task_folder, cases / "coco_no_area")
    folder.begin({})
    folder.finish(metrics)
    result = json.loads((folder.path / "result.json").read_text())
    assert any("areas computed" in note for note in result["details"]["converted"])

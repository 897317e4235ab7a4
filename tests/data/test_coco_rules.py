"""COCO's annotations that mmdetection or pycocotools would leave out, or score, without a word."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimbench.data import check, coco, masks
from mimbench.data.dataset import Dataset
from mimbench.errors import UserError
from tests.data.test_rules import document, entry, read

Change = Callable[[dict[str, Any]], Any]
HUGE = 10**400
NO_PIXEL = np.zeros((48, 64), np.uint8, order="F")


def every(**values: Any) -> Change:
    return lambda found: [each.update(values) for each in found["annotations"]]


def packed(pixels: np.ndarray) -> dict[str, Any]:
    from pycocotools import mask

    found = mask.encode(np.asfortranarray(pixels))
    return {"size": found["size"], "counts": found["counts"].decode()}


def listed(document: dict[str, Any], split: str, tmp_path: Path) -> list[dict[str, Any]]:
    """The instances as mmdetection's own dataset gives them."""
    from downstream.detection import in_memory
    from downstream.openmmlab import import_quietly

    import_quietly("mmdet.datasets")
    from mmdet.datasets import CocoDataset

    class Dataset(CocoDataset):
        COCOAPI = staticmethod(lambda file: in_memory(document))

    names = tuple(category["name"] for category in document["categories"])
    found = Dataset(
        ann_file=str(coco.source_of(tmp_path, split)), metainfo={"classes": names}, pipeline=[],
        data_prefix={"img": ""}, test_mode=split == "val",
    )  # fmt: skip
    return [instance for index in range(len(found)) for instance in found.get_data_info(index)["instances"]]


CONVERTED: dict[str, tuple[Change, str, dict[str, Any]]] = {
    "area of 0": (entry(area=0), "areas that were 0", {"area": 100.0}),
    "negative area": (entry(area=-1.5), "areas that were 0 or negative", {"area": 100.0}),
    "area beyond the image": (entry(area=1e12), "areas larger than their image", {"area": 100.0}),
    "ignore": (entry(ignore=1), "taken as crowds", {"iscrowd": 1, "ignore": 0}),
    "ignore as a truth value": (entry(ignore=True), "taken as crowds", {"iscrowd": 1}),
    "ids as pandas writes them": (entry(id=1.0, category_id=3.0), "64.0, taken as 64", {"id": 1}),
    "crowd flag as pandas writes it": (entry(iscrowd=0.0), "64.0, taken as 64", {"iscrowd": 0}),
    "an id beyond floats": (entry(id=HUGE), "renumbered from 1", {"id": 1}),
    "a thin box": (entry(bbox=[10, 10, 0.5, 10]), "not learnt", {"bbox": [10, 10, 0.5, 10]}),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_what_can_be_mended_is_mended_and_said(tmp_path: Path, name: str) -> None:
    change, words, expected = CONVERTED[name]
    found = read(tmp_path, change)
    assert not found.problems and len(found.document["annotations"]) == 2
    first = found.document["annotations"][0]
    assert {key: first[key] for key in expected} == expected
    assert all(type(first[key]) is int for key in ("id", "image_id", "category_id", "iscrowd"))
    (note,) = found.notes
    assert words in note and str(found.source) in note and "annotation" in note


@pytest.mark.parametrize("name", CONVERTED)
def test_mmdetection_learns_what_is_there(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, CONVERTED[name][0])
    instances = listed(found.document, "train", tmp_path)
    assert len(instances) == (1 if "thin" in name else 2)
    assert sum(instance["ignore_flag"] for instance in instances) == ("ignore" in name)


LEFT_OUT = {
    "packed run lengths of no pixel": packed(NO_PIXEL),
    "run lengths of no pixel": {"size": [48, 64], "counts": [48 * 64]},
    "a polygon outside": [[1000, 1000, 1100, 1000, 1100, 1100, 1000, 1100]],
    "a polygon left of the image": [[-30, 4, -10, 4, -10, 20, -30, 20]],
    "five points on a line": [[1, 1, 2, 2, 3, 3, 4, 4, 5, 5]],
    "five points on a point": [[7, 7] * 5],
    "a polygon between pixels": [[5.1, 5.1, 5.3, 5.1, 5.3, 5.3, 5.2, 5.3, 5.1, 5.3]],
    "a long thin polygon": [[0, 0, 63, 0.2, 63, 0.4, 30, 0.3]],
}


@pytest.mark.parametrize("name", LEFT_OUT)
@pytest.mark.parametrize("stated", [100, None])
def test_masks_without_a_pixel_are_left_out(tmp_path: Path, name: str, stated: float | None) -> None:
    found = read(tmp_path, entry(segmentation=LEFT_OUT[name], area=stated))
    assert not found.problems and [each["id"] for each in found.document["annotations"]] == [2]
    assert "annotations left out, with a mask of no pixel: 1 (first: annotation 1)" in found.notes[0]


def test_whether_a_polygon_has_pixels_is_what_pycocotools_draws() -> None:
    """Most polygons are not drawn: the rest must agree with those that are."""
    draw = np.random.default_rng(0)
    image, outcomes = {"height": 48, "width": 64}, []
    for _ in range(4000):
        points = draw.integers(3, 9)
        polygon = draw.uniform(-20, 80, 2) + draw.normal(size=(points, 2)) * draw.choice([0.1, 0.5, 2, 20])
        if draw.random() < 0.3:
            polygon[:, 1] = polygon[:, 0] * draw.uniform(0, 1) + draw.normal(size=points) * 0.1
        mask = [polygon.ravel().round(2).tolist()]
        outcomes.append(masks.has_pixels(mask, image))
        assert outcomes[-1] == (masks.area(mask, image) > 0), mask
    assert 1000 < sum(outcomes) < 3500


def test_masks_with_one_pixel_are_kept(tmp_path: Path) -> None:
    pixel = NO_PIXEL.copy()
    pixel[11, 12] = 1
    assert not read(tmp_path, entry(segmentation=packed(pixel))).converted
    outside = [[1000, 1000, 1100, 1000, 1100, 1100, 1000, 1100]]
    both = [*outside, *document()["annotations"][0]["segmentation"]]
    assert not read(tmp_path, entry(segmentation=both)).converted


REFUSED: dict[str, tuple[Change, str, str]] = {
    "all are crowds": (every(iscrowd=1), "", "which are neither learnt nor scored: 2). Each"),
    "all have ignore": (every(ignore=1), "", "no annotation that can be used (crowds"),
    "no mask has a pixel": (
        every(segmentation=packed(NO_PIXEL)), "", "(annotations left out, with a mask of no pixel: 2). Each",
    ),
    "all boxes are thin": (every(bbox=[9, 9, 0.5, 9]), "", "thinner than 1 pixel: 2). Check that bbox is"),
    "ignore of two": (entry(ignore=2), "annotation 1", "ignore must be 0 or 1, not 2"),
    "half a crowd": (entry(iscrowd=0.5), "annotation 1", "iscrowd must be 0 or 1, not 0.5"),
    "a huge box": (entry(bbox=[HUGE, 1, 2, 3]), "annotation 1", "bbox must be"),
    "a huge area": (entry(area=HUGE), "annotation 1", "area must be a number"),
    "a huge polygon": (entry(segmentation=[[1, HUGE, 3, 4, 5, 6]]), "annotation 1", "not a number"),
    "a far polygon": (entry(segmentation=[[1, 1e9, 3, 4, 5, 6]]), "annotation 1", "far from its image"),
    "a huge category": (lambda d: d["categories"][0].update(id=HUGE), "categories[0]", "id must be at most"),
    "a huge width": (lambda d: d["images"][0].update(width=HUGE), "images[0]", "width must be a positive"),
    "half a pixel": (lambda d: d["images"][0].update(width=64.5), "images[0]", "whole number, not 64.5"),
    "half an id": (entry(image_id=1.5), "annotations[0]", "image_id must be a whole number, not 1.5"),
    "another spelling of an image": (
        lambda d: d["images"].append({**d["images"][0], "id": 2, "file_name": ".//1.jpg"}),
        "1.jpg", "2 images have this file_name",
    ),
    "a name with a zero byte": (lambda d: d["images"][0].update(file_name="a\0"), "images[0]", "not a valid"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_named(tmp_path: Path, name: str) -> None:
    change, place, message = REFUSED[name]
    found = read(tmp_path, change)
    assert found.problems and found.problems[0].entry == place and message in found.problems[0].message
    assert all(len(problem.message) < 300 for problem in found.problems)
    with pytest.raises(UserError, match="--data coco, .*instances_train2017.json"):
        coco.both(tmp_path)


def test_thin_boxes_are_scored(tmp_path: Path) -> None:
    """COCOeval counts them, so a validation split may have no others."""
    read(tmp_path, every(bbox=[9, 9, 0.5, 9]))
    found = coco.read(tmp_path, "val")
    assert not found.problems and not found.notes


def test_sizes_as_pandas_writes_them(tmp_path: Path) -> None:
    def change(found: dict[str, Any]) -> None:
        found["images"][0].update(width=64.0, height=48.0, id=1.0)
        found["annotations"][0]["segmentation"] = {"size": [48.0, 64.0], "counts": [48 * 32] * 2}

    found = read(tmp_path, change)
    assert not found.problems and "(first: image 1)" in found.notes[0]
    (image,) = found.document["images"]
    size = found.document["annotations"][0]["segmentation"]["size"]
    assert [type(value) for value in (image["id"], image["width"], *size)] == [int] * 4
    assert found.document["annotations"][1] == document()["annotations"][1]


def test_another_spelling_of_a_path_is_that_file(tmp_path: Path) -> None:
    found = read(tmp_path, lambda d: d["images"][0].update(file_name="./a//1.jpg"))
    assert coco.listed(found, "train") == [("a/1.jpg", 64, 48, True)]


@pytest.fixture
def toy(smoke_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(smoke_data / "coco", tmp_path / "coco"))


def test_the_check_says_what_the_start_says(toy: Path) -> None:
    file = coco.source_of(toy, "val")
    values = json.loads(file.read_text())
    every(area=0)(values)
    file.write_text(json.dumps(values))
    report = check.check(toy)
    assert report.ok and any("areas that were 0" in note and file.name in note for note in report.notes)
    every(iscrowd=1)(values)
    file.write_text(json.dumps(values))
    assert check.check(toy).counts == {"empty set": 1}
    with pytest.raises(UserError, match="instances_val2017.json.*crowds.*Each split needs"):
        check.require("coco", toy)


def test_stricter_rules_examine_again(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examined: list[str] = []
    real = coco.read
    monkeypatch.setattr(coco, "read", lambda root, split: examined.append(split) or real(root, split))

    def plan() -> int:
        coco.forget()
        examined.clear()
        Dataset(toy, tmp_path / "cache").identity("coco", labels=True)
        return len(examined)

    assert (plan(), plan()) == (2, 0)
    monkeypatch.setattr(coco, "rules", lambda: "of tomorrow")
    assert (plan(), plan()) == (2, 0)


def test_an_entry_under_another_name_is_none(toy: Path, tmp_path: Path) -> None:
    """As a careless copy of a cache folder leaves it."""
    cache = tmp_path / "cache"
    before = Dataset(toy, cache).identity("coco", labels=True)
    (entry_file,) = (cache / "coco").iterdir()
    values = json.loads(entry_file.read_text())
    file = coco.source_of(toy, "train")
    file.write_text(json.dumps(json.loads(file.read_text()), indent=1))
    coco.forget()
    after = Dataset(toy, cache).identity("coco", labels=True)
    assert after != before
    (other,) = set((cache / "coco").iterdir()) - {entry_file}
    values["images"]["train"] = []
    shutil.copy(entry_file, other)
    coco.forget()
    assert Dataset(toy, cache).identity("coco", labels=True) == after
    assert json.loads(other.read_text())["digest"] != values["digest"]


def test_the_rules_are_the_text_of_all_their_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = coco.rules()
    for module in (coco.instances, masks):
        changed = tmp_path / "changed.py"
        changed.write_text(Path(module.__file__).read_text() + "\n")
        with monkeypatch.context() as patch:
            patch.setattr(module, "__file__", str(changed))
            assert coco.rules() != before
    assert coco.rules() == before

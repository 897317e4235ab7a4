"""COCO's instances: the rules for an annotation file, which the check, a run's start and the readers share.

A file that breaks a rule is refused with the entry's name. What mmdetection and pycocotools would take only
with luck is converted, and said: ids, areas and crowd flags that are missing, degenerate polygons and boxes.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimbench.data import Problem, masks
from mimbench.data.files import HEIGHT, WIDTH, Folder
from mimbench.errors import UserError

FIELDS = {
    "images": {"id", "file_name", "width", "height"},
    "annotations": {"id", "image_id", "category_id", "bbox", "segmentation"},
    "categories": {"id", "name"},
}
SPLITS = ("train", "val")
SLACK = 0.5  # pixels that a box may lie beyond the image: official boxes are rounded


@dataclass
class Instances:
    """The content of an annotation file.

    Attributes:
        source: the file. document: as pycocotools and mmdetection want it.
        problems: why it is refused. converted: what differs from the file: words to count and first entry.
    """

    source: Path
    document: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    converted: dict[str, tuple[int, str]] = field(default_factory=dict)

    def convert(self, what: str, entry: str) -> None:
        count, first = self.converted.get(what, (0, entry))
        self.converted[what] = count + 1, first

    @property
    def notes(self) -> list[str]:
        """The conversions as sentences."""
        return [
            f"{self.source}: {count} {what} (first: {first})"
            for what, (count, first) in self.converted.items()
        ]

    def require(self, where: str) -> None:
        """Raises UserError for the first problem; `where` is what the user gave."""
        for problem in self.problems:
            place = ", ".join(filter(None, (f"{where}, {self.source}", problem.entry)))
            raise UserError(place, remedy=f"{problem.message} `mimbench data check` lists all problems.")


def source_of(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}2017.json"


def read(root: Path, split: str) -> Instances:
    """Read and examine the annotations of a split, `train` or `val`; no image is opened."""
    found = Instances(source_of(root, split))
    try:
        document = json.loads(found.source.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        found.problems.append(Problem("missing file", "", "There is no such file."))
        return found
    except OSError as error:
        found.problems.append(Problem("missing file", "", f"It cannot be read ({error.strerror})."))
        return found
    except (ValueError, RecursionError) as error:
        found.problems.append(Problem("bad JSON", "", f"It is not JSON: {error}."))
        return found
    found.problems += _shape(document)
    if not found.problems:
        found.document = document
        _identities(found)
        _annotations(found)
    return found


def _shape(document: Any) -> Iterator[Problem]:
    """Lists and fields that are missing, and fields of another kind."""
    if not isinstance(document, dict):
        yield Problem("bad JSON", "", f"It must be an object with the lists {', '.join(FIELDS)}.")
        return
    for part, wanted in FIELDS.items():
        entries = document.get(part)
        if not isinstance(entries, list):
            yield Problem("bad JSON", "", f"It lacks the list {part!r}; it must hold {', '.join(FIELDS)}.")
            continue
        for index, entry in enumerate(entries):
            place = f"{part}[{index}]"
            if not isinstance(entry, dict):
                yield Problem("bad JSON", place, f"It must be an object with {', '.join(sorted(wanted))}.")
                continue
            missing = sorted(wanted - entry.keys() - {"segmentation"})
            if missing:
                yield Problem("bad JSON", place, f"It lacks {', '.join(missing)}.")
                continue
            yield from _kinds(part, place, entry)


def _kinds(part: str, place: str, entry: Mapping[str, Any]) -> Iterator[Problem]:
    for name in ("id", "image_id", "category_id"):
        if name in entry and type(entry[name]) is not int:
            yield Problem("bad JSON", place, f"{name} must be a whole number, not {entry[name]!r}.")
    for name in ("width", "height"):
        if part == "images" and not (type(entry[name]) is int and entry[name] > 0):
            yield Problem("bad JSON", place, f"{name} must be a positive whole number, not {entry[name]!r}.")
    for name in ("file_name", "name"):
        if name in FIELDS[part] and not (isinstance(entry[name], str) and entry[name]):
            yield Problem("bad JSON", place, f"{name} must be a text, not {entry[name]!r}.")
    file = entry.get("file_name")
    if part == "images" and isinstance(file, str) and (file.startswith("/") or ".." in file.split("/")):
        yield Problem("bad JSON", place, f"file_name {file!r} leads out of the folder of images.")


def _identities(found: Instances) -> None:
    """Ids that are there twice, names that are there twice, references to nothing."""
    document = found.document
    for part, one in (("images", "image"), ("annotations", "annotation"), ("categories", "category")):
        for value, count in Counter(entry["id"] for entry in document[part]).items():
            if count > 1:
                found.problems.append(
                    Problem(
                        "duplicate id", f"{one} {value}", f"{count} {part} have this id; give each its own."
                    )
                )
    for part, name in (("images", "file_name"), ("categories", "name")):
        for value, count in Counter(entry[name] for entry in document[part]).items():
            if count > 1:
                found.problems.append(Problem("duplicate name", value, f"{count} {part} have this {name}."))
    images = {image["id"] for image in document["images"]}
    categories = {category["id"] for category in document["categories"]}
    for entry in document["annotations"]:
        place = f"annotation {entry['id']}"
        if entry["category_id"] not in categories:
            message = f"Its category, {entry['category_id']}, is not listed."
            found.problems.append(Problem("unknown category", place, message))
        if entry["image_id"] not in images:
            message = f"Its image, {entry['image_id']}, is not listed."
            found.problems.append(Problem("broken reference", place, message))
    if not document["categories"]:
        found.problems.append(Problem("empty set", "", "It has no categories."))
    if not document["images"]:
        found.problems.append(Problem("empty set", "", "It has no images."))


def _annotations(found: Instances) -> None:
    """Examine every annotation; `document` keeps those that can be used, converted."""
    images = {image["id"]: image for image in found.document["images"]}
    kept = []
    for entry in found.document["annotations"]:
        image = images.get(entry["image_id"])
        if image is None:
            continue
        entry = dict(entry)
        if _box(found, entry, image) and _mask(found, entry, image):
            kept.append(entry)
    if kept and min(entry["id"] for entry in kept) <= 0:
        # pycocotools marks a match with the id, and takes 0 for none.
        found.convert("ids of annotations renumbered from 1", f"annotation {kept[0]['id']}")
        kept = [{**entry, "id": number} for number, entry in enumerate(kept, 1)]
    if not kept and not found.problems:
        found.problems.append(Problem("empty set", "", "It has no annotation that can be used."))
    if found.document["annotations"] != kept:
        found.document = {**found.document, "annotations": kept}


def _box(found: Instances, entry: dict[str, Any], image: Mapping[str, Any]) -> bool:
    """Whether the annotation's box can be used; it is cut at the image's edge."""
    place = f"annotation {entry['id']}"
    box = entry["bbox"]
    numbers = isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))
    if not numbers:
        message = f"bbox must be [x, y, width, height] in pixels, not {box!r}."
        found.problems.append(Problem("bad JSON", place, message))
        return False
    x, y, w, h = box
    if w <= 0 or h <= 0:
        found.convert("annotations left out: a box of no size", place)
        return False
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + w, image["width"]), min(y + h, image["height"])
    if right <= left or bottom <= top:
        found.convert("annotations left out: a box outside of its image", place)
        return False
    if max(left - x, top - y, x + w - right, y + h - bottom) > SLACK:
        found.convert("boxes cut at the edge of their image", place)
        entry["bbox"] = [left, top, right - left, bottom - top]
    return True


def _mask(found: Instances, entry: dict[str, Any], image: Mapping[str, Any]) -> bool:
    """Whether the annotation's mask can be used; fills in `area` and `iscrowd`."""
    place = f"annotation {entry['id']}"
    mask = entry.get("segmentation")
    if isinstance(mask, list) and mask and all(isinstance(polygon, list) for polygon in mask):
        if not all(_is_finite(value) for polygon in mask for value in polygon):
            message = "segmentation holds something that is no number."
            found.problems.append(Problem("unreadable mask", place, message))
            return False
        polygons = [polygon for polygon in mask if masks.has_area(polygon)]
        if len(polygons) < len(mask):
            if not polygons:
                found.convert("annotations left out: no polygon with an area", place)
                return False
            found.convert("masks without their polygons of no area", place)
            entry["segmentation"] = polygons
    elif isinstance(mask, dict):
        why = masks.run_lengths_problem(mask, image)
        if not why and isinstance(mask["counts"], list) and not any(mask["counts"][1::2]):
            found.convert("annotations left out: a mask of no pixel", place)
            return False
        if why:
            found.problems.append(Problem("unreadable mask", place, why))
            return False
    else:
        message = f"segmentation must be a list of polygons or run lengths, not {mask!r}."
        found.problems.append(Problem("unreadable mask", place, message))
        return False
    if "iscrowd" not in entry:
        found.convert("annotations without iscrowd, taken as 0", place)
        entry["iscrowd"] = 0
    elif entry["iscrowd"] not in (0, 1):
        found.problems.append(
            Problem("bad JSON", place, f"iscrowd must be 0 or 1, not {entry['iscrowd']!r}.")
        )
        return False
    if "area" not in entry:
        found.convert("areas computed from their masks", place)
        entry["area"] = masks.area(entry["segmentation"], image)
    elif not _is_finite(entry["area"]):
        found.problems.append(Problem("bad JSON", place, f"area must be a number, not {entry['area']!r}."))
        return False
    return True


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def forget() -> None:
    """Drop what `both` keeps for a second reader."""
    _both.cache_clear()


def layout(root: Path) -> Iterator[Problem]:
    """What is wrong with folders and files: nothing is opened."""
    for split in ("train", "val"):
        folder, source = root / f"{split}2017", source_of(root, split)
        if not folder.is_dir():
            yield Problem("missing folder", str(folder), "There is no such folder.")
        elif not any(os.scandir(folder)):
            yield Problem("empty folder", str(folder), "It holds no images.")
        if not source.is_file():
            yield Problem("missing file", str(source), "There is no such file.")


def by_folder(split: str, names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The images that a split lists, by folders relative to the root; each once."""
    folders: dict[str, list[str]] = {}
    for file in names:
        folder, _, name = f"{split}2017/{file}".rpartition("/")
        folders.setdefault(folder, []).append(name)
    for folder, inside in sorted(folders.items()):
        yield folder, list(dict.fromkeys(inside))


def both(root: Path) -> dict[str, Instances]:
    """The annotations of `train` and `val`, fit for use.

    Raises:
        UserError: a rule is broken; the message names the file, the entry and what is wrong.
    """
    return _both(root, tuple(_stamp(source_of(root, split)) for split in ("train", "val")))


@functools.lru_cache(maxsize=1)  # both datasets of a run need it
def _both(root: Path, stamps: tuple[Any, ...]) -> dict[str, Instances]:
    del stamps
    found = {split: read(root, split) for split in ("train", "val")}
    for each in found.values():
        each.require("--data coco")
    for problem in differences(found["train"], found["val"]):
        raise UserError(f"--data coco, {problem.entry}", remedy=problem.message)
    return found


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ino


def differences(train: Instances, val: Instances) -> Iterator[Problem]:
    """How the categories of the splits differ."""
    if train.problems or val.problems:
        return
    first, second = (
        [(category["id"], category["name"]) for category in found.document["categories"]]
        for found in (train, val)
    )
    if first != second:
        message = "Both splits need the same categories, in the same order."
        yield Problem("class order", str(val.source), message)


Listed = tuple[str, int, int, bool]
"""An image that a split lists: file name, width, height, and whether a run reads it."""


def listed(instances: Instances, split: str) -> list[Listed]:
    """The images of a split; in training only those with annotations are read."""
    document = instances.document
    annotated = {entry["image_id"] for entry in document.get("annotations", ())}
    return [
        (image["file_name"], image["width"], image["height"], split == "val" or image["id"] in annotated)
        for image in document.get("images", ())
    ]


def sizes(root: Path, images: Mapping[str, Sequence[Listed]], folders: Sequence[Folder]) -> Iterator[Problem]:
    """Images whose size is not the stated one; `folders` must know the sizes."""
    by_path = {folder.path: folder for folder in folders}
    for split, found in images.items():
        places: dict[str, dict[bytes, int]] = {}
        for file, *stated, _ in found:
            path, _, name = f"{split}2017/{file}".rpartition("/")
            folder = by_path.get(path)
            if folder is None:
                continue
            if path not in places:
                places[path] = {each: index for index, each in enumerate(folder.each())}
            index = places[path].get(os.fsencode(name))
            if index is None or folder.corrupt[index]:
                continue
            actual = folder.facts[index, [WIDTH, HEIGHT]].tolist()
            if actual != stated:
                said = f"{source_of(root, split).name} says {stated[0]}x{stated[1]}"
                message = f"It is {actual[0]}x{actual[1]} pixels; {said}."
                yield Problem("size mismatch", str(root / path / name), message)

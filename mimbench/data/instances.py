"""The rules for one annotation of COCO's: box, mask, area, flags.

`mimbench.data.coco` has the rules for the lists, and reads the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimbench.data import ALL_PROBLEMS, Problem, masks
from mimbench.errors import UserError

SLACK = 0.5  # pixels that a box may lie beyond the image: official boxes are rounded
THIN = "annotations that are not learnt, as mmdetection leaves out boxes thinner than 1 pixel"
RENUMBERED = "annotation ids below 1 or above 2^53, so that all are renumbered from 1"
EXACT = 2**53  # whole numbers up to here are exact as floating-point numbers, as pycocotools keeps ids


@dataclass
class Instances:
    """The content of an annotation file.

    Attributes:
        source: the file. split: `train` or `val`. document: as pycocotools and mmdetection want it.
        problems: why it is refused. converted: each kind of conversion, with its count and first entry.
    """

    source: Path
    split: str
    document: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    converted: dict[str, tuple[int, str]] = field(default_factory=dict)

    def convert(self, what: str, entry: str) -> None:
        count, first = self.converted.get(what, (0, entry))
        self.converted[what] = count + 1, first

    def refuse(self, kind: str, entry: str, message: str) -> None:
        self.problems.append(Problem(kind, entry, message))

    @property
    def notes(self) -> list[str]:
        """The conversions as sentences."""
        return [
            f"{self.source}: {what}: {count} (first: {first})"
            for what, (count, first) in self.converted.items()
        ]

    def require(self, where: str) -> None:
        """Raises UserError for the first problem; `where` is what the user gave."""
        for problem in self.problems:
            place = ", ".join(filter(None, (f"{where}, {self.source}", problem.entry)))
            raise UserError(place, remedy=f"{problem.message} {ALL_PROBLEMS}")


def examine(found: Instances) -> None:
    """Examine every annotation; `document` keeps those that can be used, converted."""
    images = {image["id"]: image for image in found.document["images"]}
    kept = []
    for entry in found.document["annotations"]:
        image = images.get(entry["image_id"])
        if image is None:
            continue
        entry = dict(entry)
        if _box(found, entry, image) and _flags(found, entry) and _mask(found, entry, image):
            kept.append(entry)
    ids = [entry["id"] for entry in kept]
    if ids and (min(ids) <= 0 or max(ids) > EXACT):
        # pycocotools marks a match with the id, in a table of floats, and takes 0 for none.
        for odd in (number for number in ids if not 0 < number <= EXACT):
            found.convert(RENUMBERED, f"annotation {odd}")
        kept = [{**entry, "id": number} for number, entry in enumerate(kept, 1)]
    if not found.problems:
        _require_some(found, kept)
    found.document = {**found.document, "annotations": kept}


def _require_some(found: Instances, kept: list[dict[str, Any]]) -> None:
    """Without an annotation to learn or to find, AP is -100 after the training."""
    nothing = "It has no annotation that can be used"
    remedy = "Each split needs at least one with a mask of some pixels, iscrowd 0 and no ignore."
    single = [entry for entry in kept if not entry["iscrowd"]]
    if not single:
        why = [f"{what}: {count}" for what, (count, _) in found.converted.items() if "left out" in what]
        if kept:
            why.append(f"crowds (by iscrowd or ignore), which are neither learnt nor scored: {len(kept)}")
        counts = f" ({'; '.join(why)})" if why else ""
        found.refuse("empty set", "", f"{nothing}{counts}. {remedy}")
    elif found.split == "train":
        thin = [entry for entry in single if min(entry["bbox"][2:]) < 1]
        for entry in thin:
            found.convert(THIN, f"annotation {entry['id']}")
        if len(thin) == len(single):
            remedy = "Check that bbox is [x, y, width, height] in pixels."
            found.refuse("empty set", "", f"{nothing} ({THIN}: {len(thin)}). {remedy}")


def _box(found: Instances, entry: dict[str, Any], image: Mapping[str, Any]) -> bool:
    """Whether the annotation's box can be used; it is cut at the image's edge."""
    place = f"annotation {entry['id']}"
    box = entry["bbox"]
    numbers = isinstance(box, list) and len(box) == 4 and all(map(is_finite, box))
    if not numbers:
        message = f"bbox must be [x, y, width, height] in pixels, not {shown(box)}."
        found.refuse("bad JSON", place, message)
        return False
    x, y, w, h = box
    if w <= 0 or h <= 0:
        found.convert("annotations left out, with a box of no size", place)
        return False
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + w, image["width"]), min(y + h, image["height"])
    if right <= left or bottom <= top:
        found.convert("annotations left out, with a box outside of their image", place)
        return False
    if max(left - x, top - y, x + w - right, y + h - bottom) > SLACK:
        found.convert("boxes cut at the edge of their image", place)
        entry["bbox"] = [left, top, right - left, bottom - top]
    return True


def _flags(found: Instances, entry: dict[str, Any]) -> bool:
    """Whether `iscrowd` and `ignore` can be used.

    mmdetection leaves an annotation with `ignore` out of training, where its place counts as background, and
    COCOeval overwrites `ignore` with `iscrowd`. Both take a crowd as what is neither learnt nor scored.
    """
    place = f"annotation {entry['id']}"
    for name in ("iscrowd", "ignore"):
        if name in entry and entry[name] not in (0, 1):
            found.refuse("bad JSON", place, f"{name} must be 0 or 1, not {shown(entry[name])}.")
            return False
    if "iscrowd" not in entry:
        found.convert("annotations without iscrowd, taken as 0", place)
        entry["iscrowd"] = 0
    if entry.get("ignore"):
        if not entry["iscrowd"]:
            found.convert(
                "annotations with ignore, taken as crowds, which are neither learnt nor scored", place
            )
        entry.update(iscrowd=1, ignore=0)
    return True


def _mask(found: Instances, entry: dict[str, Any], image: Mapping[str, Any]) -> bool:
    """Whether the annotation's mask can be used; fills in `area`."""
    place = f"annotation {entry['id']}"
    mask = entry.get("segmentation")
    if isinstance(mask, list) and mask and all(isinstance(polygon, list) for polygon in mask):
        why = masks.polygons_problem(mask)
        polygons = [] if why else [polygon for polygon in mask if masks.has_area(polygon)]
        if not why and not polygons:
            found.convert("annotations left out, with no polygon that has an area", place)
            return False
        if not why and len(polygons) < len(mask):
            found.convert("masks without their polygons of no area", place)
            entry["segmentation"] = polygons
    elif isinstance(mask, dict):
        why = masks.run_lengths_problem(mask, image)
        if not why and set(map(type, mask["size"])) != {int}:
            entry["segmentation"] = {**mask, "size": [image["height"], image["width"]]}
    else:
        why = f"segmentation must be a list of polygons or run lengths, not {shown(mask)}."
    if why:
        found.refuse("unreadable mask", place, why)
        return False
    if not masks.has_pixels(entry["segmentation"], image):
        found.convert("annotations left out, with a mask of no pixel", place)
        return False
    return _area(found, entry, image)


def _area(found: Instances, entry: dict[str, Any], image: Mapping[str, Any]) -> bool:
    """Whether the annotation's area can be used; it is computed if it is not there or cannot be.

    mmdetection leaves annotations with no area or a negative one out of training, and COCOeval those whose
    area is in none of its ranges.
    """
    place = f"annotation {entry['id']}"
    if "area" not in entry:
        found.convert("areas computed from their masks", place)
    elif not is_finite(entry["area"]):
        found.refuse("bad JSON", place, f"area must be a number, not {shown(entry['area'])}.")
        return False
    elif entry["area"] <= 0:
        found.convert("areas that were 0 or negative, computed from their masks", place)
    elif entry["area"] > image["height"] * image["width"]:
        found.convert("areas larger than their image, computed from their masks", place)
    else:
        return True
    entry["area"] = masks.area(entry["segmentation"], image)
    return True


def is_finite(value: Any) -> bool:
    """Whether a value of JSON is a finite number; a whole number beyond the floating-point range is not."""
    if type(value) not in (int, float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def shown(value: Any) -> str:
    """A value of the user's in a message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

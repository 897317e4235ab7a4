"""COCO's layout: images, and instances as JSON."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mimbench.data.check.report import Report, by, images_of, read_images

COCO_FIELDS = {
    "images": {"id", "file_name", "width", "height"},
    "annotations": {"id", "image_id", "category_id", "bbox", "segmentation"},
    "categories": {"id", "name"},
}
BOX_SLACK = 0.5  # pixels: official boxes are rounded


def check_coco(root: Path, report: Report) -> None:
    categories = {}
    for split in ("train", "val"):
        files = images_of(root / f"{split}2017", report)
        sizes = read_images(files, report)
        source = root / "annotations" / f"instances_{split}2017.json"
        document = _read_instances(source, report)
        if document is not None:
            categories[split] = {item["id"]: item["name"] for item in document["categories"]}
            _check_instances(source, document, {file.name for file in files}, sizes, report)
    if len(categories) == 2 and list(categories["train"].items()) != list(categories["val"].items()):
        report.add(
            "class order", f"{root / 'annotations'}: train and val differ in their categories or their order"
        )


def _read_instances(source: Path, report: Report) -> dict[str, Any] | None:
    """The parsed file, or None if an entry lacks a field that the other checks read."""
    if not source.is_file():
        report.add("missing file", str(source))
        return None
    try:
        document = json.loads(source.read_bytes())
    except ValueError as error:
        report.add("bad JSON", f"{source}: {error}")
        return None
    missing = missing_parts(document)
    lacking = [f"{source}: {part} is missing" for part in missing] + [
        f"{source}: {part}[{index}] lacks {fields}"
        for part, wanted in COCO_FIELDS.items()
        if part not in missing
        for index, entry in enumerate(document[part])
        if (fields := ", ".join(sorted(wanted - set(entry if isinstance(entry, dict) else ()))))
    ]
    for message in lacking:
        report.add("bad JSON", message)
    return None if lacking else document


def _check_instances(
    source: Path,
    document: dict[str, Any],
    files: set[str],
    sizes: dict[str, tuple[int, int]],
    report: Report,
) -> None:
    for part in ("images", "annotations", "categories"):
        for value, count in Counter(entry["id"] for entry in document[part]).items():
            if count > 1:
                report.add("duplicate id", f"{source}: {count} {part} have id {value}")
    images = {image["id"]: image for image in document["images"]}
    categories = {category["id"] for category in document["categories"]}
    for image in document["images"]:
        name, stated = image["file_name"], (image["width"], image["height"])
        if name not in files:
            report.add("broken reference", f"{source}: image {image['id']} is {name}, which is not there")
        elif sizes.get(name, stated) != stated:
            report.add("size mismatch", f"{source}: {name} is {by(sizes[name])}, stated as {by(stated)}")
    for name in sorted(files - {image["file_name"] for image in document["images"]}):
        report.add("image without annotation", f"{source} does not list {name}")

    for entry in document["annotations"]:
        where = f"{source}: annotation {entry['id']}"
        if entry["category_id"] not in categories:
            report.add("unknown category", f"{where} has category {entry['category_id']}")
        if entry["image_id"] not in images:
            report.add(
                "broken reference", f"{where} belongs to image {entry['image_id']}, which is not listed"
            )
            continue
        image = images[entry["image_id"]]
        width, height = image["width"], image["height"]
        try:
            x, y, w, h = map(float, entry["bbox"])
        except (TypeError, ValueError):
            report.add("bad JSON", f"{where}: bbox must be [x, y, width, height], not {entry['bbox']!r}")
            continue
        if (
            min(x, y) < -BOX_SLACK
            or min(w, h) <= 0
            or x + w > width + BOX_SLACK
            or y + h > height + BOX_SLACK
        ):
            report.add("box outside image", f"{where}: {entry['bbox']} in {width}x{height}")
        try:
            _check_mask(entry["segmentation"], (height, width), where, report)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            report.add("unreadable mask", f"{where}: {error!r}")


def _check_mask(segmentation: Any, size: tuple[int, int], where: str, report: Report) -> None:
    """Check polygons or COCO's run lengths, which are a list or packed in a string."""
    if isinstance(segmentation, dict):
        if tuple(segmentation["size"]) != size:
            report.add("size mismatch", f"{where}: mask of {by(segmentation['size'])} (h, w) in {by(size)}")
            return
        counts = segmentation["counts"]
        if isinstance(counts, list):
            total = sum(counts)
            area: float = sum(counts[1::2])
        else:
            from pycocotools import mask as rle

            packed = {**segmentation, "counts": counts.encode()}
            total = size[0] * size[1]
            area = float(rle.area(packed))
        if total != size[0] * size[1]:
            report.add("size mismatch", f"{where}: its run lengths give {total} pixels in {by(size)}")
    else:
        area = max(map(_polygon_area, segmentation), default=0)
    if area <= 0:
        report.add("empty mask", where)


def _polygon_area(polygon: list[float]) -> float:
    x, y = np.array(polygon[0::2]), np.array(polygon[1::2])
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2 if len(x) == len(y) >= 3 else 0.0


def missing_parts(document: Any) -> list[str]:
    """The lists that a COCO annotation file must have and this parsed one lacks."""
    return [
        part
        for part in COCO_FIELDS
        if not isinstance(document, dict) or not isinstance(document.get(part), list)
    ]

"""COCO's masks: polygons and run lengths, as pycocotools understands them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def has_area(polygon: list[float]) -> bool:
    """Whether a polygon has three points at least; of three and four points, also whether they lie apart."""
    if len(polygon) < 6 or len(polygon) % 2:
        return False
    if len(polygon) > 8:
        return True
    x, y = polygon[0::2], polygon[1::2]
    return sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x))) != 0


def run_lengths_problem(mask: Mapping[str, Any], image: Mapping[str, Any]) -> str:
    """What is wrong with COCO's run lengths, which are a list or packed in a text; empty if nothing is."""
    size, counts = mask.get("size"), mask.get("counts")
    height, width = image["height"], image["width"]
    if size != [height, width]:
        return f"Its mask has the size {size!r}; its image is [{height}, {width}] (height, width)."
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts):
            return "counts must be a list of whole numbers from 0, or a text."
        total = sum(counts)
    elif isinstance(counts, str):
        total = _packed_total(counts)
    else:
        return f"counts must be a list of whole numbers, or a text, not {counts!r}."
    return "" if total == height * width else f"Its run lengths give {total} pixels, not {height * width}."


def _packed_total(text: str) -> int:
    """The number of pixels of packed run lengths (maskApi's rleFrString); -1 for a text that is none."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return -1
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value |= -1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    return sum(counts) if not shift and all(count >= 0 for count in counts) else -1


def area(mask: Any, image: Mapping[str, Any]) -> float:
    """Pixels of a mask, as pycocotools counts them."""
    from pycocotools import mask as rle

    height, width = image["height"], image["width"]
    if isinstance(mask, list):
        return float(rle.area(rle.merge(rle.frPyObjects(mask, height, width))))
    if isinstance(mask["counts"], list):
        return float(sum(mask["counts"][1::2]))
    return float(rle.area({**mask, "counts": mask["counts"].encode()}))

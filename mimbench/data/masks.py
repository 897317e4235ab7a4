"""COCO's masks: polygons and run lengths, as pycocotools understands them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import mul
from typing import Any

FAR = 100_000  # pixels; pycocotools draws outlines point by point, with 32-bit numbers


def polygons_problem(polygons: list[list[Any]]) -> str:
    """What is wrong with the numbers of polygons; empty if nothing is."""
    for polygon in polygons:
        try:
            sound = set(map(type, polygon)) <= {int, float} and all(map(math.isfinite, polygon))
        except OverflowError:  # a whole number of hundreds of digits
            sound = False
        if not sound:
            return "segmentation holds a value that is not a number."
        if polygon and (min(polygon) < -FAR or max(polygon) > FAR):
            return f"segmentation holds a point far from its image: numbers must be pixels, within {FAR}."
    return ""


def has_area(polygon: list[float]) -> bool:
    """Whether a polygon has three points at least; of three and four points, also whether they lie apart."""
    if len(polygon) < 6 or len(polygon) % 2:
        return False
    return len(polygon) > 8 or _signed_area(polygon) != 0


def has_pixels(mask: Any, image: Mapping[str, Any]) -> bool:
    """Whether a sound mask covers a pixel. Only masks in doubt are drawn: thin, tiny, or beyond the image."""
    if isinstance(mask, dict):
        counts = mask["counts"]
        return any((_unpacked(counts) or [] if isinstance(counts, str) else counts)[1::2])
    return any(_is_large(polygon, image) for polygon in mask) or area(mask, image) > 0


def _is_large(polygon: list[float], image: Mapping[str, Any]) -> bool:
    """Whether a polygon covers pixels for certain: it is in the image, and larger than any thin line."""
    x, y = polygon[0::2], polygon[1::2]
    left, right, top, bottom = min(x), max(x), min(y), max(y)
    if left < 0 or top < 0 or right > image["width"] or bottom > image["height"]:
        return False
    return abs(_signed_area(polygon)) > 2 * (right - left + bottom - top)


def _signed_area(polygon: list[float]) -> float:
    """Shoelace formula; twice crossed outlines cancel each other."""
    x, y = polygon[0::2], polygon[1::2]
    return (sum(map(mul, x, y[1:] + y[:1])) - sum(map(mul, y, x[1:] + x[:1]))) / 2


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
        unpacked = _unpacked(counts)
        total = -1 if unpacked is None else sum(unpacked)
    else:
        return f"counts must be a list of whole numbers, or a text, not {counts!r}."
    return "" if total == height * width else f"Its run lengths give {total} pixels, not {height * width}."


def _unpacked(text: str) -> list[int] | None:
    """Packed run lengths as a list (maskApi's rleFrString); None if the text is not valid."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value |= -1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    return counts if not shift and all(count >= 0 for count in counts) else None


def area(mask: Any, image: Mapping[str, Any]) -> float:
    """Pixels of a mask, as pycocotools counts them."""
    from pycocotools import mask as rle

    height, width = image["height"], image["width"]
    if isinstance(mask, list):
        return float(rle.area(rle.merge(rle.frPyObjects(mask, height, width))))
    if isinstance(mask["counts"], list):
        return float(sum(mask["counts"][1::2]))
    return float(rle.area({**mask, "counts": mask["counts"].encode()}))

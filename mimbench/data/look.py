"""What is found out about an image file: whether it decodes, how large it is, what a run converts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mimbench.data import EXTENSIONS
from mimbench.data.decode import SIXTEEN_BITS, UNREADABLE, CorruptImage, decode, label_map
from mimbench.data.files import (
    DECODES,
    DEEP,
    HEIGHT,
    LABEL,
    NOTHING,
    TURNED,
    WIDTH,
    Folder,
    Look,
)
from mimbench.data.heads import HEAD, is_deep

VOID = 255  # no label, see mimbench.data.ade20k
ORIENTATION = 0x0112  # the EXIF tag
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
TURNS = (2, 3, 4, *SIDEWAYS)


def _facts(**known: int) -> tuple[int, ...]:
    columns = {
        "decodes": DECODES,
        "width": WIDTH,
        "height": HEIGHT,
        "label": LABEL,
        "deep": DEEP,
        "turned": TURNED,
    }
    found = list(NOTHING)
    for name, value in known.items():
        found[columns[name]] = value
    return tuple(found)


def _is_image(path: str) -> bool:
    return path.lower().endswith(EXTENSIONS)


def _decodes(path: str) -> tuple[int, ...]:
    if not _is_image(path):
        return _facts(decodes=1)
    try:
        height, width = decode(Path(path), upright=True).shape[:2]
    except CorruptImage:
        return _facts(decodes=0)
    return _facts(decodes=1, width=width, height=height)


def _header(path: str) -> tuple[int, ...]:
    """Size as the image is shown, depth and orientation; of the header alone."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            deep = _has_16_bits(image)  # first: getexif decodes a PNG file, which forgets its coding
            orientation = image.getexif().get(ORIENTATION)
    except UNREADABLE:
        return _facts(decodes=0)
    if orientation in SIDEWAYS:
        width, height = height, width
    return _facts(width=width, height=height, deep=deep, turned=int(orientation in TURNS))


def _depth(path: str) -> tuple[int, ...]:
    """Of the first bytes; of the header in formats that need it."""
    if not _is_image(path):
        return _facts(deep=0)
    try:
        with open(path, "rb") as file:
            deep = is_deep(file.read(HEAD))
        if deep < 0:
            with Image.open(path) as image:
                deep = _has_16_bits(image)
    except UNREADABLE:  # whoever decodes it says so
        deep = 0
    return _facts(deep=deep)


def _has_16_bits(image: Image.Image) -> int:
    """Whether the file has 16 bits a channel, colours or grey; Pillow gives colours as 8 bits."""
    codings = [tile[3] for tile in getattr(image, "tile", ())]
    return int(
        image.mode in SIXTEEN_BITS
        or any(";16" in str(coding) for coding in codings)
        or (image.format == "PPM" and any(_highest(coding) > 255 for coding in codings))
    )


def _highest(coding: object) -> int:
    """The value of white in a PPM file."""
    return coding[1] if isinstance(coding, tuple) and isinstance(coding[1], int) else 255


def _labels(path: str) -> tuple[int, ...]:
    try:
        labels = label_map(Path(path))
    except CorruptImage:
        return _facts(decodes=0)
    highest = int(np.where(labels == VOID, 0, labels).max(initial=0))
    return _facts(decodes=1, width=labels.shape[1], height=labels.shape[0], label=highest)


WHETHER = Look((DECODES,), _decodes)
SIZES = Look((WIDTH, HEIGHT, TURNED), _header)
LABELS = Look((DECODES, WIDTH, HEIGHT, LABEL), _labels)
DEPTH = Look((DEEP,), _depth)


def conversions(folders: Iterable[Folder], *, upright: bool) -> Iterator[str]:
    """What a run converts while it reads images: a sentence for each kind, with a count and the first file.

    Args:
        folders: of images, of which DEPTH is known; SIZES, too, if they are `upright`: turned as their EXIF
            orientation says.
    """
    folders = list(folders)
    kinds: list[tuple[int, str]] = [(DEEP, "images with 16 bits a channel, scaled to 8")]
    if upright:
        kinds.append((TURNED, "images turned as their EXIF orientation says"))
    for column, what in kinds:
        counts = [(folder, (folder.facts[:, column] == 1) & ~folder.corrupt) for folder in folders]
        total = sum(int(found.sum()) for _, found in counts)
        if total:
            folder, found = next(pair for pair in counts if pair[1].any())
            name = os.fsdecode(folder.each()[int(np.flatnonzero(found)[0])])
            yield f"{what}: {total} (first: {folder.path}/{name})"

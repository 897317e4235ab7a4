"""What is found out about an image file: whether it decodes, how large it is, what a run converts.

To decode millions of images takes hours. So before it starts, a run decodes only images that look cut off or
empty, images of a refused kind, and the images of the evaluation split.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mimbench.data.decode import (
    TURNS,
    CorruptImage,
    codings,
    decode,
    has_16_bits,
    label_map,
    opened,
)
from mimbench.data.files import (
    DECODES,
    DEEP,
    HEIGHT,
    LABEL,
    NOTHING,
    SUSPECT,
    TURNED,
    WIDTH,
    Folder,
    Look,
)
from mimbench.data.heads import HEAD, ORIENTATION, TAIL, is_deep, is_suspect, orientation
from mimbench.errors import UserError

VOID = 255  # no label, see mimbench.data.ade20k
NEGATIVE = 2**31 - 1  # the highest label of a map that has a negative one: -1 says that it is not known
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
UNKNOWN_RANGE = ("I", "F")  # Pillow's modes of 32 bits: `decode` refuses most
BYTES = {
    "L": 1,
    "P": 1,
    "RGB": 3,
    "BGR": 3,
    "RGBX": 4,
    "BGRX": 4,
    "RGBA": 4,
    "BGRA": 4,
}  # a pixel, uncompressed
STRIPS = ((273, 279), (324, 325))  # TIFF's tags: where strips or tiles begin, and how long they are


def _facts(**known: int) -> tuple[int, ...]:
    columns = {
        "decodes": DECODES,
        "width": WIDTH,
        "height": HEIGHT,
        "label": LABEL,
        "deep": DEEP,
        "turned": TURNED,
        "suspect": SUSPECT,
    }
    found = list(NOTHING)
    for name, value in known.items():
        found[columns[name]] = value
    return tuple(found)


def _decodes(path: str) -> tuple[int, ...]:
    try:
        height, width = decode(Path(path), upright=True).shape[:2]
    except CorruptImage:
        return _facts(decodes=0)
    return _facts(decodes=1, width=width, height=height)


def _header(path: str) -> tuple[int, ...]:
    """Size as the image is shown, depth and orientation; of the header alone."""
    try:
        with opened(Path(path)) as (image, file):
            (width, height), deep = image.size, int(has_16_bits(image))
            turned = orientation(file)  # of a TIFF image, Pillow gives the size when it is upright
            is_turned = turned in TURNS or getattr(image, "tag_v2", {}).get(ORIENTATION) in TURNS
    except CorruptImage:
        return _facts(decodes=0)
    if turned in SIDEWAYS:
        width, height = height, width
    return _facts(width=width, height=height, deep=deep, turned=int(is_turned))


def _depth(path: str) -> tuple[int, ...]:
    """Depth, from the first bytes or, if needed, the header."""
    try:
        with open(path, "rb") as file:
            deep = is_deep(file.read(HEAD))
        if deep < 0:
            with opened(Path(path)) as (image, _):
                deep = int(has_16_bits(image))
    except CorruptImage:  # decoding will report it
        deep = 0
    return _facts(deep=deep)


def _ends(path: str) -> tuple[int, ...]:
    """Whether the file may be cut off or of a refused kind, and its depth, reading as little as needed."""
    try:
        with open(path, "rb") as file:
            head, size = file.read(HEAD), os.fstat(file.fileno()).st_size
            file.seek(max(size - TAIL, 0))
            deep, suspect = is_deep(head), is_suspect(head, file.read(TAIL), size)
        if deep < 0 or suspect < 0:
            with opened(Path(path)) as (image, _):
                deep = int(has_16_bits(image))
                sound = image.mode not in UNKNOWN_RANGE and 0 < _least_bytes(image) <= size
                suspect = max(suspect, int(not sound))
    except CorruptImage:
        return _facts(deep=0, suspect=1)
    return _facts(deep=deep, suspect=suspect)


def _least_bytes(image: Image.Image) -> int:
    """The least size of the file by its header; 0 if only decoding tells whether it is cut off."""
    tags = getattr(image, "tag_v2", {})
    ends = [
        start + length
        for starts, lengths in STRIPS
        for start, length in zip(_numbers(tags.get(starts)), _numbers(tags.get(lengths)), strict=False)
    ]
    for tile, coding in zip(getattr(image, "tile", ()), codings(image), strict=False) if not ends else ():
        if tile[0] != "raw" or coding not in BYTES:
            return 0
        left, upper, right, lower = tile[1]
        ends.append(tile[2] + (right - left) * (lower - upper) * BYTES[coding])
    return max(ends, default=0)


def _numbers(value: object) -> tuple[int, ...]:
    """A TIFF tag's value."""
    return value if isinstance(value, tuple) else (value,) if isinstance(value, int) else ()


def why(path: Path, read: Callable[[Path], object] = decode) -> UserError:
    """Why an image does not decode."""
    try:
        read(path)
    except CorruptImage as error:
        return error
    except OSError as error:
        return UserError("image", str(path), remedy=f"It cannot be read ({error.strerror}).")
    return UserError("image", str(path), remedy="It changed while it was read: run the command again.")


def _labels(path: str) -> tuple[int, ...]:
    try:
        labels = label_map(Path(path))
    except CorruptImage:
        return _facts(decodes=0)
    highest = int(np.where(labels == VOID, 0, labels).max(initial=0))
    if labels.min(initial=0) < 0:
        highest = NEGATIVE
    return _facts(decodes=1, width=labels.shape[1], height=labels.shape[0], label=highest)


WHETHER = Look((DECODES,), _decodes)
SIZES = Look((WIDTH, HEIGHT, TURNED), _header)
LABELS = Look((DECODES, WIDTH, HEIGHT, LABEL), _labels)
DEPTH = Look((DEEP,), _depth)
ENDS = Look((DEEP, SUSPECT), _ends)
SUSPECTS = Look((DECODES,), _decodes, only=SUSPECT)


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

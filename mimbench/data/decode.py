"""From an image file to pixels: 8 bits a channel for networks, whole numbers for label maps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from mimbench.data.heads import ORIENTATION, orientation
from mimbench.errors import UserError

SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow opens 16-bit grey as one of these
FEW_BITS = {"L;2": 85, "L;4": 17}  # Pillow multiplies grey of 2 and 4 bits by this, so that white is 255
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What shows an image of an orientation upright."""
LABEL_MODES = ("1", "L", "P", *SIXTEEN_BITS)  # one number a pixel


class CorruptImage(UserError):
    """An image that cannot be decoded; `value` is its path."""


def decode(path: Path, *, upright: bool = False) -> np.ndarray:
    """The image's pixels, [H, W, 3] of uint8. 16-bit grey is scaled to 8 bits.

    Args:
        upright: turn it as its EXIF orientation says. torchvision's ImageFolder does not, mmcv does.

    Raises:
        CorruptImage: it does not decode, or its pixels have no known range.
    """
    with opened(path) as (image, file):
        pixels = _rgb(image, path)
        turn = TURNS.get(orientation(file)) if upright else None
        return np.asarray(pixels if turn is None else pixels.transpose(turn))


def has_16_bits(image: Image.Image) -> bool:
    """Whether the file has 16 bits a channel; ask before it is decoded. Pillow gives colours as 8 bits."""
    found = [tile[3] for tile in getattr(image, "tile", ())]
    return (
        image.mode in SIXTEEN_BITS[1:]
        or any(";16" in str(coding) for coding in found)
        or (image.format == "PPM" and any(_highest(coding) > 255 for coding in found))
    )


def _highest(coding: object) -> int:
    """The value of white in a PPM file."""
    return coding[1] if isinstance(coding, tuple) and isinstance(coding[1], int) else 255


def _white(image: Image.Image) -> int | None:
    """The value of white in grey of more than 8 bits, by the header; None if that does not say it."""
    if image.mode in SIXTEEN_BITS[1:]:
        return 4095 if "I;12" in codings(image) else 65535
    known = image.format == "PPM" or any(coding in SIXTEEN_BITS[1:] for coding in codings(image))
    return 65535 if known else None  # Pillow scales PPM to 16 bits


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F":
        raise _odd(path, "Its pixels are floating-point numbers, of unknown range")
    if image.mode in SIXTEEN_BITS:
        white = _white(image)
        if white is None:
            what = "signed numbers" if "I;16S" in "".join(codings(image)) else "numbers of 32 bits"
            raise _odd(path, f"Its pixels are {what}, of unknown range")
        grey = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((510 * grey + white) // (2 * white)).astype(np.uint8))
    return image.convert("RGB")


def label_map(path: Path) -> np.ndarray:
    """One label a pixel, [H, W] of int32.

    Raises:
        CorruptImage: it does not decode, or is an image of colours.
    """
    with opened(path) as (image, _):
        if image.mode not in LABEL_MODES:
            raise CorruptImage(
                "image", str(path), remedy=f"It is a {image.mode} image, not one label a pixel."
            )
        scale = max(FEW_BITS.get(coding, 1) for coding in (*codings(image), ""))
        return np.asarray(image).astype(np.int32) // scale


def codings(image: Image.Image) -> list[str]:
    """How the file stores pixels, by Pillow's names; ask before the image is decoded."""
    found = [tile[3] for tile in getattr(image, "tile", ())]
    return [str(coding[0] if isinstance(coding, tuple) else coding) for coding in found if coding]


@contextmanager
def opened(path: Path) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """The image, of which the header alone was read, and its file; what decoding raises is CorruptImage.

    Pillow gets the file, not its name: by name it maps a TIFF file into memory, with width and height
    exchanged if the image lies on its side.
    """
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            if image.format == "TIFF":
                _without_metadata(image)
            yield image, file
    except (FileNotFoundError, PermissionError, UserError, MemoryError):
        raise
    except Exception as error:  # damaged files make Pillow raise errors of many kinds
        remedy = "It cannot be decoded: replace the file, or leave such images out with --skip-corrupt."
        raise CorruptImage("image", str(path), remedy=remedy) from error


def _without_metadata(image: Any) -> None:
    """Leave a TIFF image the orientation alone: Pillow reads the rest when it decodes, and may fail there.

    mmcv turns TIFF images by this entry, too, and not by XMP.
    """
    tag, exif = image.tag_v2.get(ORIENTATION), Image.Exif()
    if tag in TURNS:
        exif[ORIENTATION] = int(tag)
    image.info.pop("xmp", None)
    image.getexif = lambda: exif


def _odd(path: Path, why: str) -> CorruptImage:
    return CorruptImage("image", str(path), remedy=f"{why}: convert it to 8 bits, or leave it out.")

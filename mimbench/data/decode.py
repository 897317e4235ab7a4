"""From an image file to pixels: 8 bits a channel for networks, whole numbers for label maps."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from mimbench.errors import UserError

UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, AttributeError, LookupError, ArithmeticError,
    RuntimeError, struct.error, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises for damaged files."""
SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow opens 16-bit grey as one of these
FEW_BITS = {"L;2": 85, "L;4": 17}  # Pillow multiplies grey of 2 and 4 bits by this, so that white is 255
ORIENTATION = 0x0112  # the EXIF tag
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
    with _reading(path) as image:
        if image.mode == "I" and not has_16_bits(image):
            raise _odd(path, "Its pixels have 32 bits, of unknown range")
        turn = TURNS.get(orientation(image)) if upright else None
        pixels = _rgb(image, path)
        return np.asarray(pixels if turn is None else pixels.transpose(turn))


def orientation(image: Image.Image) -> int:
    """How mmcv turns an image: by the EXIF entry of a JPEG or PNG file, and not by XMP; 1 leaves it.

    Pillow and mmcv turn a TIFF image, too, but Pillow does so when it opens the file.
    """
    if image.format == "PNG" and "exif" not in image.info:
        image.load()  # the entry may stand behind the pixels
    content = image.info.get("exif") if image.format in ("JPEG", "MPO", "PNG") else None
    if not content:
        return 1
    try:
        exif = Image.Exif()
        exif.load(content)
        found = exif.get(ORIENTATION)
    except UNREADABLE:
        return 1
    return found if isinstance(found, int) and found in TURNS else 1


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


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode in SIXTEEN_BITS:
        grey = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise _odd(path, "Its pixels are floating-point numbers, of unknown range")
    return image.convert("RGB")


def label_map(path: Path) -> np.ndarray:
    """One label a pixel, [H, W] of int32.

    Raises:
        CorruptImage: it does not decode, or is an image of colours.
    """
    with _reading(path) as image:
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
def _reading(path: Path) -> Iterator[Image.Image]:
    """The opened file; whatever decoding it raises becomes CorruptImage."""
    try:
        with Image.open(path) as image:
            yield image
    except (FileNotFoundError, PermissionError):
        raise
    except UserError:
        raise
    except UNREADABLE as error:
        remedy = "It cannot be decoded: replace the file, or leave such images out with --skip-corrupt."
        raise CorruptImage("image", str(path), remedy=remedy) from error


def _odd(path: Path, why: str) -> CorruptImage:
    return CorruptImage("image", str(path), remedy=f"{why}: convert it to 8 bits, or leave it out.")

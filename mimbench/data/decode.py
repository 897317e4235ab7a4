"""From an image file to pixels: 8 bits a channel for networks, whole numbers for label maps."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mimbench.errors import UserError

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow opens 16-bit grey as one of these
FEW_BITS = {"L;2": 85, "L;4": 17}  # Pillow multiplies grey of 2 and 4 bits by this, so that white is 255
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
        shown = ImageOps.exif_transpose(image) if upright else image
        return np.asarray(_rgb(shown, path))


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode in SIXTEEN_BITS:
        grey = np.asarray(image).astype(np.int64)
        if grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
            raise _odd(path, "Its pixels have 32 bits, of unknown range")
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
    except UNREADABLE as error:
        remedy = "It cannot be decoded: replace the file, or leave such images out with --skip-corrupt."
        raise CorruptImage("image", str(path), remedy=remedy) from error


def _odd(path: Path, why: str) -> CorruptImage:
    return CorruptImage("image", str(path), remedy=f"{why}: convert it to 8 bits, or leave it out.")

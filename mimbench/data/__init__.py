"""Data as files in the field's formats: the toy data, its checks, and the images as training sees them."""

from __future__ import annotations

from dataclasses import dataclass

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")  # of images
STAMP = "stamp-"  # begins an identity by sizes and times of modification


@dataclass(frozen=True)
class Identity:
    """What a stage reads of a dataset.

    Attributes:
        digest: equal for equal folders, names and contents; after `STAMP`, for equal sizes and times.
        left_out: files that do not decode and are left out, relative to the dataset's root.
    """

    digest: str
    left_out: tuple[str, ...] = ()

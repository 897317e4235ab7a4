"""Data as files in the field's formats: the toy data, its checks, and the images as training sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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


class Problem(NamedTuple):
    """What is wrong with a dataset.

    Attributes:
        kind: for counts. entry: the file, or the entry in it. message: what is wrong, and what to do.
    """

    kind: str
    entry: str
    message: str

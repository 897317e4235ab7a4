"""What is found out about an image file: whether it decodes, how large it is, which labels it holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mimbench.data import EXTENSIONS
from mimbench.data.decode import UNREADABLE, CorruptImage, decode, label_map
from mimbench.data.files import DECODES, HEIGHT, LABEL, WIDTH, Look

VOID = 255  # no label, see mimbench.data.ade20k
TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


def _decodes(path: str) -> tuple[int, int, int, int]:
    if not path.lower().endswith(EXTENSIONS):
        return 1, -1, -1, -1
    try:
        height, width = decode(Path(path), upright=True).shape[:2]
    except CorruptImage:
        return 0, -1, -1, -1
    return 1, width, height, -1


def _size(path: str) -> tuple[int, int, int, int]:
    """Of the header alone, as the image is shown."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.getexif().get(0x0112) in TURNED:
                width, height = height, width
    except UNREADABLE:
        return 0, -1, -1, -1
    return -1, width, height, -1


def _labels(path: str) -> tuple[int, int, int, int]:
    try:
        labels = label_map(Path(path))
    except CorruptImage:
        return 0, -1, -1, -1
    highest = int(np.where(labels == VOID, 0, labels).max(initial=0))
    return 1, labels.shape[1], labels.shape[0], highest


WHETHER = Look((DECODES,), _decodes)
SIZES = Look((WIDTH, HEIGHT), _size)
LABELS = Look((DECODES, WIDTH, HEIGHT, LABEL), _labels)

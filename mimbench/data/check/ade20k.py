"""ADE20K's layout: each image has a label map with the same file name, suffix aside."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mimbench.data.check.report import Report, by, images_of, parallel, read_images
from mimbench.data.decode import UNREADABLE
from mimbench.data.image_folder import image_files

ADE20K_CLASSES = 150
ADE20K_SUFFIXES = {"images": ".jpg", "annotations": ".png"}  # mmsegmentation reads no others
LABEL_MODES = ("L", "P", "I", "I;16")  # one number per pixel


class _Labels(NamedTuple):
    mode: str
    size: tuple[int, int]  # width, height
    highest: int


def _labels(path: Path) -> _Labels | None:
    """What an annotation image holds; None if it does not decode."""
    try:
        with Image.open(path) as image:
            return _Labels(image.mode, image.size, int(np.asarray(image).max()))
    except UNREADABLE:
        return None


def check_ade20k(root: Path, report: Report) -> None:
    num_classes = ADE20K_CLASSES
    if (root / "classes.txt").is_file():
        lines = (root / "classes.txt").read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
        num_classes = len(names)
        for name, count in Counter(names).items():
            if count > 1:
                report.add("class order", f"{root / 'classes.txt'} names {name!r} {count} times")
    for split in ("training", "validation"):
        images = images_of(root / "images" / split, report)
        annotations = images_of(root / "annotations" / split, report)
        for part, suffix in ADE20K_SUFFIXES.items():
            folder = root / part / split
            for path in wrong_type(folder, suffix) if folder.is_dir() else ():
                report.add("wrong file type", f"{path} is not a {suffix} file and would not be read")
        sizes = {Path(name).stem: size for name, size in read_images(images, report).items()}
        image_stems, annotation_stems = {p.stem for p in images}, {p.stem for p in annotations}
        for path in images:
            if annotations and path.stem not in annotation_stems:
                report.add("image without annotation", str(path))
        for path in annotations:
            if images and path.stem not in image_stems:
                report.add("annotation without image", str(path))
        blank = 0
        for path, labels in zip(annotations, parallel(_labels, annotations), strict=True):
            if labels is None:
                report.add("unreadable annotation", str(path))
                continue
            if labels.mode not in LABEL_MODES:
                report.add("unreadable annotation", f"{path} is a {labels.mode} image, not one label a pixel")
                continue
            size = sizes.get(path.stem, labels.size)
            if size != labels.size:
                report.add("size mismatch", f"{path} is {by(labels.size)}, its image is {by(size)}")
            if labels.highest > num_classes:
                allowed = f"allowed: 0 (other) to {num_classes}"
                report.add("label out of range", f"{path} has label {labels.highest}; {allowed}")
            blank += labels.highest == 0
        # ADE20K itself has images with 'other' only; a whole split with 'other' only is a mistake.
        if blank and blank == len(annotations):
            report.add("empty mask", f"no annotation in {root / 'annotations' / split} labels a pixel")
        elif blank:
            report.notes.append(f"{blank} annotations in {root / 'annotations' / split} label no pixel")


def wrong_type(folder: Path, suffix: str) -> list[Path]:
    """The images in `folder` that are not read because of their suffix (upper and lower case differ)."""
    return [file for file in image_files(folder) if file.suffix != suffix]

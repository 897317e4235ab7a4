"""ADE20K's layout: the rules for images and label maps, which the check, a run's start and the readers share.

A label map has one number a pixel: 0 is "other", 1 to K are the classes, 255 is no label. Both 0 and 255 are
ignored in training and in mIoU (mmsegmentation's reduce_zero_label).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mimbench.data import EXTENSIONS, Problem, read_lines
from mimbench.data.decode import label_map
from mimbench.data.files import HEIGHT, LABEL, WIDTH, Folder
from mimbench.data.look import NEGATIVE, why
from mimbench.data.walk import is_there, walk
from mimbench.errors import UserError

IMAGE, LABELS = ".jpg", ".png"  # mmsegmentation reads no others
SPLITS = ("training", "validation")
DEFAULT_CLASSES = 150
MOST_CLASSES = 254  # of 8-bit labels, 0 and 255 are no classes


def classes(root: Path) -> list[str] | None:
    """The names in `classes.txt`, one a line; None without that file.

    Raises:
        UserError: it is no ordinary file, is not UTF-8, names a class twice, or fewer than 2 or more than
            254 classes.
    """
    file = root / "classes.txt"
    if not is_there(file, "classes"):
        return None
    names = [name for _, name in read_lines(file, "classes")]
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"class of {file}", name, remedy=f"It is there {count} times; name each once.")
    if not 2 <= len(names) <= MOST_CLASSES:
        remedy = f"Name 2 to {MOST_CLASSES} classes, one a line: a label is a number of 8 bits."
        raise UserError(f"number of classes in {file}", len(names), remedy=remedy)
    return names


def num_classes(root: Path) -> int:
    """As `classes`; ADE20K's 150 without a `classes.txt`."""
    names = classes(root)
    return DEFAULT_CLASSES if names is None else len(names)


def images(root: Path, split: str) -> Iterator[tuple[str, list[str]]]:
    """Folders below `images/<split>`, relative to the root, with the names of their images."""
    return files(root, "images", split)


def files(root: Path, part: str, split: str) -> Iterator[tuple[str, list[str]]]:
    """As `images`, also for the part `annotations`."""
    suffix = IMAGE if part == "images" else LABELS
    for folder, names in walk(root / part / split):
        found = [name for name in names if name.endswith(suffix)]
        if found:
            yield os.path.relpath(folder, root).replace(os.sep, "/"), found


def pairs(root: Path, split: str) -> list[tuple[str, str]]:
    """The paths of a split's images and of their label maps, as mmsegmentation orders them."""
    found = [
        (f"{root / folder}/{name}", f"{root / labels_of(folder)}/{label_name(name)}")
        for folder, names in images(root, split)
        for name in names
    ]
    return sorted(found)


def labels_of(folder: str) -> str:
    """The folder of the label maps of a folder of images, both relative to the root."""
    return folder.replace("images", "annotations", 1)


def label_name(image: str) -> str:
    return image.removesuffix(IMAGE) + LABELS


def read_labels(path: Path, num_classes: int) -> np.ndarray:
    """The label map as training wants it, [H, W] of int64: classes from 0, 255 is ignored.

    Raises:
        CorruptImage: it does not decode, or is an image of colours.
        UserError: a label has no class.
    """
    labels = label_map(path).astype(np.int64)
    labels[labels == 255] = 0
    wrong = labels[(labels < 0) | (labels > num_classes)]
    if wrong.size:
        raise UserError(str(path), int(wrong.max()), remedy=_allowed(num_classes))
    return np.where(labels == 0, 255, labels - 1)


def _allowed(num_classes: int) -> str:
    return (
        f"With {num_classes} classes (the lines of classes.txt; {DEFAULT_CLASSES} without it), labels are "
        f"0 (other) to {num_classes}, and 255 (none). "
        "`mimbench data check` lists all such files."
    )


def layout(root: Path) -> Iterator[Problem]:
    """What is wrong with the names of files: nothing is opened."""
    for split in SPLITS:
        for part, suffix in (("images", IMAGE), ("annotations", LABELS)):
            if not (root / part / split).is_dir():
                yield Problem("missing folder", str(root / part / split), "There is no such folder.")
                continue
            yield from _odd_files(root / part / split, suffix)
        for part, suffix in (("images", IMAGE), ("annotations", LABELS)):
            folder = root / part / split
            if folder.is_dir() and not any(True for _ in files(root, part, split)):
                yield Problem("empty folder", str(folder), f"{folder} holds no {suffix} files.")


def _odd_files(top: Path, suffix: str) -> Iterator[Problem]:
    """Images that are not read because of their suffix (upper and lower case differ), and odd folders."""
    problems: list[Problem] = []
    for folder, names in walk(top, problems):
        if folder.endswith(suffix) and folder != str(top):
            yield Problem("wrong file type", folder, f"It is a folder, not a {suffix} file: remove it.")
        for name in names:
            if name.lower().endswith(EXTENSIONS) and not name.endswith(suffix):
                message = f"Only {suffix} files are read in {top}: convert it, or remove it."
                yield Problem("wrong file type", f"{folder}/{name}", message)
    yield from problems


def notes(root: Path, maps: Sequence[Folder]) -> Iterator[str]:
    """Label maps without a label: ADE20K itself has some."""
    for split in SPLITS:
        start = f"annotations/{split}"
        inside = [each for each in maps if each.path == start or each.path.startswith(f"{start}/")]
        blank = sum(int((each.facts[:, LABEL] == 0).sum()) for each in inside)
        if blank:
            yield f"{blank} annotations in {root / start} label no pixel"


def contents(root: Path, folders: Sequence[Folder], *, skip_corrupt: bool = False) -> Iterator[Problem]:
    """What is wrong with label maps: `folders` must know their sizes and labels."""
    most = num_classes(root)
    by_path = {folder.path: folder for folder in folders}
    for split in SPLITS:
        blank = total = 0
        for folder in folders:
            if folder.path != f"images/{split}" and not folder.path.startswith(f"images/{split}/"):
                continue
            maps = by_path[labels_of(folder.path)]
            places = {name.removesuffix(b".png"): index for index, name in enumerate(maps.each())}
            for index, name in enumerate(folder.each()):
                there = places[name.removesuffix(b".jpg")]
                file = str(root / maps.path / os.fsdecode(maps.each()[there]))
                if maps.corrupt[there] and skip_corrupt:
                    continue
                if maps.corrupt[there]:
                    yield Problem("unreadable annotation", file, why(Path(file), label_map).remedy)
                    continue
                size, own = folder.facts[index, [WIDTH, HEIGHT]], maps.facts[there, [WIDTH, HEIGHT]]
                if not folder.corrupt[index] and (size != own).any():
                    message = f"It is {own[0]}x{own[1]} pixels; its image is {size[0]}x{size[1]}."
                    yield Problem("size mismatch", file, message)
                highest = int(maps.facts[there, LABEL])
                if highest > most:
                    has = "a negative label" if highest == NEGATIVE else f"the label {highest}"
                    message = f"It has {has}. {_allowed(most)}"
                    yield Problem("label out of range", file, message)
                total, blank = total + 1, blank + (highest == 0)
        if total and blank == total:
            message = "No label map labels a pixel: nothing can be learnt or measured."
            yield Problem("empty mask", str(root / "annotations" / split), message)

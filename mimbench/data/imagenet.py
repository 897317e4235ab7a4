"""ImageNet's layout, `<split>/<class>/<image>`: rules that the check, a run's start and the readers share."""

from __future__ import annotations

import difflib
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path

from mimbench.data import EXTENSIONS, Problem, read_lines
from mimbench.errors import UserError

LABELLED = "train_labelled.txt"
SPLITS = ("train", "val")


def class_folders(split_folder: Path) -> list[str]:
    """The class names of one split, in the order of their labels; [] without the folder."""
    if not split_folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(split_folder) if entry.is_dir() and entry.name[0] != ".")


def image_names(folder: Path | str) -> list[str]:
    """Names of the images directly in `folder`, sorted."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    return sorted(name for name in names if name[0] != "." and name.lower().endswith(EXTENSIONS))


def layout(root: Path, splits: tuple[str, ...] = SPLITS) -> Iterator[Problem]:
    """What is wrong with folders and names: no image is opened."""
    classes = {split: class_folders(root / split) for split in splits}
    for split, names in classes.items():
        folder = root / split
        if not folder.is_dir():
            yield Problem("missing folder", str(folder), "There is no such folder.")
        elif not names:
            but = "It holds images, but no" if image_names(folder) else "It has no"
            yield Problem(
                "empty folder", str(folder), f"{but} class folders: the layout is {split}/<class>/<image>."
            )
        elif not any(image_names(folder / name) for name in names):
            below = (folder / name / deep for name in names for deep in class_folders(folder / name))
            nested = next(below, None)
            where = f"; {nested} is a folder in a class folder" if nested else ""
            message = f"Its class folders hold no images{where}: the layout is {split}/<class>/<image>."
            yield Problem("empty folder", str(folder), message)
    train = set(classes.get("train", ()))
    for name in sorted(set(classes.get("val", ())) - train) if train else ():
        near = difflib.get_close_matches(name, train, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        yield Problem("class order", str(root / "val" / name), f"Train has no class {name!r}.{hint}")


def notes(root: Path) -> Iterator[str]:
    """What is odd but allowed."""
    train, val = (class_folders(root / split) for split in SPLITS)
    for name in sorted(set(train) - set(val)) if val else ():
        yield f"{root / 'val'} has no class {name!r}: it is trained and never measured"
    for split, names in zip(SPLITS, (train, val), strict=True):
        for name in names:
            if not image_names(root / split / name):
                yield f"{root / split / name} holds no images"


def classes_for_labels(root: Path) -> list[str]:
    """The classes that a task learns: the folders of `train`.

    Raises:
        UserError: there are fewer than two.
    """
    found = class_folders(root / "train")
    if len(found) < 2:
        remedy = "A task needs two class folders at least; pretraining needs one."
        raise UserError(f"classes in {root / 'train'}", len(found), remedy=remedy)
    return found


def listed(root: Path) -> list[str] | None:
    """The images that `train_labelled.txt` lists, relative to the root; None without that file.

    A line is `train/<class>/<image>`, `<class>/<image>`, or a name that only one image of `train` has, as in
    SimCLR's lists of 1 % and 10 % of ImageNet.

    Raises:
        UserError: the file is not UTF-8 or lists nothing; a line names no image of `train`, or several.
    """
    file = root / LABELLED
    if not file.is_file():
        return None
    numbered = read_lines(file, "list of labelled images")
    if not numbered:
        raise UserError("list of labelled images", str(file), remedy="It lists no images.")
    here = {name: set(image_names(root / "train" / name)) for name in class_folders(root / "train")}
    owners: dict[str, list[str]] = {}
    if any("/" not in line for _, line in numbered):
        for folder, names in here.items():
            for name in names:
                owners.setdefault(name, []).append(folder)
    return [_place(root, file, number, line, here, owners) for number, line in numbered]


def _place(
    root: Path, file: Path, number: int, line: str, here: dict[str, set[str]], owners: dict[str, list[str]]
) -> str:
    """The image that a line names, relative to the root."""
    where = f"line {number} of {file}"
    form = f"Write train/<class>/<image>, such as {_example(here)}, or remove the line."
    parts = posixpath.normpath(line).split("/")
    if len(parts) == 1:
        found = owners.get(parts[0], [])
        if len(found) > 1:
            several = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
            raise UserError(
                where, line, remedy=f"Several classes have an image of that name ({several}). {form}"
            )
        parts = [*found, *parts]
    if len(parts) == 3 and parts[0] == "train":
        parts = parts[1:]
    if len(parts) != 2 or parts[1] not in here.get(parts[0], ()):
        raise UserError(where, line, remedy=f"There is no such image in {root / 'train'}. {form}")
    return f"train/{parts[0]}/{parts[1]}"


def _example(here: dict[str, set[str]]) -> str:
    return next(
        (f"train/{folder}/{min(names)}" for folder, names in here.items() if names), "train/cat/1.jpg"
    )

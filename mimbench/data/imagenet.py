"""ImageNet's layout, `<split>/<class>/<image>`: rules that the check, a run's start and the readers share."""

from __future__ import annotations

import difflib
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path

from mimbench.data import EXTENSIONS, Problem, read_lines
from mimbench.data.walk import is_folder, is_there, links_to_nothing, walk
from mimbench.errors import UserError

LABELLED = "train_labelled.txt"
SPLITS = ("train", "val")


def class_folders(split_folder: Path) -> list[str]:
    """The class names of one split, in the order of their labels; [] without the folder."""
    if not split_folder.is_dir():
        return []
    with os.scandir(split_folder) as entries:
        return sorted(entry.name for entry in entries if entry.name[0] != "." and is_folder(entry))


def image_names(folder: Path | str) -> list[str]:
    """Names of the images directly in `folder`, sorted."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    return sorted(filter(_is_image, names))


def layout(root: Path, splits: tuple[str, ...] = SPLITS) -> Iterator[Problem]:
    """What is wrong with folders and names: no image is opened."""
    classes = {split: class_folders(root / split) for split in splits}
    for split, names in classes.items():
        folder = root / split
        if not folder.is_dir():
            yield Problem("missing folder", str(folder), "There is no such folder.")
            continue
        with os.scandir(folder) as entries:
            yield from links_to_nothing(sorted(entries, key=lambda entry: entry.name))
        if not names:
            but = "It holds images, but no" if image_names(folder) else "It has no"
            yield Problem(
                "empty folder", str(folder), f"{but} class folders: the layout is {split}/<class>/<image>."
            )
        else:
            empty = [name for name in names if not has_images(folder / name)]
            odd = [problem for name in empty if (problem := _without_images(folder / name, split))]
            yield from odd
            if len(empty) == len(names) and not odd:
                message = f"Its class folders hold no images: the layout is {split}/<class>/<image>."
                yield Problem("empty folder", str(folder), message)
    train = set(classes.get("train", ()))
    for name in sorted(set(classes.get("val", ())) - train) if train else ():
        near = difflib.get_close_matches(name, train, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        yield Problem("class order", str(root / "val" / name), f"Train has no class {name!r}.{hint}")


def has_images(folder: Path | str) -> bool:
    """Whether there is an image directly in `folder`; it stops at the first."""
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) for entry in entries)


def _is_image(name: str) -> bool:
    return name[0] != "." and name.lower().endswith(EXTENSIONS)


def _without_images(folder: Path, split: str) -> Problem | None:
    """What is wrong with a class folder without images; nothing if it is empty."""
    with os.scandir(folder) as entries:
        others = sorted((entry.name, is_folder(entry)) for entry in entries if entry.name[0] != ".")
    if not others:
        return None
    nested = next((name for name, is_folder in others if is_folder), None)
    if nested is not None:
        why = f"{folder / nested} is a folder in a class folder: the layout is {split}/<class>/<image>."
    else:
        endings = ", ".join(EXTENSIONS)
        why = f"{others[0][0]} has an ending that is not read (only {endings}): rename or convert its files."
    message = f"It holds no images. {why} To keep a class without images, leave its folder empty."
    return Problem("empty folder", str(folder), message)


def images_of(folder: Path) -> tuple[list[str], list[Problem]]:
    """The names of a class's images; and folders of images below, which torchvision would read."""
    names, problems = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_image(entry.name):
                names.append(entry.name)
            elif entry.name[0] != "." and is_folder(entry):
                message = "It is a folder of images in a class folder: move its images up, or remove it."
                inside = (path for path, files in walk(entry.path) if any(map(_is_image, files)))
                problems += [Problem("nested folder", path, message) for path in inside]
    return sorted(names), problems


def unmeasured(root: Path) -> Iterator[str]:
    """Classes that are learnt and never measured, because `val` has no images of them: they are allowed."""
    train, val = (class_folders(root / split) for split in SPLITS)
    here = {name for name in val if has_images(root / "val" / name)}
    if missing := [name for name in train if name not in here]:
        yield f"classes without images in val, never measured: {len(missing)} (first: {missing[0]})"


def notes(root: Path) -> Iterator[str]:
    """What is odd but allowed."""
    train, val = (class_folders(root / split) for split in SPLITS)
    for name in sorted(set(train) - set(val)) if val else ():
        yield f"{root / 'val'} has no class {name!r}: it is trained and never measured"
    for split, names in zip(SPLITS, (train, val), strict=True):
        what = "it is never measured" if split == "val" else "it is never trained"
        for name in names:
            if not image_names(root / split / name):
                yield f"{root / split / name} holds no images: {what}"


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
        UserError: the file is no ordinary file or not UTF-8, or lists nothing, or one class alone; a line
            names no image of `train`, or several, or one that another line names.
    """
    file = root / LABELLED
    if not is_there(file, "list of labelled images"):
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
    found: dict[str, int] = {}
    for number, line in numbered:
        place = _place(root, file, number, line, here, owners)
        if place in found:
            remedy = f"Line {found[place]} names the same image: list each once."
            raise UserError(f"line {number} of {file}", line, remedy=remedy)
        found[place] = number
    if len({place.split("/")[1] for place in found}) < 2:
        only = next(iter(found)).split("/")[1]
        remedy = f"All its images are of the class {only!r}: a task needs two classes at least."
        raise UserError("list of labelled images", str(file), remedy=remedy)
    return list(found)


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

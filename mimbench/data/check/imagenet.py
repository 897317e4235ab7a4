"""ImageNet's layout, and captions if there are any."""

from __future__ import annotations

from pathlib import Path

from mimbench.data.check.report import Report, images_of, read_images
from mimbench.data.image_folder import class_folders, image_files, read_captions
from mimbench.errors import UserError

LABELLED = "train_labelled.txt"


def has_classes(root: Path) -> bool:
    """Whether a split has a class folder with an image in it."""
    splits = [root / split for split in ("train", "val") if (root / split).is_dir()]
    return any(image_files(split / name) for split in splits for name in class_folders(split))


def check_imagenet(root: Path, report: Report) -> None:
    classes: dict[str, list[str]] = {}
    names: set[str] = set()
    for split in ("train", "val"):
        if not (root / split).is_dir():
            report.add("missing folder", str(root / split))
            continue
        classes[split] = class_folders(root / split)
        if not classes[split]:
            report.add("empty folder", f"{root / split} has no class folders")
        for name in classes[split]:
            files = images_of(root / split / name, report)
            names.update(file.relative_to(root).as_posix() for file in files)
            read_images(files, report)
    if len(classes) == 2:
        train, val = set(classes["train"]), set(classes["val"])
        for name in sorted(train ^ val):
            have, lack = ("train", "val") if name in train else ("val", "train")
            report.add("class order", f"class {name!r} is in {root / have} and not in {root / lack}")
    for number, line in labelled_but_missing(root):
        place = f"{root / LABELLED}, line {number}"
        report.add("broken reference", f"{place} lists {line}, which is not in {root / 'train'}")
    if (root / "captions.json").is_file():
        _check_captions(root, names, report)


def _check_captions(root: Path, names: set[str], report: Report) -> None:
    try:
        captions = read_captions(root)
    except UserError as error:
        report.add("bad JSON", str(error))
        return
    for name in sorted(set(captions) - names):
        report.add("broken reference", f"{root / 'captions.json'} describes {name}, which is not there")
    for name in sorted(name for name in names - set(captions) if name.startswith("train/")):
        report.add("image without caption", f"{root / name} has none in captions.json")


def labelled_but_missing(root: Path) -> list[tuple[int, str]]:
    """Lines of `train_labelled.txt` whose image is not in `train`: line number and text."""
    file, train = root / LABELLED, root / "train"
    if not file.is_file():
        return []
    lines = enumerate(map(str.strip, file.read_text(encoding="utf-8").splitlines()), 1)
    listed = {(number, line): str(root / line) for number, line in lines if line}
    gone = set(listed.values())
    for name in class_folders(train) if train.is_dir() else ():
        gone.difference_update(map(str, image_files(train / name)))
    return [where for where, path in listed.items() if path in gone]

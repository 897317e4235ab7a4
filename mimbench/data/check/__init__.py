"""Checks a dataset before hours of training are spent on it; one file per format. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mimbench.data.check.ade20k import ADE20K_SUFFIXES, check_ade20k, wrong_type
from mimbench.data.check.coco import COCO_FIELDS, check_coco, missing_parts
from mimbench.data.check.imagenet import LABELLED, check_imagenet, has_classes, labelled_but_missing
from mimbench.data.check.report import Report
from mimbench.data.image_folder import read_captions
from mimbench.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

LAYOUTS = {
    "imagenet": "{train,val}/<class>/*.jpg",
    "ade20k": "images/{training,validation}/*.jpg and annotations/{training,validation}/*.png",
    "coco": "{train,val}2017/*.jpg and annotations/instances_{train,val}2017.json",
}
CHECKS: dict[str, Callable[[Path, Report], None]] = {
    "imagenet": check_imagenet,
    "ade20k": check_ade20k,
    "coco": check_coco,
}
PARSE_BYTES = 100 * 2**20  # `require` parses JSON up to this size (official COCO takes half a minute)


def check(path: Path, *, limit: int = 5) -> Report:
    """Check the dataset at `path`, or every dataset directly below it; the format of each is detected.

    Raises:
        UserError: there is no such folder, or it has none of the formats.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError("data folder", str(path), remedy="It does not exist or is not a folder.")
    report = Report(path, limit)
    for folder in (path, *sorted(child for child in path.iterdir() if child.is_dir())):
        kind = detect(folder)
        if kind == "imagenet" and folder != path and not has_classes(folder):
            continue  # source code has folders called train, too
        if kind is not None:
            report.formats[folder] = kind
            CHECKS[kind](folder, report)
        if folder == path and kind is not None:
            break
    if not report.formats:
        layouts = "; ".join(f"{name}: {layout}" for name, layout in LAYOUTS.items())
        raise UserError("data folder", str(path), remedy=f"It has none of the known layouts ({layouts}).")
    return report


def detect(folder: Path) -> str | None:
    """The format that the folder's layout suggests, even if parts are missing; None if there is none."""
    annotations = folder / "annotations"
    if any((folder / name).is_dir() for name in ("train2017", "val2017")) or any(
        annotations.glob("instances_*.json")
    ):
        return "coco"
    if any(
        (parent / "training").is_dir() or (parent / "validation").is_dir()
        for parent in (folder / "images", annotations)
    ):
        return "ade20k"
    if (folder / "train").is_dir() or (folder / "val").is_dir():
        return "imagenet"
    return None


def print_report(report: Report, console: Console) -> None:
    """Print the report: a line for each dataset, then the first violations of each kind."""

    def line(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    for folder, kind in report.formats.items():
        line(f"{folder}: {kind}")
    line(
        f"{report.images} images read, {report.counts.total()} violations",
        "green" if report.ok else "red",
    )
    for kind, count in report.counts.items():
        line(f"{kind}: {count}", "bold red")
        for message in report.first[kind]:
            line(f"  {message}")
        if count > report.limit:
            line(f"  ... and {count - report.limit} more")
    for note in report.notes:
        line(f"note: {note}", "yellow")


def require(role: str, path: Path) -> None:
    """A quick check before a run starts: the role's folders exist and are not empty, its JSON parses.

    It also checks the suffixes of ADE20K's files, and that every labelled image exists.

    Args:
        role: `imagenet`, `ade20k`, `coco` or `captions` (ImageNet's format with captions.json).

    Raises:
        UserError: something is wrong; the message names the role, the path and the mistake.
    """
    expected = "imagenet" if role == "captions" else role
    if expected not in LAYOUTS:
        raise UserError("data role", role, allowed=(*LAYOUTS, "captions"))
    where, path = f"--data {role}", Path(path)
    layout = f"Its layout must be {LAYOUTS[expected]}."
    if not path.is_dir():
        raise UserError(where, str(path), remedy=f"There is no such folder. {layout}")
    found = detect(path)
    if found not in (None, expected):
        raise UserError(where, str(path), remedy=f"It looks like {found}. {layout}")
    for folder, pattern in _needed(expected, path):
        if not folder.is_dir():
            raise UserError(where, str(path), remedy=f"{folder} is missing. {layout}")
        if expected == "ade20k":
            suffix = ADE20K_SUFFIXES[folder.parent.name]
            for file in wrong_type(folder, suffix):
                remedy = f"Only {suffix} files are read in {folder}: convert or remove the others."
                raise UserError(where, str(file), remedy=f"{remedy} `mimbench data check` lists them.")
        if next(folder.glob(pattern), None) is None:
            raise UserError(where, str(path), remedy=f"{folder} holds no files like {pattern}. {layout}")
    if role == "captions":
        read_captions(path)
    if role == "imagenet":
        for number, line in labelled_but_missing(path):
            remedy = f"There is no such image in {path / 'train'}: put it back, or remove the line."
            raise UserError(f"{where}, line {number} of {path / LABELLED}", line, remedy=remedy)
    for file in sorted((path / "annotations").glob("instances_*2017.json")) if role == "coco" else ():
        if file.stat().st_size <= PARSE_BYTES:
            try:
                missing = missing_parts(json.loads(file.read_bytes()))
            except ValueError as error:
                raise UserError(where, str(file), remedy=f"It is not JSON: {error}.") from error
            if missing:
                remedy = f"It lacks {', '.join(missing)}; it must hold the lists {', '.join(COCO_FIELDS)}."
                raise UserError(where, str(file), remedy=remedy)


def _needed(kind: str, root: Path) -> list[tuple[Path, str]]:
    """The folders of a format, each with a pattern that at least one file in it must match."""
    if kind == "imagenet":
        return [(root / split, "*/*.*") for split in ("train", "val")]
    if kind == "coco":
        annotations = [(root / "annotations", f"instances_{split}2017.json") for split in ("train", "val")]
        return [*((root / f"{split}2017", "*.*") for split in ("train", "val")), *annotations]
    return [
        (root / part / split, f"*{suffix}")
        for part, suffix in ADE20K_SUFFIXES.items()
        for split in ("training", "validation")
    ]

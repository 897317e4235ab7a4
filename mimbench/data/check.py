"""Finds what is wrong with a dataset before hours are spent on it. Loads no torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from mimbench.data.image_folder import UNREADABLE, class_folders, picture_files, read_captions
from mimbench.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

LAYOUTS = {
    "imagenet": "{train,val}/<class>/*.jpg",
    "ade20k": "images/{training,validation}/*.jpg and annotations/{training,validation}/*.png",
    "coco": "{train,val}2017/*.jpg and annotations/instances_{train,val}2017.json",
}
ADE20K_CLASSES = 150
ADE20K_SUFFIXES = {"images": ".jpg", "annotations": ".png"}  # mmsegmentation reads no others
COCO_FIELDS = {
    "images": {"id", "file_name", "width", "height"},
    "annotations": {"id", "image_id", "category_id", "bbox", "segmentation"},
    "categories": {"id", "name"},
}
LABELLED = "train_labelled.txt"
LABEL_MODES = ("L", "P", "I", "I;16")  # one number a pixel
BOX_SLACK = 0.5  # pixels: official boxes are rounded
PARSE_BYTES = 100 * 2**20  # `require` parses JSON up to this size (official COCO takes half a minute)
T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Report:
    """What `check` found.

    Attributes:
        path: what was checked.
        limit: how many violations of each kind are kept in `first`.
        formats: the datasets found: folder to format.
        pictures: how many pictures were decoded.
        counts: violations by kind.
        first: the first violations of each kind, as sentences that name the file.
        notes: what is odd but allowed.
    """

    path: Path
    limit: int = 5
    formats: dict[Path, str] = field(default_factory=dict)
    pictures: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.counts

    def add(self, kind: str, message: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= self.limit:
            self.first.setdefault(kind, []).append(message)


def check(path: Path, *, limit: int = 5) -> Report:
    """Validate the dataset at `path`, or every dataset directly below it, whichever of the formats they have.

    Raises:
        UserError: there is no such folder, or nothing in it looks like one of the formats.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError("data folder", str(path), remedy="It does not exist or is not a folder.")
    report = Report(path, limit)
    for folder in (path, *sorted(child for child in path.iterdir() if child.is_dir())):
        kind = detect(folder)
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
    """The format whose folders are there, even if some are missing; None if it looks like none."""
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
    """What was found, in plain lines: a line for each dataset, then the first violations of each kind."""

    def line(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    for folder, kind in report.formats.items():
        line(f"{folder}: {kind}")
    line(
        f"{report.pictures} pictures read, {report.counts.total()} violations",
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
    """A quick look before a run starts: the role's folders are there and not empty, its JSON parses.

    Also that ADE20K's files have the suffixes that are read, and that every labelled picture is there.

    Args:
        role: `imagenet`, `ade20k`, `coco` or `captions` (ImageNet's format with captions.json).

    Raises:
        UserError: naming the role, the path and what is wrong with it.
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
            for file in _wrong_type(folder, suffix):
                remedy = f"Of {folder} only {suffix} files are read: convert or remove the others, which"
                raise UserError(where, str(file), remedy=f"{remedy} `mimbench data check` lists.")
        if next(folder.glob(pattern), None) is None:
            raise UserError(where, str(path), remedy=f"{folder} holds no files like {pattern}. {layout}")
    if role == "captions":
        read_captions(path)
    if role == "imagenet":
        for number, line in _labelled_but_missing(path):
            remedy = f"There is no such picture in {path / 'train'}: put it back, or remove the line."
            raise UserError(f"{where}, line {number} of {path / LABELLED}", line, remedy=remedy)
    for file in sorted((path / "annotations").glob("instances_*2017.json")) if role == "coco" else ():
        if file.stat().st_size <= PARSE_BYTES:
            try:
                missing = _missing_parts(json.loads(file.read_bytes()))
            except ValueError as error:
                raise UserError(where, str(file), remedy=f"It is not JSON: {error}.") from error
            if missing:
                remedy = f"It lacks {', '.join(missing)}; it must hold the lists {', '.join(COCO_FIELDS)}."
                raise UserError(where, str(file), remedy=remedy)


def _needed(kind: str, root: Path) -> list[tuple[Path, str]]:
    """The folders of a format, each with a pattern that some file in it must have."""
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


def _wrong_type(folder: Path, suffix: str) -> list[Path]:
    """The pictures in `folder` that are never read for their suffix, whose case counts."""
    return [file for file in picture_files(folder) if file.suffix != suffix]


def _labelled_but_missing(root: Path) -> list[tuple[int, str]]:
    """Number and text of the lines of `train_labelled.txt` that name no picture of `train`."""
    file, train = root / LABELLED, root / "train"
    if not file.is_file():
        return []
    lines = enumerate(map(str.strip, file.read_text(encoding="utf-8").splitlines()), 1)
    listed = {(number, line): str(root / line) for number, line in lines if line}
    gone = set(listed.values())
    for name in class_folders(train) if train.is_dir() else ():
        gone.difference_update(map(str, picture_files(train / name)))
    return [where for where, path in listed.items() if path in gone]


def _missing_parts(document: Any) -> list[str]:
    """The lists that a COCO annotation file must have and this one, as parsed, has not."""
    return [
        part
        for part in COCO_FIELDS
        if not isinstance(document, dict) or not isinstance(document.get(part), list)
    ]


def _parallel(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    with ThreadPoolExecutor() as pool:  # decoding releases the GIL
        yield from pool.map(work, items)


def _size(path: Path) -> tuple[int, int] | None:
    """Width and height of a picture that decodes to its last byte; None if it does not."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.size
    except UNREADABLE:
        return None


def _read_pictures(paths: list[Path], report: Report) -> dict[str, tuple[int, int]]:
    """File name to (width, height) of the pictures that decode; the others are violations."""
    report.pictures += len(paths)
    sizes: dict[str, tuple[int, int]] = {}
    for path, size in zip(paths, _parallel(_size, paths), strict=True):
        if size is None:
            report.add("unreadable picture", str(path))
        else:
            sizes[path.name] = size
    return sizes


def _pictures_of(folder: Path, report: Report) -> list[Path]:
    if not folder.is_dir():
        report.add("missing folder", str(folder))
        return []
    files = picture_files(folder)
    if not files:
        report.add("empty folder", str(folder))
    return files


def _check_imagenet(root: Path, report: Report) -> None:
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
            files = _pictures_of(root / split / name, report)
            names.update(file.relative_to(root).as_posix() for file in files)
            _read_pictures(files, report)
    if len(classes) == 2:
        train, val = set(classes["train"]), set(classes["val"])
        for name in sorted(train ^ val):
            have, lack = ("train", "val") if name in train else ("val", "train")
            report.add("class order", f"class {name!r} is in {root / have} and not in {root / lack}")
    for number, line in _labelled_but_missing(root):
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
        report.add("picture without caption", f"{root / name} has none in captions.json")


class _Labels(NamedTuple):
    mode: str
    size: tuple[int, int]  # width, height
    highest: int


def _labels(path: Path) -> _Labels | None:
    """What an annotation picture holds; None if it does not decode."""
    try:
        with Image.open(path) as image:
            return _Labels(image.mode, image.size, int(np.asarray(image).max()))
    except UNREADABLE:
        return None


def _check_ade20k(root: Path, report: Report) -> None:
    num_classes = ADE20K_CLASSES
    if (root / "classes.txt").is_file():
        lines = (root / "classes.txt").read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
        num_classes = len(names)
        for name, count in Counter(names).items():
            if count > 1:
                report.add("class order", f"{root / 'classes.txt'} names {name!r} {count} times")
    for split in ("training", "validation"):
        pictures = _pictures_of(root / "images" / split, report)
        annotations = _pictures_of(root / "annotations" / split, report)
        for part, suffix in ADE20K_SUFFIXES.items():
            folder = root / part / split
            for path in _wrong_type(folder, suffix) if folder.is_dir() else ():
                report.add("wrong file type", f"{path} is not a {suffix} file and would not be read")
        sizes = {Path(name).stem: size for name, size in _read_pictures(pictures, report).items()}
        picture_stems, annotation_stems = {p.stem for p in pictures}, {p.stem for p in annotations}
        for path in pictures:
            if annotations and path.stem not in annotation_stems:
                report.add("picture without annotation", str(path))
        for path in annotations:
            if pictures and path.stem not in picture_stems:
                report.add("annotation without picture", str(path))
        blank = 0
        for path, labels in zip(annotations, _parallel(_labels, annotations), strict=True):
            if labels is None:
                report.add("unreadable annotation", str(path))
                continue
            if labels.mode not in LABEL_MODES:
                report.add(
                    "unreadable annotation", f"{path} is a {labels.mode} picture, not one label a pixel"
                )
                continue
            size = sizes.get(path.stem, labels.size)
            if size != labels.size:
                report.add("size mismatch", f"{path} is {_by(labels.size)}, its picture is {_by(size)}")
            if labels.highest > num_classes:
                allowed = f"allowed: 0 (other) to {num_classes}"
                report.add("label out of range", f"{path} has label {labels.highest}; {allowed}")
            blank += labels.highest == 0
        # ADE20K itself has pictures of 'other' alone; a split of nothing else is a mistake.
        if blank and blank == len(annotations):
            report.add("empty mask", f"no annotation in {root / 'annotations' / split} labels a pixel")
        elif blank:
            report.notes.append(f"{blank} annotations in {root / 'annotations' / split} label no pixel")


def _by(size: Iterable[int]) -> str:
    return "x".join(map(str, size))


def _check_coco(root: Path, report: Report) -> None:
    categories = {}
    for split in ("train", "val"):
        files = _pictures_of(root / f"{split}2017", report)
        sizes = _read_pictures(files, report)
        source = root / "annotations" / f"instances_{split}2017.json"
        document = _read_instances(source, report)
        if document is not None:
            categories[split] = {item["id"]: item["name"] for item in document["categories"]}
            _check_instances(source, document, {file.name for file in files}, sizes, report)
    if len(categories) == 2 and list(categories["train"].items()) != list(categories["val"].items()):
        report.add(
            "class order", f"{root / 'annotations'}: train and val differ in their categories or their order"
        )


def _read_instances(source: Path, report: Report) -> dict[str, Any] | None:
    """The parsed file if every entry has the fields that the other checks read."""
    if not source.is_file():
        report.add("missing file", str(source))
        return None
    try:
        document = json.loads(source.read_bytes())
    except ValueError as error:
        report.add("bad JSON", f"{source}: {error}")
        return None
    missing = _missing_parts(document)
    lacking = [f"{source}: {part} is missing" for part in missing] + [
        f"{source}: {part}[{index}] lacks {fields}"
        for part, wanted in COCO_FIELDS.items()
        if part not in missing
        for index, entry in enumerate(document[part])
        if (fields := ", ".join(sorted(wanted - set(entry if isinstance(entry, dict) else ()))))
    ]
    for message in lacking:
        report.add("bad JSON", message)
    return None if lacking else document


def _check_instances(
    source: Path,
    document: dict[str, Any],
    files: set[str],
    sizes: dict[str, tuple[int, int]],
    report: Report,
) -> None:
    for part in ("images", "annotations", "categories"):
        for value, count in Counter(entry["id"] for entry in document[part]).items():
            if count > 1:
                report.add("duplicate id", f"{source}: {count} {part} have id {value}")
    images = {image["id"]: image for image in document["images"]}
    categories = {category["id"] for category in document["categories"]}
    for image in document["images"]:
        name, stated = image["file_name"], (image["width"], image["height"])
        if name not in files:
            report.add("broken reference", f"{source}: image {image['id']} is {name}, which is not there")
        elif sizes.get(name, stated) != stated:
            report.add("size mismatch", f"{source}: {name} is {_by(sizes[name])}, stated as {_by(stated)}")
    for name in sorted(files - {image["file_name"] for image in document["images"]}):
        report.add("picture without annotation", f"{source} does not list {name}")

    for entry in document["annotations"]:
        where = f"{source}: annotation {entry['id']}"
        if entry["category_id"] not in categories:
            report.add("unknown category", f"{where} has category {entry['category_id']}")
        if entry["image_id"] not in images:
            report.add(
                "broken reference", f"{where} belongs to image {entry['image_id']}, which is not listed"
            )
            continue
        image = images[entry["image_id"]]
        width, height = image["width"], image["height"]
        try:
            x, y, w, h = map(float, entry["bbox"])
        except (TypeError, ValueError):
            report.add("bad JSON", f"{where}: bbox must be [x, y, width, height], not {entry['bbox']!r}")
            continue
        if (
            min(x, y) < -BOX_SLACK
            or min(w, h) <= 0
            or x + w > width + BOX_SLACK
            or y + h > height + BOX_SLACK
        ):
            report.add("box outside picture", f"{where}: {entry['bbox']} in {width}x{height}")
        try:
            _check_mask(entry["segmentation"], (height, width), where, report)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            report.add("unreadable mask", f"{where}: {error!r}")


def _check_mask(segmentation: Any, size: tuple[int, int], where: str, report: Report) -> None:
    """Polygons, or run lengths as COCO writes them, plain or packed in a string."""
    if isinstance(segmentation, dict):
        if tuple(segmentation["size"]) != size:
            report.add("size mismatch", f"{where}: mask of {_by(segmentation['size'])} (h, w) in {_by(size)}")
            return
        counts = segmentation["counts"]
        if isinstance(counts, list):
            total = sum(counts)
            area: float = sum(counts[1::2])
        else:
            from pycocotools import mask as rle

            packed = {**segmentation, "counts": counts.encode()}
            total = size[0] * size[1]
            area = float(rle.area(packed))
        if total != size[0] * size[1]:
            report.add("size mismatch", f"{where}: its run lengths give {total} pixels in {_by(size)}")
    else:
        area = max(map(_polygon_area, segmentation), default=0)
    if area <= 0:
        report.add("empty mask", where)


def _polygon_area(polygon: list[float]) -> float:
    x, y = np.array(polygon[0::2]), np.array(polygon[1::2])
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2 if len(x) == len(y) >= 3 else 0.0


CHECKS: dict[str, Callable[[Path, Report], None]] = {
    "imagenet": _check_imagenet,
    "ade20k": _check_ade20k,
    "coco": _check_coco,
}

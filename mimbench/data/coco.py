"""COCO's instances: the rules for an annotation file, which the check, a run's start and the readers share.

A file that breaks a rule is refused with the entry's name. What mmdetection and pycocotools would take only
with luck is converted, and said: ids, areas and crowd flags that are missing, degenerate polygons and boxes.
"""

from __future__ import annotations

import functools
import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mimbench.atomic import digest
from mimbench.data import THIN, Problem, Twice, each_once, instances, is_thin, masks
from mimbench.data.files import HEIGHT, WIDTH, Folder
from mimbench.data.instances import EXACT, Instances, examine, shown
from mimbench.data.walk import is_there
from mimbench.errors import UserError

FIELDS = {
    "images": {"id", "file_name", "width", "height"},
    "annotations": {"id", "image_id", "category_id", "bbox", "segmentation"},
    "categories": {"id", "name"},
}
ONE = {"images": "image", "annotations": "annotation", "categories": "category"}
SPLITS = ("train", "val")
WHOLE = ("id", "image_id", "category_id", "width", "height", "iscrowd")
LARGEST = 2**20  # pixels of a side


def source_of(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}2017.json"


def read(root: Path, split: str) -> Instances:
    """Read and examine the annotations of a split, `train` or `val`; no image is opened."""
    found = Instances(source_of(root, split), split)
    try:
        is_there(found.source, "annotations")
        document = json.loads(found.source.read_bytes().decode("utf-8-sig"), object_pairs_hook=each_once)
    except FileNotFoundError:
        found.problems.append(Problem("missing file", "", "There is no such file."))
        return found
    except UserError as error:
        found.problems.append(Problem("missing file", "", error.remedy))
        return found
    except OSError as error:
        found.problems.append(Problem("missing file", "", f"It cannot be read ({error.strerror})."))
        return found
    except Twice as error:
        message = f"An object in it has {error.args[0]!r} twice: remove one."
        found.problems.append(Problem("bad JSON", "", message))
        return found
    except (ValueError, RecursionError) as error:
        found.problems.append(Problem("bad JSON", "", f"It is not JSON: {error}."))
        return found
    found.problems += _shape(document)
    if not found.problems:
        found.document = document
        _tidy(found)
        _identities(found)
        examine(found)
    return found


def _shape(document: Any) -> Iterator[Problem]:
    """Lists and fields that are missing, and fields of another kind."""
    if not isinstance(document, dict):
        yield Problem("bad JSON", "", f"It must be an object with the lists {', '.join(FIELDS)}.")
        return
    for part, wanted in FIELDS.items():
        entries = document.get(part)
        if not isinstance(entries, list):
            yield Problem("bad JSON", "", f"It lacks the list {part!r}; it must hold {', '.join(FIELDS)}.")
            continue
        for index, entry in enumerate(entries):
            place = f"{part}[{index}]"
            if not isinstance(entry, dict):
                yield Problem("bad JSON", place, f"It must be an object with {', '.join(sorted(wanted))}.")
                continue
            missing = sorted(wanted - entry.keys() - {"segmentation"})
            if missing:
                yield Problem("bad JSON", place, f"It lacks {', '.join(missing)}.")
                continue
            yield from _kinds(part, place, entry)


def _kinds(part: str, place: str, entry: Mapping[str, Any]) -> Iterator[Problem]:
    for name in ("id", "image_id", "category_id"):
        if name in entry and not _is_whole(entry[name]):
            yield Problem("bad JSON", place, f"{name} must be a whole number, not {shown(entry[name])}.")
        elif name in entry and abs(entry[name]) > EXACT and (part, name) != ("annotations", "id"):
            yield Problem("bad JSON", place, f"{name} must be at most 2^53, not {shown(entry[name])}.")
    for name in ("width", "height"):
        if part == "images" and not (_is_whole(entry[name]) and 0 < entry[name] <= LARGEST):
            message = f"{name} must be a positive whole number, not {shown(entry[name])}."
            yield Problem("bad JSON", place, message)
    for name in ("file_name", "name"):
        if name in FIELDS[part] and not (isinstance(entry[name], str) and entry[name]):
            yield Problem("bad JSON", place, f"{name} must be a text, not {shown(entry[name])}.")
    file = entry.get("file_name")
    if part == "images" and isinstance(file, str):
        if file.startswith("/") or ".." in file.split("/"):
            yield Problem("bad JSON", place, f"file_name {file!r} points outside the image folder.")
        elif not _is_path(file):
            yield Problem("bad JSON", place, f"file_name {file!r} is not a valid file name.")


def _is_whole(value: Any) -> bool:
    """Whether a value is a whole number; pandas writes 64 as 64.0."""
    return type(value) is int or (type(value) is float and value.is_integer())


def _is_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _tidy(found: Instances) -> None:
    """One spelling of numbers and file names: 64 for 64.0, `1.jpg` for `./1.jpg`."""
    document = dict(found.document)
    for part in FIELDS:
        document[part] = [_tidied(found, part, entry) for entry in document[part]]
    found.document = document


def _tidied(found: Instances, part: str, entry: dict[str, Any]) -> dict[str, Any]:
    floats = {
        name: int(entry[name]) for name in WHOLE if type(entry.get(name)) is float and _is_whole(entry[name])
    }
    if floats:
        found.convert("entries with numbers such as 64.0, taken as 64", f"{ONE[part]} {int(entry['id'])}")
        entry = {**entry, **floats}
    if part == "images" and posixpath.normpath(entry["file_name"]) != entry["file_name"]:
        entry = {**entry, "file_name": posixpath.normpath(entry["file_name"])}
    return entry


def _identities(found: Instances) -> None:
    """Ids that are there twice, names that are there twice, references to nothing."""
    document = found.document
    for part, one in ONE.items():
        for value, count in Counter(entry["id"] for entry in document[part]).items():
            if count > 1:
                found.problems.append(
                    Problem(
                        "duplicate id", f"{one} {value}", f"{count} {part} have this id; give each its own."
                    )
                )
    for part, name in (("images", "file_name"), ("categories", "name")):
        for value, count in Counter(entry[name] for entry in document[part]).items():
            if count > 1:
                remedy = f"{count} {part} have this {name}; keep one."
                found.problems.append(Problem("duplicate name", value, remedy))
    images = {image["id"] for image in document["images"]}
    categories = {category["id"] for category in document["categories"]}
    for entry in document["annotations"]:
        place = f"annotation {entry['id']}"
        if entry["category_id"] not in categories:
            message = f"Its category, {entry['category_id']}, is not listed."
            found.problems.append(Problem("unknown category", place, message))
        if entry["image_id"] not in images:
            message = f"Its image, {entry['image_id']}, is not listed."
            found.problems.append(Problem("broken reference", place, message))
    if not document["categories"]:
        found.problems.append(Problem("empty set", "", "It has no categories."))
    if not document["images"]:
        found.problems.append(Problem("empty set", "", "It has no images."))


def forget() -> None:
    """Drop what `both` keeps for a second reader."""
    _both.cache_clear()


def layout(root: Path) -> Iterator[Problem]:
    """What is wrong with folders and files: nothing is opened."""
    for split in ("train", "val"):
        folder, source = root / f"{split}2017", source_of(root, split)
        if not folder.is_dir():
            yield Problem("missing folder", str(folder), "There is no such folder.")
        elif not any(os.scandir(folder)):
            yield Problem("empty folder", str(folder), "It holds no images.")
        try:
            if not is_there(source, "annotations"):
                yield Problem("missing file", str(source), "There is no such file.")
        except UserError as error:
            yield Problem("missing file", str(source), error.remedy)


def rules() -> str:
    """The digest of these rules: what older rules found sound is examined again."""
    files = (__file__, instances.__file__, masks.__file__)
    return digest("".join(Path(file).read_text(encoding="utf-8") for file in files))


def by_folder(split: str, names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The images that a split lists, by folders relative to the root; each once."""
    folders: dict[str, list[str]] = {}
    for file in names:
        folder, _, name = f"{split}2017/{file}".rpartition("/")
        folders.setdefault(folder, []).append(name)
    for folder, inside in sorted(folders.items()):
        yield folder, list(dict.fromkeys(inside))


def both(root: Path) -> dict[str, Instances]:
    """The annotations of `train` and `val`, fit for use.

    Raises:
        UserError: a rule is broken; the message names the file, the entry and what is wrong.
    """
    return _both(root, tuple(_stamp(source_of(root, split)) for split in ("train", "val")))


@functools.lru_cache(maxsize=1)  # both datasets of a run need it
def _both(root: Path, stamps: tuple[Any, ...]) -> dict[str, Instances]:
    del stamps
    found = {split: read(root, split) for split in ("train", "val")}
    for each in found.values():
        each.require("--data coco")
    for problem in differences(found["train"], found["val"]):
        raise UserError(f"--data coco, {problem.entry}", remedy=problem.message)
    return found


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_ctime_ns


def differences(train: Instances, val: Instances) -> Iterator[Problem]:
    """How the categories of the splits differ."""
    if train.problems or val.problems:
        return
    first, second = (
        [(category["id"], category["name"]) for category in found.document["categories"]]
        for found in (train, val)
    )
    if first != second:
        message = "Both splits need the same categories, in the same order."
        yield Problem("class order", str(val.source), message)


Listed = tuple[str, int, int, bool]
"""An image that a split lists: file name, width, height, and whether a run reads it."""


def listed(instances: Instances, split: str) -> list[Listed]:
    """The images of a split; in training only those with annotations are read."""
    document = instances.document
    annotated = {entry["image_id"] for entry in document.get("annotations", ())}
    return [
        (image["file_name"], image["width"], image["height"], split == "val" or image["id"] in annotated)
        for image in document.get("images", ())
    ]


def sizes(root: Path, images: Mapping[str, Sequence[Listed]], folders: Sequence[Folder]) -> Iterator[Problem]:
    """Images whose size is not the stated one; `folders` must know the sizes."""
    by_path = {folder.path: folder for folder in folders}
    for split, found in images.items():
        places: dict[str, dict[bytes, int]] = {}
        for file, *stated, _ in found:
            path, _, name = f"{split}2017/{file}".rpartition("/")
            folder = by_path.get(path)
            if folder is None:
                continue
            if path not in places:
                places[path] = {each: index for index, each in enumerate(folder.each())}
            index = places[path].get(os.fsencode(name))
            if index is None or folder.corrupt[index]:
                continue
            actual = folder.facts[index, [WIDTH, HEIGHT]].tolist()
            if actual != stated:
                said = f"{source_of(root, split).name} says {stated[0]}x{stated[1]}"
                message = f"It is {actual[0]}x{actual[1]} pixels; {said}."
                yield Problem("size mismatch", str(root / path / name), message)
            elif is_thin(*actual):
                yield Problem("thin image", str(root / path / name), THIN.format(*actual))

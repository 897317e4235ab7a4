"""A dataset on disk as the stages of a run read it: which files, how many images, and their identity.

Files that no stage opens do not count: a README, a hidden file, an image of `val` for a pretraining.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mimbench.atomic import digest, read_json, write_json
from mimbench.data import ALL_PROBLEMS, STAMP, Identity, ade20k, coco, imagenet, look
from mimbench.data.decode import decode, label_map
from mimbench.data.files import LISTS, Folder, Look, Progress, fill, identity, left_out, scan
from mimbench.data.image_folder import caption_of, cut_captions, read_captions
from mimbench.data.memory import Memory, difference
from mimbench.data.walk import is_there
from mimbench.errors import UserError


class Dataset:
    """One dataset; each of its folders is scanned once.

    Args:
        cache: where digests are remembered; None remembers nothing.
        skip_corrupt: leave out images that do not decode (each is decoded once to know) or are not there.
    """

    def __init__(self, root: Path, cache: Path | None, *, skip_corrupt: bool = False) -> None:
        self.root, self.cache, self.skip_corrupt = root, cache, skip_corrupt
        self._memory: Memory | None = None
        self._scanned: dict[tuple[str, bool], tuple[list[Folder], list[str]]] = {}

    @property
    def memory(self) -> Memory:
        if self._memory is None:
            self._memory = Memory(self.cache, self.root)
        return self._memory

    def reads(self, role: str, *, labels: bool) -> tuple[list[Folder], list[str]]:
        """The files that a task reads, or without `labels` a pretraining; and texts that decide its numbers.

        Args:
            role: `imagenet`, `ade20k`, `coco` or `captions`: which format the dataset has.

        Raises:
            UserError: a file that is listed is missing or unreadable.
        """
        if (role, labels) not in self._scanned:
            known = {folder.path: folder for folders, _ in self._scanned.values() for folder in folders}
            folders, extra = [], []
            for found in READERS[role](self, labels):
                if isinstance(found, str):
                    extra.append(found)
                    continue
                path, names = found
                there, blob = known.get(path), b"\0".join(sorted(map(os.fsencode, names)))
                if there is None or there.names != blob:
                    field = f"--data {role}"
                    skips = self.skip_corrupt and path not in LISTS
                    there = scan(self.root, path, names, field, skip_missing=skips)
                folders.append(there)
            self._scanned[role, labels] = folders, extra
        return self._scanned[role, labels]

    def identity(
        self,
        role: str,
        *,
        labels: bool,
        trust_stat: bool = False,
        progress: Progress | None = None,
    ) -> Identity:
        """The identity of what a stage reads.

        Args:
            trust_stat: of images and label maps, sizes and times of modification decide, not contents.

        Raises:
            UserError: a file cannot be read.
        """
        folders, extra = self.reads(role, labels=labels)
        if trust_stat:
            lists = [folder for folder in folders if folder.holds_lists]
            fill(self.root, lists, self.memory, field=f"--data {role}")
        if not trust_stat or self.skip_corrupt:
            fill(
                self.root,
                folders,
                self.memory,
                field=f"--data {role}",
                digests=not trust_stat,
                look=look.WHETHER if self.skip_corrupt else None,
                progress=progress,
            )
        found = identity(folders, extra, by_stamp=trust_stat, skip_corrupt=self.skip_corrupt)
        skipped = tuple(left_out(folders)) if self.skip_corrupt else ()
        return Identity(f"{STAMP}{found}" if trust_stat else found, skipped)

    def require(self, role: str, *, labels: bool, progress: Progress | None = None) -> None:
        """Check by content what a run reads: what else would be found after hours of training.

        Sizes of images and label maps, labels and annotations. It decodes images that look cut off, images
        of a refused kind, and for a task all images of the evaluation split. Each file is looked at once, as
        long as it stays the same.

        Raises:
            UserError: the first thing that is wrong, with file, entry and remedy.
        """
        folders, _ = self.reads(role, labels=labels)
        field = f"--data {role}"

        def find_out(what: Look, among: list[Folder]) -> None:
            fill(self.root, among, self.memory, field=field, digests=False, look=what, progress=progress)

        if role in ("imagenet", "captions"):
            if labels:  # `reads` has looked at the layout
                imagenet.classes_for_labels(self.root)
            else:
                for problem in imagenet.layout(self.root, ("train",)):
                    raise UserError(f"{field}, {problem.entry}", remedy=problem.message)
        if role == "captions":
            self._require_captions(folders)
        images = [folder for folder in folders if _holds_images(folder)]
        starts = STARTS[role] if labels else STARTS[role][:1]
        if self.skip_corrupt:
            find_out(look.WHETHER, images)
        else:
            find_out(look.ENDS, images)
            find_out(look.SUSPECTS, images)
            if labels:
                find_out(look.WHETHER, [folder for folder in images if _is_in(folder, STARTS[role][1])])
            for file in left_out(images):
                raise look.why(self.root / file)
        if role == "coco":
            find_out(look.SIZES, images)
            for problem in coco.sizes(self.root, _listed(self), folders):
                raise UserError(f"{field}, {problem.entry}", remedy=problem.message)
        if role == "ade20k":
            for problem in ade20k.layout(self.root):
                raise UserError(f"{field}, {problem.entry}", remedy=problem.message)
            find_out(look.SIZES, [folder for folder in folders if _is_in(folder, "images")])
            find_out(look.LABELS, [folder for folder in folders if _is_in(folder, "annotations")])
            for problem in ade20k.contents(self.root, folders, skip_corrupt=self.skip_corrupt):
                raise UserError(f"{field}, {problem.entry}", remedy=f"{problem.message} {ALL_PROBLEMS}")
        if self.skip_corrupt:
            self._require_some(field, starts, folders)

    def conversions(self, role: str, *, labels: bool) -> list[str]:
        """What a run converts or does without, in sentences; call `require` first."""
        folders = [folder for folder in self.reads(role, labels=labels)[0] if _holds_images(folder)]
        fill(self.root, folders, self.memory, field=f"--data {role}", digests=False, look=look.DEPTH)
        found = list(look.conversions(folders, upright=role in ("ade20k", "coco")))
        if labels and role in ("imagenet", "captions"):
            found += imagenet.unmeasured(self.root)
        if role == "captions":
            found += cut_captions(read_captions(self.root), _names(folders))
        return found

    def _require_some(self, field: str, starts: tuple[str, ...], folders: list[Folder]) -> None:
        """Raises UserError unless each split has an image that decodes, and whose label map does."""
        by_path = {folder.path: folder for folder in folders}
        for start in starts:
            inside = [folder for folder in folders if _is_in(folder, start)]
            maps = [by_path[ade20k.labels_of(each.path)] if start in MAPPED else each for each in inside]
            if not inside or any(
                (~one.corrupt & ~two.corrupt).any() for one, two in zip(inside, maps, strict=True)
            ):
                continue
            first = next(left_out([*inside, *maps]))
            why = look.why(self.root / first, label_map if first.startswith("annotations/") else decode)
            remedy = f"No image in it can be used. {self.root / first}: {why.remedy}"
            raise UserError(f"{field}, {self.root / start}", remedy=remedy)

    def _require_captions(self, folders: list[Folder]) -> None:
        """Raises UserError unless captions.json is sound, and each image has a caption with words."""
        captions = read_captions(self.root)
        for name in _names(folders):
            caption_of(captions, self.root, name)

    def changed(self, role: str, *, labels: bool) -> str | None:
        """The first file that is not as it was, relative to the root; None if none is known.

        Call `identity` first: it finds what the files hold now. `memory.before` has what they held before.
        """
        folders, _ = self.reads(role, labels=labels)
        for folder in folders:
            before = self.memory.before.get(folder.path)
            name = None if before is None else difference(before, folder)
            if name is not None:
                return "/".join(filter(None, (folder.path, os.fsdecode(name))))
        return None

    def count(self, role: str, *, labels: bool) -> int:
        """How many training images there are; with `labels`, how many labelled ones."""
        folders, _ = self.reads(role, labels=labels)
        return sum(len(folder) for folder in folders if _is_in(folder, STARTS[role][0]))


STARTS = {
    "imagenet": ("train", "val"),
    "captions": ("train", "val"),
    "ade20k": ("images/training", "images/validation"),
    "coco": ("train2017", "val2017"),
}
"""The folders of the training images and of the evaluation images."""
MAPPED = STARTS["ade20k"]  # folders whose images have label maps


Found = Iterator["tuple[str, list[str]] | str"]


def _is_in(folder: Folder, start: str) -> bool:
    return folder.path == start or folder.path.startswith(f"{start}/")


def _holds_images(folder: Folder) -> bool:
    return any(_is_in(folder, start) for starts in STARTS.values() for start in starts)


def _names(folders: Iterable[Folder]) -> Iterator[str]:
    """The files that are not in the root itself, relative to the root."""
    for folder in folders:
        for name in folder.each() if folder.path else ():
            yield f"{folder.path}/{os.fsdecode(name)}"


def _imagenet(dataset: Dataset, labels: bool) -> Found:
    root = dataset.root
    classes = imagenet.class_folders(root / "train")
    if not labels:
        yield from _classes(root, "train")
        return
    for problem in imagenet.layout(root):
        raise UserError(f"--data imagenet, {problem.entry}", remedy=problem.message)
    for name in classes:
        yield f"class {name}"
    listed = imagenet.listed(root)
    if listed is None:
        yield from _classes(root, "train")
    else:
        yield "", [imagenet.LABELLED]
        yield from _by_folder(listed)
    yield from _classes(root, "val")


def _classes(root: Path, split: str) -> Found:
    """The images of each class. Raises UserError for a folder of images in a class folder."""
    for name in imagenet.class_folders(root / split):
        images, problems = imagenet.images_of(root / split / name)
        for problem in problems:
            raise UserError(f"--data imagenet, {problem.entry}", remedy=problem.message)
        yield f"{split}/{name}", images


def _by_folder(files: Iterable[str]) -> Found:
    """Files, relative to the root, by their folders; each once."""
    folders: dict[str, list[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        folders.setdefault(folder, []).append(name)
    for folder, names in sorted(folders.items()):
        yield folder, list(dict.fromkeys(names))


def _captions(dataset: Dataset, labels: bool) -> Found:
    yield from _imagenet(dataset, labels)
    yield "", ["captions.json"]


def _ade20k(dataset: Dataset, labels: bool) -> Found:
    del labels
    root = dataset.root
    if is_there(root / "classes.txt", "classes"):
        yield "", ["classes.txt"]
    for split in ade20k.SPLITS:
        for folder, names in ade20k.images(root, split):
            yield folder, names
            yield ade20k.labels_of(folder), [ade20k.label_name(name) for name in names]


def _coco(dataset: Dataset, labels: bool) -> Found:
    del labels
    yield "annotations", [coco.source_of(dataset.root, split).name for split in coco.SPLITS]
    for split, images in _listed(dataset).items():
        yield from coco.by_folder(split, [name for name, _, _, is_read in images if is_read])


def _listed(dataset: Dataset) -> dict[str, list[coco.Listed]]:
    """The images that both splits list. Annotations that were found sound are not parsed again."""
    names = [coco.source_of(dataset.root, split).name for split in coco.SPLITS]
    field = "--data coco"
    sources = fill(
        dataset.root, [scan(dataset.root, "annotations", names, field)], dataset.memory, field=field
    )
    key = digest(f"{identity(sources)} {coco.rules()}")
    place = dataset.cache / "coco" / f"{key}.json" if dataset.cache else None
    known: Any = None
    if place is not None:
        with contextlib.suppress(OSError):
            known = read_json(place)
    if isinstance(known, dict) and known.get("digest") == _seal(key, known.get("images")):
        return {split: [tuple(image) for image in images] for split, images in known["images"].items()}
    annotations = coco.both(dataset.root)
    found = {split: coco.listed(annotations[split], split) for split in coco.SPLITS}
    coco.forget()  # a large file's content is not kept in memory
    if place is not None:
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, {"images": found, "digest": _seal(key, found)})
    return found


def _seal(key: str, images: Any) -> str:
    """The digest of an entry with the name of its file, so a copy under another name is not accepted."""
    return digest(json.dumps([key, images]))


READERS: dict[str, Callable[[Dataset, bool], Found]] = {
    "imagenet": _imagenet,
    "captions": _captions,
    "ade20k": _ade20k,
    "coco": _coco,
}

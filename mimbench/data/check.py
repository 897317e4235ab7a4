"""Checks a dataset before hours of training are spent on it, by the rules of its format. Loads no torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mimbench.data import Problem, ade20k, coco, imagenet, look
from mimbench.data.files import Folder, Look, Progress, fill, left_out, scan
from mimbench.data.image_folder import caption_of, cut_captions, read_captions
from mimbench.data.memory import Memory
from mimbench.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

LAYOUTS = {
    "imagenet": "{train,val}/<class>/*.jpg",
    "ade20k": "images/{training,validation}/*.jpg and annotations/{training,validation}/*.png",
    "coco": "{train,val}2017/*.jpg and annotations/instances_{train,val}2017.json",
}
SMALL = 20_000  # images that are decoded without being asked for
PARSE_BYTES = 100 * 2**20  # `require` parses JSON up to this size (official COCO takes half a minute)


@dataclass
class Report:
    """What `check` found.

    Attributes:
        path: what was checked. limit: how many violations of each kind are kept in `first`.
        formats: the datasets found: folder to format.
        images: how many images there are. decoded: how many of them were decoded.
        counts: violations by kind. first: the first of each kind, as sentences that name the file.
        notes: what is odd but allowed, and what a run would convert.
    """

    path: Path
    limit: int = 5
    formats: dict[Path, str] = field(default_factory=dict)
    images: int = 0
    decoded: int = 0
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

    def take(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self.add(problem.kind, f"{problem.entry}: {problem.message}")

    def take_error(self, kind: str, error: UserError) -> None:
        self.add(kind, str(error))


class Check:
    """One dataset under examination.

    Args:
        cache: where facts about files are remembered. full: decode every image, however many there are.
    """

    def __init__(
        self, root: Path, report: Report, cache: Path | None, full: bool, progress: Progress | None
    ) -> None:
        self.root, self.report, self.full, self.progress = root, report, full, progress
        self.memory = Memory(cache, root)

    def files(self, path: str, names: Iterable[str]) -> Folder:
        """The stamps of files; those that are not there, or no ordinary files, are violations."""
        good = []
        for name in names:
            place = self.root / path / name
            if place.is_file():
                good.append(name)
            else:
                what = "It is no ordinary file." if place.exists() else "It is a link to nothing."
                self.report.add("unreadable image", f"{place}: {what}")
        return scan(self.root, path, good, "data")

    def find_out(self, what: Look, among: list[Folder]) -> None:
        fill(self.root, among, self.memory, field="data", digests=False, look=what, progress=self.progress)

    def decode(self, folders: list[Folder], *, upright: bool = False) -> None:
        """Decode the images if all are to be decoded, or they are few; note what a run converts.

        Args:
            upright: a run turns them as their EXIF orientation says.
        """
        count = sum(map(len, folders))
        self.report.images += count
        what = look.WHETHER if self.full or count <= SMALL else look.SIZES
        self.find_out(what, folders)
        if what is look.WHETHER:
            self.report.decoded += count
        self.find_out(look.ENDS, folders)
        self.find_out(look.SUSPECTS, folders)
        for file in left_out(folders):
            self.report.add("unreadable image", f"{self.root / file}: {look.why(self.root / file).remedy}")
        self.find_out(look.DEPTH, folders)
        if upright:
            self.find_out(look.SIZES, folders)
        self.report.notes += [f"{self.root}: {note}" for note in look.conversions(folders, upright=upright)]

    def imagenet(self) -> None:
        root, report = self.root, self.report
        report.take(imagenet.layout(root))
        report.notes += imagenet.notes(root)
        folders = []
        for split, name in _classes(root):
            names, nested = imagenet.images_of(root / split / name)
            report.take(nested)
            folders.append(self.files(f"{split}/{name}", names))
        self.decode(folders)
        try:
            imagenet.listed(root)
        except UserError as error:
            report.take_error("broken reference", error)
        if os.path.lexists(root / "captions.json"):
            self.captions(
                {f"{folder.path}/{os.fsdecode(name)}" for folder in folders for name in folder.each()}
            )

    def captions(self, names: set[str]) -> None:
        try:
            captions = read_captions(self.root)
        except UserError as error:
            return self.report.take_error("bad JSON", error)
        extra = sorted(set(captions) - names)
        if extra:
            note = f"{self.root / 'captions.json'} describes images that are not there"
            self.report.notes.append(f"{note}: {len(extra)} (first: {extra[0]})")
        read = sorted(name for name in names if name.startswith("train/"))
        for name in read:
            try:
                caption_of(captions, self.root, name)
            except UserError as error:
                missing = name not in captions
                self.report.take_error("image without caption" if missing else "caption without words", error)
        self.report.notes += [f"{self.root}: {note}" for note in cut_captions(captions, read)]

    def ade20k(self) -> None:
        root, report = self.root, self.report
        report.take(ade20k.layout(root))
        try:
            ade20k.classes(root)
        except UserError as error:
            report.take_error("class order", error)
            return
        images, maps = [], []
        for split in ade20k.SPLITS:
            for path, names in ade20k.images(root, split):
                there = ade20k.labels_of(path)
                paired = [name for name in names if (root / there / ade20k.label_name(name)).is_file()]
                for name in sorted(set(names) - set(paired)):
                    label_map = root / there / ade20k.label_name(name)
                    report.add("image without annotation", f"{root / path / name}: there is no {label_map}.")
                if paired:
                    images.append(self.files(path, paired))
                    maps.append(self.files(there, map(ade20k.label_name, paired)))
        self.decode(images, upright=True)
        few = self.full or sum(map(len, maps)) <= SMALL
        if few:
            fill(
                root, maps, self.memory, field="data", digests=False, look=look.LABELS, progress=self.progress
            )
            report.take(ade20k.contents(root, [*images, *maps]))
            report.notes += ade20k.notes(root, maps)

    def coco(self) -> None:
        root, report = self.root, self.report
        found = {split: coco.read(root, split) for split in ("train", "val")}
        folders = []
        for split, instances in found.items():
            for problem in instances.problems:
                entry = ", ".join(filter(None, (str(instances.source), problem.entry)))
                report.add(problem.kind, f"{entry}: {problem.message}")
            report.notes += instances.notes
            images = root / f"{split}2017"
            if not images.is_dir():
                report.add("missing folder", f"{images}: There is no such folder.")
                continue
            every = coco.listed(instances, split)
            broken = bool(instances.problems)  # which images have annotations is not known
            names = [name for name, _, _, is_read in every if is_read or broken]
            for name in sorted(name for name in names if not (images / name).exists()):
                report.add("broken reference", f"{instances.source} lists {name}, which is not in {images}.")
            folders += [
                self.files(path, inside)
                for path, inside in coco.by_folder(split, [n for n in names if (images / n).exists()])
            ]
            if len(every) > len(names):
                unread = next(name for name, _, _, is_read in every if not is_read)
                note = f"images without an annotation, not read: {len(every) - len(names)} (first: {unread})"
                report.notes.append(f"{instances.source}: {note}")
            unlisted = len(set(imagenet.image_names(images)) - {name for name, *_ in every})
            if unlisted and not broken:
                note = f"{images} holds images that {instances.source.name} does not list: {unlisted}"
                report.notes.append(note)
        report.take(coco.differences(found["train"], found["val"]))
        self.decode(folders, upright=True)
        listed = {split: coco.listed(instances, split) for split, instances in found.items()}
        report.take(coco.sizes(root, listed, folders))


def check(
    path: Path,
    *,
    limit: int = 5,
    full: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check the dataset at `path`, or every dataset directly below it; the format of each is detected.

    Args:
        limit: how many violations of each kind are kept.
        full: decode every image and label map of a large dataset, too.

    Raises:
        UserError: there is no such folder, or it has none of the formats.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError("data folder", str(path), remedy="It does not exist or is not a folder.")
    report = Report(path, limit)
    for folder in (path, *sorted(child for child in path.iterdir() if child.is_dir())):
        kind = detect(folder)
        if kind == "imagenet" and folder != path and next(imagenet.layout(folder), None) is not None:
            if not any(imagenet.image_names(folder / split / name) for split, name in _classes(folder)):
                continue  # source code has folders called train, too
        if kind is not None:
            report.formats[folder] = kind
            examination = Check(folder, report, cache, full, progress)
            {"imagenet": examination.imagenet, "ade20k": examination.ade20k, "coco": examination.coco}[kind]()
        if folder == path and kind is not None:
            break
    if not report.formats:
        layouts = "; ".join(f"{name}: {layout}" for name, layout in LAYOUTS.items())
        raise UserError("data folder", str(path), remedy=f"It has none of the known layouts ({layouts}).")
    return report


def _classes(folder: Path) -> Iterator[tuple[str, str]]:
    for split in imagenet.SPLITS:
        for name in imagenet.class_folders(folder / split):
            yield split, name


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
    rest = report.images - report.decoded
    line(f"images: {report.images}, violations: {report.counts.total()}", "green" if report.ok else "red")
    for kind, count in report.counts.items():
        line(f"{kind}: {count}", "bold red")
        for message in report.first[kind]:
            line(f"  {message}")
        if count > report.limit:
            line(f"  ... and {count - report.limit} more")
    for note in report.notes:
        line(f"note: {note}", "yellow")
    if rest:
        line(f"note: images not decoded: {rest}; --full decodes them", "yellow")


def require(role: str, path: Path) -> None:
    """A quick check before anything is planned: the layout of the role's format, and its lists.

    `mimbench.data.dataset.Dataset.require` checks the rest before the first run.

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
    rules: dict[str, Callable[[], Iterable[Problem]]] = {
        "imagenet": lambda: imagenet.layout(path, ("train",)),
        "ade20k": lambda: ade20k.layout(path),
        "coco": lambda: coco.layout(path),
    }
    inside = path / expected  # `--data imagenet=my-data` for my-data/imagenet
    hint = f" Did you mean {str(inside)!r}?" if found is None and detect(inside) == expected else ""
    for problem in rules[expected]():
        raise UserError(where, problem.entry, remedy=f"{problem.message} {layout}{hint}")
    if role == "captions":
        read_captions(path)
    if role == "ade20k":
        ade20k.classes(path)
    if role == "coco" and all(
        coco.source_of(path, split).stat().st_size <= PARSE_BYTES for split in ("train", "val")
    ):
        coco.both(path)

"""The report of a check, and how a check reads images: in parallel, to the last byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from PIL import Image

from mimbench.data.decode import UNREADABLE
from mimbench.data.image_folder import image_files

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Report:
    """What `check` found.

    Attributes:
        path: what was checked.
        limit: how many violations of each kind are kept in `first`.
        formats: the datasets found: folder to format.
        images: how many images were decoded.
        counts: violations by kind.
        first: the first violations of each kind, as sentences that name the file.
        notes: what is odd but allowed.
    """

    path: Path
    limit: int = 5
    formats: dict[Path, str] = field(default_factory=dict)
    images: int = 0
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


def parallel(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    with ThreadPoolExecutor() as pool:  # decoding releases the GIL
        yield from pool.map(work, items)


def _size(path: Path) -> tuple[int, int] | None:
    """Width and height of an image that decodes to its last byte; None if it does not."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.size
    except UNREADABLE:
        return None


def read_images(paths: list[Path], report: Report) -> dict[str, tuple[int, int]]:
    """File name to (width, height) of the images that decode; the others are violations."""
    report.images += len(paths)
    sizes: dict[str, tuple[int, int]] = {}
    for path, size in zip(paths, parallel(_size, paths), strict=True):
        if size is None:
            report.add("unreadable image", str(path))
        else:
            sizes[path.name] = size
    return sizes


def images_of(folder: Path, report: Report) -> list[Path]:
    if not folder.is_dir():
        report.add("missing folder", str(folder))
        return []
    files = image_files(folder)
    if not files:
        report.add("empty folder", str(folder))
    return files


def by(size: Iterable[int]) -> str:
    return "x".join(map(str, size))

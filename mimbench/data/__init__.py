"""Data as files in the field's formats: the rules of each format, what a run reads, readers, toy data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mimbench.errors import UserError

THINNEST = 100  # how many times its width an image may be high, or its height wide, for dense tasks
THIN = "It is {}x{} pixels: too thin to be resized. Crop it, or leave it out."
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # as in torchvision
STAMP = "stamp-"  # begins an identity by sizes and times of modification
ALL_PROBLEMS = "`mimbench data check` lists all problems."
"""The advice after the first problem that a run finds; the check itself does not give it."""


@dataclass(frozen=True)
class Identity:
    """What a stage reads of a dataset.

    Attributes:
        digest: equal for equal folders, names and contents; after `STAMP`, for equal sizes and times.
        left_out: files that do not decode and are left out, relative to the dataset's root.
    """

    digest: str
    left_out: tuple[str, ...] = ()


class Problem(NamedTuple):
    """What is wrong with a dataset.

    Attributes:
        kind: for counts. entry: the file, or the entry in it. message: what is wrong, and what to do.
    """

    kind: str
    entry: str
    message: str


def is_thin(width: int, height: int) -> bool:
    """Whether a dense task, which fits an image into its size, may leave no pixel of a side."""
    return max(width, height) > THINNEST * min(width, height)


class Twice(Exception):
    """A name that a JSON object has twice."""


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `object_pairs_hook`; raises Twice. Of two values, json takes the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise Twice(next(name for index, name in enumerate(names) if name in names[:index]))
    return found


def read_lines(file: Path, what: str) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, stripped, with their numbers from 1.

    Raises:
        UserError: it cannot be read, or is not UTF-8; `what` names it.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(what, str(file), remedy=f"It cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UserError(what, str(file), remedy=f"It is not UTF-8: {error}.") from error
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]

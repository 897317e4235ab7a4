"""A run's two last checkpoints: each file ends in what it belongs to and in its own checksum.

A file is the trainer's content, then `Origin` as JSON, the length of that JSON as eight digits, the SHA-256
of all that, and MAGIC. Content and end are one file, so no kill can part them, and torch reads such a file as
it is. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import Strict, TypeAdapter, ValidationError

from mimbench.atomic import atomic_path, opened
from mimbench.store.records import Damaged, Lineages

NAMES = ("trainer.pt", "trainer-before.pt")
"""The last checkpoint, and the one before it."""

ASIDE = ".damaged"  # at the end of the name of a file that was set aside
MAGIC = b"\nmimbench checkpoint 1\n"
LENGTH, DIGEST = 8, 64  # digits
BLOCK = 1 << 20


@dataclass(frozen=True)
class Origin:
    """What a checkpoint belongs to.

    Attributes:
        run: the name of the run's folder. step: steps done.
        source, parents: the code that wrote it, as in `records.Result`.
    """

    run: str
    step: Annotated[int, Strict()]
    source: str
    parents: Lineages


ORIGIN = TypeAdapter(Origin)


class _Hashed:
    """A file that is only written to, and computes the digest of what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.total = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.total.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def save(folder: Path, origin: Origin, content: Callable[[BinaryIO], object]) -> None:
    """Write the newest checkpoint; the newest so far becomes the one before.

    A kill leaves at least one whole checkpoint, if there was one: between the two renames that is the one
    before.

    Args:
        content: writes the trainer's content into the file that it gets.
    """
    newest, before = (folder / name for name in NAMES)
    with atomic_path(newest) as temporary:
        with open(temporary, "wb") as file:
            hashed = _Hashed(file)
            content(hashed)  # type: ignore[arg-type]
            told = json.dumps(asdict(origin)).encode()
            hashed.write(told + f"{len(told):0{LENGTH}}".encode())
            file.write(hashed.total.hexdigest().encode() + MAGIC)
            file.flush()
            os.fsync(file.fileno())  # before the newest so far gives up its name
        if os.path.lexists(before) and not before.is_file():  # damaged, and nobody has read it
            set_aside(before)
        if newest.exists():
            os.replace(newest, before)


def read_origin(path: Path) -> Origin:
    """What a checkpoint's end says; the content is not read.

    Raises:
        Damaged: it has no readable end: it was cut off, or an older version wrote it.
    """
    tail = LENGTH + DIGEST + len(MAGIC)
    try:
        with opened(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - tail, 0))
            end = file.read()
            if len(end) < tail or not end.endswith(MAGIC) or not end[:LENGTH].isdigit():
                raise _damaged(path, "its end is missing")
            file.seek(max(size - tail - int(end[:LENGTH]), 0))
            return ORIGIN.validate_python(json.loads(file.read(int(end[:LENGTH]))))
    except OSError as error:
        raise _damaged(path, f"it cannot be read: {error.strerror}") from error
    except (ValueError, ValidationError, RecursionError) as error:
        raise _damaged(path, "its end is not readable") from error


def check(path: Path) -> Origin:
    """What a checkpoint belongs to, after all of it was compared with its checksum.

    Raises:
        Damaged: it has changed since it was written, or it is of another run.
    """
    origin = read_origin(path)
    total, left = hashlib.sha256(), path.stat().st_size - DIGEST - len(MAGIC)
    try:
        with opened(path) as file:
            while left and (block := file.read(min(left, BLOCK))):
                total.update(block)
                left -= len(block)
            stated = file.read(DIGEST)
    except OSError as error:
        raise _damaged(path, f"it cannot be read: {error.strerror}") from error
    if stated != total.hexdigest().encode():
        raise _damaged(path, "its checksum does not fit its content")
    if origin.run != path.parent.name:
        raise _damaged(path, f"it is of another run, {origin.run}")
    return origin


def present(folder: Path) -> list[Path]:
    """The checkpoints there are, the newest first."""
    return [folder / name for name in NAMES if os.path.lexists(folder / name)]


def sound(folder: Path, *, keep: bool = False) -> Iterator[Path]:
    """The sound checkpoints, the newest first. Prints what is wrong with a damaged one and sets it aside.

    Args:
        keep: set nothing aside; another process does.
    """
    for path in present(folder):
        try:
            check(path)
        except Damaged as error:
            if not keep:
                print(
                    f"{error}: set aside as {set_aside(path).name}; the run goes on without it.", flush=True
                )
            continue
        yield path


def set_aside(path: Path) -> Path:
    """Rename a damaged file, so that nothing reads it again; returns its new place."""
    names = (f"{path.name}{ASIDE}{number}" for number in ("", *range(2, 1000)))
    aside = next(place for name in names if not os.path.lexists(place := path.with_name(name)))
    os.replace(path, aside)
    return aside


def discard(folder: Path) -> None:
    """Delete the checkpoints of a run that is done; what is no file stays, and counts as a leftover."""
    for path in present(folder):
        if path.is_symlink() or path.is_file():
            path.unlink()


def _damaged(path: Path, why: str) -> Damaged:
    return Damaged(f"{path} is damaged ({why})")

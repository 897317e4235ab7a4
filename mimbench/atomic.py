"""Writes files atomically (to a temporary file, flush to disk, rename) and computes digests of them.

`trouble` explains why a file cannot be written: a full disk, a read-only file system, a loop of links.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mimbench.errors import UserError

RANDOM = "[a-z0-9_]{8}"  # the end of a name that tempfile makes
TEMPORARY = re.compile(rf"\..+\.{RANDOM}")
ABANDONED_SECONDS = 3600.0

ROOM = "Free some space and run the same command again."
WRITABLE = "Choose a place that can be written (MIMBENCH_HOME for the workspace)."
OTHER = "Give another place."
TROUBLES = {
    errno.ENOSPC: ("The disk is full: {} could not be written.", ROOM, 1),
    errno.EDQUOT: ("Your disk quota is used up: {} could not be written.", ROOM, 1),
    errno.EROFS: ("The file system is read-only: {} could not be written.", WRITABLE, 1),
    errno.EIO: ("The disk fails: {} could not be read or written.", "Check the disk.", 1),
    errno.EACCES: ("Permission denied: {}.", f"Change its permissions. {WRITABLE}", 1),
    errno.EPERM: ("Not permitted: {}.", WRITABLE, 1),
    errno.ELOOP: ("{} is a loop of symbolic links.", "Remove the link, or give another place.", 2),
    errno.ENOENT: ("There is no such file or folder, and it cannot be made: {}.", OTHER, 2),
    errno.EEXIST: ("{} is there already.", OTHER, 2),
    errno.EISDIR: ("{} is a folder, not a file.", OTHER, 2),
    errno.ENOTDIR: ("{}: a part of this path is a file, not a folder.", OTHER, 2),
    errno.ENAMETOOLONG: ("The name is too long: {}.", OTHER, 2),
}
"""errno to (what happened, what to do, the command's exit status: 1 for a failure, 2 for a mistake)."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any error it is removed.

    Raises:
        OSError: it cannot be written; the error names `path`, not the temporary file.
    """
    temporary = None
    with naming(path, always=True):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            temporary = Path(name)
            os.close(handle)
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            if temporary:
                with contextlib.suppress(OSError):
                    temporary.unlink()
            raise


@contextmanager
def naming(path: Path, *, always: bool = False) -> Iterator[None]:
    """Put `path` into an OSError that names no file; with `always`, into every OSError."""
    try:
        yield
    except OSError as error:
        if always or error.filename is None:
            error.filename = str(path)
        raise


def write_bytes(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Atomically write a binary file; `write` receives the open file."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        write(file)


def write_text(path: Path, text: str) -> None:
    """Atomically write a UTF-8 text file."""
    write_bytes(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Atomically write JSON, keys sorted, readable by a person."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def append_line(path: Path, line: str) -> None:
    """Add a line to the end of a UTF-8 text file."""
    with naming(path), open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def opened(path: Path) -> BinaryIO:
    """A file to read from. Raises OSError, also for a pipe or a device: one might wait for it forever."""
    with naming(path):
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
        raise OSError(errno.EINVAL, "it is no ordinary file")


def read_json(path: Path) -> Any:
    """A JSON file's value; None if the file is missing or not JSON, which counts as never written."""
    try:
        with opened(path) as file:
            return json.loads(file.read().decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None


def abandoned(folder: Path) -> list[Path]:
    """Temporary files of `atomic_path` that are more than an hour old: their writers were killed."""
    found, now = [], time.time()
    with contextlib.suppress(OSError):  # no such folder; or another process removes files meanwhile
        for entry in os.scandir(folder):
            if TEMPORARY.fullmatch(entry.name) and now - entry.stat().st_mtime > ABANDONED_SECONDS:
                found.append(folder / entry.name)
    return sorted(found)


def digest(text: str) -> str:
    """The first 16 hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path, *, field: str) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file's content.

    Raises:
        UserError: the file cannot be read; `field` names what the user gave.
    """
    try:
        return sha256(path)[:16]
    except OSError as error:
        raise UserError(field, str(path), remedy=f"It cannot be read ({error.strerror}).") from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits; the file is read in blocks."""
    with opened(path) as file:
        total = hashlib.sha256()
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


@dataclass(frozen=True)
class Trouble:
    """A message that says what is wrong with a file and what to do, and the command's exit status."""

    message: str
    status: int


def trouble(
    error: BaseException, place: Path | None = None, *, chosen: Iterable[str | Path] = ()
) -> Trouble | None:
    """The message for an error of the file system; None for other errors.

    Args:
        error: the OSError, or a library's error that a full or failing disk caused.
        place: the file that was written; used if the error names none.
        chosen: the places that the user chose. A path that is missing or of the wrong kind is a mistake of
            the user only in, at or above one of these; elsewhere it is a bug of ours, and None.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in TROUBLES:
            what, remedy, status = TROUBLES[cause.errno]
            named = cause.filename if cause.filename is not None else place
            if status == 1 or (cause is error and _is_at(named, chosen)):
                return Trouble(f"{what.format(named or 'a file')} {remedy}", status)
        cause = cause.__cause__ or cause.__context__
    return None


def _is_at(named: object, chosen: Iterable[str | Path]) -> bool:
    """Whether a file is one of the chosen places, or lies in or above one of them."""
    if not isinstance(named, (str, Path)):
        return False
    file = Path(os.path.abspath(named))
    places = [Path(os.path.abspath(place)) for place in chosen]
    return any(file.is_relative_to(place) or place.is_relative_to(file) for place in places)

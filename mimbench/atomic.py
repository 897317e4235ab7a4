"""Files that are either there or not: write beside the target, flush to disk, rename; digests of them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mimbench.errors import RunFailed, UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
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


def read_json(path: Path) -> Any:
    """A JSON file's value; None where it is missing or damaged (a damaged one counts as never written)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def digest(text: str) -> str:
    """The first 16 hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path, *, field: str) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file's content.

    Raises:
        UserError: the file cannot be read; `field` names what the user gave.
    """
    try:
        with open(path, "rb") as file:
            total = hashlib.sha256()
            while block := file.read(1 << 20):
                total.update(block)
    except OSError as error:
        raise UserError(field, str(path), remedy=f"It cannot be read ({error.strerror}).") from error
    return total.hexdigest()[:16]


def disk_full(error: BaseException | None) -> bool:
    """Whether an error is, or was caused by, a disk (or quota) without space."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def disk_full_message(place: Path) -> str:
    return f"The disk is full: {place} could not be written. Free some space and run the same command again."


@contextmanager
def disk(place: Path) -> Iterator[None]:
    """Turn a full disk into a failure that says so. Raises RunFailed."""
    try:
        yield
    except OSError as error:
        if not disk_full(error):
            raise
        raise RunFailed(disk_full_message(place)) from error

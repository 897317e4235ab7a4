"""Damage of files, as bad disks and careless people do it; the same damage for the same seed."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

SEED = int(os.environ.get("FAULTS_SEED", "0"))
WHOLE = os.environ.get("FAULTS") == "all"  # every combination of file and damage, which takes minutes


def every_flip(content: bytes) -> Iterator[bytes]:
    """The content with one bit turned, for every bit."""
    for place in range(8 * len(content)):
        yield flipped(content, place)


def flipped(content: bytes, bit: int) -> bytes:
    """The content with one bit turned; an empty file stays as it is."""
    if not content:
        return content
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def sample(kinds: Iterable[str], of: str, count: int) -> list[str]:
    """Some kinds of damage for a file by the seed; all where everything is wanted."""
    return list(kinds) if WHOLE else random.Random(f"{SEED} {of}").sample(sorted(kinds), count)


def garbage(content: bytes) -> bytes:
    return random.Random(SEED).randbytes(len(content))


def as_folder(path: Path) -> None:
    remove(path)
    path.mkdir()


def as_loop(path: Path) -> None:
    remove(path)
    path.symlink_to(path.name)


def as_pipe(path: Path) -> None:
    """A named pipe: who opens it to read waits until somebody writes."""
    remove(path)
    os.mkfifo(path)


def as_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Damage that changes a file's bytes; a file that is missing counts as empty."""

    def damage(path: Path) -> None:
        content = path.read_bytes() if path.is_file() else b""
        path.write_bytes(change(content))

    return damage


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


KINDS: dict[str, Callable[[Path], None]] = {
    "removed": remove,
    "folder": as_folder,
    "loop": as_loop,
    "pipe": as_pipe,
    "empty": as_bytes(lambda content: b""),
    "half": as_bytes(lambda content: content[: len(content) // 2]),
    "a byte short": as_bytes(lambda content: content[:-1]),
    "a byte more": as_bytes(lambda content: content + b"\0"),
    "zeros": as_bytes(lambda content: b"\0" * len(content)),
    "garbage": as_bytes(garbage),
    "flip at the start": as_bytes(lambda content: flipped(content, 3)),
    "flip in the middle": as_bytes(lambda content: flipped(content, 4 * len(content))),
    "flip at the end": as_bytes(lambda content: flipped(content, 8 * len(content) - 5)),
}
"""Damage that fits every file."""

JSON = {
    "a list": as_bytes(lambda content: b"[]"),
    "an empty object": as_bytes(lambda content: b"{}"),
    "null": as_bytes(lambda content: b"null"),
    "a text": as_bytes(lambda content: b'"[/red] \\u001b[31m"'),
    "odd types": as_bytes(
        lambda content: b'{"plugin": "x", "data": 3, "metrics": [], "schema": "2", "step": {}}'
    ),
    "deep": as_bytes(lambda content: b"[" * 100_000),
    "newer": as_bytes(lambda content: content.replace(b"{", b'{"schema": 99, "newer": 1,', 1)),
}
"""Damage for JSON files."""

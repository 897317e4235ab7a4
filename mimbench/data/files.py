"""The files that a run reads of a dataset, with digests of their content: computed once, then remembered.

A file's digest is remembered under its stamp: size, time of modification, inode and time of change. Copies
and archives bring an old time of modification back; nobody sets the time of change. Lists are packed in
arrays, because ImageNet has more than a million files.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from mimbench.data.heads import HEAD, TAIL, is_deep, is_suspect
from mimbench.errors import UserError

try:
    from xxhash import xxh3_128

    ALGORITHM = "xxh3_128"
except ImportError:
    ALGORITHM = "sha256"

BLOCK = 1 << 20  # bytes read at once
CHUNK = 512  # files that one thread hashes at once
DECODES, WIDTH, HEIGHT, LABEL, DEEP, TURNED, SUSPECT = range(7)  # columns of Folder.facts
STAMPS = 4  # numbers that a stamp has
MODIFIED, CHANGED = 1, 3  # columns of Folder.stamps
NOTHING = (-1,) * 7  # no fact is known
LISTS = ("", "annotations")  # the folders of lists and annotations, which are no images

Progress = Callable[[int, int], None]  # files done, files to do


class Look(NamedTuple):
    """How facts of a file are found out.

    Attributes:
        columns: of Folder.facts, which it finds. at: gives them for a path, -1 where there is none to find.
        only: a column; only files whose fact in this column is 1 are looked at.
    """

    columns: tuple[int, ...]
    at: Callable[[str], Sequence[int]]
    only: int | None = None

    def missing(self, folder: Folder) -> np.ndarray:
        """[N] of bool: files of which one of these facts is not known."""
        unknown = (folder.facts[:, list(self.columns)] < 0).any(axis=1) & ~folder.corrupt
        if folder.holds_lists:  # these are no images
            unknown[:] = False
        return unknown if self.only is None else unknown & (folder.facts[:, self.only] == 1)


@dataclass
class Folder:
    """Files of one folder, sorted by name.

    Attributes:
        path: relative to the dataset's root, with `/`; empty for the root itself.
        names: as the file system has them, separated by zero bytes.
        stamps: [N, 4] of int64: size, time of modification in nanoseconds, inode, time of change (of content,
            name or rights) in nanoseconds.
        digests: [N, 16] of uint8; of no meaning where `known` is false. known: [N] of bool.
        facts: [N, 7] of int32, -1 where it is not known: whether the image decodes (1 or 0), its width and
            height in pixels as it is shown, the highest label of a label map, whether the image has 16 bits
            a channel, whether its EXIF orientation turns it, and whether it may be cut off or of a kind that
            is refused.
    """

    path: str
    names: bytes
    stamps: np.ndarray
    digests: np.ndarray
    known: np.ndarray
    facts: np.ndarray

    @property
    def corrupt(self) -> np.ndarray:
        """[N] of bool: what is known not to decode."""
        return self.facts[:, DECODES] == 0

    @property
    def holds_lists(self) -> bool:
        """Whether these are lists and annotations, which are small or decide labels; images lie elsewhere."""
        return self.path in LISTS

    def __len__(self) -> int:
        return len(self.stamps)

    def each(self) -> list[bytes]:
        """The files' names, one by one."""
        return self.names.split(b"\0") if len(self) else []


def scan(root: Path, path: str, names: Iterable[str], field: str, *, skip_missing: bool = False) -> Folder:
    """The stamps of files of one folder; no content is read.

    Args:
        field: what the user gave, for messages.
        skip_missing: the files are images; count one that is not there as one that does not decode.

    Raises:
        UserError: a file is missing, cannot be read, or is no ordinary file.
    """
    base = os.path.join(root, path) if path else str(root)
    ordered = sorted(os.fsencode(name) for name in names)
    stamps, missing = np.full((len(ordered), STAMPS), -1, np.int64), []
    try:
        descriptor = os.open(base, os.O_RDONLY)
    except OSError as error:
        raise UserError(field, base, remedy=f"The folder cannot be read ({error.strerror}).") from error
    try:
        for index, name in enumerate(ordered):
            try:
                found = os.stat(name, dir_fd=descriptor)
            except OSError as error:
                if skip_missing:
                    missing.append(index)
                    continue
                remedy = f"It cannot be read ({error.strerror}): restore it, or what it links to."
                raise UserError(field, os.path.join(base, os.fsdecode(name)), remedy=remedy) from error
            if not stat.S_ISREG(found.st_mode):
                place = os.path.join(base, os.fsdecode(name))
                raise UserError(field, place, remedy="It is no ordinary file: remove it.")
            stamps[index] = found.st_size, found.st_mtime_ns, found.st_ino, found.st_ctime_ns
    finally:
        os.close(descriptor)
    count = len(ordered)
    digests, facts = np.zeros((count, 16), np.uint8), np.full((count, len(NOTHING)), -1, np.int32)
    facts[missing, DECODES] = 0
    return Folder(path, b"\0".join(ordered), stamps, digests, np.isin(np.arange(count), missing), facts)


def checksum() -> Any:
    """A new hash of `ALGORITHM`."""
    return xxh3_128() if ALGORITHM == "xxh3_128" else hashlib.sha256()


def hash_file(path: str | bytes, descriptor: int | None = None, ends: list[bytes] | None = None) -> bytes:
    """16 bytes: the digest of a file's content. `ends` gets its first and its last bytes. Raises OSError."""
    total, head, tail = checksum(), b"", b""
    file = os.open(path, os.O_RDONLY, dir_fd=descriptor)
    try:
        while block := os.read(file, BLOCK):
            head = head or block[:HEAD]
            tail = block[-TAIL:] if len(block) >= TAIL else (tail + block)[-TAIL:]
            total.update(block)
    finally:
        os.close(file)
    if ends is not None:
        ends += [head, tail]
    return total.digest()[:16]


class Remembers(Protocol):
    """What is known of files from earlier commands; see `mimbench.data.memory`."""

    def recall(self, folder: Folder) -> None: ...

    def keep(self, folder: Folder, started: int) -> None: ...

    def save(self) -> None: ...


def fill(
    root: Path,
    folders: Iterable[Folder],
    memory: Remembers,
    *,
    field: str,
    digests: bool = True,
    look: Look | None = None,
    progress: Progress | None = None,
) -> list[Folder]:
    """Find out what is not yet known, in parallel, and remember it.

    Args:
        folders: as `scan` gives them.
        digests: compute the digests of the files' content. look: find out these facts of the files.
        progress: called now and then while there is something to compute.

    Raises:
        UserError: a file cannot be read.
    """
    started = time.time_ns()
    filled: list[Folder] = []
    jobs: list[tuple[Folder, np.ndarray]] = []
    for folder in folders:
        memory.recall(folder)
        filled.append(folder)
        missing = ~folder.known & digests
        if look is not None:
            missing = missing | look.missing(folder)
        where = np.flatnonzero(missing)
        jobs += [(folder, where[first : first + CHUNK]) for first in range(0, len(where), CHUNK)]
    total, done = sum(len(where) for _, where in jobs), 0
    if jobs:
        with ThreadPoolExecutor() as pool:  # reading and decoding release the GIL
            for count in pool.map(lambda job: _fill(root, job[0], job[1], field, digests, look), jobs):
                done += count
                if progress is not None:
                    progress(done, total)
        for folder in {id(folder): folder for folder, _ in jobs}.values():
            memory.keep(folder, started)
        memory.save()
    return filled


def _fill(root: Path, folder: Folder, where: np.ndarray, field: str, digests: bool, look: Look | None) -> int:
    base = os.path.join(root, folder.path) if folder.path else str(root)
    names = folder.each()
    unknown = look.missing(folder) if look is not None else None
    descriptor = os.open(base, os.O_RDONLY)
    try:
        for index in where:
            place = os.path.join(base, os.fsdecode(names[index]))
            try:
                if digests and not folder.known[index]:
                    ends: list[bytes] = []
                    found = hash_file(names[index], descriptor, ends)
                    folder.digests[index] = np.frombuffer(found, np.uint8)
                    folder.known[index] = True
                    folder.facts[index, DEEP] = is_deep(ends[0])
                    folder.facts[index, SUSPECT] = is_suspect(ends[0], ends[1], int(folder.stamps[index, 0]))
                if look is not None and unknown is not None and unknown[index]:
                    facts = np.array(look.at(place), np.int32)
                    folder.facts[index] = np.where(facts >= 0, facts, folder.facts[index])
            except OSError as error:
                raise UserError(field, place, remedy=f"It cannot be read ({error.strerror}).") from error
    finally:
        os.close(descriptor)
    return len(where)


def identity(
    folders: Iterable[Folder],
    extra: Iterable[str] = (),
    *,
    by_stamp: bool = False,
    skip_corrupt: bool = False,
) -> str:
    """The digest of what is read: folders, names and contents.

    Args:
        extra: further texts that decide numbers, such as the names of the classes.
        by_stamp: sizes and times of modification decide instead of contents, except of lists.
        skip_corrupt: of files that do not decode only the names count.
    """
    total = hashlib.sha256(f"files 1 {'stamp' if by_stamp else ALGORITHM}\n".encode())
    for text in extra:
        total.update(f"+ {text}\n".encode("utf-8", "surrogateescape"))
    for folder in folders:
        if not len(folder):
            continue
        kept = ~folder.corrupt | (not skip_corrupt)
        stamps = by_stamp and not folder.holds_lists
        names, content = folder.names, folder.stamps[:, :2] if stamps else folder.digests
        if not kept.all():
            parts = folder.each()
            left_out = b"\0".join(parts[index] for index in np.flatnonzero(~kept))
            names = b"\0".join(parts[index] for index in np.flatnonzero(kept)) + b"\0\0" + left_out
            content = content[kept]
        total.update(os.fsencode(folder.path) + b"\0" + str(len(content)).encode() + b"\0" + names + b"\0")
        total.update(np.ascontiguousarray(content).tobytes())
    return total.hexdigest()[:32]


def left_out(folders: Iterable[Folder]) -> Iterator[str]:
    """The files that do not decode, relative to the root."""
    for folder in folders:
        corrupt = np.flatnonzero(folder.corrupt)
        if len(corrupt):
            names = folder.each()
            for index in corrupt:
                yield "/".join(filter(None, (folder.path, os.fsdecode(names[index]))))

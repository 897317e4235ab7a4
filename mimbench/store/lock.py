"""One lock per run: whoever computes the run holds it. It ends with its process, even if that is killed."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

NAME = ".lock"


class RunLocked(Exception):
    """Another process computes this run."""


class RunLock:
    """The lock of the run in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / NAME
        self._lock = FileLock(self.file, mode=0o644)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the lock. Raises RunLocked if another process does."""
        try:
            with self._lock.acquire(timeout=0):
                yield
        except Timeout:
            raise RunLocked(self.folder.name) from None

    def is_held(self) -> bool:
        """Whether some process holds it right now."""
        if self._lock.is_locked:
            return True
        if not self.file.exists():
            return False
        probe = FileLock(self.file, mode=0o644)
        try:
            with probe.acquire(timeout=0):
                return False
        except Timeout:
            return True
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR):
                raise
        return _is_held_elsewhere(self.file)


def _is_held_elsewhere(file: Path) -> bool:
    """Whether another process holds a lock that this process cannot take, because it may not write there."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False

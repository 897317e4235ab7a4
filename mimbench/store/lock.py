"""One lock per run: whoever computes the run holds it. It ends with its process, even if that is killed.

If somebody deletes the lock's file meanwhile, the last heartbeat keeps others out, and the process stops.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mimbench.store.records import Status

NAME = ".lock"
RECENT_SECONDS = 60.0  # how long a heartbeat counts as a sign of life


class RunLocked(Exception):
    """Another process computes this run."""


class RunLock:
    """The lock of the run in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / NAME
        self._lock = FileLock(self.file, mode=0o644)
        self._inode: int | None = None  # of the file, while this object holds the lock

    @contextmanager
    def hold(self, status: Status) -> Iterator[None]:
        """Hold the lock. Raises RunLocked if another process does.

        Args:
            status: the run's last heartbeat; it counts if there is no file.
        """
        if self.is_held_without_file(status):
            raise RunLocked(self.folder.name)
        try:
            with self._lock.acquire(timeout=0):
                self._inode = _inode(self.file)
                yield
        except Timeout:
            raise RunLocked(self.folder.name) from None
        finally:
            self._inode = None

    def is_lost(self) -> bool:
        """Whether the file of the lock that this object holds was deleted: another process may hold one."""
        return self._inode is not None and _inode(self.file) != self._inode

    def is_held_without_file(self, status: Status) -> bool:
        """Whether there is no file although a process computes the run, by its last heartbeat."""
        recent = abs(time.time() - status.time) < RECENT_SECONDS
        if self.file.exists() or status.state != "running" or status.pid == os.getpid() or not recent:
            return False
        return status.host != socket.gethostname() or _is_alive(status.pid)

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


def _inode(file: Path) -> int | None:
    try:
        return file.stat().st_ino
    except OSError:
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True


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

"""A workspace that is put back after each case, and the command line in it, in this process."""

from __future__ import annotations

import contextlib
import os
import shutil
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from typer.testing import CliRunner

from mimbench import paths
from mimbench.cli import app
from mimbench.execute import pool, worker
from mimbench.store import fingerprint

ROOT = Path(__file__).resolve().parents[3]


class Killed(BaseException):
    """Ends a run as a kill does: nothing of ours catches it."""


class OwnProcess:
    """The pool's worker, in this process: one run after another, without a second import of torch."""

    def __init__(self, place: Path, environment: object, events: Any) -> None:
        del place, environment
        self.node, self.events, self.ready = None, events, False
        self.gpu, self.heard, self.is_silent = None, 0.0, False
        events.put((self, {"event": "ready"}))

    def send(self, node: Any, path: Path, *, rerun: bool) -> None:
        self.node = node
        self.events.put((self, worker.handle(path, rerun=rerun)))

    def end_if_silent(self) -> None:
        """It cannot be silent."""

    def close(self) -> None:
        """There is no process to end."""


class NoProcess(OwnProcess):
    """Computes nothing: every run fails."""

    def send(self, node: Any, path: Path, *, rerun: bool) -> None:
        del path, rerun
        self.node = node
        self.events.put((self, {"event": "failed", "message": "not computed here", "user": False}))


@dataclass(frozen=True)
class Done:
    """What a command gave: its exit status, what it printed, and a traceback where it crashed."""

    words: tuple[str, ...]
    status: int
    output: str
    crash: str


class Workspace:
    """A folder with `home` (the workspace), `cache`, and a copy of both from which they are put back.

    Attributes:
        home: MIMBENCH_HOME. cache: MIMBENCH_CACHE. tables: the folder of tables that commands read.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.home, self.cache, self.pristine = place / "home", place / "cache", place / "pristine"
        self.tables = self.home / "share" / "tables"
        self._known: dict[str, tuple[int, ...]] = {}

    def copy_from(self, other: Workspace) -> None:
        """Take over another workspace; the paths in its runs' inputs become those of this one."""
        shutil.copytree(other.home, self.home, symlinks=True)
        if other.cache.exists():
            shutil.copytree(other.cache, self.cache)
        for file in self.home.glob("runs/*/inputs.json"):
            before = file.stat()
            file.write_text(file.read_text().replace(str(other.home), str(self.home)))
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    def keep(self) -> None:
        """Remember how everything is now: `restore` comes back to it."""
        shutil.rmtree(self.pristine, ignore_errors=True)
        for part in (self.home, self.cache):
            shutil.copytree(part, self.pristine / part.name, symlinks=True)
        self._known = self._stamps()

    def _stamps(self) -> dict[str, tuple[int, ...]]:
        found = {}
        for part in (self.home, self.cache):
            for folder, below, names in os.walk(part):
                for name in (*below, *names):
                    path = os.path.join(folder, name)
                    stat = os.lstat(path)
                    is_folder = name in below and not os.path.islink(path)
                    # A folder's times say nothing of what its files hold.
                    found[path] = (
                        (stat.st_mode,)
                        if is_folder
                        else (stat.st_mode, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
                    )
        return found

    def restore(self) -> None:
        """Put back every file that has changed; what is as it was keeps its inode and its times."""
        here = self._stamps()
        for path in sorted(here.keys() | self._known.keys(), key=len):
            if here.get(path) == self._known.get(path):
                continue
            if (
                os.path.islink(path)
                or os.path.isfile(path)
                or (os.path.lexists(path) and not os.path.isdir(path))
            ):
                os.unlink(path)
            elif os.path.isdir(path):
                shutil.rmtree(path)
            if path in self._known:
                source = self.pristine / Path(path).relative_to(self.place)
                if source.is_dir() and not source.is_symlink():
                    shutil.copytree(source, path, symlinks=True)
                elif not os.path.lexists(path):  # a folder above it may have brought it back
                    shutil.copy2(source, path, follow_symlinks=False)
        self._known = self._stamps()

    @contextlib.contextmanager
    def entered(self, *, compute: bool = True) -> Iterator[None]:
        """Commands of this process work here."""
        real, places = paths.share, {"MIMBENCH_HOME": str(self.home), "MIMBENCH_CACHE": str(self.cache)}

        def share(name: str) -> Path:
            return self.tables if name == "tables" and self.tables.exists() else real(name)

        with (
            mock.patch.dict(os.environ, places),
            mock.patch.object(paths, "share", share),
            mock.patch.object(pool, "Worker", OwnProcess if compute else NoProcess),
        ):
            yield

    def call(self, *words: str, compute: bool = True, forget: bool = False) -> Done:
        """Run a command line in this process.

        Args:
            compute: without it, every run that is to do fails.
            forget: read the sources' cache again, as a new process does.
        """
        if forget:
            fingerprint.forget()
        with self.entered(compute=compute):
            done = CliRunner().invoke(app, list(words))
        crash = ""
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            crash = "".join(traceback.format_exception(done.exception)[-3:])
        return Done(words, done.exit_code, done.output, crash)

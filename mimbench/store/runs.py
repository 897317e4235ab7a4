"""The run store."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from mimbench.atomic import abandoned, read_json, write_json
from mimbench.errors import RunFailed
from mimbench.store import checkpoints
from mimbench.store.folder import Inputs, Outcome, RunFolder, Store
from mimbench.store.records import Damaged, remedy
from mimbench.store.spec import RunSpec

FOLDER_NAME = re.compile(r"(teacher|pretrain|downstream)-.+-[0-9a-f]{8}")  # as RunSpec.folder makes it
LEFTOVER = re.compile(rf"\..*\..*|trainer.*\.pt{re.escape(checkpoints.ASIDE)}.*|\d{{8}}_\d{{6}}")
"""In a run's folder: temporary files of killed writers, damaged checkpoints that were set aside, and empty
folders that older versions left."""
WORKSHOP = ".migrate"
"""In the store: the folder in which `mimbench runs migrate` makes new folders before they are whole."""
SETTLED_SECONDS = 2.0  # some file systems round a folder's time of change this much


class RunStore(Store):
    """All runs below one folder. Any number of processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_key: dict[str, Path] = {}  # the first 8 digits of a run's key to its folder
        self._seen: int | None = None  # the root's time of change when the folders were listed

    def create(self, spec: RunSpec, inputs: Inputs) -> RunFolder:
        """The folder of `spec`, made if it does not exist. `inputs` replace those of the last command.

        Raises:
            Damaged: the folder's run cannot be read, or is another run.
        """
        folder = RunFolder(self, self.root / spec.folder)
        if folder.is_blank():
            write_json(folder.path / "spec.json", {**spec.as_dict(), "key": spec.key})
        elif folder.spec.key != spec.key:
            other = f"{folder.spec.key}, not {spec.key}"
            raise Damaged(f"{folder.path} belongs to another run ({other}): {remedy(folder.path)}")
        try:
            known = read_json(folder.path / "inputs.json")
        except OSError as error:
            why = f"it cannot be read: {error.strerror}"
            raise Damaged(f"{folder.path}/inputs.json is damaged ({why}): {remedy(folder.path)}") from error
        if known != asdict(inputs):
            write_json(folder.path / "inputs.json", asdict(inputs))
        return folder

    def get(self, key: str) -> RunFolder | None:
        """The folder of a run by its key; None if there is none."""
        found = self._by_key.get(key[:8])
        if found is None or not found.is_dir():
            self._refresh()
            found = self._by_key.get(key[:8])
        return RunFolder(self, found) if found else None

    def _refresh(self) -> None:
        """List the folders again if one was added or removed since."""
        try:
            changed = self.root.stat().st_mtime_ns
        except OSError:
            self._by_key, self._seen = {}, None
            return
        if changed == self._seen:
            return
        age = time.time() - changed / 1e9
        found = by_key(RunFolder(self, path) for path in self.places())
        self._by_key = {key: run.path for key, run in found.items()}
        # A folder that is added within the same tick of the file system's clock would be missed.
        self._seen = changed if age > SETTLED_SECONDS else None

    def places(self) -> list[Path]:
        """Every folder with a run's name, in order; not each of them holds a run."""
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.root) as entries:
            found = [each.name for each in entries if FOLDER_NAME.fullmatch(each.name) and _is_folder(each)]
            return [self.root / name for name in sorted(found)]
        return []

    def named(self, text: str) -> list[RunFolder]:
        """The run whose folder has this name; otherwise those whose folder's name or key starts with it."""
        folders = [RunFolder(self, path) for path in self.places()]
        exact = [f for f in folders if f.path.name == text]
        return exact or [f for f in folders if f.path.name.startswith(text) or _has_key(f, text)]

    def outcome(self, key: str) -> Outcome:
        """The outcome of the run with this key: see `RunFolder.outcome`."""
        folder = self.get(key)
        return folder.outcome() if folder else "missing"

    def __iter__(self) -> Iterator[RunFolder]:
        """Every run, including runs that lost their spec.json."""
        for path in self.places():
            if _is_there(path / "spec.json") or _is_there(path / "result.json"):
                yield RunFolder(self, path)

    def remove(self, folder: RunFolder) -> None:
        """Delete a run. Raises RunLocked while a process computes it."""
        lock = folder.path / ".lock"
        if os.path.lexists(lock) and not lock.is_file():  # damaged: nobody can hold it
            shutil.rmtree(folder.path)
            return
        with folder.lock():
            shutil.rmtree(folder.path)

    def leftovers(self) -> list[Path]:
        """What nothing needs any more; files of locked runs are left out.

        What LEFTOVER says, checkpoints of finished runs, folders without spec and result, and what killed
        migrations left.
        """
        found = abandoned(self.root / ".cache")
        workshop = self.root / WORKSHOP
        for place in sorted(workshop.iterdir()) if workshop.is_dir() else ():
            if not RunFolder(self, self.root / place.name).is_locked():  # no process migrates it
                found.append(place)
        for path in self.places():
            names = _names(path)
            if not names & {"spec.json", "result.json"}:
                found.append(path)
                continue
            temporary = sorted(name for name in names if LEFTOVER.fullmatch(name))
            kept = names.intersection(checkpoints.NAMES)
            folder = RunFolder(self, path)
            if (temporary or kept) and not folder.is_locked():
                found += [path / name for name in temporary if _is_deletable(path / name)]
                found += checkpoints.present(path) if kept and _is_finished(folder) else []
        return found

    def remove_leftovers(self, paths: list[Path]) -> None:
        """Delete what `leftovers` found."""
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _is_deletable(path: Path) -> bool:
    """Whether it is a file, or an empty folder."""
    return not path.is_dir() or (not path.is_symlink() and not os.listdir(path))


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, PermissionError):  # another process has removed it; or nobody may look
        return {"spec.json"}


def _is_there(path: Path) -> bool:
    """Whether there is a file, which perhaps nobody may read."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def by_key(runs: Iterable[RunFolder]) -> dict[str, RunFolder]:
    """The runs by their keys' first 8 digits; of several, such as copies, the first that can be read."""
    found: dict[str, RunFolder] = {}
    for run in runs:
        before = found.setdefault(run.name[-8:], run)
        if before is not run and not _is_readable(before) and _is_readable(run):
            found[run.name[-8:]] = run
    return found


def _is_readable(run: RunFolder) -> bool:
    try:
        return bool(run.spec)
    except RunFailed:
        return False


def _has_key(folder: RunFolder, text: str) -> bool:
    """Whether a run's key begins with `text`. The folder's name has the key's first 8 digits."""
    short = folder.path.name[-8:]
    if len(text) <= len(short):
        return short.startswith(text)
    with suppress(Damaged):
        return short == text[: len(short)] and folder.spec.key.startswith(text)
    return False


def _is_finished(folder: RunFolder) -> bool:
    with suppress(Damaged):
        return folder.result is not None
    return False

"""The run store: every run below one folder. Any number of processes may use it at once."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from mimbench.atomic import disk, read_json, write_json
from mimbench.errors import RunFailed, UserError
from mimbench.store.folder import Inputs, Outcome, RunFolder
from mimbench.store.spec import RunSpec

FOLDER_NAME = re.compile(r"(teacher|pretrain|downstream)-.+-[0-9a-f]{8}")  # as RunSpec.folder makes it


class RunStore:
    """All runs below one folder. Any number of processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, spec: RunSpec, inputs: Inputs) -> RunFolder:
        """The folder of `spec`, made if need be; its inputs are those of the latest command."""
        folder = RunFolder(self, self.root / spec.folder)
        known = read_json(folder.path / "spec.json")
        if known is not None and known.get("key") != spec.key:
            raise RunFailed(f"{folder.path} belongs to another run ({known.get('key')}, not {spec.key}).")
        with disk(self.root):
            if known is None:
                write_json(folder.path / "spec.json", {**spec.as_dict(), "key": spec.key})
            if read_json(folder.path / "inputs.json") != asdict(inputs):
                write_json(folder.path / "inputs.json", asdict(inputs))
        return folder

    def get(self, key: str) -> RunFolder | None:
        """The folder of a run by its key; None where there is none."""
        found = next((path for path in self.root.glob(f"*-{key[:8]}") if path.is_dir()), None)
        return RunFolder(self, found) if found else None

    def folder(self, key: str) -> RunFolder:
        """The folder of a run by its key. Raises UserError where there is none."""
        folder = self.get(key)
        if folder is None:
            raise UserError("run", key, remedy="`mimbench runs list` shows the runs there are.")
        return folder

    def find(self, text: str, also: Iterable[str] = ()) -> RunFolder:
        """The one run whose folder's name or key starts with what the user typed.

        Raises:
            UserError: none or several do; `also` are the other words that were valid in its place.
        """
        folders = list(self)
        found = [f for f in folders if f.path.name == text]
        found = found or [f for f in folders if f.path.name.startswith(text) or _key(f).startswith(text)]
        if len(found) != 1:
            why = "No run has that name" if not found else f"{len(found)} runs begin like that"
            names = [f.path.name for f in (found or folders)]
            raise UserError(
                "RUN",
                text,
                allowed=[*also, *names[:20], *([f"and {len(names) - 20} more"] if len(names) > 20 else [])],
                remedy=f"{why}; `mimbench runs list` shows them all.",
            )
        return found[0]

    def outcome(self, key: str) -> Outcome:
        """What became of the run with this key: see `RunFolder.outcome`."""
        folder = self.get(key)
        return folder.outcome() if folder else "missing"

    def __iter__(self) -> Iterator[RunFolder]:
        for path in sorted(self.root.glob("*-*-*-*")) if self.root.is_dir() else ():
            if (path / "spec.json").is_file():
                yield RunFolder(self, path)

    def remove(self, folder: RunFolder) -> None:
        """Delete a run. Raises RunLocked while a process computes it."""
        with folder.lock():
            shutil.rmtree(folder.path)

    def leftovers(self) -> list[Path]:
        """Of runs that nobody holds: temporary files of killed writers, checkpoints of finished runs; and
        folders without a spec.
        """
        found: list[Path] = []
        for path in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            if not path.is_dir() or not FOLDER_NAME.fullmatch(path.name):
                continue  # nothing of ours
            if not (path / "spec.json").is_file():
                found.append(path)
            elif not (folder := RunFolder(self, path)).is_locked():
                found += [file for file in sorted(path.glob(".*.*")) if file.is_file()]
                if folder.trainer_path.exists() and folder.result is not None:
                    found.append(folder.trainer_path)
        return found

    def remove_leftovers(self, paths: list[Path]) -> None:
        """Delete what `leftovers` found."""
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _key(folder: RunFolder) -> str:
    """A run's key; of a damaged one what its folder's name has of it."""
    try:
        return folder.spec.key
    except RunFailed:
        return folder.path.name.rpartition("-")[2]

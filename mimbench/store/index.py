"""Every run of a store at one moment. What finished runs say is kept between commands, in an index.

The index is one file in the user's cache folder. It is derived from the runs' files and can be deleted at any
time. It is replaced as a whole, so any number of processes may use it, also on a network file system. A run
is in it only if it is finished and its files were sound. Its entry counts as long as each of its FILES has
the size and the times that it had when it was read. `mimbench runs verify` and tables read the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from mimbench import paths
from mimbench.atomic import digest, opened, write_bytes
from mimbench.errors import UserError
from mimbench.store import records, spec
from mimbench.store.fingerprint import run_fingerprint
from mimbench.store.folder import RunFolder, Store
from mimbench.store.records import Damaged, Result, Status
from mimbench.store.runs import RunStore, by_key
from mimbench.store.spec import RunSpec

FILES = ("spec.json", "result.json", "status.json", "env.json")
STAMP = 3  # numbers for each of them
FRESH_NS = 2 * 10**9
"""A file read within 2 s of its change may change again without a new time."""

WORTH, SHARE = 20, 50
"""The index is rewritten when WORTH runs, and one in SHARE of all, are missing."""


class Snapshot(Store):
    """All runs of a store, each read at most once. It does not see what happens to the store afterwards.

    Args:
        cache: the user's cache folder; None remembers nothing.
    """

    def __init__(self, store: RunStore, cache: Path | None) -> None:
        self.root = store.root
        self._sources: dict[tuple[str, str, bool], str | UserError] = {}
        index = _Index(store.root, cache)
        found = (index.run(self, path) for path in store.places())
        self.runs = [run for run in found if run]
        self._by_key = by_key(self.runs)
        index.save(len(self.runs))

    def __iter__(self) -> Iterator[RunFolder]:
        return iter(self.runs)

    def get(self, key: str) -> RunFolder | None:
        return self._by_key.get(key[:8])

    def source_of(self, spec: RunSpec) -> str:
        """The fingerprint of the code of a run today. Raises UserError if its method or task is gone."""
        kind = spec.stage, spec.name, spec.adopted
        found = self._sources.get(kind)
        if found is None:
            try:
                found = run_fingerprint(spec.stage, spec.name, adopted=spec.adopted)
            except UserError as error:
                found = error
            self._sources[kind] = found
        if isinstance(found, UserError):
            raise found
        return found


def snapshot(store: RunStore) -> Snapshot:
    """The store's runs now, with the help of the index in the user's cache."""
    return Snapshot(store, paths.cache())


class Finished(RunFolder):
    """A finished run whose files have been read already."""

    def __init__(self, view: Snapshot, path: Path, entry: list[Any], recipe: dict[str, Any]) -> None:
        super().__init__(view, path)
        _, _, (key, stage, name, arch, data, seed, parents, skip_corrupt), result, status, plugin = entry
        spec = RunSpec(stage, name, arch, recipe, data, seed, parents, skip_corrupt)
        vars(spec)["key"] = key  # it was computed and compared when the file was read
        vars(self)["spec"] = spec
        self._view, self._plugin = view, plugin
        self._result, self._status = _result(*result), Status(*status)
        self._up_to_date: bool | None = None

    @property
    def result(self) -> Result:
        return self._result

    @property
    def status(self) -> Status:
        return self._status

    @property
    def plugin(self) -> dict[str, str] | None:
        return self._plugin

    @property
    def source(self) -> str:
        return self._view.source_of(self.spec)

    def _is_current(self, result: Result) -> bool:
        if self._up_to_date is None:
            self._up_to_date = super()._is_current(result)
        return self._up_to_date

    @cached_property
    def lineage(self) -> str:
        return super().lineage


def _result(
    metrics: Any,
    source: str,
    parents: Any,
    details: Any,
    schema: int,
    restamped: Any,
    artefacts: Any,
    percent: Any,
) -> Result:
    """A result from the values of an entry, in the order of its fields."""
    restamps = records.RESTAMPS.validate_python(restamped) if restamped else ()
    return Result(metrics, source, parents, details, schema, restamps, artefacts, tuple(percent))


class _Index:
    """The index of one store."""

    def __init__(self, root: Path, cache: Path | None) -> None:
        self.root = os.fspath(root)
        self.file = cache / "stores" / f"{digest(os.fspath(root))}.json" if cache else None
        self.started = time.time_ns()
        self.recipes: list[dict[str, Any]] = []
        self.entries: dict[str, list[Any]] = {}
        self._load()
        self._numbers: dict[str, int] = {}  # a recipe's JSON to its place in `recipes`
        self._used: dict[str, list[Any]] = {}
        self._new = 0

    def _load(self) -> None:
        with suppress(OSError, ValueError):  # there is none yet, or it is damaged: it costs time, no more
            if self.file:
                with opened(self.file) as file:
                    seal, _, content = file.read().partition(b"\n")
                if seal.decode() == _seal(content):
                    self.recipes, self.entries = json.loads(content)

    def run(self, view: Snapshot, path: Path) -> RunFolder | None:
        """The run in a folder as the index has it, or as its files say; None if there is none."""
        name = path.name
        stamps = _stamps(f"{self.root}/{name}")
        if not any(stamps[: 2 * STAMP]):  # neither spec nor result
            return None
        entry = self.entries.get(name)
        if entry is None or entry[0] != stamps:
            folder = RunFolder(view, path)
            entry = self._read(folder, stamps)
            if entry is None:
                return folder
            self._new += self._is_settled(entry)
        self._used[name] = entry
        return Finished(view, path, entry, self.recipes[entry[1]])

    def _read(self, folder: RunFolder, stamps: list[int]) -> list[Any] | None:
        """The entry of a run; None unless it is finished and its files are sound."""
        try:
            result, spec, status = folder.result, folder.spec, records.read_status(folder.path)
        except Damaged:
            return None
        if result is None or status is None or not status.state:
            return None
        values = records.RESULT.dump_python(result, mode="json", by_alias=True)
        return [
            stamps,
            self._number(dict(spec.recipe)),
            [spec.key, spec.stage, spec.name, spec.arch, dict(spec.data), spec.seed, dict(spec.parents),
             spec.skip_corrupt],
            list(values.values()),
            list(vars(status).values()),
            folder.plugin,
        ]  # fmt: skip

    def _number(self, recipe: dict[str, Any]) -> int:
        """The place of a recipe among the index's recipes; equal ones share it."""
        if not self._numbers:
            self._numbers = {json.dumps(known): number for number, known in enumerate(self.recipes)}
        text = json.dumps(recipe)
        if text not in self._numbers:
            self._numbers[text] = len(self.recipes)
            self.recipes.append(recipe)
        return self._numbers[text]

    def save(self, count: int) -> None:
        """Write the index if enough runs are new."""
        if self.file is None or self._new < max(WORTH, count // SHARE):
            return
        settled = {name: entry for name, entry in self._used.items() if self._is_settled(entry)}
        content = json.dumps([self.recipes, settled], separators=(",", ":")).encode()
        with suppress(OSError):  # a cache that cannot be written costs time
            write_bytes(self.file, lambda file: file.write(_seal(content).encode() + b"\n" + content))

    def _is_settled(self, entry: list[Any]) -> bool:
        changed = entry[0]
        return max(changed[1::STAMP]) < self.started - FRESH_NS


def _stamps(folder: str) -> list[int]:
    """Size, time of modification and time of change (in ns) of each of FILES; zeros if it is missing."""
    found: list[int] = []
    for name in FILES:
        try:
            stat = os.stat(f"{folder}/{name}")
            found += (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        except FileNotFoundError:
            found += (0, 0, 0)
        except OSError:  # it is there, but nothing can be read
            found += (0, 1, 1)
    return found


def _seal(content: bytes) -> str:
    """The digest of an index and of the code that reads it: another version's index is not used."""
    return hashlib.sha256(_own_code() + content).hexdigest()


def _own_code() -> bytes:
    return b"".join(Path(module).read_bytes() for module in (__file__, records.__file__, spec.__file__))

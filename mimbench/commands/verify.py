"""Checks every file of the run store, and mends what can be mended."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mimbench.atomic import read_json
from mimbench.catalog import Catalog
from mimbench.commands.list_runs import no_percentage
from mimbench.commands.remove import size
from mimbench.errors import UserError, visible
from mimbench.store import checkpoints, records
from mimbench.store.folder import RESULTS, RunFolder
from mimbench.store.lock import RunLocked
from mimbench.store.records import Damaged, Misnamed, Newer
from mimbench.store.runs import RunStore

Repair = Literal["", "aside", "file", "result", "run"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the store.

    Attributes:
        path: the file, or the folder. message: names it and says what is wrong.
        repair: what mends it: `aside` renames the file, `file` deletes it, `result` deletes all that the run
            has computed, `run` deletes the run; empty if nothing does.
        run: the folder of the run.
    """

    path: Path
    message: str
    repair: Repair
    run: Path

    def without_remedy(self) -> str:
        """The message for `verify --repair`, which need not name itself."""
        remedy = visible(f": {records.remedy(self.run)}", lines=True)
        return self.message.removesuffix(remedy)


def check(store: RunStore, catalog: Catalog, chosen: Sequence[RunFolder] | None = None) -> Iterator[Problem]:
    """What is wrong with the runs of a store, or with the chosen ones. Reads every encoder and checkpoint.

    Runs that are being computed are left out.
    """
    for run in store if chosen is None else chosen:
        if not run.is_locked():
            yield from _check_run(run, catalog)
    places = None if chosen is None else {run.path for run in chosen}
    for path in store.leftovers():
        home = path if path.parent == store.root else path.parent
        if places is None or home in places:
            yield Problem(path, f"{path} is a leftover: it can be deleted", "file", home)


def _check_run(run: RunFolder, catalog: Catalog) -> Iterator[Problem]:
    spec = run.path / "spec.json"
    try:
        run.spec  # noqa: B018 - it may be damaged
    except Damaged as error:
        yield Problem(spec, str(error), "" if isinstance(error, (Newer, Misnamed)) else "run", run.path)
        return
    result = None
    path = run.path / "result.json"
    try:
        result = run.result
        if result and (wrong := no_percentage(run, result, catalog)):
            yield Problem(path, wrong, "result", run.path)
    except Damaged as error:
        yield Problem(path, str(error), "" if isinstance(error, Newer) else "result", run.path)
    for name, read in (("status.json", records.read_status), ("inputs.json", records.read_inputs)):
        try:
            read(run.path)
        except Damaged as error:
            yield Problem(run.path / name, str(error), "" if isinstance(error, Newer) else "file", run.path)
    for place in (*run.odd_files(), *_without_json(run)):
        yield Problem(place, f"{place} is no ordinary file, or not JSON", "file", run.path)
    if result:
        for place, why in run.damaged_artefacts().items():
            yield Problem(place, f"{place} is damaged ({why})", "result", run.path)
    else:
        for place in checkpoints.present(run.path):
            try:
                checkpoints.check(place)
            except Damaged as error:
                yield Problem(place, str(error), "aside", run.path)


def _without_json(run: RunFolder) -> Iterator[Path]:
    """The run's own JSON files that are none; the readers take such a file as never written."""
    for name in ("status.json", "inputs.json", "env.json"):
        path = run.path / name
        if path.is_file():
            with contextlib.suppress(OSError):  # reported by `read_status` and `read_inputs`
                if read_json(path) is None:
                    yield path


def set_aside(problems: Iterable[Problem]) -> list[Path]:
    """Rename the damaged checkpoints; returns their new places."""
    return [checkpoints.set_aside(each.path) for each in problems if each.repair == "aside"]


def deletions(problems: Iterable[Problem]) -> dict[str, int]:
    """What `delete` would delete, in words, and its bytes."""
    found = {}
    for each in problems:
        if each.repair == "run":
            found[f"the run {each.run.name}"] = size(each.run)
        elif each.repair == "result":
            bytes_ = sum(size(each.run / name) for name in RESULTS)
            found[f"what {each.run.name} has computed; the next command computes it again"] = bytes_
        elif each.repair == "file":
            found[str(each.path)] = size(each.path)
    return found


def delete(store: RunStore, problems: Sequence[Problem]) -> None:
    """Delete what is damaged, and leftovers. Raises UserError if a process computes one of the runs."""
    for each in problems:
        run = RunFolder(store, each.run)
        try:
            if each.repair == "run":
                store.remove(run)
            elif each.repair == "result":
                with run.lock():
                    for name in RESULTS:
                        _remove(run.path / name)
            elif each.repair == "file":
                _remove(each.path)
        except RunLocked:
            remedy = "It is being computed right now; stop that first."
            raise UserError("RUN", run.path.name, remedy=remedy) from None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

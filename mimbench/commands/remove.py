"""What users see before they delete runs: their sizes and the runs that start from them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mimbench.errors import RunFailed
from mimbench.store.folder import RunFolder
from mimbench.store.records import Damaged
from mimbench.store.runs import RunStore


def dependants(store: Iterable[RunFolder], folders: Sequence[RunFolder]) -> list[RunFolder]:
    """The stored runs that start from `folders`, directly or not, without `folders` themselves."""
    known = {folder.path for folder in folders}
    keys = {key for folder in folders if (key := _key(folder))}
    left = [(folder, _parents(folder)) for folder in store if folder.path not in known]
    found: list[RunFolder] = []
    while keys:
        more = [folder for folder, parents in left if parents & keys]
        left = [(folder, parents) for folder, parents in left if not parents & keys]
        found += more
        keys = {key for folder in more if (key := _key(folder))}
    return found


def parents_first(store: RunStore) -> Iterator[RunFolder]:
    """Every readable run, each after the runs that it starts from."""
    seen: set[str] = set()

    def visit(run: RunFolder) -> Iterator[RunFolder]:
        if run.path.name in seen:
            return
        seen.add(run.path.name)
        try:
            parents = [store.get(key) for key in run.spec.parents.values()]
        except Damaged:
            return
        for parent in parents:
            if parent is not None:
                yield from visit(parent)
        yield run

    for run in store:
        yield from visit(run)


def size(path: Path) -> int:
    """The bytes of a file, or of all files in a folder; approximate if files disappear meanwhile."""
    total = 0
    try:
        if not path.is_dir():
            return path.stat().st_size
        with os.scandir(path) as entries:
            for entry in entries:
                total += (
                    size(Path(entry.path)) if entry.is_dir(follow_symlinks=False) else entry.stat().st_size
                )
    except OSError:
        pass
    return total


def readable_size(count: int) -> str:
    """`1 byte`, `2.5 KB`, `12.3 MB`, `850 MB`, `4.2 GB`."""
    million = count / 1e6
    if million >= 1000:
        return f"{million / 1000:.1f} GB"
    if count < 1000:
        return f"{count} byte{'' if count == 1 else 's'}"
    if million < 0.1:
        return f"{count / 1000:.1f} KB"
    return f"{million:.{0 if million >= 100 else 1}f} MB"


def _key(folder: RunFolder) -> str | None:
    try:
        return folder.spec.key
    except RunFailed:
        return None


def _parents(folder: RunFolder) -> set[str]:
    try:
        return set(folder.spec.parents.values())
    except RunFailed:
        return set()

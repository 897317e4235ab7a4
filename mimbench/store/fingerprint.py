"""Fingerprints of the source that determines a run's numbers.

A fingerprint depends on what the code says, not on where the code is: moving or renaming a module makes no
result stale. An import of one of our modules counts as the digest of that module, never as its name.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable

from mimbench import discovery, plugin
from mimbench.atomic import digest
from mimbench.store.source import Import, read

NUMERICS = (
    "arch", "checkpoint", "contract", "data", "device", "method", "ops", "recipe", "schedule", "train", "vit",
)  # fmt: skip
"""The parts of `mimbench` that compute numbers. The others plan, start, store and show runs."""

INFRASTRUCTURE = "infrastructure"  # the digest of every imported module that computes no numbers


def _counts(module: str) -> bool:
    """Whether a module of ours computes numbers. Every module of a plug-in counts."""
    top, _, rest = module.partition(".")
    return top != "mimbench" or rest.split(".")[0] in NUMERICS or plugin.of(module) is not None


@functools.cache
def _named(module: str, plain_data: bool) -> dict[tuple[str, str], str]:
    """(module, name) as a file imports it, to the module that defines it: re-exports are followed."""
    source = read(module, plain_data)
    found: dict[tuple[str, str], str] = {}
    for place in source.places if source else ():
        for each in (Import(place, "", ""),) if isinstance(place, str) else place:
            seen, at = set(), each
            while at.name and at.module not in seen and _counts(at.module):
                seen.add(at.module)
                there = read(at.module, plain_data)
                if there is None or at.name not in there.exports:
                    break
                at = there.exports[at.name]
            found[each.module, each.name] = at.module
    return found


@functools.cache
def _reach(module: str, plain_data: bool) -> frozenset[str]:
    """The modules that compute numbers and that a module depends on, directly or not."""
    found: set[str] = set()
    todo = [module]
    while todo:
        for name in _named(todo.pop(), plain_data).values():
            if name not in found and _counts(name) and read(name, plain_data) is not None:
                found.add(name)
                todo.append(name)
    return frozenset(found)


@functools.cache
def _digest(module: str, plain_data: bool) -> str:
    """The digest of a module and of all that it imports; modules that import each other share one."""
    component = {name for name in _reach(module, plain_data) if module in _reach(name, plain_data)} | {module}
    texts = []
    for member in component:
        source = read(member, plain_data)
        assert source is not None
        digests = {}
        for imported, name in _named(member, plain_data).items():
            there = read(name, plain_data) if _counts(name) else None
            if there is None:
                digests[imported] = INFRASTRUCTURE
            elif name in component:
                digests[imported] = _sha256(there.body)
            else:
                digests[imported] = _digest(name, plain_data)
        texts.append(source.filled(digests))
    return _sha256("\n".join(sorted(texts)))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def closure(roots: Iterable[str], *, plain_data: bool = True) -> dict[str, str]:
    """Module name to digest, for `roots` and every module of ours that they import, directly or not.

    Modules that compute no numbers are left out, except roots, and so is what only they import.
    """
    digests: dict[str, str] = {}
    todo = list(roots)
    known = set(todo)
    while todo:
        module = todo.pop()
        source = read(module, plain_data)
        if source is None:  # `from module import function` names no module
            continue
        digests[module] = _digest(module, plain_data)
        parts = module.split(".")  # importing a.b.c runs a/__init__ and a/b/__init__ too
        runs = {".".join(parts[:n]) for n in range(1, len(parts))} | source.imported
        todo += [name for name in runs - known if _counts(name)]
        known |= runs
    return digests


@functools.cache
def source_fingerprint(modules: tuple[str, ...], *, plain_data: bool = True) -> str:
    """The fingerprint of the code behind `modules`; comments, docstrings and names of modules do not count.

    It is computed once per process, since the imported code does not change either; `forget` drops it.

    Args:
        modules: the roots, by their import names.
        plain_data: whether `recipes` and `transfer` of a card count. They do for the catalog's cache. They do
            not for a run: its key holds what they returned.
    """
    found = closure(modules, plain_data=plain_data)
    bodies = {name: source for name in found if (source := read(name, plain_data)) and not source.is_empty}
    return digest("\n".join(sorted({found[name] for name in bodies})))


def forget() -> None:
    """Read the source again when next asked."""
    discovery.forget()
    for function in (read, _named, _reach, _digest, source_fingerprint):
        function.cache_clear()


PRETRAINING, ADOPTION = "mimbench.train.pretraining", "mimbench.checkpoint.adopt"


def run_fingerprint(stage: str, name: str, *, adopted: bool = False) -> str:
    """The fingerprint of the code that computes a stage of the method, teacher or task `name`.

    Args:
        adopted: the run converts a checkpoint instead of training.
    """
    kind = discovery.STAGES[stage]
    training = () if kind == "task" else (ADOPTION,) if adopted else (PRETRAINING,)
    return source_fingerprint((discovery.module_of(kind, name), *training), plain_data=False)

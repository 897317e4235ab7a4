"""Datasets with one oddity each. Every one says, from other sources than our readers, what must hold.

Each is looked at through four doors that must agree: `mimbench data check`, the start of a command, the
readers of a run, and the identity by which a run knows its data.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from mimbench.data.dataset import Dataset
from tests.faults.campaign.datasets import MAKERS, Read, command, read
from tests.faults.campaign.reference import numbers
from tests.faults.campaign.verdict import (
    NAMED,
    OK,
    TRACEBACK,
    UNCLEAR,
    WRONG,
    Bench,
    Case,
    Verdict,
    squeezed,
)  # fmt: skip


@dataclass
class Expect:
    """What must hold of a changed dataset.

    Attributes:
        refused: texts that the message must have: file, and entry where there is one; empty if the dataset
            must be taken.
        right: says what is wrong with what the readers gave; empty if nothing is.
        identity: of a task's run, as it must be after the change: the same, another, or either.
        of_pretraining: the same for a pretraining.
        same_numbers: whether a whole run must give the metrics of the sound dataset.
        checked: whether `data check` must agree; it does not know what only some commands need.
    """

    done: str
    refused: tuple[str, ...] = ()
    right: Callable[[Read], str] | None = None
    identity: Literal["same", "other", ""] = ""
    of_pretraining: Literal["same", "other", ""] = ""
    same_numbers: bool = False
    checked: bool = True


Mutator = Callable[[Path, Random], Expect]
MODULES = (
    "mutate_coco",
    "mutate_coco_lists",
    "mutate_coco_silent",
    "mutate_masks",
    "mutate_images",
    "mutate_folders",
    "mutate_layout",
    "mutate_captions",
)
MUTATORS: dict[str, tuple[str, Mutator]] = {}
"""Name of a mutator to the format of its dataset and itself."""
UNLISTED: set[str] = set()
"""Names of mutators whose dataset has no list of labelled images: every image is read."""


def of(*roles: str, unlisted: bool = False) -> Callable[[Mutator], Mutator]:
    """Register a mutator for datasets of these formats."""

    def register(mutator: Mutator) -> Mutator:
        for role in roles:
            name = f"{role} {mutator.__name__.replace('_', ' ')}"
            MUTATORS[name] = role, mutator
            UNLISTED.update([name] if unlisted else [])
        return mutator

    return register


def cases() -> Iterator[Case]:
    for module in MODULES:
        importlib.import_module(f"tests.faults.campaign.{module}")
    from tests.faults.campaign import moments

    for name, (role, mutator) in MUTATORS.items():
        yield Case(f"data {name}", f"data: {role}", _case(name, role, mutator))
    yield from moments.cases()


def _case(name: str, role: str, mutator: Mutator) -> Callable[[Bench, Random], Verdict]:
    def run(bench: Bench, draw: Random) -> Verdict:
        root = bench.home / "case" / role
        root.mkdir(parents=True)
        MAKERS[role](root, draw)
        if name in UNLISTED:
            (root / "train_labelled.txt").unlink(missing_ok=True)
        sound = bench.home / "case" / "sound"
        shutil.copytree(root, sound)
        before = identities(bench, role, root)
        expect = mutator(root, draw)
        return examine(bench, role, root, sound, before, expect)

    return run


def identities(bench: Bench, role: str, root: Path) -> dict[bool, str]:
    """The identity of what a pretraining (False) and a task (True) read, by way of the cache."""
    return {
        labels: Dataset(root, bench.workspace.cache).identity(role, labels=labels).digest
        for labels in (False, True)
    }


def examine(
    bench: Bench, role: str, root: Path, sound: Path, before: dict[bool, str], expect: Expect
) -> Verdict:
    """The verdict on a changed dataset."""
    done, call = expect.done, bench.workspace.call
    checked = call("data", "check", str(root))
    started = call(*command(role, root), compute=False)
    for each in (checked, started):
        if each.crash:
            return Verdict(TRACEBACK, done, f"{' '.join(each.words)}: {each.crash}")
    is_started = started.status != 2
    if expect.refused:
        return _refused(expect, checked.status, checked.output, is_started, started.output, role, root)
    if not is_started:
        return Verdict(UNCLEAR, done, f"refused: {started.output}")
    if checked.status and expect.checked:
        return Verdict(UNCLEAR, done, f"a run takes it, the check refuses it: {checked.output}")
    found = read(role, root)
    if found.error:
        return Verdict(TRACEBACK if found.crash else UNCLEAR, done, f"found while it is read: {found.error}")
    if expect.right and (wrong := expect.right(found)):
        return Verdict(WRONG, done, wrong)
    after = identities(bench, role, root)
    for labels, wanted in ((True, expect.identity), (False, expect.of_pretraining)):
        if wanted and (after[labels] == before[labels]) != (wanted == "same"):
            what = "task" if labels else "pretraining"
            return Verdict(WRONG, done, f"the identity of a {what} should be {wanted}")
        if Dataset(root, None).identity(role, labels=labels).digest != after[labels]:
            return Verdict(WRONG, done, "the identity from the cache is not that of the content")
    if expect.same_numbers:
        return _same_numbers(bench, role, root, sound, done)
    return Verdict(OK, done, "taken")


def _refused(
    expect: Expect, status: int, report: str, is_started: bool, told: str, role: str, root: Path
) -> Verdict:
    done = expect.done
    if is_started:
        found = read(role, root)
        if not found.error:
            return Verdict(WRONG, done, f"taken by a run, which must be refused: {told[-1500:]}")
        return Verdict(TRACEBACK if found.crash else UNCLEAR, done, f"found late: {found.error}")
    missing = [text for text in expect.refused if squeezed(text) not in squeezed(told)]
    if missing:
        return Verdict(UNCLEAR, done, f"the message does not name {missing}: {told}")
    if expect.checked:
        if status != 2:
            return Verdict(UNCLEAR, done, f"a run refuses it ({told.strip()}), the check does not: {report}")
        missing = [text for text in expect.refused if squeezed(text) not in squeezed(report)]
        if missing:
            return Verdict(UNCLEAR, done, f"the check does not name {missing}: {report}")
    return Verdict(NAMED, done, told)


def _same_numbers(bench: Bench, role: str, root: Path, sound: Path, done: str) -> Verdict:
    """Run the task on both datasets; their metrics must be equal."""
    metrics = []
    for place in (sound, root):
        run = bench.workspace.call(*command(role, place))
        if run.crash or run.status:
            return Verdict(TRACEBACK if run.crash else UNCLEAR, done, run.crash or run.output)
        metrics.append(numbers(bench.runs / Path(run.output.strip().splitlines()[-1]).name)["metrics"])
    if metrics[0] != metrics[1]:
        return Verdict(WRONG, done, f"{metrics[1]} instead of {metrics[0]}")
    return Verdict(OK, done, "the numbers of the sound dataset")


def some(draw: Random, root: Path, pattern: str) -> Path:
    """One of the files that fit a pattern."""
    return draw.choice(sorted(root.glob(pattern)))


def rewrite(path: Path, content: bytes) -> None:
    """Write a file as an editor does: a new file takes the old one's name."""
    other = path.with_name(f"{path.name}.new")
    other.write_bytes(content)
    os.replace(other, path)

"""Data that changes at a bad moment, and the options that say how exactly data is looked at."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from unittest import mock

from mimbench.store.folder import RunFolder
from tests.faults.campaign.datasets import MAKERS, command
from tests.faults.campaign.verdict import NAMED, OK, TRACEBACK, UNCLEAR, WRONG, Bench, Case, Verdict
from tests.faults.campaign.workspace import Done, OwnProcess

READ = {
    "imagenet": ("val/*/*.jpg", "train/*/*.jpg"),
    "ade20k": ("images/*/*.jpg", "annotations/*/*.png", "classes.txt"),
    "coco": ("*2017/*.jpg", "annotations/*.json"),
}
"""Files that a task reads."""


def cases() -> Iterator[Case]:
    for role in READ:
        for moment in (between, during):
            for index in range(2):
                name = f"{role} {moment.__name__} {index}"
                yield Case(f"data {name}", f"data: changed {moment.__name__}", _case(role, moment))
        for option in (trusted, skipped):
            yield Case(f"data {role} {option.__name__}", "data: options", _case(role, option))


def _case(
    role: str, look: Callable[[Bench, str, Path, Random], Verdict]
) -> Callable[[Bench, Random], Verdict]:
    def run(bench: Bench, draw: Random) -> Verdict:
        root = bench.home / "case" / role
        root.mkdir(parents=True)
        MAKERS[role](root, draw)
        (root / "train_labelled.txt").unlink(missing_ok=True)
        return look(bench, role, root, draw)

    return run


def change(root: Path, role: str, draw: Random) -> str:
    """Change a file that a task reads, in one of several ways; its name."""
    path = draw.choice(sorted(root.glob(draw.choice(READ[role]))))
    how = draw.choice(["removed", "another content", "exchanged"])
    if how == "removed":
        path.unlink()
    elif how == "another content" or len(list(path.parent.iterdir())) < 2:
        path.write_bytes(path.read_bytes() + b" ")
    else:
        other = draw.choice(sorted(each for each in path.parent.iterdir() if each != path))
        first, second = path.read_bytes(), other.read_bytes()
        path.write_bytes(second)
        other.write_bytes(first)
    return f"{path.relative_to(root)}: {how}"


def _must_fail(bench: Bench, role: str, root: Path, done: str, found: Done) -> Verdict:
    """The run must not be done, and the message must name the data."""
    if found.crash:
        return Verdict(TRACEBACK, done, found.crash)
    finished = [
        folder for folder in bench.runs.glob(f"downstream-*{''}") if _reads(folder, root) and _is_done(folder)
    ]
    if finished:
        return Verdict(WRONG, done, f"{finished[0].name} is done")
    named = str(root) in found.output.replace("\n", "")
    return Verdict(NAMED if found.status in (1, 2) and named else UNCLEAR, done, found.output)


def _reads(folder: Path, root: Path) -> bool:
    return str(root) in (folder / "inputs.json").read_text()


def _is_done(folder: Path) -> bool:
    return (folder / "result.json").is_file()


def between(bench: Bench, role: str, root: Path, draw: Random) -> Verdict:
    """Data changes after the command has planned and checked, before the run starts."""
    told: list[str] = []
    send = OwnProcess.send

    def later(self: OwnProcess, node: object, path: Path, *, rerun: bool) -> None:
        if "downstream" in path.name:
            told.append(change(root, role, draw))
        send(self, node, path, rerun=rerun)

    with mock.patch.object(OwnProcess, "send", later):
        found = bench.workspace.call(*command(role, root))
    return _must_fail(bench, role, root, "; ".join(told), found)


def during(bench: Bench, role: str, root: Path, draw: Random) -> Verdict:
    """Data changes while the run computes."""
    told: list[str] = []
    progress = RunFolder.progress

    def later(self: RunFolder, step: int, total: int, **scalars: float) -> None:
        progress(self, step, total, **scalars)
        if self.spec.stage == "downstream" and not told:
            told.append(change(root, role, draw))

    with mock.patch.object(RunFolder, "progress", later):
        found = bench.workspace.call(*command(role, root))
    return _must_fail(bench, role, root, "; ".join(told), found)


def _planned(bench: Bench, words: tuple[str, ...]) -> tuple[str, Done]:
    """The folder of the run that a command computes."""
    done = bench.workspace.call(*words)
    lines = done.output.strip().splitlines()
    return (Path(lines[-1]).name if lines else ""), done


def trusted(bench: Bench, role: str, root: Path, draw: Random) -> Verdict:
    """With --trust-stat, sizes and times decide; the result says so."""
    words = (*command(role, root), "--trust-stat")
    first, done = _planned(bench, words)
    if done.crash or done.status:
        return Verdict(TRACEBACK if done.crash else UNCLEAR, "--trust-stat", done.crash or done.output)
    result = json.loads((bench.runs / first / "result.json").read_text())
    if "identified_by_size_and_time" not in result["details"]:
        return Verdict(WRONG, "--trust-stat", "the result does not say it")
    exact, _ = _planned(bench, command(role, root))
    path = draw.choice(sorted(root.glob(READ[role][0])))
    if draw.random() < 0.5:
        os.utime(path, (1e9, 1e9))
        told = f"{path.name} has another time"
    else:
        with path.open("ab") as file:
            file.write(b" ")
        told = f"{path.name} has another size"
    second, done = _planned(bench, words)
    if done.crash or done.status:
        return Verdict(TRACEBACK if done.crash else UNCLEAR, told, done.crash or done.output)
    if len({first, second, exact}) < 3:
        return Verdict(WRONG, told, f"the same run: {first}, {second}, by content {exact}")
    return Verdict(OK, told)


def skipped(bench: Bench, role: str, root: Path, draw: Random) -> Verdict:
    """With --skip-corrupt, what does not decode is left out, recorded, and part of the identity."""
    words = command(role, root)
    plain, _ = _planned(bench, words)
    none, done = _planned(bench, (*words, "--skip-corrupt"))
    if none != plain:
        return Verdict(WRONG, "--skip-corrupt, nothing to skip", f"{none} is not {plain}: {done.output}")
    path = draw.choice(sorted(root.glob(READ[role][0])))
    content = path.read_bytes()
    path.write_bytes(draw.choice([content[: len(content) // 2], b"", b"<html>"]))
    told = f"{path.relative_to(root)} is broken"
    other, done = _planned(bench, (*words, "--skip-corrupt"))
    if done.crash or done.status:
        return Verdict(TRACEBACK if done.crash else UNCLEAR, told, done.crash or done.output)
    details = (bench.runs / other / "result.json").read_text()
    if other == plain:
        return Verdict(WRONG, told, "it is the same run as with the sound image")
    if path.name not in json.dumps(json.loads(details)["details"]):
        return Verdict(WRONG, told, f"the result does not name what was left out: {details[:600]}")
    return Verdict(OK, told)

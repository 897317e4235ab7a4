"""Damage in the files that runs read: the run that reads the file is computed anew, or goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.campaign import damages
from tests.faults.campaign.reference import STOPPED, TABLE, loaded, own, table_file
from tests.faults.campaign.stored import kind_of
from tests.faults.campaign.verdict import (
    NAMED,
    OK,
    TRACEBACK,
    UNCLEAR,
    WRONG,
    Bench,
    Case,
    Verdict,
    judge,
    names,
    stored_wrong,
)  # fmt: skip
from tests.faults.campaign.workspace import ROOT, Done

RESULTS = ("result.json", "status.json", "metrics.jsonl", "encoder.safetensors", "teacher.safetensors")
STAGES = {"imagenet": ("pretrain", "classification"), "ade20k": ("segmentation",), "coco": ("detection",)}
TOY = {
    "imagenet/train/*/*.jpg": 8,
    "imagenet/val/*/*.jpg": 4,
    "imagenet/train_labelled.txt": 5,
    "imagenet/captions.json": 5,
    "ade20k/images/*/*.jpg": 4,
    "ade20k/annotations/*/*.png": 6,
    "ade20k/classes.txt": 4,
    "coco/*2017/*.jpg": 4,
    "coco/annotations/*.json": 8,
    "*/manifest.json": 7,
    "*/toy.json": 6,
    "toy.json": 4,
}
OWN = {
    "imagenet/train/*/*.jpg": 6,
    "imagenet/val/*/*.jpg": 4,
    "imagenet/train_labelled.txt": 6,
    "imagenet/captions.json": 6,
    "ade20k/images/*/*.jpg": 4,
    "ade20k/annotations/*/*.png": 6,
    "ade20k/classes.txt": 5,
    "coco/*2017/*.jpg": 5,
    "coco/annotations/*.json": 11,
}
UNFINISHED = {
    "spec.json": 8,
    "inputs.json": 6,
    "metrics.jsonl": 7,
    "status.json": 6,
    "env.json": 2,
    "log": 2,
}
CHECKPOINTS = {("trainer.pt",): 14, ("trainer-before.pt",): 5, ("trainer.pt", "trainer-before.pt"): 6}
ARTEFACTS = {"encoder.safetensors": 18, "teacher.safetensors": 12}
WEIGHTS = {".safetensors": 8, ".pth": 9}
PROCESSES = 3


def cases() -> Iterator[Case]:
    for file, count in ARTEFACTS.items():
        for index in range(count):
            yield Case(f"read {file} {index}", f"{file}, read", _artefact(file, index))
    for pattern, count in TOY.items():
        for index in range(count):
            yield Case(f"toy {pattern} {index}", f"toy {_of(pattern)}", _toy(pattern, index))
    for pattern, count in OWN.items():
        for index in range(count):
            yield Case(f"own {pattern} {index}", f"own {_of(pattern)}", _own(pattern, index))
    for suffix, count in WEIGHTS.items():
        for index in range(count):
            yield Case(f"weights {suffix} {index}", f"own checkpoint {suffix}", _weights(suffix, index))
    for files, count in CHECKPOINTS.items():
        for index in range(count):
            name = " and ".join(files)
            yield Case(f"interrupted {name} {index}", f"{name}, interrupted", _interrupted(files, index))
    for file, count in UNFINISHED.items():
        for index in range(count):
            yield Case(f"interrupted {file} {index}", f"{file}, interrupted", _interrupted((file,), index))
    for index in range(PROCESSES):
        yield Case(f"process sources {index}", "cache: sources, a new process", _process(index))


def _of(pattern: str) -> str:
    folder, _, rest = pattern.partition("/")
    return f"{folder} {rest.rpartition('/')[2]}" if rest else folder


def reset(bench: Bench, run: str) -> list[str]:
    """Make a finished run, and every run of the table that stands on it, one that is to do; their folders.

    A run whose results nobody misses would not be computed again.
    """
    found = [run]
    for name in bench.expected.table * 3:  # no chain is longer
        if name not in found and set(bench.expected.parents[name]) & set(found):
            found.append(name)
    for name in found:
        for file in RESULTS:
            (bench.runs / name / file).unlink(missing_ok=True)
    return found


def _artefact(file: str, index: int) -> Any:
    def run(bench: Bench, draw: Random) -> Verdict:
        holders = sorted(path for path in bench.runs.glob(f"*/{file}"))
        pairs = [
            (path, child)
            for path in holders
            for child, parents in bench.expected.parents.items()
            if path.parent.name in parents and child in bench.expected.table
        ]
        path, child = draw.choice(pairs)
        kind = kind_of(file, index, Random(bench.expected.seed), ("another run's",) * 3)
        if kind == "another run's":
            done = damages.swap(path, draw.choice([each for each in holders if each != path]))
        else:
            done = damages.apply(kind, path, draw)
        recomputed = reset(bench, child)
        table_file(bench.home).unlink()
        commands = [bench.workspace.call(*TABLE)]
        return judge(
            bench,
            f"{path.parent.name}/{file}: {done}, for {child}",
            commands,
            files=[path],
            recomputed=recomputed,
        )

    return run


def _readers(bench: Bench, role: str) -> list[str]:
    """The folders of the table's runs that read a dataset."""
    return [name for name in bench.expected.table if any(stage in name for stage in _stages(role))]


def _stages(role: str) -> tuple[str, ...]:
    if role == "imagenet":
        return "pretrain-mae", "pretrain-dtm-vit", "pretrain-feature", "classification", "teacher-clip"
    return STAGES[role]


def _toy(pattern: str, index: int) -> Any:
    def run(bench: Bench, draw: Random) -> Verdict:
        root = bench.home / "data" / "smoke"
        path = draw.choice(sorted(path for path in root.glob(pattern)))
        role = path.relative_to(root).parts[0]
        role = role if role in STAGES else draw.choice([*STAGES])
        kind = kind_of(path.name, index, Random(bench.expected.seed))
        done = damages.apply(kind, path, draw)
        child = draw.choice(_readers(bench, role))
        recomputed = reset(bench, child)
        table_file(bench.home).unlink()
        commands = [bench.workspace.call(*TABLE)]
        files, told = [path], f"{path.relative_to(root)}: {done}, for {child}"
        if not table_file(bench.home).exists():  # refused before anything ran
            return judge(bench, told, commands, files=files, recomputed=recomputed, table=False)
        return judge(bench, told, commands, files=files, recomputed=recomputed)

    return run


def _own(pattern: str, index: int) -> Any:
    def run(bench: Bench, draw: Random) -> Verdict:
        path = draw.choice(sorted((bench.home / "own").glob(pattern)))
        role = path.relative_to(bench.home / "own").parts[0]
        words = own("captions" if path.name == "captions.json" else role, bench.home)
        before = bench.workspace.call(*words)
        kind = kind_of(path.name, index, Random(bench.expected.seed))
        done = f"{path.relative_to(bench.home / 'own')}: {damages.apply(kind, path, draw)}"
        after = bench.workspace.call(*words)
        return changed_input(bench, done, path, before, after)

    return run


def changed_input(bench: Bench, done: str, path: Path, before: Done, after: Done) -> Verdict:
    """The verdict where what the user gave has changed: it is another run, or it is refused."""
    if after.crash:
        return Verdict(TRACEBACK, done, after.crash)
    if wrong := stored_wrong(
        bench, sorted(bench.expected.runs.keys() - {bench.expected.stopped}), new_runs=True
    ):
        return Verdict(WRONG, done, "; ".join(wrong))
    if after.status:
        return Verdict(NAMED if names(after.output, [path]) else UNCLEAR, done, after.output)
    if target(after) == target(before):
        return Verdict(WRONG, done, f"the old run, {target(after)}, counts for the changed file")
    return Verdict(OK, done, f"another run, {target(after)}")


def target(done: Done) -> str:
    """The folder that `mimbench run` printed at its end."""
    return Path(done.output.strip().splitlines()[-1]).name


def _weights(suffix: str, index: int) -> Any:
    def run(bench: Bench, draw: Random) -> Verdict:
        path, words = bench.home / "own" / f"mae{suffix}", loaded(bench.home, suffix)
        before = bench.workspace.call(*words)
        kind = kind_of(path.name, index, Random(bench.expected.seed))
        done = f"mae{suffix}: {damages.apply(kind, path, draw)}"
        return changed_input(bench, done, path, before, bench.workspace.call(*words))

    return run


def _interrupted(files: tuple[str, ...], index: int) -> Any:
    def run(bench: Bench, draw: Random) -> Verdict:
        folder = bench.runs / bench.expected.stopped
        kind = kind_of(files[0], index, Random(bench.expected.seed))
        done = ", ".join(f"{file}: {damages.apply(kind, folder / file, draw)}" for file in files)
        commands = [bench.workspace.call(*STOPPED)]
        paths = [folder / file for file in files]
        found = judge(
            bench, done, commands, files=paths, logs=[folder / "log"], recomputed=[folder.name], table=False
        )
        if found.outcome == OK and files[0].startswith("trainer") and kind != "removed":
            log = (folder / "log").read_text(errors="replace") + commands[0].output
            read = [path for path in paths if path.name == "trainer.pt" or len(paths) > 1]
            if read and not names(log, read):
                return Verdict(UNCLEAR, done, "the damage of a checkpoint that was read stands in no log")
        return found

    return run


def _process(index: int) -> Any:
    """A cache entry that a new process reads when it starts."""

    def run(bench: Bench, draw: Random) -> Verdict:
        done = []
        for path in draw.sample(sorted((bench.workspace.cache / "sources").iterdir()), 5):
            kind = draw.choice(damages.kinds_for(path.name))
            done.append(f"{path.name}: {damages.apply(kind, path, draw)}")
        places = {"MIMBENCH_HOME": str(bench.home), "MIMBENCH_CACHE": str(bench.workspace.cache)}
        command = [sys.executable, "-m", "mimbench", *TABLE]
        environment = {**os.environ, **places, "PYTHONPATH": str(ROOT)}
        table_file(bench.home).unlink()
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        output = found.stdout + found.stderr
        crash = output[-1500:] if "Traceback" in output else ""
        commands = [Done((*TABLE, f"in a process, {index}"), found.returncode, output, crash)]
        return judge(bench, "; ".join(done), commands, files=[bench.workspace.cache / "sources"])

    return run


def copied(source: Path, target: Path) -> Path:
    """A copy of a folder, with times of its own."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    return target

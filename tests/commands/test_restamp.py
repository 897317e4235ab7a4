"""Stale results that get the stamp of today's code: only where their numbers come out again."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mimbench.cli import app
from mimbench.commands import restamp as command
from mimbench.commands.restamp import restamp
from mimbench.execute import worker
from mimbench.store.export import frame
from mimbench.store.folder import Inputs, RunFolder
from mimbench.store.records import RESULT_SCHEMA
from mimbench.store.runs import RunStore
from tests.world import alter, echo_spec, forget

HARMLESS = ("calls = len(", "number = 1\n    calls = len(")
OTHER_LOSS = ("loss=1.0 / (step + 1)", "loss=1.0000001 / (step + 1)")
OTHER_SCORE = ("40.0 + folder", "44.0 + folder")


class Lab:
    """Runs of the small world, and the code that computes them, which can be edited."""

    def __init__(self, root: Path, world: Path) -> None:
        self.store, self.file = RunStore(root / "runs"), world / "downstream" / "echo.py"

    def compute(self, *, steps: int = 3, seed: int = 0, parent: RunFolder | None = None) -> RunFolder:
        parents = {"encoder": parent.spec.key} if parent else None
        folder = self.store.create(echo_spec(seed=seed, steps=steps, parents=parents), Inputs())
        assert worker.handle(folder.path, rerun=False) == {"event": "done", "shared": False}
        return self.fresh(folder)

    def edit(self, old: str, new: str) -> None:
        text = self.file.read_text()
        assert old in text
        self.file.write_text(text.replace(old, new))
        sys.modules.pop("downstream.echo", None)
        forget()

    def fresh(self, folder: RunFolder) -> RunFolder:
        return RunFolder(self.store, folder.path)

    def outcomes(self, *folders: RunFolder) -> list[str]:
        return [self.fresh(folder).outcome() for folder in folders]

    def restamp(self, **options: Any) -> tuple[int, str]:
        console = Console(width=400, record=True, file=open(os.devnull, "w"))
        status = restamp("a variable was renamed", console, **options)
        return status, console.export_text()


@pytest.fixture
def lab(world: Path, workspace: Path) -> Lab:
    return Lab(workspace, world)


def test_nothing_is_stale(lab: Lab) -> None:
    lab.compute()
    assert lab.restamp() == (0, "No run is stale.\n")


def test_equal_numbers_get_the_new_stamp_parents_first_and_the_reason_is_kept(lab: Lab) -> None:
    parent = lab.compute(seed=1)
    child = lab.compute(seed=2, parent=parent)
    before = [run.result for run in (parent, child)]
    for count in (1, 2):
        lab.edit(*HARMLESS)
        assert lab.outcomes(parent, child) == ["stale", "stale"]
        status, text = lab.restamp()
        assert status == 0 and "2 of 2 stale runs were restamped" in text
        assert text.index(parent.path.name) < text.index(child.path.name)
        assert "the first 3 lines of metrics.jsonl (to step 3 of 3: loss)" in text
        assert "Not checked" in text and "the evaluation that follows" in text
        assert lab.outcomes(parent, child) == ["done", "done"]
        for run, old in zip((parent, child), before, strict=True):
            new = lab.fresh(run).result
            assert old and new and new.metrics == old.metrics and new.details == old.details
            first, last = new.restamped[0], new.restamped[-1]
            assert len(new.restamped) == count and last.because == "a variable was renamed"
            assert (first.before.source, first.before.parents) == (old.source, old.parents)
            assert (last.after.source, last.after.parents) == (new.source, new.parents)
            assert "3 lines" in last.checked and last.date[:4].isdigit()
    assert (frame(lab.store)["restamped"].str.count("a variable was renamed") == 2).all()
    assert not list(lab.store.root.glob("*/.*.json.*")) and len(list(lab.store)) == 2


def test_another_number_stays_stale_and_so_does_what_stands_on_it(lab: Lab) -> None:
    parent = lab.compute(seed=1)
    child = lab.compute(seed=2, parent=parent)
    alone = lab.compute(seed=3, steps=0)
    written = [(run.path / "result.json").read_bytes() for run in (parent, child)]
    lab.edit(*OTHER_LOSS)
    status, text = lab.restamp()
    assert status == 1 and lab.outcomes(parent, child, alone) == ["stale", "stale", "done"]
    assert f"left stale {parent.path.name}: loss at step 1: 1.0 then, 1.0000001 now" in text
    assert f"left stale {child.path.name}: its encoder {parent.path.name} is stale" in text
    assert "1 of 3 stale runs were restamped" in text
    assert [(run.path / "result.json").read_bytes() for run in (parent, child)] == written


def test_a_run_without_lines_is_computed_whole(lab: Lab) -> None:
    trained, whole = lab.compute(seed=1), lab.compute(seed=2, steps=0)
    assert not (whole.path / "metrics.jsonl").exists()
    lab.edit(*OTHER_SCORE)
    status, text = lab.restamp()
    assert status == 1 and lab.outcomes(trained, whole) == ["done", "stale"]
    assert f"left stale {whole.path.name}: score: 42.0 then, 46.0 now" in text  # of the other, it is not seen
    lab.edit(*reversed(OTHER_SCORE))
    lab.edit(*HARMLESS)
    status, text = lab.restamp()
    assert status == 0 and lab.outcomes(trained, whole) == ["done", "done"]
    assert f"restamped {whole.path.name}: compared the whole run: other, score" in text


def test_files_for_other_runs_are_compared_byte_for_byte(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"weights"

    def stage(folder: RunFolder) -> dict[str, float]:
        folder.encoder_path.write_bytes(content)
        return {}

    monkeypatch.setattr(worker, "stage", stage)
    run = lab.compute()
    lab.edit(*HARMLESS)
    content = b"weightz"
    status, text = lab.restamp()
    assert status == 1 and "encoder.safetensors is another file" in text
    content = b"weights"
    (run.path / "teacher.safetensors").write_bytes(b"")
    assert "teacher.safetensors was written then and is not now" in lab.restamp()[1]
    (run.path / "teacher.safetensors").unlink()
    status, text = lab.restamp()
    assert status == 0 and "compared the whole run: encoder.safetensors" in text
    assert run.encoder_path.read_bytes() == b"weights"


def test_more_lines_on_demand_and_some_steps_at_least(lab: Lab) -> None:
    lab.compute(steps=50)
    lab.edit(*HARMLESS)
    assert f"(to step {command.MIN_STEPS} of 50: loss)" in lab.restamp(dry_run=True)[1]
    assert "the first 30 lines of metrics.jsonl (to step 30 of 50" in lab.restamp(lines=30, dry_run=True)[1]
    lab.edit("loss=1.0 / (step + 1)", "loss=1.0 / (step + 1 + (step == 24))")
    assert lab.restamp(dry_run=True)[0] == 0
    status, text = lab.restamp(lines=30, dry_run=True)
    assert status == 1 and "loss at step 25" in text


def test_a_dry_run_compares_and_writes_nothing(lab: Lab) -> None:
    parent = lab.compute(seed=1)
    child = lab.compute(seed=2, parent=parent)
    lab.edit(*HARMLESS)
    before = {path: path.read_bytes() for path in lab.store.root.rglob("*") if path.is_file()}
    status, text = lab.restamp(dry_run=True)
    assert status == 0 and text.count("would restamp") == 2 and "2 of 2 stale runs would be" in text
    assert {path: path.read_bytes() for path in lab.store.root.rglob("*") if path.is_file()} == before
    assert lab.outcomes(parent, child) == ["stale", "stale"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": "a GPU"}, "another device: a GPU, here"),
        ({"versions": {"torch": "1.0"}}, "another version of torch: 1.0"),
        ({"versions": None}, "env.json does not say"),
        ({"threads": "many"}, "env.json does not say"),
        ({"cuda": "12.8"}, "another version of CUDA: 12.8"),
        (None, "env.json does not say"),
    ],
)
def test_another_machine_cannot_tell(change: dict[str, Any] | None, reason: str, lab: Lab) -> None:
    run = lab.compute()
    lab.edit(*HARMLESS)
    path = run.path / "env.json"
    path.write_text("[]" if change is None else json.dumps({**json.loads(path.read_text()), **change}))
    status, text = lab.restamp()
    assert status == 1 and reason in text and lab.outcomes(run) == ["stale"]


def test_what_cannot_be_computed_stays_stale(lab: Lab) -> None:
    parent = lab.compute(seed=1)
    child, lost, held = lab.compute(seed=2, parent=parent), lab.compute(seed=3), lab.compute(seed=4)
    lab.store.remove(parent)
    (lost.path / "metrics.jsonl").unlink()
    lab.edit(*HARMLESS)
    with held.lock():
        status, text = lab.restamp()
    assert status == 1 and "0 of 3" in text
    assert f"{child.path.name}: its encoder was removed" in text
    assert f"{lost.path.name}: it has no metrics.jsonl" in text
    assert f"{held.path.name}: it is being computed" in text
    lab.edit('print("hello from"', 'raise KeyError("gone")\n    print("hello from"')
    assert "its start fails: KeyError: 'gone'" in lab.restamp()[1]


def test_stamps_of_any_older_rule_and_schema(lab: Lab) -> None:
    parent = lab.compute(seed=1)
    child = lab.compute(seed=2, parent=parent)
    for run in (parent, child):
        path = run.path / "result.json"
        old = {**json.loads(path.read_text()), "schema": 1, "source": "62431d6dd6a2805f"}
        del old["seal"], old["artefacts"], old["percent"]
        path.write_text(json.dumps({**old, "parents": {"encoder": "old"} if run is child else {}}))
    assert lab.outcomes(parent, child) == ["stale", "stale"]
    assert lab.restamp()[0] == 0 and lab.outcomes(parent, child) == ["done", "done"]
    result = lab.fresh(child).result
    assert (
        result and result.schema == RESULT_SCHEMA and result.restamped[0].before.parents == {"encoder": "old"}
    )


def test_the_command_asks_for_a_reason(lab: Lab) -> None:
    lab.compute()
    lab.edit(*HARMLESS)
    for words in ([], ["--because", " "], ["--because", "so", "--lines", "0"]):
        assert CliRunner().invoke(app, ["runs", "restamp", *words]).exit_code == 2
    done = CliRunner().invoke(app, ["runs", "restamp", "--because", "so"])
    assert done.exit_code == 0 and "1 of 1 stale runs were restamped" in done.output


def test_a_real_pretraining(
    pretraining_folder: Callable[..., RunFolder], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the threads it had, which are not this process's; and a number that is off by one bit."""
    import torch

    from mimbench import catalog

    run = pretraining_folder(catalog.method("mae"))
    assert worker.handle(run.path, rerun=False)["event"] == "done"
    lines = run.path / "metrics.jsonl"
    alter(run, source="older")
    recorded = lines.read_text()
    last = json.loads(recorded.splitlines()[-1])
    lines.write_text(recorded.replace(repr(last["loss"]), repr(last["loss"] * (1 + 2**-50))))
    console = Console(width=400, record=True, file=open(os.devnull, "w"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # what is put back afterwards
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    assert restamp("moved", console) == 1 and "loss at step 6" in console.export_text()
    lines.write_text(recorded)
    assert restamp("moved", console) == 0 and RunFolder(run.store, run.path).outcome() == "done"
    assert threads == [1, 2, 1, 2]

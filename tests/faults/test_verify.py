"""`mimbench runs verify`: it finds every kind of damage, and repairs only what it may."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mimbench.store.folder import RunFolder
from mimbench.store.index import Snapshot
from mimbench.store.records import Damaged
from mimbench.store.runs import RunStore
from tests.cli.bench import Bench
from tests.faults.damage import KINDS
from tests.world import echo_spec

VERIFY, REPAIR = ("runs", "verify"), ("runs", "verify", "--repair", "--yes")


@pytest.fixture
def run(bench: Bench) -> RunFolder:
    """A finished run with an encoder."""
    bench.finish()
    run = bench.run()
    run.reset()
    run.begin({})
    run.encoder_path.write_bytes(b"weights" * 999)
    run.finish({"score": 40.0, "other": 1.0})
    return run


def interrupted(bench: Bench) -> RunFolder:
    from mimbench.store.folder import Inputs

    other = bench.store.create(echo_spec(seed=77), Inputs())
    other.begin({})
    for step in (1, 2):
        other.save_checkpoint(step, lambda file: file.write(b"state" * 99))
    return other


def test_a_sound_store(bench: Bench, run: RunFolder) -> None:
    interrupted(bench)
    done = bench.call(*VERIFY)
    assert done.exit_code == 0 and done.stdout.splitlines()[-1].endswith("runs: sound")
    assert bench.call(*REPAIR).exit_code == 0 and run.outcome() == "done"


def edit_score(run: RunFolder) -> None:
    path = run.path / "result.json"
    path.write_text(path.read_text().replace("40.0", "41.0"))


def edit_spec(run: RunFolder) -> None:
    path = run.path / "spec.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 5}))


DAMAGE: dict[str, tuple[Callable[[RunFolder], object], str, str]] = {
    "flip in the encoder": (
        lambda run: KINDS["flip in the middle"](run.encoder_path),
        "encoder.safetensors",
        "missing",
    ),
    "no encoder": (lambda run: run.encoder_path.unlink(), "encoder.safetensors", "missing"),
    "an edited result": (edit_score, "result.json", "missing"),
    "a folder as a result": (lambda run: KINDS["folder"](run.path / "result.json"), "result.json", "missing"),
    "an edited spec": (edit_spec, "spec.json", "gone"),
    "no spec": (lambda run: (run.path / "spec.json").unlink(), "spec.json", "gone"),
    "odd inputs": (lambda run: (run.path / "inputs.json").write_text('{"data": 3}'), "inputs.json", "done"),
    "an odd status": (lambda run: (run.path / "status.json").write_text("[]"), "status.json", "done"),
    "a temporary file": (
        lambda run: (run.path / ".spec.json.0a_b1c2d").touch(),
        ".spec.json.0a_b1c2d",
        "done",
    ),
    "a status that is no JSON": (lambda run: KINDS["half"](run.path / "status.json"), "status.json", "done"),
    "an environment that is no JSON": (lambda run: KINDS["half"](run.path / "env.json"), "env.json", "done"),
    "a folder as metrics": (lambda run: KINDS["folder"](run.path / "metrics.jsonl"), "metrics.jsonl", "done"),
    "a pipe as a log": (lambda run: KINDS["pipe"](run.log_path), "log", "done"),
    "a left checkpoint": (lambda run: run.trainer_path.write_bytes(b"x"), "trainer.pt", "done"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_every_damage_is_named_and_repaired_after_a_yes(name: str, bench: Bench, run: RunFolder) -> None:
    damage, file, after = DAMAGE[name]
    key = run.spec.key
    damage(run)
    done = bench.call(*VERIFY)
    assert done.exit_code == 1 and len(done.stdout.splitlines()) == 1
    assert str(run.path) in done.stdout and file in done.stdout
    refused = bench.call("runs", "verify", "--repair")
    assert refused.exit_code == 2 and "--yes" in refused.stderr, "nobody can be asked here"
    assert bench.call(*VERIFY).stdout == done.stdout, "nothing was deleted"
    repaired = bench.call(*REPAIR, run.path.name)
    assert repaired.exit_code == 0
    asked, told = (
        [line for line in repaired.stdout.splitlines() if line.startswith(f"{words}: ")]
        for words in ("to delete", "deleted")
    )
    assert len(asked) == 1 and told == [asked[0].replace("to delete", "deleted")]
    assert "--repair" not in repaired.stdout, "the command does not advise itself"
    assert bench.call(*VERIFY).exit_code == 0
    assert bench.store.outcome(key) == ("missing" if after == "gone" else after)
    assert run.path.exists() == (after != "gone")


@pytest.mark.parametrize("file", ["trainer.pt", "trainer-before.pt"])
def test_a_damaged_checkpoint_is_set_aside_without_a_question(file: str, bench: Bench) -> None:
    other = interrupted(bench)
    KINDS["garbage"](other.path / file)
    content = (other.path / file).read_bytes()
    done = bench.call(*VERIFY)
    assert done.exit_code == 1 and f"{other.path / file} is damaged" in done.stdout
    repaired = bench.call("runs", "verify", "--repair")
    assert repaired.exit_code == 0 and f"set aside: {other.path / file}.damaged" in repaired.stdout
    assert (other.path / f"{file}.damaged").read_bytes() == content and not (other.path / file).exists()


@pytest.mark.parametrize("name", ["downstream-zz-vit_smoke", "downstream-aa-vit_smoke"])
def test_a_copy_of_a_run_is_named_and_the_run_stays(bench: Bench, run: RunFolder, name: str) -> None:
    copy = shutil.copytree(run.path, run.path.with_name(f"{name}-{run.path.name[-8:]}"))
    for store in (RunStore(bench.store.root), Snapshot(RunStore(bench.store.root), None)):
        assert store.folder(run.spec.key).path == run.path
    done = bench.call(*VERIFY)
    assert done.exit_code == 1 and f"{copy} is the run {run.path.name} under another name" in done.stdout
    bench.call(*REPAIR)
    assert run.outcome() == "done" and copy.exists(), "nobody deletes a copy"
    assert bench.call("runs", "rm", "--yes", copy.name).exit_code == 0
    assert bench.call(*VERIFY).exit_code == 0 and run.outcome() == "done"


@pytest.mark.parametrize("file", ["env.json", "metrics.jsonl", "log"])
def test_a_run_does_not_begin_on_an_odd_file(bench: Bench, file: str) -> None:
    other = interrupted(bench)
    KINDS["folder"](other.path / file)
    with pytest.raises(Damaged, match=rf"{file} is no ordinary file.*verify --repair"):
        other.begin({})
    assert bench.call(*REPAIR).exit_code == 0
    other.begin({})


def test_a_file_of_a_newer_version_is_left_alone(bench: Bench, run: RunFolder) -> None:
    path = run.path / "result.json"
    newer = json.dumps({**json.loads(path.read_text()), "schema": 99})
    path.write_text(newer)
    done = bench.call(*REPAIR)
    assert done.exit_code == 1 and "newer version" in done.stdout and path.read_text() == newer


def test_only_the_chosen_runs_are_checked(bench: Bench, run: RunFolder, tmp_path: Path) -> None:
    other = interrupted(bench)
    KINDS["garbage"](other.trainer_path)
    assert bench.call(*VERIFY, run.path.name).exit_code == 0
    assert bench.call(*VERIFY, run.path.name, other.path.name).exit_code == 1


def test_a_run_that_is_being_computed_is_left_out(bench: Bench) -> None:
    other = interrupted(bench)
    KINDS["garbage"](other.trainer_path)
    with other.lock():
        assert bench.call(*VERIFY).exit_code == 0

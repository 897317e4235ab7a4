"""Damaged checkpoints: named, set aside, and the run ends with the numbers of an undisturbed one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mimbench import catalog
from mimbench.errors import RunFailed
from mimbench.execute import worker
from mimbench.store import checkpoints
from mimbench.store.checkpoints import Origin
from mimbench.store.folder import Options, RunFolder
from mimbench.store.records import Damaged
from tests.faults.damage import KINDS, every_flip
from tests.train.test_resume import Interrupted, Tiny, fit_tiny, logged, stop_at, tiny_folder

NEWEST, BEFORE = checkpoints.NAMES
DAMAGE = {name: kind for name, kind in KINDS.items() if name != "removed"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pretrain-tiny-vit_smoke-00000000"
    path.mkdir()
    return path


def save(folder: Path, step: int, content: bytes = b"weights") -> None:
    origin = Origin(folder.name, step, "code", {"teacher": "other code"})
    checkpoints.save(folder, origin, lambda file: file.write(content))


def test_no_flip_and_no_cut_goes_unnoticed(folder: Path) -> None:
    save(folder, 7, bytes(range(64)))
    path = folder / NEWEST
    content = path.read_bytes()
    origin = checkpoints.check(path)
    assert (origin.step, origin.source, origin.parents) == (7, "code", {"teacher": "other code"})
    assert content.startswith(bytes(range(64)))
    for damaged in (
        *every_flip(content),
        *(content[:length] for length in range(len(content))),
        content + b"x",
    ):
        path.write_bytes(damaged)
        with pytest.raises(Damaged, match="trainer.pt is damaged"):
            checkpoints.check(path)


def test_two_are_kept_and_a_kill_between_the_renames_loses_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps() -> list[int]:
        return [checkpoints.check(path).step for path in checkpoints.sound(folder)]

    for step in (1, 2, 3):
        save(folder, step)
        assert steps() == list(range(step, max(step - 2, 0), -1))
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if count.pop():
            raise Interrupted
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    count = [True]
    with pytest.raises(Interrupted):  # before the first rename
        save(folder, 4)
    assert steps() == [3, 2]
    count = [True, False]
    with pytest.raises(Interrupted):  # between the two
        save(folder, 4)
    assert steps() == [3]
    monkeypatch.undo()
    save(folder, 5)
    assert steps() == [5, 3] and not list(folder.glob(".*"))


def test_a_failed_write_leaves_both(folder: Path) -> None:
    save(folder, 1)
    save(folder, 2)

    def fail(file: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoints.save(folder, Origin(folder.name, 3, "", {}), fail)
    assert [checkpoints.check(path).step for path in checkpoints.present(folder)] == [2, 1]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, list[dict[str, object]]]:
    whole = tiny_folder(tmp_path_factory.mktemp("whole"))
    return fit_tiny(whole), logged(whole)


def interrupted(root: Path, step: int = 5) -> RunFolder:
    """A run that was stopped at a step; its checkpoints are of that step and of the one before."""
    run = tiny_folder(root)
    with pytest.raises(Interrupted):
        fit_tiny(run, before_step=stop_at(step, []))
    return run


def assert_same(run: RunFolder, found: Tiny, expected: tuple[Tiny, list[dict[str, object]]]) -> None:
    for (name, a), b in zip(expected[0].state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert logged(run) == expected[1]


@pytest.mark.parametrize("files", [(NEWEST,), (BEFORE,), (NEWEST, BEFORE)], ids=" ".join)
@pytest.mark.parametrize("kind", DAMAGE)
def test_the_run_goes_on_from_the_sound_one(
    kind: str,
    files: tuple[str, ...],
    tmp_path: Path,
    expected: tuple[Tiny, list[dict[str, object]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = interrupted(tmp_path)
    for file in files:
        DAMAGE[kind](run.path / file)
    asked: list[int] = []
    found = fit_tiny(run, before_step=asked.append)
    assert asked[0] == {(NEWEST,): 4, (BEFORE,): 5, (NEWEST, BEFORE): 0}[files]
    assert_same(run, found, expected)
    told = capsys.readouterr().out
    for file in files:
        if file == BEFORE != files[0] or file == NEWEST:
            assert f"{run.path / file} is damaged" in told and f"set aside as {file}.damaged" in told
            assert os.path.lexists(run.path / f"{file}.damaged")


def test_a_checkpoint_of_another_run_is_not_continued(
    tmp_path: Path, expected: tuple[Tiny, list[dict[str, object]]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = interrupted(tmp_path), tiny_folder(tmp_path, seed=9)
    with pytest.raises(Interrupted):
        fit_tiny(other, before_step=stop_at(3, []))
    run.trainer_path.write_bytes(other.trainer_path.read_bytes())
    assert_same(run, fit_tiny(run), expected)
    assert f"it is of another run, {other.path.name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"loss": ', '"loss": 1'),
        lambda text: "",
        lambda text: text[:-9],
        lambda text: "[]\n" + text.replace("{", "", 1),
        lambda text: text + '{"step": 4, "loss": 0.0}\n',
    ],
)
def test_damaged_metrics_are_mended_from_the_checkpoint(
    damage: Callable[[str], str], tmp_path: Path, expected: tuple[Tiny, list[dict[str, object]]]
) -> None:
    run = interrupted(tmp_path)
    path = run.path / "metrics.jsonl"
    path.write_text(damage(path.read_text()))
    assert_same(run, fit_tiny(run), expected)


@pytest.mark.parametrize("newest_only", [True, False])
def test_a_pretraining_through_the_worker(
    newest_only: bool,
    pretraining_folder: Callable[..., RunFolder],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What it prints names the file; encoder and metrics are those of a run that nothing happened to."""
    card, every_step = catalog.method("mae"), Options(checkpoint_seconds=0.0)
    whole = pretraining_folder(card, root="whole")
    assert worker.handle(whole.path, rerun=False)["event"] == "done"
    run = pretraining_folder(card, root="cut", options=every_step)
    progress = RunFolder.progress

    def stop(self: RunFolder, step: int, total: int, **scalars: float) -> None:
        progress(self, step, total, **scalars)
        if step == 4:
            raise RunFailed("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "progress", stop)
        assert worker.handle(run.path, rerun=False)["event"] == "failed"
    for name in checkpoints.NAMES[: 1 if newest_only else 2]:
        KINDS["flip in the middle"](run.path / name)
    (run.path / "status.json").write_text("{")
    assert worker.handle(run.path, rerun=False)["event"] == "done"
    assert f"{run.trainer_path} is damaged" in capsys.readouterr().out
    assert run.encoder_path.read_bytes() == whole.encoder_path.read_bytes()
    assert run.result is not None and whole.result is not None
    assert run.result.metrics == whole.result.metrics and run.result.artefacts == whole.result.artefacts
    steps = [json.loads(line)["step"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert {path.name for path in run.store.leftovers()} == {
        f"{name}.damaged" for name in checkpoints.NAMES[: 1 if newest_only else 2]
    }

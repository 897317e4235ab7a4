"""Run folders: locks, resumption, failures, and what counts as stale."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mimbench.errors import RunFailed, UserError
from mimbench.store import folder as store_module
from mimbench.store import lock as lock_module
from mimbench.store import records, runs
from mimbench.store.export import frame, state, subject
from mimbench.store.folder import Inputs, Options, RunFolder
from mimbench.store.lock import RunLocked
from mimbench.store.records import RESULT_SCHEMA, Damaged, Status, write_status
from mimbench.store.runs import WORKSHOP, RunStore
from mimbench.store.spec import RunSpec
from tests.world import alter, echo_spec, forget

HOLD = """
import sys, time
from pathlib import Path
from mimbench.store.folder import RunFolder
from mimbench.store.runs import RunStore
folder = RunFolder(RunStore(Path({root!r})), Path({path!r}))
with folder.lock():
    print("held", flush=True)
    time.sleep(60)
"""

NewRun = Callable[..., RunFolder]


@pytest.fixture
def holder(python: Callable[[str], subprocess.Popen[str]]):
    """Another process that holds a run's lock."""
    held = []

    def hold(folder: RunFolder) -> subprocess.Popen[str]:
        process = python(HOLD.format(root=str(folder.store.root), path=str(folder.path)))
        held.append(process)
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "held\n", process.stderr.read()
        return process

    yield hold
    for process in held:
        process.kill()
        process.wait()


def test_create_writes_spec_and_inputs_once(store: RunStore) -> None:
    spec = echo_spec()
    inputs = Inputs(data={"imagenet": "/d"}, weights={"clip": "/w.pt"}, options=Options(2, 5.0))
    folder = store.create(spec, inputs)
    before = (folder.path / "spec.json").stat().st_mtime_ns
    again = store.create(spec, inputs)
    assert (again.path / "spec.json").stat().st_mtime_ns == before
    assert again.spec == RunSpec(**spec.as_dict()) and again.spec.key == spec.key
    assert again.data("imagenet") == Path("/d") and again.weights == {"clip": Path("/w.pt")}
    assert again.options.num_workers == 2 and again.options.checkpoint_seconds == 5.0
    with pytest.raises(UserError, match="coco"):
        again.data("coco")


def test_only_one_process_holds_a_run_and_a_kill_frees_it(new_run: NewRun, holder: Callable) -> None:
    folder = new_run()
    assert folder.outcome() == "missing"
    other = holder(folder)
    assert folder.outcome() == "running"
    with pytest.raises(RunLocked), folder.lock():
        pass
    with pytest.raises(RunLocked):
        folder.store.remove(folder)
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert folder.outcome() == "missing"
    with folder.lock():
        pass


def test_progress_and_restored_metrics(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "HEARTBEAT_SECONDS", 0.0)
    folder = new_run()
    folder.begin({})
    for step in range(1, 5):
        folder.progress(step, 10, loss=1.0 / step)
        if step == 2:
            kept = folder.metrics_text()
    assert folder.status.state == "running" and (folder.status.step, folder.status.total) == (4, 10)
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    assert [line["step"] for line in folder.metrics()] == [1, 2, 3, 4]
    folder.restore_metrics(kept)
    assert [line["step"] for line in folder.metrics()] == [1, 2]
    folder.progress(3, 10, loss=9.0)
    assert folder.last_metrics() == {"loss": 9.0}


def test_heartbeat_is_written_at_most_once_a_second(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_run()
    folder.begin({})
    written: list[str] = []
    monkeypatch.setattr(records, "write_status", lambda folder, status: written.append(status.state))
    for step in range(1, 1000):
        folder.progress(step, 1000)
    assert len(written) <= 3


def test_finish_makes_a_run_done(new_run: NewRun) -> None:
    folder = new_run()
    folder.begin({"python": "3"})
    folder.details["skipped"] = 1
    folder.finish({"score": 41.5}, boxes=3)
    assert folder.store.outcome(folder.spec.key) == "done"
    result = folder.result
    assert result is not None and result.schema == RESULT_SCHEMA and result.metrics == {"score": 41.5}
    assert result.details == {"skipped": 1, "boxes": 3} and result.source == folder.source


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_no_number_is_no_result(new_run: NewRun, value: float) -> None:
    folder = new_run()
    with pytest.raises(RunFailed, match="score"):
        folder.finish({"score": value})
    assert folder.result is None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_leaves_no_half_written_result(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    folder = new_run()
    folder.begin({})
    before = sorted(path.name for path in folder.path.iterdir())

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught:
        folder.finish({"score": 1.0})
    assert caught.value.errno == code and caught.value.filename == str(folder.path / "result.json")
    assert sorted(path.name for path in folder.path.iterdir()) == before
    assert folder.outcome() == "missing"


def test_failure_is_remembered_and_forgotten(new_run: NewRun) -> None:
    folder = new_run()
    folder.begin({})
    folder.fail("loss is NaN")
    assert folder.outcome() == "failed" and folder.status.message == "loss is NaN"
    folder.reset()
    assert folder.outcome() == "missing"


def test_edited_source_makes_a_run_and_its_children_stale(world: Path, new_run: NewRun) -> None:
    parent = new_run(seed=1)
    parent.finish({"score": 1.0})
    child = new_run(seed=2, parents={"encoder": parent.spec.key})
    child.finish({"score": 1.0})
    task = world / "downstream" / "echo.py"

    def outcomes() -> list[str]:
        forget()
        return [RunFolder(run.store, run.path).outcome() for run in (parent, child)]

    task.write_text("# a comment\n" + task.read_text().replace('"""A task that', '"""Another docstring that'))
    assert outcomes() == ["done", "done"]
    task.write_text(task.read_text().replace("40.0 + folder", "41.0 + folder"))
    assert outcomes() == ["stale", "stale"]

    fresh = RunFolder(parent.store, parent.path)
    fresh.reset()
    fresh.finish({"score": 2.0})
    assert outcomes() == ["done", "stale"]  # the child still stands on the old parent
    again = RunFolder(child.store, child.path)
    again.reset()
    again.finish({"score": 2.0})
    assert outcomes() == ["done", "done"]


def test_what_stands_on_recomputed_grandparents_is_stale(world: Path, new_run: NewRun) -> None:
    """A teacher's code changes, it and the pretraining are computed again: the fine-tuning is still old."""
    store = new_run().store

    def add(stage: str, name: str, **parents: RunFolder) -> RunFolder:
        keys = {role: parent.spec.key for role, parent in parents.items()}
        spec = RunSpec(stage, name, "vit_smoke", {}, {}, 0, keys)  # type: ignore[arg-type]
        return store.create(spec, Inputs())

    def compute(run: RunFolder) -> None:
        folder = RunFolder(store, run.path)
        folder.reset()
        folder.begin({})
        folder.finish({"score": 1.0})

    teacher = add("teacher", "wise")
    encoder = add("pretrain", "taught", teacher=teacher)
    lineage = (teacher, encoder, add("downstream", "echo", encoder=encoder))

    def outcomes() -> list[str]:
        return [RunFolder(store, run.path).outcome() for run in lineage]

    for run in lineage:
        compute(run)
    assert outcomes() == ["done"] * 3
    source = world / "pretrain" / "teachers" / "wise.py"
    source.write_text(source.read_text() + "\nMORE = 1\n")
    forget()
    assert outcomes() == ["stale"] * 3
    compute(teacher)
    assert outcomes() == ["done", "stale", "stale"]
    compute(encoder)
    assert outcomes() == ["done", "done", "stale"]
    compute(lineage[2])
    assert outcomes() == ["done"] * 3


def test_a_parent_that_is_recomputed_meanwhile_makes_its_child_stale(world: Path, new_run: NewRun) -> None:
    parent = new_run(seed=1)
    parent.finish({"score": 1.0})
    child = new_run(seed=2, parents={"encoder": parent.spec.key})
    child.begin({})
    source = parent.source
    alter(parent, source="of other code")
    child.finish({"score": 1.0})
    alter(parent, source=source)
    assert child.outcome() == "done"  # it stands on what the parent was when it began, and is again
    alter(parent, source="of other code")
    assert child.outcome() == "stale"


def test_results_of_the_first_schema_are_judged_by_their_parents_sources(new_run: NewRun) -> None:
    parent = new_run(seed=1)
    parent.finish({"score": 1.0})
    child = new_run(seed=2, parents={"encoder": parent.spec.key})
    child.finish({"score": 1.0})
    result = json.loads((child.path / "result.json").read_text())
    result |= {"schema": 1, "parents": {"encoder": parent.source}}
    del result["seal"], result["artefacts"], result["percent"]
    (child.path / "result.json").write_text(json.dumps(result))
    assert child.outcome() == "done"
    (child.path / "result.json").write_text(json.dumps({**result, "parents": {"encoder": "other code"}}))
    assert child.outcome() == "stale"


def test_a_removed_parent_does_not_devalue_its_child(new_run: NewRun) -> None:
    parent = new_run(seed=1)
    parent.finish({"score": 1.0})
    child = new_run(seed=2, parents={"encoder": parent.spec.key})
    child.finish({"score": 1.0})
    parent.store.remove(parent)
    assert child.outcome() == "done"


def test_checkpoint_of_other_code_is_not_continued(world: Path, new_run: NewRun) -> None:
    folder = new_run()
    folder.begin({})
    folder.save_checkpoint(1, lambda file: file.write(b"weights"))
    again = RunFolder(folder.store, folder.path)
    again.begin({})
    assert again.trainer_path.exists()
    task = world / "downstream" / "echo.py"
    task.write_text(task.read_text() + "\nMORE = 1\n")
    forget()
    RunFolder(folder.store, folder.path).begin({})
    assert not folder.trainer_path.exists()


def test_a_finished_run_keeps_no_checkpoint(new_run: NewRun) -> None:
    folder = new_run()
    folder.begin({})
    folder.trainer_path.write_bytes(b"weights")
    assert folder.store.leftovers() == []
    folder.finish({"score": 1.0})
    assert not folder.trainer_path.exists()
    folder.trainer_path.write_bytes(b"of a version that kept it")
    assert folder.store.leftovers() == [folder.trainer_path]


def test_runs_by_the_beginning_of_their_names(new_run: NewRun) -> None:
    one, two = new_run(seed=1), new_run(seed=2)

    def named(text: str) -> set[Path]:
        return {folder.path for folder in one.store.named(text)}

    assert named(one.path.name) == {one.path} and named(two.spec.key[:10]) == {two.path}
    assert named("downstream-echo") == {one.path, two.path} and named("nothing") == set()


def test_leftovers_are_temporary_files_and_empty_folders(new_run: NewRun) -> None:
    folder = new_run()
    with folder.lock():
        pass
    temporary = folder.path / ".result.json.abcd"
    temporary.write_text("{")
    broken = folder.store.root / "downstream-echo-vit_smoke-00000000"
    broken.mkdir()
    stamped = folder.path / "20261130_140708"  # of mmengine, by an older version
    stamped.mkdir()
    (folder.path / "20261130_140709").mkdir()
    (folder.path / "20261130_140709" / "mine.txt").touch()
    unfinished = folder.store.root / WORKSHOP / broken.name  # of a migration that was killed
    unfinished.mkdir(parents=True)
    held = folder.store.root / WORKSHOP / folder.path.name
    held.mkdir()
    with folder.lock():
        assert sorted(folder.store.leftovers()) == sorted([broken, unfinished])
    found = folder.store.leftovers()
    assert sorted(found) == sorted([temporary, broken, stamped, unfinished, held])
    folder.store.remove_leftovers(found)
    assert folder.store.leftovers() == [] and folder.spec.name == "echo"
    assert (folder.path / "20261130_140709" / "mine.txt").exists()


def listings(store: RunStore, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> int:
    """How often the store's folder is listed while `act` runs."""
    count, real = 0, os.scandir

    def scandir(path: object) -> object:
        nonlocal count
        count += path == store.root
        return real(path)  # type: ignore[type-var]

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        act()
    return count


def test_a_listing_is_linear_in_the_number_of_runs(
    new_run: NewRun, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(20):
        parent = new_run(seed=seed)
        parent.finish({"score": 1.0})
        new_run(seed=seed, parents={"encoder": parent.spec.key}).finish({"score": 1.0})
    os.utime(store.root, (1e9, 1e9))
    again = RunStore(store.root)

    def show() -> None:
        assert {(state(run), subject(run).count("echo")) for run in again} == {("done", 1), ("done", 2)}
        assert len(frame(again)) == 40

    assert listings(again, monkeypatch, show) <= 4


def test_runs_of_another_process_are_seen_at_once(
    new_run: NewRun, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the folder's time of change stays what it was, as within one tick of a coarse clock."""
    monkeypatch.setattr(runs, "SETTLED_SECONDS", 3600.0)
    known = new_run(seed=0)
    other, tick = RunStore(store.root), time.time_ns()
    for seed in range(1, 4):
        spec = echo_spec(seed=seed)
        assert store.get(known.spec.key) is not None
        assert store.get(spec.key) is None and store.outcome(spec.key) == "missing"
        folder = other.create(spec, Inputs())
        os.utime(store.root, ns=(tick, tick))
        assert store.get(spec.key) is not None
        other.remove(folder)
        os.utime(store.root, ns=(tick, tick))
        assert store.get(spec.key) is None
    os.utime(store.root, (1e9, 1e9))
    assert store.get(known.spec.key) is not None
    other.remove(known)
    assert store.get(known.spec.key) is None
    store.root.rmdir()
    assert store.get(known.spec.key) is None and list(store) == []


def test_a_run_that_lost_its_spec_is_listed_refused_and_can_be_removed(new_run: NewRun) -> None:
    folder = new_run()
    folder.finish({"score": 1.0})
    (folder.path / "spec.json").unlink()
    store = folder.store
    assert [(state(run), subject(run)) for run in store] == [("damaged", folder.path.name)]
    assert store.outcome(folder.spec.key) == "damaged" and frame(store).empty and store.leftovers() == []
    with pytest.raises(Damaged, match="no readable spec.json.*runs rm"):
        store.create(folder.spec, Inputs())
    for name in (folder.path.name, folder.path.name[-8:], folder.path.name[-8:-2]):
        assert [found.path for found in store.named(name)] == [folder.path]
    store.remove(folder)
    assert store.create(folder.spec, Inputs()).outcome() == "missing"


@pytest.mark.parametrize("text", ["[]", '{"key": "a"}', '{"stage": "pretrain", "key": 3}'])
def test_a_damaged_spec_is_never_overwritten(text: str, new_run: NewRun) -> None:
    folder = new_run()
    (folder.path / "spec.json").write_text(text)
    with pytest.raises(Damaged, match="spec.json is damaged"):
        folder.store.create(echo_spec(), Inputs())
    assert (folder.path / "spec.json").read_text() == text
    assert folder.store.outcome(echo_spec().key) == "damaged"


def test_another_runs_spec_is_refused(new_run: NewRun) -> None:
    folder = new_run()
    other = {**echo_spec(seed=7).as_dict(), "key": echo_spec(seed=7).key}
    (folder.path / "spec.json").write_text(json.dumps(other))
    with pytest.raises(Damaged, match=f"belongs to another run .{echo_spec(seed=7).key}"):
        folder.store.create(echo_spec(), Inputs())


def test_temporary_files_of_the_cache_are_leftovers_when_they_are_old(store: RunStore) -> None:
    cache = store.root / ".cache"
    cache.mkdir(parents=True)
    names = (".task-echo-ab.json.0a_b1c2d", "task-echo-ab.json", ".gitignore", ".x.json.0a_b1c2d")
    for name in names:
        (cache / name).touch()
        os.utime(cache / name, (1e9, 1e9))
    os.utime(cache / names[-1])  # somebody is writing it
    assert store.leftovers() == [cache / names[0]]


COMPUTE = """
import sys, time
from pathlib import Path
from mimbench.errors import RunFailed
from mimbench.store.folder import RunFolder
from mimbench.store.runs import RunStore
folder = RunFolder(RunStore(Path({root!r})), Path({path!r}))
with folder.lock():
    folder.claim()
    print("held", flush=True)
    try:
        for step in range(600):
            time.sleep(0.05)
            folder.progress(step, 600)
    except RunFailed as error:
        print(error, flush=True)
"""


def test_a_lock_whose_file_is_deleted_admits_nobody_else_and_its_process_stops(
    new_run: NewRun, python: Callable[[str], subprocess.Popen[str]]
) -> None:
    folder = new_run()
    process = python(COMPUTE.format(root=str(folder.store.root), path=str(folder.path)))
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    (folder.path / ".lock").unlink()
    assert folder.is_locked() and folder.outcome() == "running"
    with pytest.raises(RunLocked), folder.lock():
        pass
    assert not (folder.path / ".lock").exists()
    said = process.stdout.readline()
    assert f"{folder.path}/.lock was deleted while the run was computed" in said
    process.wait()
    with folder.lock():  # at once: the process is gone
        folder.finish({"score": 1.0})
    assert folder.outcome() == "done"


def test_no_result_is_written_without_the_lock(new_run: NewRun) -> None:
    folder = new_run()
    with folder.lock():
        folder.begin({})
        (folder.path / ".lock").unlink()
        (folder.path / ".lock").touch()  # another process made it
        with pytest.raises(RunFailed, match="was deleted"):
            folder.save_checkpoint(1, lambda file: file.write(b"x"))
        with pytest.raises(RunFailed, match="was deleted"):
            folder.finish({"score": 1.0})
    assert folder.result is None and not list(folder.path.glob("trainer*"))


def test_a_heartbeat_of_a_process_that_is_gone_keeps_nobody_out(new_run: NewRun) -> None:
    folder = new_run()
    gone = subprocess.Popen(["true"])
    gone.wait()
    now = Status("running", time=time.time(), pid=gone.pid, host=socket.gethostname())
    write_status(folder.path, now)
    with folder.lock():
        pass
    (folder.path / ".lock").unlink()
    write_status(folder.path, replace(now, host="another"))
    with pytest.raises(RunLocked), folder.lock():
        pass
    write_status(folder.path, replace(now, host="another", time=time.time() - 3600))
    with folder.lock():
        pass


def test_what_cannot_be_locked_for_want_of_permission_can_be_judged(
    new_run: NewRun, holder: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_run()
    with folder.lock():
        pass

    def refused(self: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(lock_module.FileLock, "acquire", refused)
    assert not RunFolder(folder.store, folder.path).is_locked()
    holder(folder)
    assert RunFolder(folder.store, folder.path).is_locked() and folder.outcome() == "running"

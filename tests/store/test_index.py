"""The index of a store: it saves reading, and never hides a change."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimbench import paths
from mimbench.store import index, records
from mimbench.store.export import state
from mimbench.store.folder import Inputs, RunFolder
from mimbench.store.index import Snapshot, snapshot
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec
from tests.faults.damage import flipped
from tests.world import forget

RUNS = 30

AGAIN = """
import sys
from pathlib import Path
from mimbench.store import index
from mimbench.store.runs import RunStore
index.FRESH_NS, index.WORTH = -10**18, 0
for _ in range(20):
    print(len(list(index.snapshot(RunStore(Path(sys.argv[1]))))))
"""


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Files that were written a moment ago count as old; the cache folder is empty."""
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "FRESH_NS", -(10**18))


@pytest.fixture
def filled(store: RunStore, world: Path, settled: None) -> RunStore:
    """Thirty finished pairs of a pretraining and a task on it, and one run that has not begun."""
    for seed in range(RUNS):
        recipe = {"epochs": 2, "taps": [1, 2], "weights": ""}
        pretraining = RunSpec("pretrain", "plain", "vit_toy", recipe, {"imagenet": "f00"}, seed)
        folder = store.create(pretraining, Inputs())
        folder.begin({"plugin": {"name": "one", "path": "/p"}})
        folder.finish({"loss": 0.5}, note=[1])
        task = RunSpec("downstream", "echo", "vit_toy", {"lr": 0.1}, {}, seed, {"encoder": pretraining.key})
        folder = store.create(task, Inputs())
        folder.begin({})
        folder.finish({"score": seed + 0.25}, percent=["score"])
    store.create(RunSpec("pretrain", "plain", "vit_toy", {}, {}, 99), Inputs())
    return store


def told(runs: Any) -> list[tuple[Any, ...]]:
    """What a list could show of each run."""
    found = []
    for run in runs:
        became = state(run)
        result = None if became in ("damaged", "edited") else run.result
        spec = None if became == "damaged" else run.spec
        found.append((run.path.name, became, spec, spec and spec.key, result, run.status, run.plugin))
    return found


def files_read(monkeypatch: pytest.MonkeyPatch, store: RunStore) -> int:
    """How many results a snapshot reads."""
    count = 0
    read = records.read_result

    def counted(folder: Path) -> Any:
        nonlocal count
        count += 1
        return read(folder)

    with monkeypatch.context() as patch:
        patch.setattr(records, "read_result", counted)
        snapshot(store)
    return count


def test_a_snapshot_tells_what_the_files_tell(filled: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = told(filled)
    assert len(truth) == 2 * RUNS + 1 and [line[1] for line in truth].count("done") == 2 * RUNS
    assert told(snapshot(filled)) == truth
    assert files_read(monkeypatch, filled) == 1  # of the run that has not begun
    assert told(snapshot(filled)) == truth
    view = snapshot(filled)
    run = next(run for run in view if run.path.name.startswith("downstream"))
    assert view.folder(run.spec.parents["encoder"]).spec.name == "plain"
    assert run.lineage == RunFolder(filled, run.path).lineage and view.get("0" * 16) is None


EDITS: dict[str, dict[str, Any]] = {
    "spec.json": {"seed": 5},
    "result.json": {"metrics": {"score": 99.0}},
    "status.json": {"seconds": 7.5},
    "env.json": {"plugin": {"name": "two"}},
}


@pytest.mark.parametrize("name", index.FILES)
@pytest.mark.parametrize("how", ["edited", "empty", "gone", "folder"])
def test_every_change_of_a_file_is_seen(filled: RunStore, name: str, how: str) -> None:
    snapshot(filled)
    folder = next(run.path for run in filled if run.path.name.startswith("downstream"))
    before = told(snapshot(filled))
    if how == "edited":
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | EDITS[name]))
    else:
        (folder / name).unlink() if how != "empty" else (folder / name).write_text("")
    if how == "folder":
        (folder / name).mkdir()
    after = told(snapshot(filled))
    assert after == told(filled)
    is_plugin = name == "env.json" and how != "edited"  # this run has no plug-in
    assert (after == before) == is_plugin


def test_an_edit_that_keeps_size_and_time_is_seen(filled: RunStore) -> None:
    snapshot(filled)
    file = next(filled.root.glob("downstream-*/result.json"))
    old = file.stat()
    file.write_text(file.read_text().replace(".25", ".75"))
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert file.stat().st_size == old.st_size and file.stat().st_mtime_ns == old.st_mtime_ns
    assert [line[1] for line in told(snapshot(filled))].count("edited") == 1


def test_a_file_that_was_written_a_moment_ago_is_read_again(
    filled: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "FRESH_NS", 10**15)
    snapshot(filled)
    assert files_read(monkeypatch, filled) == 2 * RUNS + 1


def test_code_that_changed_makes_runs_stale_though_they_are_in_the_index(
    filled: RunStore, world: Path
) -> None:
    assert {line[1] for line in told(snapshot(filled))} == {"done", "missing"}
    method = world / "pretrain/methods/plain.py"
    method.write_text(method.read_text() + "\nLATER = 1\n")
    forget()
    assert {line[1] for line in told(snapshot(filled))} == {"stale", "missing"}
    (world / "downstream/echo.py").unlink()
    forget()
    assert {line[1] for line in told(snapshot(filled))} == {"stale", "orphaned", "missing"}


def test_runs_that_were_removed_or_added_since(filled: RunStore) -> None:
    snapshot(filled)
    first = next(iter(filled))
    filled.remove(first)
    new = filled.create(RunSpec("pretrain", "plain", "vit_toy", {"epochs": 9}, {}, 7), Inputs())
    new.begin({})
    new.finish({"loss": 1.0})
    names = [run.path.name for run in snapshot(filled)]
    assert first.path.name not in names and new.path.name in names and names == sorted(names)


def test_a_damaged_index_only_costs_time(filled: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = told(snapshot(filled))
    (file,) = Path(str(paths.cache()), "stores").iterdir()
    good = file.read_bytes()
    damages = [b"", good[:-1], good[: len(good) // 2], b"\xff" + good, good + b" "]
    damages += [flipped(good, bit) for bit in range(0, 8 * len(good), 8 * len(good) // 40)]
    for content in damages:
        file.write_bytes(content)
        assert told(Snapshot(filled, paths.cache())) == truth
        assert file.read_bytes() == good  # made again


def test_no_cache_folder_and_one_that_cannot_be_written(filled: RunStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert told(Snapshot(filled, None)) == told(Snapshot(filled, tmp_path / "file")) == told(filled)


def test_a_few_new_runs_do_not_write_the_index_again(
    filled: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot(filled)
    (file,) = Path(str(paths.cache()), "stores").iterdir()
    before = file.stat().st_ino
    monkeypatch.setattr(index, "WORTH", 5)
    for seed in range(5):
        run = filled.create(RunSpec("pretrain", "plain", "vit_toy", {"epochs": 9}, {}, seed), Inputs())
        run.begin({})
        run.finish({"loss": 1.0})
        assert len(list(snapshot(filled))) == 2 * RUNS + 2 + seed
        assert (file.stat().st_ino == before) == (seed < 4)


def test_processes_that_list_at_once_while_runs_are_added(
    filled: RunStore, python: Callable[..., subprocess.Popen[str]]
) -> None:
    code = AGAIN.replace("sys.argv[1]", repr(str(filled.root)))
    processes = [python(code) for _ in range(3)]
    for seed in range(10):
        run = filled.create(RunSpec("pretrain", "plain", "vit_toy", {"epochs": 9}, {}, seed), Inputs())
        run.begin({})
        run.finish({"loss": 1.0})
    for process in processes:
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        counts = [int(line) for line in output.split()]
        assert len(counts) == 20 and counts == sorted(counts) and counts[-1] <= 2 * RUNS + 11
    assert told(snapshot(filled)) == told(filled)

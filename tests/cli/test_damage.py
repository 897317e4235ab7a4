"""Damaged run folders, full and read-only disks: a clear line and an exit status, never a traceback."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimbench.store.folder import RunFolder
from tests.cli.bench import Bench

TABLE = ("reproduce-table", "plain", "--scale", "smoke")
PLAN = ("plan", "plain", "--scale", "smoke")
RESULTS = ["[]", '{"pArents": {}}', '{"metrics": {"score": true}}', '{"schema": 99}']


@pytest.fixture
def done(bench: Bench) -> RunFolder:
    """A finished fine-tuning in a table that is whole."""
    for node in bench.plan().nodes.values():
        if node.spec.stage == "downstream":
            bench.store.create(node.spec, node.inputs).finish({"score": 40.0, "other": 1.0})
    return next(folder for folder in bench.store if folder.spec.stage == "downstream")


@pytest.mark.parametrize("text", RESULTS)
def test_a_damaged_result_is_named_by_every_command_and_costs_one_row(
    text: str, bench: Bench, done: RunFolder
) -> None:
    path = done.path / "result.json"
    odd, good = json.loads(text), json.loads(path.read_text())
    damaged = json.dumps({**good, **odd} if odd and isinstance(odd, dict) else odd)
    if "pArents" in odd:
        damaged = json.dumps({("pArents" if key == "parents" else key): value for key, value in good.items()})
    path.write_text(damaged)
    remedy = f"`mimbench runs rm {done.path.name}`"
    listed = bench.call("runs", "list")
    assert listed.exit_code == 0 and "damaged" in listed.output
    planned = bench.call(*PLAN)
    assert planned.exit_code == 0 and "to do: 1 of 4 runs" in planned.output
    table = bench.call(*TABLE)
    assert table.exit_code == 1 and "failed" in table.output and "40.0" in table.output  # the other row
    shown = bench.call("runs", "show", done.path.name)
    assert shown.exit_code == 0
    for told in (listed.stderr, planned.stderr, table.output, shown.stderr):
        assert str(path) in told.replace("\n", "") and remedy in told.replace("\n", " ").replace("  ", " ")
    assert bench.call("runs", "export", str(bench.root / "runs.csv")).exit_code == 0
    assert path.read_text() == damaged  # nobody writes over it
    assert bench.call("runs", "rm", "--yes", done.path.name).exit_code == 0
    assert bench.store.outcome(done.spec.key) == "missing"


@pytest.mark.parametrize("text", ["{}", None])
@pytest.mark.parametrize("stage", ["pretrain", "downstream"])
def test_a_damaged_spec_costs_one_row(text: str | None, stage: str, bench: Bench, done: RunFolder) -> None:
    folder = next(folder for folder in bench.store if folder.spec.stage == stage)
    name, path = folder.path.name, folder.path / "spec.json"
    path.write_text(text) if text is not None else path.unlink()
    listed, planned, table = bench.call("runs", "list"), bench.call(*PLAN), bench.call(*TABLE)
    assert listed.exit_code == planned.exit_code == 0 and "damaged" in listed.output
    assert table.exit_code == (0 if stage == "pretrain" else 1)  # what stands on a damaged run is done
    for told in (listed.stderr, planned.stderr, *([table.output] if stage == "downstream" else [])):
        assert "spec.json" in told and f"runs rm {name}" in told.replace("\n", " ")
    assert bench.call("runs", "rm", "--yes", name).exit_code == 0
    assert not folder.path.exists()


def test_a_damaged_status_is_named_and_costs_nothing(bench: Bench, done: RunFolder) -> None:
    (done.path / "status.json").write_text('{"seconds": "a while"}')
    listed = bench.call("runs", "list")
    assert listed.exit_code == 0 and "status.json is damaged (seconds" in listed.stderr
    for words in (TABLE, PLAN, ("runs", "show", done.path.name), ("leaderboard", "--scale", "smoke")):
        assert bench.call(*words).exit_code == 0


def test_text_from_outside_is_shown_as_text(bench: Bench, done: RunFolder) -> None:
    path = done.path / "result.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "metrics": {**values["metrics"], "[/x]": 1, "[red]": 2}}))
    bench.table("raise")
    bench.call(*TABLE)
    failed = next(folder for folder in bench.store if folder.status.state == "failed")
    failed.fail("[/nope] \x1b[31m red")
    for words in (("runs", "list"), ("runs", "show", failed.path.name), PLAN):
        shown = bench.call(*words)
        assert shown.exit_code == 0 and "\x1b" not in shown.output


# -- disks ---------------------------------------------------------------------------------------------------


@pytest.fixture
def refuse(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`refuse(errno)`: from now on no file of the workspace can be made or opened for writing."""

    def start(code: int) -> None:
        real_open, real_mkstemp = os.open, tempfile.mkstemp

        def is_here(path: object) -> bool:
            return str(path).startswith(str(workspace))

        def open_(path: Any, flags: int, *rest: Any, **options: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and is_here(path):
                raise OSError(code, os.strerror(code), str(path))
            return real_open(path, flags, *rest, **options)

        def mkstemp(*rest: Any, **options: Any) -> tuple[int, str]:
            if is_here(options.get("dir")):
                raise OSError(code, os.strerror(code), f"{options['dir']}/.random")
            return real_mkstemp(*rest, **options)

        monkeypatch.setattr(os, "open", open_)
        monkeypatch.setattr(tempfile, "mkstemp", mkstemp)

    return start


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        (errno.EROFS, 1, "The file system is read-only"),
        (errno.ENOSPC, 1, "The disk is full"),
        (errno.EACCES, 1, "Permission denied"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_in_one_line(
    code: int, status: int, told: str, bench: Bench, done: RunFolder, refuse: Callable[[int], None]
) -> None:
    refuse(code)
    looks = [("runs", "list"), ("runs", "show", done.path.name), PLAN, ("methods",), ("tables",)]
    for words in looks:
        assert bench.call(*words).exit_code == 0, words
    for words, place in (
        (TABLE, "reports/out/plain/main-smoke"),  # everything is cached; the table's files are not written
        ((*TABLE, "--seeds", "2"), "/runs/"),
    ):
        ended = bench.call(*words)
        assert ended.exit_code == status and ended.stderr.startswith("mimbench: "), ended.output
        assert told in ended.stderr and place in ended.stderr and ended.stderr.count("\n") == 1
    assert "40.0" in bench.call(*TABLE).stdout  # as far as it goes


def test_a_missing_file_of_our_own_is_no_mistake_of_the_user(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(file: Path) -> None:
        monkeypatch.setattr("mimbench.table.spec.list_tables", lambda folder=None: file.read_text())

    lose(tmp_path / "elsewhere" / "x.toml")
    with pytest.raises(FileNotFoundError):
        bench.call("tables")
    lose(bench.root / "runs" / "none" / "x.json")
    assert bench.call("tables").exit_code == 2


@pytest.mark.parametrize("loop", ["", "runs"])
def test_a_workspace_that_is_a_loop_of_links(
    loop: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "loop-home"
    if loop:
        home.mkdir()
    (home / loop).symlink_to(home / loop)
    monkeypatch.setenv("MIMBENCH_HOME", str(home))
    for words in (("runs", "list"), TABLE, PLAN):
        ended = bench.call(*words)
        assert ended.exit_code in (0, 2) and (ended.exit_code == 0 or "loop" in ended.stderr)


def test_a_workspace_that_cannot_be_made_is_named(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIMBENCH_HOME", "/proc/nowhere")
    done = bench.call("reproduce-table", "plain", "--scale", "smoke")
    assert done.exit_code == 2 and "/proc/nowhere" in done.stderr
    monkeypatch.delenv("MIMBENCH_HOME")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    done = bench.call("runs", "list")
    assert done.exit_code == 2 and "current folder is gone" in done.stderr

"""One odd file in one run's folder: every command names it or does without it, and shows the other runs."""

from __future__ import annotations

import pytest

from mimbench.store.folder import RunFolder
from tests.cli.bench import Bench
from tests.faults.damage import JSON, KINDS, sample

FILES = (
    "spec.json",
    "result.json",
    "status.json",
    "inputs.json",
    "env.json",
    "metrics.jsonl",
    "log",
    ".lock",
)
COMMANDS = (
    ("runs", "list"),
    ("runs", "list", "--json"),
    ("runs", "export", "-"),
    ("runs", "gc", "--dry-run"),
    ("runs", "verify"),
    ("plan", "plain", "--scale", "smoke"),
    ("reproduce-table", "plain", "--scale", "smoke", "--dry-run"),
    ("leaderboard", "--scale", "smoke"),
)


@pytest.fixture
def runs(bench: Bench) -> tuple[RunFolder, RunFolder]:
    """Two finished fine-tunings: one to damage, and another."""
    bench.finish()
    first, second = (run for run in bench.store if run.spec.stage == "downstream")
    for run in (first, second):
        (run.path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
        run.log_path.write_text("hello\n")
        with run.lock():
            pass
    return first, second


@pytest.mark.parametrize(
    ("file", "kind"),
    [(file, kind) for file in FILES for kind in dict.fromkeys([*sample([*KINDS, *JSON], file, 3), "pipe"])],
)
def test_an_odd_file_takes_no_command_down(
    file: str, kind: str, bench: Bench, runs: tuple[RunFolder, RunFolder]
) -> None:
    odd, other = runs
    {**KINDS, **JSON}[kind](odd.path / file)
    for words in (*COMMANDS, ("runs", "show", odd.path.name), ("runs", "show", "--json", odd.path.name)):
        done = bench.call(*words)
        verifies = words == ("runs", "verify")
        assert done.exit_code in ((0, 1) if verifies else (0,)), (words, done.output)
        if words[:2] in (("runs", "list"), ("runs", "export")):
            assert other.path.name[-8:] in done.output, words
    assert bench.call("runs", "rm", "--yes", odd.path.name).exit_code == 0
    assert [run.path for run in bench.store if run.path == odd.path] == []
    assert bench.call("runs", "verify").exit_code == 0

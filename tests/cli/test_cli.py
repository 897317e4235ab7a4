"""The commands, from what the user types to what they see, in the small world."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.bench import TABLE, Bench
from tests.world import ROOT, forget

CHECKPOINT = ROOT / "tests" / "golden" / "mae_tiny.npz"  # a zip archive, as torch.save's files are


def test_a_table_from_one_command(bench: Bench) -> None:
    done = bench.call("reproduce-table", "plain", "--scale", "smoke")
    assert done.exit_code == 0, done.output
    assert "The title" in done.output and "40.0" in done.output
    last = Path(done.output.split()[-1])
    assert last.is_file() and last.parent == bench.root / "reports" / "out" / "plain"
    markdown = (last.parent / "main-smoke.md").read_text()  # toy tables have the name to themselves
    assert "Plain" in markdown and "(ours)" not in markdown
    again = bench.call("reproduce-table", "plain", "--scale", "smoke")
    assert again.exit_code == 0 and "started" not in again.output
    assert (last.parent / "main-smoke.md").read_text() == markdown


def test_several_tables_share_their_runs(bench: Bench) -> None:
    main = bench.root / "share" / "tables" / "plain" / "main.toml"
    second = TABLE.replace("MODE", "ok").replace('name = "main"', 'name = "second"')
    (main.parent / "second.toml").write_text(second.replace("The title", "Another title"))
    done = bench.call("reproduce-all", "--table", "all", "--scale", "smoke", "--set", "echo.steps=2")
    assert done.exit_code == 0, done.output
    assert "The title" in done.output and "Another title" in done.output
    assert "without sharing: 8 runs" in done.output  # four, each for two tables
    page = Path(done.output.split()[-1])
    assert page.name == "index.html" and "plain/second-smoke-changed.html" in page.read_text()
    made = (page.parent / "plain" / "second-smoke-changed.md").read_text()
    assert "- changed: echo.steps=2" in made
    assert "--table second --scale smoke --seeds 1 --set echo.steps=2" in made
    again = bench.call("reproduce-all", "--table", "all", "--scale", "smoke", "--set", "echo.steps=2")
    assert again.exit_code == 0 and "started" not in again.output


def test_results_go_into_two_documents(bench: Bench) -> None:
    bench.call("reproduce-table", "plain", "--scale", "smoke")
    document = bench.root / "README.md"
    document.write_text("<!-- results:begin --><!-- results:end -->")
    done = bench.call("results", str(document), "--scale", "smoke")
    assert done.exit_code == 0, done.output
    assert "### The title" in document.read_text() and "Made with" not in document.read_text()
    assert "Made with" in (bench.root / "RESULTS.md").read_text()
    excerpt = ("results", str(document), "--scale", "smoke", "--table")
    assert bench.call(*excerpt, "plain").exit_code == 0
    assert "# " not in document.read_text() and "| **" in document.read_text()
    assert "Allowed: plain" in bench.call(*excerpt, "plane").output


def test_results_say_which_code_computed_them_and_refuse_a_mixture(bench: Bench, world: Path) -> None:
    bench.call("reproduce-table", "plain", "--scale", "smoke")
    document = bench.root / "README.md"
    document.write_text("<!-- results:begin --><!-- results:end -->")
    for folder in bench.store:
        (folder.path / "env.json").write_text(json.dumps({"commit": "0123456789abcdef"}))
    command = ("results", str(document), "--scale", "smoke")
    assert bench.call(*command).exit_code == 0
    for written in (document, bench.root / "RESULTS.md"):
        assert "*Computed by 0123456.*" in written.read_text()
    file = world / "downstream" / "echo.py"
    file.write_text(file.read_text() + "\nOTHER = 1\n")
    forget()
    before = document.read_text()
    done = bench.call(*command)
    assert done.exit_code == 2 and "computed by older code" in done.output
    assert document.read_text() == before


@pytest.mark.parametrize("option", [(), ("--ablations",)])
def test_results_refuse_a_damaged_result(bench: Bench, option: tuple[str, ...]) -> None:
    if option:
        main = bench.root / "share" / "tables" / "plain" / "main.toml"
        (main.parent / "second.toml").write_text(main.read_text().replace('"main"', '"second"'))
    bench.finish()
    document = bench.root / "README.md"
    document.write_text("<!-- results:begin --><!-- results:end -->")
    command = ("results", str(document), "--scale", "smoke", *option)
    assert bench.call(*command).exit_code == 0
    before = {path: path.read_text() for path in bench.root.glob("*.md")}
    file = bench.run().path / "result.json"
    file.write_text(file.read_text().replace("40.0", "45.0"))
    done = bench.call(*command)
    assert done.exit_code == 2 and "damaged result" in done.output and "runs verify" in done.output
    assert {path: path.read_text() for path in bench.root.glob("*.md")} == before


def test_results_name_no_path_of_a_failed_run(bench: Bench) -> None:
    bench.finish()
    for name in ("result.json", "status.json"):
        (bench.run().path / name).unlink()
    bench.run().fail(f"{bench.root}/data/a.jpg cannot be decoded")
    document = bench.root / "README.md"
    document.write_text("<!-- results:begin --><!-- results:end -->")
    assert bench.call("results", str(document), "--scale", "smoke").exit_code == 0
    written = (bench.root / "RESULTS.md").read_text()
    assert "seed 0 failed" in written and str(bench.root) not in written


def test_only_commands_that_compute_say_how_to_go_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place in ("mimbench.data.check.check", "mimbench.commands.run.run_one"):
        monkeypatch.setattr(place, interrupt)
    checked = bench.call("data", "check", str(bench.data))
    assert (checked.exit_code, checked.stderr) == (130, "mimbench: stopped.\n")
    run = bench.call("run", "plain", "--scale", "smoke")
    assert run.exit_code == 130 and "last checkpoints" in run.stderr


def test_ablations_go_into_a_document_of_their_own(bench: Bench) -> None:
    ablations = ("results", str(bench.root / "README.md"), "--scale", "smoke", "--ablations")
    bench.call("reproduce-table", "plain", "--scale", "smoke")
    assert bench.call(*ablations).exit_code == 2  # a main table is none
    main = bench.root / "share" / "tables" / "plain" / "main.toml"
    second = TABLE.replace("MODE", "ok").replace('name = "main"', 'name = "second"')
    (main.parent / "second.toml").write_text(second.replace("The title", "Another title"))
    third = TABLE.replace("MODE", "slow").replace('name = "main"', 'name = "third"')  # not computed
    (main.parent / "third.toml").write_text(third.replace("The title", "An open table"))
    done = bench.call(*ablations)
    assert done.exit_code == 0, done.output
    written = (bench.root / "ABLATIONS.md").read_text()
    assert "## Another title" in written and "--table second" in written
    assert "The title" not in written and "An open table" not in written
    assert not (bench.root / "RESULTS.md").exists() and not (bench.root / "README.md").exists()


def test_a_failed_run_is_a_cell_and_an_exit_status(bench: Bench) -> None:
    bench.table("raise")
    done = bench.call("reproduce-table", "plain", "--scale", "smoke")
    assert done.exit_code == 1
    assert "broken on purpose" in done.output and "its log:" in done.output and "40.0" in done.output
    bench.table("user")
    assert bench.call("reproduce-table", "plain", "--scale", "smoke").exit_code == 2


def test_outdated_cells_are_shown_and_computed_again_on_demand(bench: Bench, world: Path) -> None:
    bench.call("reproduce-table", "plain", "--scale", "smoke")
    file = world / "downstream" / "echo.py"
    file.write_text(file.read_text().replace("40.0 + folder", "44.0 + folder"))
    forget()
    shown = bench.call("reproduce-table", "plain", "--scale", "smoke")
    assert "stale" in shown.output and "44.0" not in shown.output
    alone = bench.call("run", "plain", "echo", "--scale", "smoke").output
    assert "score 40" in alone and "stale: older code computed this" in alone
    fresh = bench.call("reproduce-table", "plain", "--scale", "smoke", "--rerun-stale")
    assert fresh.exit_code == 0 and "stale" not in fresh.output and "44.0" in fresh.output
    assert "stale" not in bench.call("run", "plain", "echo", "--scale", "smoke").output


def test_dry_run_and_plan_compute_nothing(bench: Bench) -> None:
    for words in (["plan", "plain"], ["reproduce-table", "plain", "--dry-run"]):
        done = bench.call(*words, "--scale", "smoke")
        assert done.exit_code == 0 and "to do: 2 of 4 runs" in done.output
    assert len(list(bench.store)) == 2 and not (bench.root / "reports").exists()


def test_one_run(bench: Bench) -> None:
    done = bench.call("run", "plain", "echo", "--scale", "smoke", "--set", "echo.mode=ok")
    assert done.exit_code == 0 and "score 40" in done.output
    key = Path(done.output.split()[-1]).name
    (bench.root / "runs" / key / "result.json").unlink()
    again = bench.call("run", key)
    assert again.exit_code == 0 and "score 40" in again.output
    for option in (["--set", "echo.steps=1"], ["--seed", "5"], ["--skip-corrupt"]):
        refused = bench.call("run", key, *option)
        assert refused.exit_code == 2 and option[0] in refused.stderr


def test_a_stored_run_whose_parent_was_removed(bench: Bench) -> None:
    done = bench.call("run", "plain", "echo", "--scale", "smoke", "--set", "echo.mode=ok")
    (run,) = bench.store.named(Path(done.output.split()[-1]).name)
    bench.store.remove(run.parents["encoder"])
    shown = bench.call("run", run.path.name)
    assert shown.exit_code == 0 and "score 40" in shown.output  # it is done, and stands
    assert bench.call("runs", "export", str(bench.root / "runs.csv")).exit_code == 0
    (run.path / "result.json").unlink()
    refused = bench.call("run", run.path.name)
    assert refused.exit_code == 2 and "Its encoder was removed" in refused.stderr


def test_a_wrong_reference_is_found_before_anything_runs(bench: Bench) -> None:
    table = bench.root / "share" / "tables" / "plain" / "main.toml"
    reference = 'reported.score = { paper = "X", table_id = "1", row = "r", dataset = "d", metric = "m" }'
    table.write_text(table.read_text() + reference + "\n")
    for command in (["plan", "plain"], ["reproduce-table", "plain"], ["reproduce-all"]):
        done = bench.call(*command, "--scale", "smoke")
        assert done.exit_code == 2 and "rows[plain].reported.score" in done.stderr
    assert all(folder.spec.stage == "pretrain" for folder in bench.store)


def test_a_damaged_run_is_listed_as_such_and_can_be_collected(bench: Bench) -> None:
    bench.call("reproduce-table", "plain", "--scale", "smoke")
    first, second, *_ = [folder.path for folder in bench.store if folder.spec.stage == "downstream"]
    (first / "spec.json").write_text('{"stage": "pretrain"}')
    (second / "result.json").write_text("[]")
    listed = bench.call("runs", "list")
    assert listed.exit_code == 0 and "damaged" in listed.output
    assert next(folder for folder in bench.store if folder.path == second).outcome() == "damaged"
    assert first.name in bench.call("runs", "gc", "--dry-run").output


@pytest.mark.parametrize("home", ["file", "file/below"])
def test_a_workspace_that_cannot_be_is_the_users_mistake(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MIMBENCH_HOME", str(tmp_path / home))
    done = bench.call("runs", "list")
    assert done.exit_code == 2 and "MIMBENCH_HOME" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reproduce-table", "plane"], "Did you mean 'plain'"),
        (["reproduce-table", "plain", "--table", "mian"], "Did you mean 'main'"),
        (["reproduce-table", "plain", "--scale", "smoky"], "Did you mean 'smoke'"),
        (
            ["reproduce-table", "plain", "--seeds", "0"],
            "--seeds: '0' is not valid. Give a whole number from 1",
        ),
        (["reproduce-table", "plain", "--seeds", "abc"], "--seeds: 'abc' is not valid. Give a whole number"),
        (["reproduce-table", "plain", "--jobs", "0"], "--jobs: '0' is not valid. Give a whole number from 1"),
        (["run", "plain", "--seed", "-1"], "--seed: '-1' is not valid. Give a whole number from 0"),
        (["reproduce-table", "plain", "main"], "its tables: plain --table main"),
        (["plan", "plain", "main"], "its tables: plain --table main"),
        (["data", "toy", "--size", "tiny"], "Allowed: toy, smoke"),
        (
            ["reproduce-table", "plain", "--scale", "smoke", "--set", "mask_ratoi=1"],
            "Did you mean 'mask_ratio'",
        ),
        (["reproduce-table", "plain", "--data", "imagenet=/none"], "no such file or folder"),
        (["reproduce-table", "plain", "--data", "imagenet=."], "--data imagenet"),
        (["run", "plane", "echo"], "Did you mean 'plain'"),
        (["run", "plain", "ecco"], "Did you mean 'echo'"),
        (["run", "plain", "echo", "--scale", "paper"], "--data imagenet=PATH"),
        (["runs", "show", "nothing"], "lists them all"),
        (["run", "plain", "--scale", "smoke", "--set", "mask_rato=0.5"], "mask_ratio"),
        (["reproduce-all", "--scale", "smoke", "--set", "mask_rato=0.5"], "mask_ratio"),
        (["reproduce-all", "--table", "mian"], "main"),
        (["leaderboard", "--scale", "paper"], "No row of a main table can be run"),
        (["reproduce-all", "--scale", "smoke", "--weights", f"palin={CHECKPOINT}"], "No run here takes it"),
        (
            ["plan", "plain", "--weights", f"plain={__file__}"],
            "neither a safetensors file nor one that torch",
        ),
        (["plan", "plain", "--weights", "plain=."], "It is a folder"),
        (["reproduce-table", "plain", "--scale", "paper"], "give --data imagenet=PATH"),
        (["reproduce-all", "--scale", "paper"], "give --data imagenet=PATH"),
        (["run", "plain", "--scale", "smoke", "--set", "base_lr=NaN"], "--set base_lr (plain): nan"),
        (["run", "plain", "--scale", "smoke", "--set", "global_batch_size=1000"], "less than a batch"),
        (["run", "plain", "--scale", "smoke", "--set", "clip_grad=-1"], "--set clip_grad (plain): -1.0"),
        (["plan", "plain", "--scale", "smoke", "--set", "echo.base_lr=-1"], "--set echo.base_lr: -1.0"),
        (["plan", "plain", "--scale", "smoke", "--set", "plain.epoch=3"], "Did you mean 'plain.epochs'"),
        (["plan", "plain", "--scale", "smoke", "--set", "plane.epochs=3"], "Did you mean 'plain'"),
    ],
)
def test_the_users_mistakes_end_with_status_2_and_a_way_out(
    bench: Bench, words: list[str], message: str
) -> None:
    done = bench.call(*words)
    assert done.exit_code == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert all(folder.spec.stage == "pretrain" for folder in bench.store)  # nothing was started


def test_leaderboard_has_every_pretraining_of_the_main_tables_once_and_best_first(bench: Bench) -> None:
    main = bench.root / "share" / "tables" / "plain" / "main.toml"
    other = main.parent.parent / "other" / "main.toml"
    other.parent.mkdir()
    taught = TABLE[TABLE.index("[[rows]]") :].replace("plain", "taught").replace("Plain", "Taught")
    taught = taught.replace('"nothing"', '"nothing-again"').replace("MODE", "ok")
    other.write_text(main.read_text() + taught)  # the first table's rows, and two more of which one is theirs
    bench.call("reproduce-table", "plain", "--scale", "smoke")
    done = bench.call("leaderboard", "--scale", "smoke")
    assert done.exit_code == 0
    page = (bench.root / "reports" / "out" / "leaderboard-smoke.md").read_text()
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| **")]
    assert len(rows) == 3 and rows[-1].startswith("**Taught**") and "not run" in page and "40.0" in page
    assert (bench.root / "reports" / "out" / "leaderboard-smoke.html").is_file()


def command(bench: Bench, world: Path, after: str = "") -> subprocess.Popen[str]:
    """`mimbench reproduce-table plain` in a process of its own, then the script `after`."""
    script = f"""
import signal, sys
from pathlib import Path
from mimbench import paths
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it, and
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # one under nohup ignores this
real = paths.share
paths.share = lambda name: Path({str(bench.root / "share")!r}) / name if name == "tables" else real(name)
from mimbench.cli import app
try:
    app(["reproduce-table", "plain", "--scale", "smoke"])
except SystemExit as end:
    status = end.code
{after}
sys.exit(status)
"""
    environment = {**os.environ, "PYTHONPATH": f"{world}:{ROOT}"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", script], cwd=bench.root, env=environment, stdout=pipe, stderr=pipe, text=True
    )


def test_a_cached_table_loads_no_deep_learning_library(bench: Bench, world: Path) -> None:
    bench.call("reproduce-table", "plain", "--scale", "smoke")
    heavy = ("torch", "timm", "mmengine", "pretrain.methods.plain")
    process = command(bench, world, f"print([name for name in {heavy} if name in sys.modules])")
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and out.splitlines()[-1] == "[]", out + errors


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [
        (signal.SIGINT, 130, "stopped. Run the same command again"),
        (signal.SIGTERM, 143, "stopped by SIGTERM. Run the same command again"),
        (signal.SIGHUP, 129, "stopped by SIGHUP. Run the same command again"),
    ],
)
def test_a_signal_stops_cleanly_and_the_next_command_goes_on(
    bench: Bench, world: Path, number: signal.Signals, status: int, words: str
) -> None:
    bench.table("slow")
    file = world / "downstream" / "echo.py"
    file.write_text(file.read_text().replace("steps=3", "steps=2000"))
    forget()
    process = command(bench, world)
    end = time.monotonic() + 60
    while not any(folder.status.step for folder in bench.store):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status and words in errors and "continue from the last checkpoints" in errors
    assert "Traceback" not in errors
    assert not any(folder.is_locked() for folder in bench.store)

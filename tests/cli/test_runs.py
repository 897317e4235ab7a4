"""`mimbench runs`, in the small world."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from mimbench import paths
from mimbench.catalog import Catalog
from mimbench.cli import options
from mimbench.commands.list_runs import Reader
from mimbench.commands.remove import dependants, readable_size, size
from mimbench.store.folder import Inputs
from mimbench.store.spec import RunSpec
from tests.cli.bench import Bench
from tests.world import ROOT, forget

CHECKPOINT = ROOT / "tests" / "golden" / "mae_tiny.npz"  # a zip archive, as torch.save's files are


@pytest.fixture
def filled(bench: Bench) -> Bench:
    """The table at two scales, with --set on the pretraining and on the task, and with --weights."""
    bench.finish(seeds=2)
    bench.finish(scale="toy")
    bench.finish(changes={"mask_ratio": 0.25, "echo.steps": 7})
    bench.finish(weights={"plain": CHECKPOINT})
    return bench


def listed(bench: Bench, *words: str) -> list[dict[str, Any]]:
    done = bench.call("runs", "list", "--json", *words)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["schema"] == 1 and found["workspace"] == str(bench.root)
    return found["runs"]


def test_a_list_says_of_what_scale_runs_are_and_what_was_changed(filled: Bench) -> None:
    runs = [run for run in listed(filled) if run["method"] == "plain"]
    found = [
        (run["scale"], run["task"] or "", run["seed"], " ".join(run["weights"]), run["changes"])
        for run in runs
    ]
    changed, steps = {"mask_ratio": 0.25}, {"echo.steps": 7}
    assert sorted(found, key=str) == [
        ("smoke", "", 0, "", changed),
        ("smoke", "", 0, "", {}),
        ("smoke", "", 0, "plain", {}),
        ("smoke", "", 1, "", {}),
        ("smoke", "echo", 0, "", steps | changed),
        ("smoke", "echo", 0, "", {}),
        ("smoke", "echo", 0, "plain", {}),
        ("smoke", "echo", 1, "", {}),
        ("toy", "", 0, "", {}),
        ("toy", "echo", 0, "", {}),
    ]
    shown = filled.call("runs", "list", "--scale", "smoke").stdout
    assert "echo of plain" in shown and "echo.steps=7 mask_ratio=0.25" in shown and "weights plain" in shown


def test_a_recipe_that_has_changed_since_is_told_from_the_scale(filled: Bench, world: Path) -> None:
    """A run keeps its scale where a recipe's value is another one today."""
    before = {run["run"]: run["scale"] for run in listed(filled)}
    file = world / "pretrain" / "methods" / "plain.py"
    file.write_text(file.read_text().replace("weight_decay=0.05", "weight_decay=0.1"))
    forget()
    del sys.modules["pretrain.methods.plain"]
    runs = listed(filled, "--method", "plain")
    assert {run["run"]: run["scale"] for run in runs}.items() <= before.items()
    assert all(run["changes"]["weight_decay"] == 0.05 for run in runs)


def test_a_run_whose_method_is_gone_has_no_scale(filled: Bench, world: Path) -> None:
    (world / "pretrain" / "methods" / "plain.py").unlink()
    forget()
    runs = listed(filled, "--state", "orphaned")
    assert {run["name"] for run in runs} == {"plain", "echo"} and {run["scale"] for run in runs} == {None}


FILTERS: list[tuple[list[str], int]] = [
    ([], 17),
    (["--scale", "toy"], 4),
    (["--scale", "toy", "--scale", "smoke"], 17),
    (["--method", "plain"], 10),
    (["--task", "echo"], 9),
    (["--stage", "pretrain"], 8),
    (["--seed", "1"], 4),
    (["--state", "done"], 16),
    (["--state", "missing", "--state", "failed"], 1),
    (["--method", "plain", "--task", "echo", "--scale", "smoke", "--seed", "0"], 3),
    (["--scale", "paper"], 0),
    (["--table", "plain"], 14),
    (["--table", "plain/main", "--scale", "toy"], 4),
]


def test_filters(filled: Bench) -> None:
    run = next(f for f in filled.store if f.spec.name == "none-at-all" and f.spec.seed == 1)
    (run.path / "result.json").unlink()
    for filters, count in FILTERS:
        found = [run["run"] for run in listed(filled, *filters)]
        assert len(found) == count, filters
        exported = filled.call("runs", "export", "-", "--sort", "newest", *filters).stdout
        assert [line["run"] for line in csv.DictReader(io.StringIO(exported))] == found


MISTAKES = [
    (["--scale", "tiny"], "--scale: 'tiny' is not valid"),
    (["--method", "plane"], "Did you mean 'plain'"),
    (["--task", "ecco"], "Did you mean 'echo'"),
    (["--state", "fail"], "Did you mean 'failed'"),
    (["--stage", "pretraining"], "Did you mean 'pretrain'"),
    (["--seed", "x"], "--seed: 'x' is not valid. Give a whole number from 0."),
    (["--sort", "new"], "Did you mean 'newest'"),
    (["--table", "plane"], "Did you mean 'plain'"),
    (["--table", "plain/mian"], "Did you mean 'plain/main'"),
    (["--table", "/main"], "There is no '/main'. Did you mean 'main', a table of plain"),
    (
        ["--table", "taught"],
        "'taught' is a method, not a paper with tables. `mimbench runs list --method taught`",
    ),
    (["--table", "main"], "'main' is a table of plain, .*`mimbench runs list --table plain/main`"),
    (
        ["--method", "plain/main"],
        "is a table of plain, not a method .*`mimbench runs list --table plain/main`",
    ),
    (["--task", "plain"], "'plain' is a method, not a task. `mimbench runs list --method plain`"),
]


def test_a_filter_that_cannot_be(bench: Bench) -> None:
    for words, message in MISTAKES:
        for command in (["list"], ["list", "--json"], ["export", "-"]):
            done = bench.call("runs", *command, *words)
            assert done.exit_code == 2 and re.search(message, done.stderr) and not done.stdout, words


def test_order(filled: Bench) -> None:
    for number, folder in enumerate(filled.store):
        status = json.loads((folder.path / "status.json").read_text()) if folder.status else {}
        (folder.path / "status.json").write_text(json.dumps({**status, "time": 1e9 + (number * 7) % 13}))
    names = {
        order: [run["run"] for run in listed(filled, "--sort", order)]
        for order in ("newest", "oldest", "name")
    }
    assert names["newest"] == names["oldest"][::-1] == [run["run"] for run in listed(filled)]
    assert names["name"] == sorted(names["oldest"]) != names["oldest"]
    times = [run["updated"] for run in listed(filled, "--sort", "oldest")]
    assert times == sorted(times) and times[0].startswith("2001-09-09T")


def test_an_empty_list_says_where_it_looked_and_what_to_run(
    filled: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filtered = filled.call("runs", "list", "--scale", "paper")
    assert filtered.exit_code == 0 and not filtered.stdout
    assert "No run in" in filtered.stderr and str(filled.root) in filtered.stderr
    monkeypatch.setenv("MIMBENCH_HOME", str(tmp_path / "empty"))
    empty = filled.call("runs", "list")
    assert empty.exit_code == 0 and not empty.stdout
    assert str(tmp_path / "empty" / "runs") in empty.stderr and "mimbench reproduce-table" in empty.stderr
    assert filled.call("runs", "list", "--json").stdout and not (tmp_path / "empty").exists()


def test_one_run_as_json_and_as_a_page(filled: Bench) -> None:
    run = next(run for run in listed(filled) if run["changes"].get("echo.steps"))
    done = filled.call("runs", "show", run["run"], "--json")
    shown = json.loads(done.stdout)
    assert shown["run"] == run and shown["spec"]["recipe"]["steps"] == 7
    assert shown["result"]["metrics"]["score"] == 40 and shown["status"]["state"] == "done"
    page = filled.call("runs", "show", run["key"][:8]).stdout
    assert "echo of plain" in page and run["parents"]["encoder"] in page and "mask_ratio=0.25" in page
    assert page.splitlines()[-1] == run["path"]
    parent = ("runs", "show", run["parents"]["encoder"])
    assert run["run"] in filled.call(*parent).stdout  # what uses it
    assert json.loads(filled.call(*parent, "--json").stdout)["children"] == [run["run"]]


def test_a_failed_runs_page_ends_with_its_log_as_text(bench: Bench) -> None:
    bench.table("raise")
    bench.call("reproduce-table", "plain", "--scale", "smoke")
    run = next(folder for folder in bench.store if folder.status.state == "failed")
    with open(run.log_path, "a") as log:
        log.write("[red]the end[/red] \x1b[31m\n")
    run.fail("[bold]broken[/bold]\x07")
    page = bench.call("runs", "show", run.path.name).stdout
    assert "hello from echo" in page and r"[red]the end[/red] \x1b[31m" in page
    assert r"[bold]broken[/bold]\x07" in page
    assert bench.call("runs", "list", "--state", "failed").stdout.count("\n") == 2


def test_export_in_every_way(filled: Bench) -> None:
    file = filled.root / "runs.csv"
    done = filled.call("runs", "export", str(file))
    assert done.exit_code == 0 and done.stdout == f"17 runs: {file}\n"
    printed = filled.call("runs", "export", "-")
    assert printed.stdout == file.read_text()
    lines = list(csv.DictReader(io.StringIO(printed.stdout)))
    echoes = [line for line in lines if line["name"] == "echo"]
    assert {line["method"] for line in echoes} == {"plain", "none-at-all"}
    assert {line["scale"] for line in lines} == {"smoke", "toy"}
    assert {"echo.steps=7 mask_ratio=0.25", "weights plain"} <= {line["changes"] for line in echoes}
    records = json.loads(filled.call("runs", "export", "-", "--format", "json").stdout)
    assert [line["run"] for line in records] == [line["run"] for line in lines]
    refused = filled.call("runs", "export", "-", "--format", "xml")
    assert refused.exit_code == 2 and "Allowed: csv, json" in refused.stderr


def test_a_damaged_run_is_listed_as_such_and_can_be_collected(bench: Bench) -> None:
    bench.finish()
    first, second, *_ = [folder.path for folder in bench.store if folder.spec.stage == "downstream"]
    (first / "spec.json").write_text('{"stage": "pretrain"}')
    (second / "result.json").write_text("[]")
    damaged = {line["run"]: line for line in listed(bench, "--state", "damaged")}
    assert set(damaged) == {first.name, second.name}
    assert damaged[first.name]["scale"] is None and damaged[first.name]["changes"] == {}
    assert "damaged" in bench.call("runs", "list").stdout
    assert bench.call("runs", "list", "--state", "damaged", "--scale", "smoke").exit_code == 0
    assert bench.call("runs", "show", first.name).exit_code == 0
    assert next(folder for folder in bench.store if folder.path == second).outcome() == "damaged"
    assert first.name in bench.call("runs", "gc", "--dry-run").output
    assert bench.call("runs", "rm", "--yes", first.name).exit_code == 0 and not first.exists()


def test_the_headline_is_the_first_number(filled: Bench) -> None:
    """result.json has its numbers in alphabetical order."""
    run = next(folder for folder in filled.store if folder.spec.name == "echo")
    assert run.result is not None and list(run.result.metrics) == ["other", "score"]
    for words in (("runs", "list"), ("runs", "show", run.path.name), ("run", "plain", "echo")):
        scale = ("--scale", "smoke") if words[0] == "run" else ()
        told = filled.call(*words, *scale).stdout
        assert 0 <= told.index("score 4") < told.index("other 1"), words


def test_rm_names_what_depends_on_a_run_and_what_it_frees(filled: Bench) -> None:
    run = next(folder for folder in filled.store if folder.spec.name == "plain" and folder.spec.seed == 1)
    child = next(f for f in filled.store if run.spec.key in f.spec.parents.values())
    run.encoder_path.write_bytes(b"x" * 2_500_000)
    refused = filled.call("runs", "rm", run.path.name)
    assert refused.exit_code == 2 and "give --yes" in refused.stderr and run.path.exists()
    assert child.path.name in refused.stdout and "2.5 MB" in refused.stdout
    done = filled.call("runs", "rm", "--yes", run.path.name, run.path.name)
    assert done.exit_code == 0 and done.stdout.endswith("2.5 MB freed\n")
    assert not run.path.exists() and child.outcome() == "done"
    assert child.path.name not in filled.call("runs", "rm", child.path.name).stdout.split(" ", 3)[-1]


def test_rm_asks_where_somebody_can_answer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(question: str, abort: bool) -> None:
        asked.append(question)
        raise typer.Abort

    monkeypatch.setattr(options.typer, "confirm", answer)
    monkeypatch.setattr(options, "sys", type("sys", (), {"stdin": type("tty", (), {"isatty": lambda: True})}))
    run = bench.run("pretrain")
    assert bench.call("runs", "rm", run.path.name).exit_code == 1
    assert asked and re.match(r"Delete 1 run, \d\.\d KB\?", asked[0]) and run.path.exists()


def test_rm_refuses_a_run_that_is_being_computed_before_it_deletes_any(bench: Bench) -> None:
    first, second = [folder for folder in bench.store if folder.spec.stage == "pretrain"]
    with second.lock():
        done = bench.call("runs", "rm", "--yes", first.path.name, second.path.name)
    assert done.exit_code == 2 and "being computed right now" in done.stderr
    assert first.path.exists() and second.path.exists()


def test_dependants_are_found_over_generations(bench: Bench) -> None:
    make = functools.partial(RunSpec, arch="vit_toy", recipe={}, data={}, seed=7)
    teacher = make("teacher", "wise")
    taught = make("pretrain", "taught", parents={"teacher": teacher.key})
    task = make("downstream", "echo", parents={"encoder": taught.key})
    folders = [bench.store.create(spec, Inputs()) for spec in (teacher, taught, task)]
    every = list(bench.store)
    assert [folder.path for folder in dependants(every, folders[:1])] == [f.path for f in folders[1:]]
    assert [folder.path for folder in dependants(every, folders[:2])] == [folders[2].path]
    assert dependants(every, folders) == []
    children = Reader(bench.store, Catalog(None)).children(folders[0])
    assert [child.path for child in children] == [f.path for f in folders[1:]]


def test_a_run_whose_encoder_was_removed_is_kept_but_in_no_table(filled: Bench) -> None:
    run = next(folder for folder in filled.store if folder.spec.name == "plain" and folder.spec.seed == 1)
    child = next(f for f in filled.store if run.spec.key in f.spec.parents.values())
    assert child.path.name in filled.call("runs", "list", "--table", "plain", "--json").stdout
    filled.store.remove(run)
    assert child.path.name not in filled.call("runs", "list", "--table", "plain", "--json").stdout
    assert child.path.name not in filled.call("runs", "gc", "--dry-run").stdout
    (found,) = [run for run in listed(filled) if run["run"] == child.path.name]
    assert found["method"] is None and found["parents"] == {"encoder": None}
    assert "which was removed" in filled.call("runs", "show", child.path.name).stdout


@pytest.mark.parametrize("how", ["removed", "damaged"])
def test_gc_keeps_what_starts_from_a_lost_run_over_generations(bench: Bench, how: str) -> None:
    make = functools.partial(RunSpec, arch="vit_toy", recipe={}, data={}, seed=7)
    teacher = make("teacher", "wise")
    taught = make("pretrain", "taught", parents={"teacher": teacher.key})
    task = make("downstream", "echo", parents={"encoder": taught.key})
    first, *below = [bench.store.create(spec, Inputs()) for spec in (teacher, taught, task)]
    dry = bench.call("runs", "gc", "--dry-run").stdout
    assert all(folder.path.name in dry for folder in (first, *below))  # no table has them
    if how == "removed":
        bench.store.remove(first)
    else:
        (first.path / "spec.json").write_text("{")
    dry = bench.call("runs", "gc", "--dry-run").stdout
    assert not any(folder.path.name in dry for folder in below)
    assert (first.path.name in dry) == (how == "damaged")


def test_gc_takes_what_no_table_has_and_nothing_else(bench: Bench) -> None:
    bench.finish()
    kept = {folder.path.name for folder in bench.store}
    bench.finish(changes={"echo.steps": 1})
    extra = {folder.path.name for folder in bench.store} - kept
    assert len(extra) == 2
    old = paths.old_cache()
    old.mkdir()
    (old / "method-plain.json").write_text("x" * 120_000)
    dry = bench.call("runs", "gc", "--dry-run").output
    assert all(name in dry for name in extra) and "2 runs and 1 leftover, 0.1 MB in all" in dry
    assert extra <= {folder.path.name for folder in bench.store}
    refused = bench.call("runs", "gc")
    assert refused.exit_code == 2 and "give --yes" in refused.stderr and old.exists()
    done = bench.call("runs", "gc", "--yes")
    assert done.exit_code == 0 and done.stdout.endswith("0.1 MB freed\n")
    assert {folder.path.name for folder in bench.store} == kept and not old.exists()
    assert bench.call("runs", "gc").stdout == "Nothing to delete.\n"


def test_sizes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"x" * 1000)
    (tmp_path / "c").write_bytes(b"x" * 500)
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    assert size(tmp_path) >= 1500 and size(tmp_path / "c") == 500 and size(tmp_path / "none") == 0
    words = [readable_size(count) for count in (0, 1, 2_500, 12_340_000, 850_000_000, 4_200_000_000)]
    assert words == ["0 bytes", "1 byte", "2.5 KB", "12.3 MB", "850 MB", "4.2 GB"]

"""`mimbench new`: what it writes passes ruff, and never takes the place of something."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from mimbench import catalog, discovery, paths, plugin
from mimbench.cli import app
from mimbench.commands.new import MAX_NAME
from mimbench.table.spec import load
from tests.world import ROOT, forget

LONGEST = "a" * MAX_NAME


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, outside the checkout; no plug-in."""
    monkeypatch.setenv(plugin.VARIABLE, "")
    monkeypatch.chdir(tmp_path)
    forget()
    yield tmp_path
    monkeypatch.setenv(plugin.VARIABLE, "")
    forget()


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["new", *words], catch_exceptions=False)


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_method_gets_a_folder_of_its_own_and_a_table(place: Path) -> None:
    done = call("method", "my-mae")
    assert done.exit_code == 0, done.output
    files = ["my-mae-plugin/methods/my_mae.py", "my-mae-plugin/tables/my-mae/main.toml"]
    assert written(place) == files and done.output.splitlines()[:2] == files
    assert "mimbench reproduce-table my-mae --scale smoke --include my-mae-plugin" in done.output
    plugin.include(["my-mae-plugin"])
    forget()
    card, spec = catalog.method("my-mae"), load("my-mae")
    assert card.name == "my-mae" and set(card.recipes()) == {"smoke", "toy", "small", "paper"}
    assert card.recipes()["toy"].sources["visible_weight"] == "ours"
    assert [row.method for row in spec.rows] == ["scratch", "mae", "my-mae"] and len(spec.claims) == 1


def test_a_task_may_go_into_the_same_folder(place: Path) -> None:
    call("method", "my-mae", "--in", "mine")
    done = call("task", "nearest", "--in", "mine")
    assert done.exit_code == 0 and "--include mine" in done.output
    assert "mine/tasks/nearest.py" in written(place)
    plugin.include(["mine"])
    forget()
    card, spec = catalog.task("nearest"), load("nearest")
    assert [metric.name for metric in card.metrics] == [spec.columns[0].metric] == ["top1_nearest"]


def test_without_its_one_change_the_method_is_mae(place: Path) -> None:
    call("method", "my-mae", "--in", "mine")
    plugin.include(["mine"])
    forget()
    mine, mae = catalog.method("my-mae"), catalog.method("mae")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    losses = []
    for card, changes in ((mae, {}), (mine, {"visible_weight": 0.0}), (mine, {})):
        torch.manual_seed(0)
        recipe = card.recipes()["smoke"].vary("test", **changes)
        losses.append(card.build(recipe)(images, 0.0)["loss"].item())
    assert losses[0] == losses[1] != losses[2]


def test_what_every_method_and_task_must_do_they_do(place: Path) -> None:
    """The conformance tests run on a plug-in too."""
    call("method", "my-mae", "--in", "mine")
    call("task", "nearest", "--in", "mine")
    environment = {**os.environ, plugin.VARIABLE: str(place / "mine"), "PYTHONPATH": str(ROOT)}
    chosen = "(my-mae or nearest) and not leads_to_a_plan"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/conformance",
        "-k",
        chosen,
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 20, done.stdout


@pytest.mark.parametrize("name", ["x", "a1-b_2", LONGEST])
@pytest.mark.parametrize("kind", ["method", "task"])
def test_what_is_written_passes_ruff(place: Path, kind: str, name: str) -> None:
    """As it lies in the checkout, where the imports are the project's own."""
    assert call(kind, name, "--in", str(place)).exit_code == 0
    file = place / f"{kind}s" / f"{name.replace('-', '_')}.py"
    for command in (["check"], ["format", "--check"]):
        ruff = [
            sys.executable,
            "-m",
            "ruff",
            *command,
            "--no-cache",
            "--stdin-filename",
            "pretrain/methods/it.py",
        ]
        done = subprocess.run([*ruff, "-"], cwd=ROOT, input=file.read_text(), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_in_a_checkout_it_lies_beside_the_others(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("pretrain/methods", "downstream", "mimbench", "deep"):
        (place / folder).mkdir(parents=True)
    monkeypatch.setattr(paths, "PACKAGE", place / "mimbench")
    monkeypatch.chdir(place / "deep")
    done = call("method", "my-mae")
    assert done.exit_code == 0, done.output
    assert call("task", "nearest", "--in", "..").exit_code == 0
    assert written(place) == [
        "downstream/nearest.py",
        "pretrain/methods/my_mae.py",
        "tables/my-mae/main.toml",
        "tables/nearest/main.toml",
    ]
    assert "--include" not in done.output
    assert 'make test ARGS="tests/conformance -k my-mae"' in done.output
    assert "python tests/golden/make_curves.py my-mae" in done.output


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("method", "MyMAE", "Use small letters and digits.* For instance: mymae"),
        ("method", "3x", "a letter first"),
        ("method", "a b", "For instance: a-b"),
        ("method", "../up", "For instance: up"),
        ("task", "", "For instance: my-task"),
        ("task", "x--y", "For instance: x-y"),
        ("task", LONGEST + "a", f"at most {MAX_NAME}"),
        ("method", "class", "a keyword of Python"),
        ("method", "mae", "There is a method mae already"),
        ("method", "mae_clip", "There is a method mae-clip already"),
        ("method", "clip", "There is a teacher clip already"),
        ("task", "mae", "There is a method mae already"),
        ("task", "knn", "There is a task knn already"),
        ("method", "tensor", "class would be Tensor, which the file imports"),
        ("task", "transfer", "class would be TransferRecipe, which the file imports"),
    ],
)
def test_a_name_that_cannot_be_is_the_users_mistake(place: Path, kind: str, name: str, message: str) -> None:
    done = call(kind, name)
    assert done.exit_code == 2
    assert re.search(message, done.output), done.output
    assert written(place) == []


def test_nothing_is_overwritten(place: Path) -> None:
    call("method", "mine")
    file = place / "mine-plugin" / "methods" / "mine.py"
    file.write_text("x = 1\n")
    done = call("method", "mine")
    assert done.exit_code == 2 and "mine.py is there already; it stays as it is" in done.output
    assert file.read_text() == "x = 1\n"
    file.unlink()
    done = call("method", "mine")  # its table is still there
    assert done.exit_code == 2 and "main.toml is there already" in done.output
    assert not file.exists()


def test_a_name_of_an_included_plugin_is_taken(place: Path) -> None:
    call("method", "mine")
    done = call("task", "mine", "--in", "other", "--include", "mine-plugin")
    assert done.exit_code == 2 and "There is a method mine already" in done.output
    assert "mine" in discovery.names("method")


def test_a_place_that_is_a_file_is_refused(place: Path) -> None:
    (place / "file").write_text("")
    done = call("method", "mine", "--in", "file")
    assert done.exit_code == 2 and "Traceback" not in done.output

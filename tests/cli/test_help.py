"""What the command line says of itself: help, version, completion."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mimbench import plugin
from mimbench.cli import app, options
from mimbench.recipe import SCALES
from tests.cli.bench import Bench
from tests.world import ROOT, forget

COMMANDS = [
    ["plan"],
    ["reproduce-table"],
    ["reproduce-all"],
    ["run"],
    ["methods"],
    ["tasks"],
    ["tables"],
    ["leaderboard"],
    ["results"],
    ["doctor"],
    ["runs", "list"],
    ["runs", "show"],
    ["runs", "export"],
    ["runs", "rm"],
    ["runs", "gc"],
    ["data", "toy"],
    ["data", "check"],
]


def help_of(*words: str, width: int = 80) -> str:
    """The help as a terminal of that width would have it (typer's CliRunner always has 80 columns)."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setenv("COLUMNS", str(width))
        with pytest.raises(SystemExit) as end:
            app([*words, "-h"], prog_name="mimbench")
    assert not end.value.code
    return out.getvalue()


def test_commands_stand_in_groups_whose_order_is_that_of_the_work() -> None:
    text = help_of()
    places = [
        text.index(f"\n{title}:\n") for title in ("Compute", "Look", "Data and environment", "Examples")
    ]
    assert places == sorted(places)
    assert text.index("\nCompute:") < text.index("\n  plan ") < text.index("\nLook:")
    assert text.index("\nLook:") < text.index("\n  runs ") < text.index("\nData and environment:")
    for name, *_rest in COMMANDS:
        assert re.search(rf"^  {name} ", text, re.MULTILINE), name


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_examples_and_capital_metavars(words: list[str]) -> None:
    text = help_of(*words)
    examples = text.partition("Examples:\n")[2].splitlines()
    assert examples and all(line.startswith(f"  mimbench {' '.join(words)}") for line in examples)
    assert not re.search(r"<\w+>|\{\w+\}|\[\[", text)  # typer's own notes of kinds


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_fits_the_terminal(width: int) -> None:
    for words in [[], ["runs"], *COMMANDS]:
        body = help_of(*words, width=width).partition("Examples:")[0]
        assert max(map(len, body.splitlines())) <= min(width, 100), words


def test_the_scales_are_a_choice_with_their_meanings() -> None:
    assert options.SCALE_WORDS == "|".join(SCALES)
    text = re.sub(r"\s+", " ", help_of("plan"))
    assert "--scale smoke|toy|small|paper" in text
    assert all(f"{scale}: " in text for scale in SCALES)
    assert "--dry-run" not in text


def test_colours_go_to_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in help_of()
    coloured = CliRunner().invoke(app, ["-h"], color=True).stdout
    assert "\x1b[1mCompute" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in CliRunner().invoke(app, ["-h"], color=True).stdout


def test_a_groups_line_names_all_its_commands_or_none() -> None:
    for name in ("runs", "data"):
        done = CliRunner().invoke(app, [name, "--help"])
        listed = set(re.findall(r"^  ([a-z-]+)  ", done.stdout, re.MULTILINE))
        named = listed & set(re.findall(r"[a-z-]+", done.stdout.partition("\n\n")[2].partition("\n\n")[0]))
        assert listed and named in (set(), listed), name


def test_version() -> None:
    declared = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0 and declared and done.stdout.startswith(f"mimbench {declared[1]}")


def complete(typed: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bash would offer behind `mimbench TYPED`; the last word is the one that is being typed."""
    words = ["mimbench", *typed.split(" ")]
    monkeypatch.setenv("_MIMBENCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    with pytest.raises(SystemExit) as end:
        app(prog_name="mimbench")
    assert not end.value.code
    out, errors = capfd.readouterr()
    assert not errors
    return out.split()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("pl", ["plan"]),
        ("plan ", ["plain"]),
        ("plan plain --table ", ["main"]),
        ("plan plain --scale s", ["smoke", "small"]),
        ("run t", ["taught"]),
        ("run plain ", ["echo", "scenes"]),
        ("reproduce-all --table ", ["all", "main"]),
        ("runs list --table plain/", ["plain/main"]),
        ("runs list --method w", ["wise"]),
        ("runs list --task e", ["echo"]),
        ("runs list --state st", ["stale"]),
        ("runs list --stage p", ["pretrain"]),
        ("runs export - --sort n", ["newest", "name"]),
    ],
)
def test_completion(
    bench: Bench,
    typed: str,
    offered: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert complete(typed, capfd, monkeypatch) == offered


def test_a_plug_ins_tables_are_completed(
    bench: Bench, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mine" / "tables" / "own-paper" / "first.toml"
    table.parent.mkdir(parents=True)
    table.touch()
    monkeypatch.setenv(plugin.VARIABLE, str(tmp_path / "mine"))
    forget()
    assert complete("plan own", capfd, monkeypatch) == ["own-paper"]
    assert complete("plan own-paper --table ", capfd, monkeypatch) == ["first"]
    assert complete("runs list --table own-paper/", capfd, monkeypatch) == ["own-paper/first"]


def test_runs_are_completed_by_name_and_by_key(
    bench: Bench, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = bench.run("pretrain").path.name
    key = name.rpartition("-")[2]
    for command in ("runs show", "runs rm", "run"):
        assert complete(f"{command} {name[:-2]}", capfd, monkeypatch) == [name]
        assert complete(f"{command} {key}", capfd, monkeypatch) == [key]


def test_a_completion_never_fails(
    bench: Bench, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MIMBENCH_HOME", str(tmp_path / "file"))
    assert complete("runs show ", capfd, monkeypatch) == []


def test_help_and_completion_load_neither_rich_nor_pydantic_nor_torch() -> None:
    heavy = ("torch", "numpy", "pandas", "pydantic", "rich", "pretrain", "mimbench.plan", "mimbench.store")
    script = (
        "import sys\n"
        "from mimbench.cli import app, complete\n"
        "try:\n"
        "    app(['--help'])\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "names = []\n"
        "for kind in ('papers_and_tables', 'scales', 'methods', 'tasks', 'runs'):\n"
        "    names += getattr(complete, kind)()\n"
        "assert {'dtm', 'dtm/main', 'toy', 'mae', 'clip', 'classification'} <= set(names)\n"
        f"loaded = [name for name in {heavy!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

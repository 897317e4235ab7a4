"""Lists: what there is, as a person reads it, in a pipe and as JSON; looking changes nothing."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from mimbench import paths
from mimbench.cli import app
from mimbench.cli.console import TextConsole
from mimbench.cli.listing import ListConsole, cell, plain_lines
from mimbench.errors import visible
from tests.cli.bench import Bench

LISTS = [["methods"], ["tasks"], ["tables"], ["plan", "plain", "--scale", "smoke"], ["runs", "list"]]


def parsed(bench: Bench, *words: str) -> dict[str, Any]:
    """The one JSON document on standard output."""
    done = bench.call(*words, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["schema"] == 1
    return found


def test_what_there_is_as_json(bench: Bench) -> None:
    methods = {method["name"]: method for method in parsed(bench, "methods")["methods"]}
    assert list(methods) == ["none-at-all", "plain", "taught", "wise"]
    assert methods["taught"]["needs"] == {"teacher": "wise"} and methods["wise"]["kind"] == "teacher"
    assert (
        methods["plain"]["scales"] == ["smoke", "toy", "paper"]
        and methods["plain"]["provenance"] == "reconstruction"
    )
    (echo, scenes) = parsed(bench, "tasks")["tasks"]
    assert (echo["name"], scenes["data"]) == ("echo", "ade20k")
    assert echo["metrics"] == [{"name": "score", "title": "S"}, {"name": "other", "title": "O"}]
    (table,) = parsed(bench, "tables")["tables"]
    assert (table["method"], table["table"], table["title"]) == ("plain", "main", "The title")
    assert [row["method"] for row in table["rows"]] == ["none-at-all", "plain"]


def test_a_plan_as_json(bench: Bench) -> None:
    table = bench.root / "share" / "tables" / "plain" / "main.toml"
    blocked = '\n[[rows]]\nid = "late"\nlabel = "Late"\nmethod = "plain"\nnot_at = { smoke = "too long" }\n'
    table.write_text(table.read_text() + blocked)
    found = parsed(bench, "plan", "plain", "--scale", "smoke")
    assert (found["method"], found["table"], found["scale"], found["seeds"]) == ("plain", "main", "smoke", 1)
    assert {run["state"] for run in found["runs"]} == {"done", "missing"}
    echo = next(run for run in found["runs"] if run["name"] == "echo")
    assert echo["needs"]["encoder"] in {run["run"] for run in found["runs"]}
    assert found["to_do"]["runs"] == 2 and found["to_do"]["flops"] > 0
    assert found["to_do"]["seconds"] is None and found["to_do"]["workers"] >= 1, "no run has been timed"
    assert {cell["metric"] for cell in found["cells"]} == {"score", "other"}
    assert all(cell["runs"]["0"].startswith("downstream-echo-") for cell in found["cells"])
    late = {"row": "late", "metric": "score", "reason": "too long", "option": None}
    assert late in found["blocked"]
    assert len(list(bench.store)) == 2  # nothing was computed
    for folder in bench.store:
        status = json.loads((folder.path / "status.json").read_text())
        (folder.path / "status.json").write_text(json.dumps(status | {"seconds": 60.0, "total": 12}))
    assert parsed(bench, "plan", "plain", "--scale", "smoke")["to_do"]["seconds"] > 0


def test_notices_go_to_standard_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIMBENCH_CACHE", str(bench.root / "empty"))
    first, second = bench.call("methods", "--json"), bench.call("methods", "--json")
    assert first.stderr and not second.stderr
    assert json.loads(first.stdout) == json.loads(second.stdout)


@pytest.mark.parametrize("words", LISTS, ids=" ".join)
def test_a_pipe_gets_one_line_a_row(bench: Bench, words: list[str]) -> None:
    table = bench.root / "share" / "tables" / "plain" / "main.toml"
    table.write_text(
        table.read_text().replace('"The title"', '"A title of many words, ' + "long " * 40 + '"')
    )
    bench.call("run", "plain", "echo", "--scale", "smoke", "--set", "echo.mode=ok")
    piped = bench.call(*words)
    assert piped.exit_code == 0, piped.output
    assert not set(piped.stdout) & set("│─┃━┏\x1b")
    head, *rows = piped.stdout.splitlines()
    count = {"methods": 4, "tasks": 2, "tables": 1, "plan": 4, "runs": 3}[words[0]]
    assert all(not line.startswith(" ") for line in rows[:count])
    if words[0] != "plan":  # which says the totals below
        assert len(rows) == count
    assert {"methods": "wise  ", "tasks": "scenes  ", "tables": "plain  "}.get(
        words[0], "echo"
    ) in piped.stdout
    plainly = bench.call(*words, "--plain")
    assert plainly.stdout == piped.stdout


def test_a_terminal_gets_a_table_as_wide_as_it_is(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich takes the captured output for a terminal
    for width in (60, 80, 120, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        for words in LISTS:
            shown = CliRunner().invoke(app, words).stdout
            assert "──" in shown
            widths = [Text.from_ansi(line).cell_len for line in shown.splitlines()]
            assert max(widths) <= width, (words, width)


def test_lists_show_what_users_wrote_as_text() -> None:
    evil = "[red]x[/red] \x1b[31m\n\u202e\udcff"
    table = Table("name", "other")
    table.add_row(cell(evil), cell("b"))
    assert plain_lines(table) == ["name".ljust(len(visible(evil))) + "  other", visible(evil) + "  b"]
    assert visible(evil) == r"[red]x[/red] \x1b[31m\n\u202e\udcff"
    table.add_row(evil, Text(evil))  # as other parts of the program add cells
    for plain in (True, False):
        console = ListConsole(plain=plain)
        console.file = io.StringIO()
        console.print(table)
        assert visible(evil) in console.file.getvalue()
        assert not set(console.file.getvalue()) & set("\x1b\u202e\udcff")


def test_a_console_prints_text_as_text() -> None:
    console = TextConsole(file=io.StringIO(), width=60)
    console.print("[bold]a[/bold] :smile: \x1b[2J", Text("\x1b[2J"))
    console.print("first\nsecond\tthird", style="red")
    assert console.file.getvalue() == "[bold]a[/bold] :smile: \\x1b[2J \\x1b[2J\nfirst\nsecond  third\n"
    terminal = TextConsole(file=io.StringIO(), force_terminal=True, color_system="standard")
    terminal.print("red \x1b[2J", style="red", highlight=False)
    terminal.show_cursor(False)
    assert terminal.file.getvalue() == "\x1b[31mred \\x1b[2J\x1b[0m\n\x1b[?25l"


def test_visible_leaves_writing_alone() -> None:
    for text in ("", "dtm · seed 3", "Δ −1.5 ± 0.2", "日本語", "👩‍💻", "C:\\x1b"):
        assert visible(text) == text


def test_looking_makes_no_folder(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, cache = tmp_path / "elsewhere", tmp_path / "cache"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.delenv("MIMBENCH_HOME")
    monkeypatch.setenv("MIMBENCH_CACHE", str(cache))
    for words in (["methods"], ["tables"], ["tasks"], ["runs", "list"], ["runs", "export", "-"]):
        done = bench.call(*words)
        assert done.exit_code == 0, done.output
        assert list(place.iterdir()) == [], words
    assert list(cache.glob("method-plain-*.json"))


def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIMBENCH_CACHE", "~/x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.cache() == tmp_path / "x"
    monkeypatch.delenv("MIMBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert paths.cache() == tmp_path / "xdg" / "mimbench"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert paths.cache() == tmp_path / ".cache" / "mimbench"


@pytest.mark.parametrize("broken", ["a file", "a folder of folders", "read-only"])
def test_without_a_cache_everything_works_silently(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def refuse(path: Path, value: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    cache = tmp_path / "cache"
    monkeypatch.setenv("MIMBENCH_CACHE", str(cache))
    if broken == "a file":
        cache.touch()
    elif broken == "a folder of folders":  # where files should be
        bench.call("methods")
        for file in cache.glob("*.json"):
            file.unlink()
            (file / "below").mkdir(parents=True)
    else:
        monkeypatch.setattr("mimbench.catalog.write_json", refuse)
    done = bench.call("methods")
    assert done.exit_code == 0 and "taught" in done.stdout, done.output
    assert "cache" not in done.stderr

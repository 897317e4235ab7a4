"""Methods, tasks and tables from outside the project: by path, or by an installed package's entry point."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mimbench import catalog, discovery, paths, plugin
from mimbench.catalog import Catalog
from mimbench.cli import app
from mimbench.errors import UserError
from mimbench.store.fingerprint import run_fingerprint
from mimbench.store.runs import RunStore
from mimbench.table import reported
from mimbench.table.spec import list_tables, load
from tests.world import ROOT, TASK, forget, method_source

TABLE = """
paper = "Mine"
name = "main"
title = "The title"
section = "none"
baseline = "nothing"
[[columns]]
task = "echo"
metric = "score"
title = "Score"
[[rows]]
id = "nothing"
label = "Nothing"
method = "none-at-all"
[[rows]]
id = "mine"
label = "Mine"
method = "mine"
trailing
"""
HELPED = (
    method_source("mine")
    .replace("import HALF", "import HALF\nfrom ..helper import f")
    .replace('provenance="reconstruction"', 'provenance="own"')
)


def write(root: Path, **files: str) -> Path:
    """`write(root, methods__mine=text)` writes root/methods/mine.py."""
    for name, text in files.items():
        path = root / (name.replace("__", "/") + ("" if "." in name else ".py"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def include(world: Path, monkeypatch: pytest.MonkeyPatch):
    """`include(path, ...)`, as the option does, for one test."""
    monkeypatch.setenv(plugin.VARIABLE, "")

    def name(*places: Path) -> None:
        plugin.include(places)
        forget()

    yield name
    monkeypatch.setenv(plugin.VARIABLE, "")
    forget()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with a method that imports a module of its own, a task and a table."""
    root = write(
        tmp_path / "my plug-in",
        methods__mine=HELPED,
        tasks__tell=TASK.format(name="tell", data="imagenet"),
        helper="def f(x): return x + 1\n",
    )
    table = root / "tables" / "mine" / "main.toml"
    table.parent.mkdir(parents=True)
    table.write_text(TABLE.replace("trailing\n", ""))
    return root


# -- what is found, and under which name ---------------------------------------------------------------------


def test_a_folder_adds_methods_tasks_and_tables(include, mine: Path) -> None:
    before = discovery.names("method")
    include(mine)
    assert discovery.names("method") == sorted([*before, "mine"])
    assert "tell" in discovery.names("task")
    assert discovery.module_of("method", "mine") == "mimbench.plugin.my_plug_in.methods.mine"
    assert catalog.method("mine").title == "mine"
    found = discovery.plugin_of("method", "mine")
    assert found and found.path == mine and discovery.plugin_of("method", "plain") is None
    assert ("mine", "main") in list_tables() and load("mine").paper == "Mine"


def test_a_file_of_its_own_is_a_plugin(include, tmp_path: Path) -> None:
    text = method_source("alone") + TASK.format(name="tell", data="imagenet")
    include(write(tmp_path, single=text) / "single.py")
    assert discovery.module_of("method", "alone") == "mimbench.plugin.single"
    assert catalog.method("alone").name == "alone" and catalog.task("tell").name == "tell"


def test_a_file_with_a_teacher_is_one(include, tmp_path: Path) -> None:
    include(write(tmp_path, single=method_source("sage", stage="teacher")) / "single.py")
    assert discovery.kind_of("sage") == "teacher"


def test_plugins_with_one_folders_name_do_not_meet(include, tmp_path: Path) -> None:
    """Nor does one that has the name of something in `mimbench.plugin`."""
    for place, name in (("a", "one"), ("b", "two")):
        write(tmp_path / place / "include", methods__same=method_source(name))
    include(tmp_path / "a" / "include", tmp_path / "b" / "include")
    modules = {discovery.module_of("method", name) for name in ("one", "two")}
    assert len(modules) == 2 and {catalog.method("one").name, catalog.method("two").name} == {"one", "two"}
    assert callable(plugin.include)


def test_a_plugin_named_twice_is_one(include, mine: Path) -> None:
    include(mine, mine, mine / ".." / mine.name)
    assert len(plugin.plugins()) == 1


def test_a_fresh_process_imports_by_name_alone(include, mine: Path) -> None:
    """As a loader's process does that is not a fork: what it receives names the module."""
    include(mine)
    recipe = pickle.dumps(type(catalog.method("mine").recipes()["smoke"]))
    script = f"import pickle\nprint(pickle.loads({recipe!r}).__module__)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=mine.parent, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "mimbench.plugin.my_plug_in.methods.mine", done.stderr


# -- the fingerprint -----------------------------------------------------------------------------------------


def test_its_source_and_what_it_imports_of_its_own_count(include, mine: Path, world: Path) -> None:
    include(mine)
    before, ours = run_fingerprint("pretrain", "mine"), run_fingerprint("pretrain", "plain")
    write(mine, helper='"""Text."""\ndef f(x): return x + 1  # a comment\n', unused="x = 1\n")
    forget()
    assert run_fingerprint("pretrain", "mine") == before
    write(mine, helper="def f(x): return x + 2\n")
    forget()
    assert run_fingerprint("pretrain", "mine") != before
    assert run_fingerprint("pretrain", "plain") == ours
    assert run_fingerprint("downstream", "tell") != run_fingerprint("downstream", "echo")


def test_a_moved_folder_is_no_change(include, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    include(mine)
    before = run_fingerprint("pretrain", "mine")
    moved = mine.rename(mine.parent / "elsewhere")
    monkeypatch.setenv(plugin.VARIABLE, "")
    include(moved)
    assert run_fingerprint("pretrain", "mine") == before


@pytest.mark.parametrize("line", ["from helper import f", "import helper", "from plain_name.helper import f"])
def test_a_file_of_its_own_counts_however_it_is_imported(include, tmp_path: Path, line: str) -> None:
    """Absolutely, where Python's path leads to it."""
    text = HELPED.replace("from ..helper import f", line)
    include(write(tmp_path / "plain_name", methods__mine=text, helper="def f(x): return x + 1\n"))
    before = run_fingerprint("pretrain", "mine")
    write(tmp_path / "plain_name", helper="def f(x): return x + 2\n")
    forget()
    assert run_fingerprint("pretrain", "mine") != before


def test_a_folder_with_a_name_of_ours_hides_nothing_of_ours(include, tmp_path: Path, world: Path) -> None:
    root = write(tmp_path / "pretrain", methods__mine=method_source("mine"), downstream__x="x = 1\n")
    include(root)
    before = run_fingerprint("pretrain", "mine")
    (world / "pretrain" / "shared.py").write_text("HALF = 0.25\n")
    forget()
    assert run_fingerprint("pretrain", "mine") != before


# -- what is wrong with it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "--include: .*There is no such file or folder"),
        ({"notes.txt": "x"}, "this folder holds none"),
        ({"methods__mine": "x = 1\n"}, r"methods/mine\.py: It has no card: end it with METHOD = "),
        ({"methods__mine": "x = 1\ndef f(:\n"}, r"methods/mine\.py, line 2: .*Correct it"),
        ({"tasks__mine": "x = '\0'\n"}, r"tasks/mine\.py.*(not Python source|null bytes)"),
        (
            {"methods__mine": method_source("plain")},
            r"name: 'plain' is not valid\. .*pretrain/methods/plain\.py has that name.*mine/methods/mine\.py",
        ),
        (
            {"tasks__mine": TASK.format(name="wise", data="imagenet")},
            r"name: 'wise' .*pretrain/teachers/wise\.py has that name",
        ),
        (
            {"methods__one": method_source("one"), "methods__two": method_source("one")},
            r"name: 'one' .*methods/one\.py has that name.*methods/two\.py",
        ),
    ],
)
def test_what_is_no_plugin_is_refused(include, tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        include(write(tmp_path / "mine", **files))
        discovery.names("method")


def test_a_file_must_be_python_with_a_card(include, tmp_path: Path) -> None:
    write(tmp_path, **{"notes.txt": "x", "empty": "x = 1\n"})
    with pytest.raises(UserError, match="Name a folder or a Python file"):
        include(tmp_path / "notes.txt")
    plugin.forget()
    os.environ[plugin.VARIABLE] = ""
    include(tmp_path / "empty.py")
    with pytest.raises(UserError, match=r"empty\.py: It has no card"):
        discovery.names("task")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"""A method."""', "import nothing_like_it", r"mine\.py, line 2: ModuleNotFoundError: No module"),
        (
            '"""A method."""',
            "from helper import f",
            r"line 2: ModuleNotFound.*import each other relatively: from \.\.helper import",
        ),
        ("return 100.0", "return 1 / 0", r"mine\.py, line 15: ZeroDivisionError: division by zero"),
        ("epochs=2.0, ", "", r"mine\.py, line 2\d: TypeError: .*'epochs'"),
        ("METHOD = MethodCard(", "METHOD = dict(", r"mine\.METHOD: .*It must be a MethodCard"),
    ],
)
def test_what_its_code_raises_names_file_and_line(
    include, mine: Path, old: str, new: str, message: str
) -> None:
    text = method_source("mine")
    assert old in text
    write(mine, methods__mine=text.replace(old, new))
    include(mine)
    with pytest.raises(UserError, match=message):
        Catalog(None).resolve("method", "mine", "smoke", data_size=10)


@pytest.mark.parametrize("line", ["from .helper import f", "from helper import f"])
def test_a_file_with_another_beside_it_must_be_a_folder(include, tmp_path: Path, line: str) -> None:
    text = method_source("alone").replace('"""A method."""', line)
    include(write(tmp_path, single=text, helper="def f(): pass\n") / "single.py")
    with pytest.raises(UserError, match=r"single\.py, line 2: .*A plug-in of several files is a folder"):
        Catalog(None).describe("method", "alone")


def test_a_name_that_is_no_literal_must_be_the_files(include, mine: Path) -> None:
    write(mine, methods__mine=method_source("mine").replace("name='mine'", "name='mi' + 'ne'"))
    include(mine)
    assert Catalog(None).describe("method", "mine").name == "mine"
    write(mine, methods__mine=method_source("mine").replace("name='mine'", "name='an' + 'other'"))
    include(mine)
    with pytest.raises(UserError, match="name: 'another' is not valid.*literal text"):
        Catalog(None).describe("method", "mine")


def test_tables_and_figures_that_are_there_already_are_refused(include, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine", **{"tables__dtm__main.toml": TABLE})
    include(mine)
    with pytest.raises(
        UserError, match=r"TABLE: 'dtm/main' .*tables/dtm/main\.toml has that name.*mine/tables"
    ):
        list_tables()
    header, line = (ROOT / "tables" / "reported.csv").read_text().splitlines()[:2]
    (mine / "tables" / "reported.csv").write_text(f"{header}\n{line}\n")
    with pytest.raises(
        UserError, match=r"mine/tables/reported\.csv: .*Another reported\.csv has this figure"
    ):
        reported.read()
    (mine / "tables" / "reported.csv").write_text(f"{header}\nMine,{line.partition(',')[2]}\n")
    assert [each.paper for each in reported.read() if each.paper == "Mine"] == ["Mine"]


# -- an installed package ------------------------------------------------------------------------------------


@pytest.fixture
def install(world: Path):
    """`install(methods__mine=text)`: the package `extra`, with an entry point, in the world."""

    def make(**files: str) -> None:
        write(world / "extra", **files)
        info = world / "extra_methods-1.2.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-methods\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text("[mimbench.plugins]\nours = extra.mim\n")
        forget()

    yield make
    for name in [name for name in sys.modules if name.split(".")[0] == "extra"]:
        del sys.modules[name]


def test_an_installed_package_adds_its_own(include, install) -> None:
    text = method_source("mine").replace("import HALF", "import HALF\nfrom extra.deep import f")
    install(deep="def f(): return 1\n", mim__methods__mine=text)
    assert discovery.module_of("method", "mine") == "extra.mim.methods.mine"
    assert Catalog(None).describe("method", "mine").title == "mine"
    found = discovery.plugin_of("method", "mine")
    assert found and found.facts() == {"name": "ours", "distribution": "extra-methods 1.2"}
    before = run_fingerprint("pretrain", "mine")
    install(deep="def f(): return 2\n")
    assert run_fingerprint("pretrain", "mine") != before, "the whole package counts, not the plug-in's part"


def test_a_broken_installed_package_takes_nothing_else_down(include, install, capsys) -> None:
    install(mim__methods__mine="def f(:\n", **{"mim__tables__mine__main.toml": TABLE})
    assert ("mine", "main") not in list_tables(), "it is left out as a whole"
    assert "plain" in discovery.names("method") and "mine" not in discovery.names("method")
    warned = capsys.readouterr().err
    assert (
        "warning: the plug-in ours (extra-methods 1.2) is left out" in warned and "mine.py, line 1" in warned
    )


def test_one_that_does_not_import_is_left_out_of_lists(include, install, capsys) -> None:
    install(mim__methods__mine=method_source("mine") + "import nothing_like_it\n")
    names = [about.name for about in Catalog(None).all("method")]
    assert names == ["none-at-all", "plain", "taught"]
    assert "nothing_like_it" in capsys.readouterr().err
    with pytest.raises(UserError, match="mine.py, line"):
        Catalog(None).describe("method", "mine")  # asked for by name


def test_an_entry_point_without_its_package_is_a_warning(include, install, capsys) -> None:
    install()
    assert discovery.names("teacher") == ["wise"]
    assert "there is no package extra.mim" in capsys.readouterr().err


# -- from the command line -----------------------------------------------------------------------------------


class Bench:
    """A workspace; the world's tables are those of the plug-in alone."""

    def __init__(self, root: Path, mine: Path) -> None:
        self.root, self.mine, self.store = root, mine, RunStore(root / "runs")

    def call(self, *words: str, included: str = "") -> Result:
        os.environ[plugin.VARIABLE] = included
        forget()
        return CliRunner().invoke(app, words, catch_exceptions=False)


@pytest.fixture
def bench(include, mine: Path, smoke_data: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    share, real = workspace / "share", paths.share
    monkeypatch.setattr(paths, "share", lambda name: share / name if name == "tables" else real(name))
    shutil.copytree(smoke_data, workspace / "data" / "smoke")
    (share / "tables").mkdir(parents=True)
    header = (ROOT / "tables" / "reported.csv").read_text().splitlines()[0]
    (share / "tables" / "reported.csv").write_text(f"{header}\n")
    return Bench(workspace, mine)


def pretrained(bench: Bench) -> None:
    """The pretrainings count as done: the world has no training code."""
    bench.call("plan", "mine", "--scale", "smoke", "--include", str(bench.mine))
    from mimbench.plan.datasets import Data
    from mimbench.plan.planner import Planner
    from mimbench.plan.request import Request

    spec, request = load("mine"), Request(scale="smoke")
    planner = Planner(
        Catalog(None), bench.store, Data(request, lambda: bench.root / "data" / "smoke"), request
    )
    for node in planner.table(spec.rows, spec.columns, "mine").nodes.values():
        if node.spec.stage == "pretrain":
            bench.store.create(node.spec, node.inputs).finish({})


@pytest.mark.parametrize("order", ["before", "after", "one word"])
def test_include_may_stand_anywhere(bench: Bench, order: str) -> None:
    path = str(bench.mine)
    words = {
        "before": ("--include", path, "plan", "mine", "--scale", "smoke"),
        "after": ("plan", "mine", "--scale", "smoke", "--include", path),
        "one word": ("plan", f"--include={path}", "mine", "--scale", "smoke"),
    }
    done = bench.call(*words[order])
    assert done.exit_code == 0 and "Mine · echo" in done.output, done.output


def test_a_wrong_path_is_the_users_mistake(bench: Bench) -> None:
    for words, message in (
        (("--include", "nowhere"), "no such file"),
        (("--include",), "needs a folder or a file"),
    ):
        done = bench.call("methods", *words)
        assert done.exit_code == 2 and message in done.output


def test_a_table_with_a_plugins_task_in_worker_processes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers find it, from a relative path too; the run and the page say where it came from."""
    table = bench.mine / "tables" / "mine" / "main.toml"
    table.write_text(table.read_text().replace('"echo"', '"tell"'))
    pretrained(bench)
    monkeypatch.chdir(bench.mine.parent)
    done = bench.call("reproduce-table", "mine", "--scale", "smoke", included=bench.mine.name)
    assert done.exit_code == 0, done.output  # the workers are in another folder
    folder = next(folder for folder in bench.store if folder.spec.name == "tell")
    assert folder.plugin == {"name": "my plug-in", "path": str(bench.mine)}
    shown = bench.call("runs", "show", folder.path.name)
    assert "plug-in" in shown.output and "my plug-in, " in shown.output
    told = json.loads(bench.call("runs", "show", folder.path.name, "--json").stdout)
    assert told["run"]["plugin"] == folder.plugin
    everything = bench.call("reproduce-all", "--scale", "smoke", "--include", str(bench.mine))
    assert everything.exit_code == 0, everything.output
    pages = [bench.root / "reports" / "out" / "mine" / f"main-smoke.{kind}" for kind in ("md", "html", "csv")]
    markdown, html, csv = (page.read_text() for page in pages)
    assert f"mimbench --include '{bench.mine}' reproduce-table mine" in markdown
    assert "- plug-in: my plug-in: /" in markdown
    assert "**Mine**<br>*own*" in markdown and ">own</span>" in html and ",mine,own,tell," in csv
    assert "reconstruction" in markdown, "the row of the world's own method is one"


def test_gc_leaves_the_runs_of_a_plugin_that_is_not_here(bench: Bench) -> None:
    pretrained(bench)
    folder = next(folder for folder in bench.store if folder.spec.name == "mine")
    kept = bench.call("runs", "gc", "--dry-run", "--include", str(bench.mine))
    assert "Nothing to delete" in kept.output, kept.output
    without = bench.call("runs", "gc", "--dry-run")
    assert folder.path.name in without.output, "what does not say that it is of a plug-in may go"
    (folder.path / "env.json").write_text(json.dumps({"plugin": {"name": "x", "path": "/x"}}))
    assert folder.path.name not in bench.call("runs", "gc", "--dry-run").output

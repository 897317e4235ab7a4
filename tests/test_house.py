"""The project's own rules: what imports what, what is installed, what the Makefile and a wheel offer."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from rich.console import Console

from mimbench.commands import doctor
from mimbench.ops import ensure_mmcv_ops
from mimbench.store.fingerprint import NUMERICS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mimbench", "pretrain", "downstream")
HEAVY = ("torch", "torchvision", "timm", "mmengine", "mmcv", "mmseg", "mmdet")


def light_modules() -> list[str]:
    """Every module of the engine that computes no number, and those of its side that a plan needs."""
    found = []
    for file in sorted((ROOT / "mimbench").rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        part = f"{name}.".split(".")[1]
        if (part not in NUMERICS or part in ("arch", "recipe")) and part != "__main__":
            found.append(name)
    return found


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def test_planning_and_rendering_import_no_deep_learning_library() -> None:
    script = (
        "import importlib, sys\n"
        f"for name in {light_modules()!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]\n"
        "    assert not loaded, f'{name} imports {loaded}'\n"
    )
    done = run(sys.executable, "-c", script, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from mimbench.cli import app\n"
        "try:\n"
        "    app(['--help'])\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        f"loaded = [name for name in {(*HEAVY, 'pandas', 'matplotlib', 'scipy')!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = run(sys.executable, "-c", script, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert "reproduce-table" in done.stdout


def test_import_contracts_hold() -> None:
    script = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = run(sys.executable, "-c", script, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_imports_itself_by_way_of_others() -> None:
    """No circle, lazy imports and those for type checkers included."""
    import grimp

    graph = grimp.build_graph("mimbench", "pretrain", "downstream", exclude_type_checking_imports=False)
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            chain = graph.find_shortest_chain(imported, module)
            assert chain is None, f"{module} -> {' -> '.join(chain)}"


def test_files_and_functions_are_short_enough_to_read() -> None:
    flat = {path.stem for path in (ROOT / "mimbench").glob("*.py")} - {"__init__", "__main__"}
    assert len(flat) <= 16, sorted(flat)
    for file in (path for name in PACKAGES for path in (ROOT / name).rglob("*.py")):
        text = file.read_text()
        assert len(text.splitlines()) <= 400, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 80, f"{file}: {node.name}"


def test_the_wall_is_one_tuple() -> None:
    """The import contract names what the fingerprint calls the numbers' side."""
    text = (ROOT / "pyproject.toml").read_text()
    wall = text[text.index("what computes numbers knows nothing") :]
    sources = re.findall(r'"mimbench\.(\w+)"', wall[: wall.index("forbidden_modules")])
    assert sorted(sources) == sorted(NUMERICS)
    assert not set(re.findall(r'"mimbench\.(\w+)"', wall[wall.index("forbidden_modules") :])) & set(NUMERICS)


@pytest.mark.parametrize("target", ["reproduce-table", "plan"])
def test_make_without_method_names_the_tables_and_installs_nothing(target: str) -> None:
    done = run("make", target)
    assert done.returncode == 2
    assert "METHOD=" in done.stdout and "dtm" in done.stdout
    assert "pip install" not in done.stdout


def test_make_hands_every_variable_to_the_command_line(tmp_path: Path) -> None:
    request = ["METHOD=dtm", "SCALE=small", "SEEDS=3", "DATA=imagenet=/a coco=/b", "ARGS=--no-plots"]
    done = run("make", "--dry-run", "--assume-old=pyproject.toml", "reproduce-table", *request)
    assert done.returncode == 0, done.stderr
    assert "dtm --table main --scale small --seeds 3" in done.stdout
    assert "--data imagenet=/a --data coco=/b --no-plots" in done.stdout


def test_setup_does_nothing_when_up_to_date(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".stamp").touch()
    assert run("make", "--question", "setup", cwd=tmp_path).returncode == 0
    os.utime(tmp_path / "pyproject.toml", (2**31, 2**31))
    assert run("make", "--question", "setup", cwd=tmp_path).returncode == 1


def test_continuous_integration_runs_one_executable_script() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "run: .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_version_is_in_the_changelog() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    latest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version and latest and version[1] == latest[1]


def test_readme_has_one_place_for_generated_results() -> None:
    text = (ROOT / "README.md").read_text()
    begin, end = "<!-- results:begin -->", "<!-- results:end -->"
    assert text.count(begin) == text.count(end) == 1 and text.index(begin) < text.index(end)


def test_links_of_the_golden_files_lead_somewhere() -> None:
    file = ROOT / "tests" / "golden" / "README.md"
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", file.read_text()):
        assert (file.parent / target).exists(), target


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout, unpacked as an installer would, beside PyTables."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel; it is in the extra `dev`")
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder))
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    (folder / "site" / "tables").mkdir()  # PyTables owns this name
    return folder / "site"


def test_wheel_carries_packages_tables_and_templates_only(site_packages: Path) -> None:
    tops = {path.name for path in site_packages.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"mimbench", "pretrain", "downstream", "tables"}
    share = site_packages / "mimbench" / "_share"
    names = ["index.html.j2", "style.css", "table.html.j2"]
    assert sorted(path.name for path in (share / "reports").rglob("*")) == names
    assert (share / "tables" / "reported.csv").is_file()
    templates = site_packages / "mimbench" / "commands" / "templates"
    assert len(list(templates.glob("*.template"))) == 4, "what `mimbench new` writes"


def test_installed_wheel_finds_its_tables_from_any_folder(site_packages: Path, tmp_path: Path) -> None:
    script = (
        "from mimbench import paths\n"
        "from mimbench.table.spec import load\n"
        "print(load('dtm').paper)\n"
        "print(paths.share('reports').joinpath('table.html.j2').is_file())\n"
    )
    done = run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(site_packages))
    assert done.returncode == 0, done.stderr
    assert "DTM" in done.stdout and "True" in done.stdout


def doctor_screen(width: int = 200) -> tuple[int, str]:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))
    return doctor.main(console), console.export_text()


def test_doctor_is_content_where_the_tests_run(workspace: Path) -> None:
    status, screen = doctor_screen()
    assert status == 0, screen
    assert "Ready." in screen and "torchvision" in screen and str(workspace) in screen
    kernels = {"compiled": "mmcv's own", "torchvision": "torchvision's"}
    assert kernels[ensure_mmcv_ops()] in screen


def test_doctor_fits_on_one_screen(workspace: Path) -> None:
    assert len(doctor_screen(width=100)[1].splitlines()) <= 40


@pytest.mark.parametrize(("version", "said"), [(None, "not installed"), ("0.9.1", "0.9.1")])
def test_doctor_names_what_is_missing_or_old_and_the_command(
    version: str | None, said: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda name: version if name == "timm" else real(name))
    status, screen = doctor_screen()
    assert status == 1
    assert said in screen and "pip install 'timm" in screen and "cannot run here: timm" in screen


def test_doctor_finds_a_full_disk(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TOY_DISK_GB", 1e9)
    status, screen = doctor_screen()
    assert status == 1 and "MIMBENCH_HOME" in screen

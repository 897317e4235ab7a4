"""The documents' examples run as they are written, and their links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- not run: [^\n]+ -->\n)?```(console|python)\n(.*?)```", re.DOTALL)


def commands(text: str) -> list[str]:
    """The `$ mimbench ...` lines, continued ones joined; not those with a PATH to fill in."""
    joined = text.replace("\\\n", " ")
    found = [line[2:] for line in joined.splitlines() if line.startswith("$ mimbench ")]
    return [line for line in found if not re.search(r"\bPATH\b|\bRUN\b|\bNAME\b", line)]


def run(command: list[str], place: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    environment.pop("MIMBENCH_HOME", None)
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One workspace for all documents, so that a run that several of them need is computed once."""
    folder = tmp_path_factory.mktemp("documents")
    run([sys.executable, "-m", "mimbench", "run", "mae", "classification", "--scale", "smoke"], folder)
    return folder


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_the_examples_run(document: Path, place: Path) -> None:
    for skipped, language, text in BLOCK.findall(document.read_text()):
        if skipped:
            continue
        if language == "python":
            encoder = next((place / "runs").glob("pretrain-mae-*"), None)
            assert encoder is not None
            run([sys.executable, "-c", text.replace("pretrain-mae-vit_toy-KEY", encoder.name)], place)
        for line in commands(text) if language == "console" else ():
            run([sys.executable, "-m", *shlex.split(line, comments=True)], place)


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.stem)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
        if not target.startswith("../../actions/"):  # on the page of the repository
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_document_is_reached_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert [path.name for path in DOCUMENTS[1:] if f"docs/{path.name}" not in text] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160

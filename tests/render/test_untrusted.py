"""Labels, notes, titles and messages are somebody else's: each format shows them as text."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest

from mimbench import errors
from mimbench.render import csv as csv_file
from mimbench.render import escape, index, latex, markdown, plot, write_all
from mimbench.render import json as json_file
from mimbench.render.text import Context
from mimbench.table.cell import Table
from tests.render.sample import CONTEXT, make_table

EVIL = "[/nope] [red]<b>&\"' $\\frac{1$ \\input{x} % # =cmd|'/c calc'!A0 | * _ \x1b[31m :smile:"
SEEN = EVIL.replace("\x1b", "\\x1b")  # a control character is written out
PLACES = ("title", "note", "label", "row_note", "claim", "metric", "failure")


@pytest.fixture(scope="module")
def evil() -> Table:
    return make_table(metrics=3, broken=True, cost=True, texts={place: f"{place} {EVIL}" for place in PLACES})


def hidden(shown: str) -> list[str]:
    return re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)


def test_page(evil: Table, page: Callable[..., str]) -> None:
    rendered = page(evil)
    assert not hidden(rendered)
    assert "<b>&" not in rendered and not re.search(r"<script|\son\w+=", rendered)
    text = unescape(re.sub(r"<(?!b>)[^>]*>", "", rendered))
    for place in PLACES:
        assert f"{place} {SEEN}" in text, place


def test_plots(evil: Table) -> None:
    for svg in (plot.render(evil, 0, salt="s"), plot.render_cost(evil, 0, salt="s")):
        root = xml.etree.ElementTree.fromstring(svg)
        told, words = (
            "".join(
                text for item in root.iter(f"{{http://www.w3.org/2000/svg}}{tag}") for text in item.itertext()
            )
            for tag in ("desc", "text")
        )
        assert f"label {SEEN}" in told
        assert squeezed(f"label {SEEN}") in squeezed(words)
    words = "".join(xml.etree.ElementTree.fromstring(plot.render(evil, 0, salt="s")).itertext())
    assert squeezed(f"metric {SEEN}") in squeezed(words)


def squeezed(words: str) -> str:
    return re.sub(r"\s", "", words)


def test_terminal(evil: Table, shown: Callable[..., str]) -> None:
    rendered = shown(evil, 400)
    assert not hidden(rendered)
    for place in ("title", "row_note", "claim"):
        assert f"{place} {SEEN}"[:34] in rendered, place
    assert "failure [/nope] [red]<b>" in rendered and "label [/nope] [red]<b>" in rendered
    assert "metric [/nope] [red]<b>" in rendered


def test_markdown(evil: Table) -> None:
    rendered = markdown.render(evil, Context(command="mimbench\n# no heading"))
    assert not hidden(rendered)
    assert markdown.escape(EVIL) in rendered
    bare = re.sub(r"\\.", "", rendered)
    assert "<b>" not in bare and "$" not in bare and "[red]" not in bare
    assert "\n# no heading" not in rendered, "the command stays in its block"


def test_latex(evil: Table, tmp_path: Path) -> None:
    rendered = latex.render(evil, "x")
    assert not hidden(rendered) and latex.escape(EVIL) in rendered
    assert "\\input" not in rendered and "\\frac" not in rendered
    if shutil.which("pdflatex") is None:
        pytest.skip("THE .tex FILE IS NOT SET: pdflatex is not installed")
    page = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}" + rendered
    (tmp_path / "page.tex").write_text(page + r"\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "page.tex"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_csv() -> None:
    rendered = csv_file.render(make_table(texts={place: EVIL[EVIL.index("=") :] for place in PLACES}))
    assert not hidden(rendered)
    cells = [cell for line in csv.reader(io.StringIO(rendered)) for cell in line]
    assert "'=cmd|'/c calc'!A0 | * _ \\x1b[31m :smile:" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]


def test_json(evil: Table) -> None:
    rendered = json_file.render(evil, CONTEXT)
    assert not hidden(rendered)
    assert json.loads(rendered)["rows"][-1]["label"] == f"label {EVIL}", "a program gets what was written"


def test_all_files_and_the_index(evil: Table, workspace: Path) -> None:
    out = workspace / "reports" / "out"
    files = write_all(evil, out / "a&b %_ [x]", "main", CONTEXT)
    page = index.write(out)
    for file in [*files, page]:
        assert not hidden(file.read_text()), file.name
    label = re.search(r"\\label\{(.*)\}", (out / "a&b %_ [x]" / "main.tex").read_text())
    assert label and re.fullmatch(r"[\w:.-]+", label[1]), "LaTeX refers to it"
    text = page.read_text()
    assert "<b>&" not in text and f"title {SEEN}" in unescape(re.sub(r"<(?!b>)[^>]*>", "", text))


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\r\nb", "a\nb"),
        ("a\rb", "a\\rb"),
        ("a\x9bb\u202ec", "a\\x9bb\\u202ec"),
        ("plain é 中 −", "plain é 中 −"),
        ("\ud800", "\\ud800"),
    ],
)
def test_control_characters_are_written_out(words: str, shown: str) -> None:
    assert escape.visible(words) == shown


@pytest.mark.parametrize("number", ["-1.5", "+3", "-1e-05", "0.5", "nan", ""])
def test_numbers_stay_numbers_in_a_spreadsheet(number: str) -> None:
    assert errors.spreadsheet(number) == number


@pytest.mark.parametrize("formula", ["=1", "+cmd", "-cmd", "@SUM(A1)", "\tx", "-1+2", "+1|x", "＝1"])
def test_formulas_become_text_in_a_spreadsheet(formula: str) -> None:
    assert errors.spreadsheet(formula) == f"'{formula}"


@pytest.mark.parametrize(
    ("words", "url"),
    [
        ("arXiv 2401.00254", "https://arxiv.org/abs/2401.00254"),
        ("arXiv:2401.00254v2", "https://arxiv.org/abs/2401.00254v2"),
        ("ar5iv.labs.arxiv.org/html/2111.06377", "https://arxiv.org/abs/2111.06377"),
        ("https://arxiv.org/pdf/2111.06377.pdf", "https://arxiv.org/abs/2111.06377"),
        ("doi:10.1109/CVPR52688.2022", "https://doi.org/10.1109/CVPR52688.2022"),
        ("https://www.ecva.net/papers/379.php", "https://www.ecva.net/papers/379.php"),
    ],
)
def test_an_address_that_is_named_becomes_a_link(words: str, url: str) -> None:
    assert escape.segments(f"before {words}; after") == [("before ", ""), (words, url), ("; after", "")]


@pytest.mark.parametrize(
    "words",
    ["2303.17152v2", "javascript:alert(1)", "notarXiv 2401.00254", "arXiv 2401.0025412", "data:text/html,x"],
)
def test_nothing_else_becomes_a_link(words: str) -> None:
    assert escape.segments(words) == [(words, "")]

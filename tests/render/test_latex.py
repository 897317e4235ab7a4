from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mimbench.render import latex
from mimbench.table.cell import Table
from tests.render.sample import make_table


def test_escapes() -> None:
    assert latex.escape(r"50% & $x_1$ #2 {a} ~ ^ \ [b] -- `") == (
        r"50\% \& \$x\_1\$ \#2 \{a\} \textasciitilde{} \textasciicircum{} \textbackslash{} {[}b{]} -{}- "
        r"\textasciigrave{}"
    )


def body(rendered: str) -> list[str]:
    return rendered.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()


def test_every_line_has_two_cells_per_metric() -> None:
    rendered = latex.render(make_table(broken=True), "ours-main")
    assert rendered.isascii()
    for line in body(rendered):
        assert line.count(" & ") + line.count(r"\multicolumn{2}") == 2 * 4, line


def test_notes_stand_under_the_table_where_their_lines_break() -> None:
    rendered = latex.render(make_table(), "ours-main")
    note = "1600 epochs in the paper"
    assert note in rendered and not any(note in line for line in body(rendered))
    mae = next(line for line in body(rendered) if "MAE" in line)
    assert mae.startswith(r"\raggedright MAE, the longest of all schedules in its repository$^{a}$ & ")
    assert rf"$^{{a}}$\,{note}" in rendered
    assert rendered.count(r"p{0.16\textwidth}") == 1, "labels break their lines too"


def test_rows_with_the_same_note_share_its_letter() -> None:
    rendered = latex.render(make_table(texts={"row_note": "not run: no recipe"}), "x")
    marks = {line.split("$^{")[1][0] for line in body(rendered) if "Quoted" in line or "Host" in line}
    assert len(marks) == 1


@pytest.mark.parametrize(
    "table", [make_table(broken=True, seeds=12), make_table(metrics=8, cost=True)], ids=["four", "eight"]
)
def test_latex_sets_it_without_overfull_lines(table: Table, tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("THE .tex FILES ARE NOT SET: pdflatex is not installed")
    page = (
        r"\documentclass[a4paper]{article}\usepackage[margin=2cm]{geometry}\usepackage{booktabs,graphicx}"
        rf"\begin{{document}}{latex.render(table, 'x')}\end{{document}}"
    )
    (tmp_path / "page.tex").write_text(page)
    command = ["pdflatex", "-interaction=nonstopmode", "-no-shell-escape", "page.tex"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert not re.findall(r"Overfull \\hbox.*", done.stdout)

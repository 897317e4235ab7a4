"""The table as LaTeX (booktabs), a `table*`: two columns per metric, differences and verdicts below.

The rows' notes are printed under the table, marked with letters; long labels wrap. A table wider than the
page is scaled to its width (graphicx).
"""

from __future__ import annotations

import itertools
import string
import textwrap

from mimbench.render import text
from mimbench.render.escape import one_line, slug
from mimbench.table.cell import Cell, Table, TableRow

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "Δ": r"$\Delta$",
    "β": r"$\beta$",
    "†": r"$^\dagger$",
    "[": "{[}",  # after a line break, LaTeX reads [ as its argument
    "]": "{]}",
    "“": "``",
    "”": "''",
    "→": r"$\to$",
    "×": r"$\times$",
    "`": r"\textasciigrave{}",
    "≤": r"$\le$",
    "≥": r"$\ge$",
}


FIT = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"  # at most as wide as the page
TITLE = 24  # characters per line of a metric's title


def escape(value: str) -> str:
    """Text that LaTeX prints as it is."""
    flat = one_line(value)
    pairs = zip(flat, f"{flat[1:]} ", strict=True)
    return "".join("-{}" if pair == ("-", "-") else _SPECIAL.get(pair[0], pair[0]) for pair in pairs)


def render(table: Table, name: str) -> str:
    """The table; `name` becomes its label, `tab:<name>`."""
    spec = table.spec
    groups = " & ".join(rf"\multicolumn{{2}}{{c}}{{{_stacked(column.title)}}}" for column in spec.columns)
    rules = "".join(rf"\cmidrule(lr){{{2 * i + 2}-{2 * i + 3}}}" for i in range(len(spec.columns)))
    mark = "" if table.comparable else escape(text.NOT_COMPARABLE)
    notes = [f"{escape(note)}." for note in text.number_notes(table)]
    caption = (
        f"{escape(spec.title)}. Scale: {escape(table.scale)}; seeds: {escape(text.seeds(table))}. "
        f"{' '.join([escape(text.scale_note(table)), *notes])}"
    )
    footnotes: dict[str, str] = {}  # a note to its mark; rows with the same note share it
    lines = [
        r"% needs \usepackage{booktabs,graphicx}",
        r"\begin{table*}",
        r"\centering\footnotesize\setlength{\tabcolsep}{2.4pt}",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{slug(name)}}}",
        FIT,
        rf"\begin{{tabular}}{{p{{0.16\textwidth}}{'rr' * len(spec.columns)}}}",
        r"\toprule",
        rf" & {groups} \\",
        rules,
        "Method" + f" & paper & ours{mark}" * len(spec.columns) + r" \\",
        r"\midrule",
        *(line for row in table.rows for line in _row(table, row, footnotes)),
        r"\bottomrule",
        r"\end{tabular}}",
    ]
    if footnotes:
        told = " ".join(rf"$^{{{mark}}}$\,{escape(note)}." for note, mark in footnotes.items())
        lines.append(rf"\par\smallskip\footnotesize\raggedright {told}")
    for claim in table.claims:
        decimals = text.digits(table, spec.column_index(claim.spec.column))
        ours = text.difference(claim.delta, decimals) if claim.delta else "–"
        words = f"{claim.spec.label} ({text.claim_pair(table, claim)}): paper {text.claim_paper(claim)}, ours"
        end = f": {claim.verdict.word}" if claim.verdict else ""
        lines.append(rf"\par\smallskip\footnotesize {escape(words)}{mark} {escape(ours + end)}.")
    return "\n".join([*lines, r"\end{table*}", ""])


def _row(table: Table, row: TableRow, footnotes: dict[str, str]) -> list[str]:
    """Lines of a row: label and values; below them tags, differences, verdicts and stale marks, if any."""
    decimals = [text.digits(table, index) for index in range(len(row.cells))]
    marks = [
        footnotes.setdefault(note, _letters(len(footnotes)))
        for note in text.row_notes(table, row, tags=False)
    ]
    label = rf"\raggedright {escape(row.spec.label)}" + (rf"$^{{{','.join(marks)}}}$" if marks else "")
    values = [label]
    for cell, places in zip(row.cells, decimals, strict=True):
        values += [escape(cell.reported.text) if cell.reported else "--", _ours(cell, places)]
    below = [
        [text.delta(cell, places) for cell, places in zip(row.cells, decimals, strict=True)],
        [cell.verdict.word if cell.verdict else "" for cell in row.cells],
        ["stale" if cell.stale else "" for cell in row.cells],
    ]
    below = [words for words in below if any(words)]
    tags = text.row_tags(row) + (["baseline"] if text.is_baseline(table, row) else [])
    lines = [" & ".join(values)]
    for tag, words in itertools.zip_longest(tags, below, fillvalue=None):
        found = words or [""] * len(row.cells)
        spans = (rf"\multicolumn{{2}}{{r}}{{{_small(word)}}}" for word in found)
        lines.append(" & ".join([_small(tag or ""), *spans]))
    return [rf"{line} \\" for line in lines[:-1]] + [rf"{lines[-1]} \\[2pt]"]


def _stacked(title: str) -> str:
    """A metric's title, on several lines if it is long."""
    lines = [escape(line) for line in textwrap.wrap(one_line(title), TITLE)]
    stacked = r" \\ ".join(lines)
    return rf"\shortstack{{{stacked}}}" if len(lines) > 1 else stacked


def _letters(count: int) -> str:
    """a, b, ... z, aa, ab, ..."""
    letters = string.ascii_lowercase
    return letters[count] if count < 26 else letters[count // 26 - 1] + letters[count % 26]


def _ours(cell: Cell, decimals: int) -> str:
    if cell.ours is None:
        return "--"
    return escape(f"{text.plus_minus(cell.ours, decimals)} ({text.count(cell)})")


def _small(words: str) -> str:
    return rf"{{\scriptsize {escape(words)}}}" if words else ""

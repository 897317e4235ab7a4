"""The table as LaTeX (booktabs), a `table*`: two columns per metric, differences and verdicts below."""

from __future__ import annotations

from mimbench.render import text
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
    "[": "{[}",  # after a line break, [ would start its argument
    "]": "{]}",
    "“": "``",
    "”": "''",
    "→": r"$\to$",
    "×": r"$\times$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
}


def escape(value: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_SPECIAL.get(character, character) for character in " ".join(value.split()))


def render(table: Table, name: str) -> str:
    spec = table.spec
    groups = " & ".join(rf"\multicolumn{{2}}{{c}}{{{escape(column.title)}}}" for column in spec.columns)
    rules = "".join(rf"\cmidrule(lr){{{2 * i + 2}-{2 * i + 3}}}" for i in range(len(spec.columns)))
    mark = "" if table.comparable else escape(text.NOT_COMPARABLE)
    notes = [f"{escape(note)}." for note in text.number_notes(table)]
    caption = (
        f"{escape(spec.title)}. Scale: {escape(table.scale)}; seeds: {escape(text.seeds(table))}. "
        f"{' '.join([escape(text.scale_note(table)), *notes])}"
    )
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table*}",
        r"\centering\footnotesize\setlength{\tabcolsep}{2.4pt}",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{name}}}",
        rf"\begin{{tabular}}{{l{'rr' * len(spec.columns)}}}",
        r"\toprule",
        rf" & {groups} \\",
        rules,
        "Method" + f" & paper & ours{mark}" * len(spec.columns) + r" \\",
        r"\midrule",
        *(line for row in table.rows for line in _row(table, row)),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    for claim in table.claims:
        decimals = text.digits(table, spec.column_index(claim.spec.column))
        ours = text.difference(claim.delta, decimals) if claim.delta else "–"
        words = f"{claim.spec.label} ({text.claim_pair(table, claim)}): paper {text.claim_paper(claim)}, ours"
        end = f": {claim.verdict.word}" if claim.verdict else ""
        lines.append(rf"\par\smallskip\footnotesize {escape(words)}{mark} {escape(ours + end)}.")
    return "\n".join([*lines, r"\end{table*}", ""])


def _row(table: Table, row: TableRow) -> list[str]:
    """Label and values; below them, if any, notes beside differences, verdicts and stale marks."""
    decimals = [text.digits(table, index) for index in range(len(row.cells))]
    values = [escape(row.spec.label)]
    for cell, places in zip(row.cells, decimals, strict=True):
        values += [cell.reported.text if cell.reported else "--", _ours(cell, places)]
    below = [
        [text.delta(cell, places) for cell, places in zip(row.cells, decimals, strict=True)],
        [cell.verdict.word if cell.verdict else "" for cell in row.cells],
        ["stale" if cell.stale else "" for cell in row.cells],
    ]
    below = [words for words in below if any(words)]
    notes = text.row_notes(table, row)
    below += [[""] * len(row.cells) for _ in range(len(notes) - len(below))]
    lines = [" & ".join(values)]
    for position, words in enumerate(below):
        note = _small(notes[position]) if position < len(notes) else ""
        lines.append(" & ".join([note, *(rf"\multicolumn{{2}}{{r}}{{{_small(word)}}}" for word in words)]))
    return [rf"{line} \\" for line in lines[:-1]] + [rf"{lines[-1]} \\[2pt]"]


def _ours(cell: Cell, decimals: int) -> str:
    if cell.ours is None:
        return "--"
    return escape(f"{text.plus_minus(cell.ours, decimals)} ({text.count(cell)})")


def _small(words: str) -> str:
    return rf"{{\scriptsize {escape(words)}}}" if words else ""

"""The table as Markdown: the same runs give the same bytes (no dates, no paths)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from mimbench.render import text
from mimbench.render.escape import one_line, visible
from mimbench.render.text import Context
from mimbench.table.cell import Table, TableRow
from mimbench.table.reported import Reported


def escape(value: str) -> str:
    """Text that Markdown shows as it is, also inside a table cell: no markup, no entity, no formula."""
    return re.sub(r"([\\`*_\[\]<>|#~$]|&(?=#?\w+;))", r"\\\1", one_line(value))


def paragraph(value: str) -> str:
    """Like `escape`, for the beginning of a line, where `-`, `+`, `=` and `1.` are markup too."""
    return re.sub(r"^(?:(?=[-+=])|(\d+)(?=[.)]\s))", r"\1\\", escape(value))


def render(table: Table, context: Context) -> str:
    spec, numbers = table.spec, text.sources(table)
    head = [f"# {escape(spec.title)}", "", paragraph(spec.paper) + ". " + escape(spec.section) + ".", ""]
    facts = {"Scale": table.scale, "Seeds": text.seeds(table), **context.facts}
    head += [f"- {escape(name)}: {escape(value)}" for name, value in facts.items()]
    head += ["", f"> {escape(text.scale_note(table))}", ""]
    lines = [*_grid(table, numbers), *_findings(table, numbers)]
    if spec.note:
        lines += [paragraph(spec.note), ""]
    if numbers:
        lines += ["Reported values:", ""]
        lines += [f"{i}. {paragraph(line.source)}" for i, line in text.source_list(numbers)] + [""]
    if context.command:
        command = visible(context.command).replace("\n", "\n    ")
        lines += ["Made with:", "", f"    {command}", ""]
    return "\n".join(head + lines)


def brief(table: Table) -> str:
    """Title, the cells of the first column, findings of all columns and claims, without sources and notes."""
    facts = f"{paragraph(table.spec.section)}. Scale {table.scale}, seeds {text.seeds(table)}."
    note = [f"> {escape(text.scale_note(table))}", ""]
    lines = [f"# {escape(table.spec.title)}", "", facts, "", *note, *_column(table), *_findings(table, {})]
    return "\n".join(lines)


def excerpt(table: Table) -> str:
    """The first column for the rows whose cell in it is complete, the paper's claims, the signs' meaning."""
    rows = tuple(row for row in table.rows if row.cells[0].complete)
    column, claims = _column(replace(table, rows=rows)), []
    mark = "" if table.comparable else text.NOT_COMPARABLE
    for claim in table.claims:
        if claim.delta is None:
            continue
        decimals = text.digits(table, table.spec.column_index(claim.spec.column))
        ours = f"ours{mark} {text.difference(claim.delta, decimals)}"
        words = f"paper {text.claim_paper(claim)}, {ours}: {text.verdict(claim)}"
        claims.append(f"- *{escape(claim.spec.label)}* {escape(words)}.")
    return "\n".join([*column, *([*claims, ""] if claims else [])])


def _column(table: Table) -> list[str]:
    """The first column alone; the parts of a cell are side by side instead of stacked."""
    ours = "Ours" if table.comparable else f"Ours{text.NOT_COMPARABLE}"
    header = ["Method", f"{table.spec.columns[0].title}, paper", ours, "Δ", "Verdict"]
    lines = [_line([escape(title) for title in header]), _line(["---"] * len(header))]
    decimals = text.digits(table, 0)
    for row in table.rows:
        cell = row.cells[0]
        number = f"{text.plus_minus(cell.ours, decimals)} ({text.count(cell)})" if cell.ours else ""
        if cell.stale:
            number += f" {text.STALE}"
        delta = text.difference(cell.delta, decimals) if cell.delta else ""
        word = f"{text.VERDICT_SYMBOLS[cell.verdict.word]} {cell.verdict.word}" if cell.verdict else ""
        paper = f"{cell.reported.text}{'' if cell.reported.first_hand else '*'}" if cell.reported else ""
        values = [escape(value) or "–" for value in (paper, number, delta, word)]
        lines.append(_line([_label(table, row, notes=False), *values]))
    notes = text.number_notes(table)
    if any(row.cells[0].reported and not row.cells[0].reported.first_hand for row in table.rows):
        notes = [*notes, "* was read second-hand"]
    return [*lines, "", " ".join(f"{escape(note)}." for note in notes), ""]


def _grid(table: Table, numbers: Mapping[Reported, int]) -> list[str]:
    """The table itself; each reported value has the number of its source, if that is listed."""
    spec = table.spec
    header = ["Method", *(column.title for column in spec.columns)]
    lines = [_line([escape(title) for title in header]), _line(["---"] * len(header))]
    for row in table.rows:
        cells = [_label(table, row)]
        for index, cell in enumerate(row.cells):
            parts = [escape(part) for part in text.cell_lines(table, cell, text.digits(table, index))]
            if cell.reported and cell.reported in numbers:
                parts[0] += f" [{numbers[cell.reported]}]"
            cells.append("<br>".join(parts) if cell.reported or cell.status != "reported_only" else "–")
        lines.append(_line(cells))
    return [*lines, "", " ".join(f"{escape(note)}." for note in text.number_notes(table)), ""]


def _findings(table: Table, numbers: Mapping[Reported, int]) -> list[str]:
    """Which rows differ from their baseline by the intervals, and the paper's claims."""
    spec, lines = table.spec, []
    if found := text.findings(table):
        lines += ["By the 95 % interval of the paired difference:", ""]
        lines += [f"- {escape(line)}." for line in found] + [""]
    if table.claims:
        lines += ["## Claims", ""]
        lines += [_line(["Claim", "Difference", "Paper", "Ours", "Verdict"]), _line(["---"] * 5)]
        for claim in table.claims:
            decimals = text.digits(table, spec.column_index(claim.spec.column))
            mark = "" if table.comparable else text.NOT_COMPARABLE
            ours = f"{text.difference(claim.delta, decimals)}{mark}" if claim.delta else "–"
            reported = escape(text.claim_paper(claim))
            if cited := [str(numbers[line]) for line in claim.reported if line in numbers]:
                reported += f" [{', '.join(cited)}]"
            pair = text.claim_pair(table, claim)
            lines.append(
                _line(
                    [
                        escape(claim.spec.label),
                        escape(pair),
                        reported,
                        escape(ours),
                        escape(text.verdict(claim)) or "–",
                    ]
                )
            )
        lines.append("")
    return lines


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _label(table: Table, row: TableRow, *, notes: bool = True) -> str:
    label = f"**{escape(row.spec.label)}**" if row.spec.method else escape(row.spec.label)
    lines = text.row_notes(table, row) if notes else text.row_tags(row)
    lines += ["baseline"] if text.is_baseline(table, row) else []
    return "<br>".join([label, *(f"*{escape(note)}*" for note in lines)])

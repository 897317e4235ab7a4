"""The table as one self-contained HTML page, from reports/table.html.j2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mimbench import paths
from mimbench.render import plot, text
from mimbench.render.text import Context
from mimbench.table.cell import Cell, ClaimResult, Table, TableRow
from mimbench.table.reported import Reported
from mimbench.table.verdict import MEANINGS, Verdict, Word

if TYPE_CHECKING:
    import jinja2

_TONES = {
    "reproduced": "good",
    "within noise": "good",
    "below": "bad",
    "above": "open",
    "same direction": "good",
    "opposite direction": "bad",
    "inconclusive": "open",
}  # the others: none


def template(name: str) -> jinja2.Template:
    """A template of `reports/`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(paths.share("reports")),
        autoescape=lambda file: file is not None and ".html" in file,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def render(table: Table, context: Context, plots: Mapping[str, str]) -> str:
    """The page; `plots` maps a column's metric, and `<metric>-cost`, to the SVG."""
    numbers = text.sources(table)
    return template("table.html.j2").render(
        spec=table.spec,
        scale=table.scale,
        comparable=table.comparable,
        facts={"Scale": table.scale, "Seeds": text.seeds(table), **_progress(table), **context.facts},
        scale_note=text.scale_note(table).removeprefix(f"{text.NOT_COMPARABLE} "),
        findings=text.findings(table),
        one_baseline=text.one_baseline(table),
        footer_notes=text.number_notes(table),
        rows=[_row(table, row, numbers) for row in table.rows],
        claims=[_claim(table, claim, numbers) for claim in table.claims],
        legend=[{"pill": _pill(Verdict(word)), "meaning": MEANINGS[word]} for word in _words(table)],
        plots=_plots(table, plots),
        seeds=_seeds(table),
        sources=[
            {"number": number, "text": line.source, "first_hand": line.first_hand}
            for number, line in text.source_list(numbers)
        ],
        recipes=context.recipes,
        command=context.command,
    )


def _plots(table: Table, plots: Mapping[str, str]) -> list[dict[str, Any]]:
    """The plots that show something."""
    from markupsafe import Markup

    def shown(index: int) -> bool:
        cells = [row.cells[index] for row in table.rows]
        return any(cell.ours or cell.reported_delta is not None for cell in cells)

    titles = {}
    for index, column in enumerate(table.spec.columns):
        if shown(index):
            titles[column.metric] = column.title
            if table.spec.cost:
                titles[f"{column.metric}-cost"] = f"{column.title} against the cost of pretraining"
    return [{"title": title, "svg": Markup(plot.inline(plots[name], name))} for name, title in titles.items()]


def _progress(table: Table) -> dict[str, str]:
    """How much of the table is there."""
    cells = [cell for row in table.rows if row.spec.method for cell in row.cells]
    done = sum(cell.complete for cell in cells)
    stale = sum(cell.stale for cell in cells)
    return {"Cells": f"{done} of {len(cells)} complete" + (f", {stale} stale" if stale else "")}


def _words(table: Table) -> list[Word]:
    """The verdicts that the legend explains: those that occur, in the order of `MEANINGS`."""
    verdicts = [cell.verdict for row in table.rows for cell in row.cells]
    verdicts += [claim.verdict for claim in table.claims]
    used = {verdict.word for verdict in verdicts if verdict}
    return [word for word in MEANINGS if word in used]


def _pill(verdict: Verdict | None) -> dict[str, str] | None:
    if verdict is None:
        return None
    return {
        "word": verdict.word,
        "symbol": text.VERDICT_SYMBOLS[verdict.word],
        "tone": _TONES.get(verdict.word, "none"),
        "reason": verdict.reason,
    }


def _source(line: Reported | None, numbers: Mapping[Reported, int]) -> dict[str, Any] | None:
    if line is None:
        return None
    return {
        "text": line.text,
        "number": numbers[line],
        "source": line.source,
        "first_hand": line.first_hand,
    }


def _row(table: Table, row: TableRow, numbers: Mapping[Reported, int]) -> dict[str, Any]:
    return {
        "label": row.spec.label,
        "run": row.spec.method is not None,
        "notes": text.row_notes(table, row, tags=False),
        "provenance": row.provenance,
        "baseline": text.is_baseline(table, row),
        "cells": [_cell(table, cell, index, numbers) for index, cell in enumerate(row.cells)],
    }


def _cell(table: Table, cell: Cell, index: int, numbers: Mapping[Reported, int]) -> dict[str, Any]:
    decimals = text.digits(table, index)
    ours = cell.ours
    return {
        "title": table.spec.columns[index].title,
        "empty": cell.reported is None and cell.status == "reported_only",
        "run": cell.status != "reported_only",
        "reported": _source(cell.reported, numbers),
        "mean": text.number(ours.mean, decimals) if ours else None,
        "half": text.number(ours.half_width, decimals) if ours and ours.half_width is not None else None,
        "count": text.count(cell),
        "stale": cell.stale,
        "delta": text.difference(cell.delta, decimals) if cell.delta else None,
        "verdict": _pill(cell.verdict),
    }


def _claim(table: Table, claim: ClaimResult, numbers: Mapping[Reported, int]) -> dict[str, Any]:
    decimals = text.digits(table, table.spec.column_index(claim.spec.column))
    return {
        "label": claim.spec.label,
        "pair": text.claim_pair(table, claim),
        "reported": text.claim_paper(claim),
        "sources": [_source(line, numbers) for line in claim.reported],
        "delta": text.difference(claim.delta, decimals) if claim.delta else None,
        "n": claim.delta.n if claim.delta else 0,
        "verdict": _pill(claim.verdict),
    }


def _seeds(table: Table) -> list[dict[str, Any]]:
    """Every run behind the table: row, column, seed, value, folder."""
    return [
        {
            "label": row.spec.label,
            "column": column.title,
            "seed": seed,
            "value": "" if outcome.value is None else text.number(outcome.value, 2),
            "status": outcome.status.replace("_", " "),
            "run": outcome.run,
            "note": outcome.note,
        }
        for row in table.rows
        for column, cell in zip(table.spec.columns, row.cells, strict=True)
        for seed, outcome in cell.outcomes.items()
    ]

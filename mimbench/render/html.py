"""The table as one self-contained HTML page, from reports/table.html.j2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mimbench import paths
from mimbench.render import plot, text
from mimbench.render.escape import segments, slug, slugs, visible
from mimbench.render.text import Context
from mimbench.table.cell import Cell, ClaimResult, SeedOutcome, Table, TableRow
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
_IN_FRONT = ("changed",)  # facts in the header; the others are shown with the command
LABELS, COLUMN, ROOMY = 180, 160, 215  # pixels: label column; metric column at least, and roomy


@dataclass(frozen=True)
class Places:
    """Targets of a page's links, relative to its folder.

    Attributes:
        files: the table's other files, by the name of their format.
        index: the page that lists all tables.
        runs: the folder that holds every run's folder.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    index: str = ""
    runs: str = ""


def template(name: str) -> jinja2.Template:
    """A template of `reports/`: all text is escaped, and control characters are written out."""
    import jinja2
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(paths.share("reports")),
        autoescape=lambda file: file is not None and ".html" in file,
        undefined=jinja2.StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"segments": segments, "address": address}
    return environment.get_template(name)


def address(path: str) -> str:
    """A relative path as the address of a link."""
    return quote(path)


def render(table: Table, context: Context, plots: Mapping[str, str], places: Places | None = None) -> str:
    """The page; `plots` maps a column's metric, and `<metric>-cost`, to the SVG."""
    numbers, places = text.sources(table), places or Places()
    facts = {"Scale": table.scale, "Seeds": text.seeds(table), **_progress(table)}
    rows = zip(table.rows, slugs(row.spec.id for row in table.rows), strict=True)
    return template("table.html.j2").render(
        spec=table.spec,
        least_width=LABELS + COLUMN * len(table.spec.columns),
        roomy_width=LABELS + ROOMY * len(table.spec.columns),
        places=places,
        comparable=table.comparable,
        facts=facts | {name: value for name, value in context.facts.items() if name in _IN_FRONT},
        scale_note=text.scale_note(table).removeprefix(f"{text.NOT_COMPARABLE} "),
        findings=text.findings(table),
        one_baseline=text.one_baseline(table),
        footer_notes=text.number_notes(table),
        rows=[_row(table, row, anchor, numbers) for row, anchor in rows],
        claims=[_claim(table, claim, numbers) for claim in table.claims],
        legend=[{"pill": _pill(Verdict(word)), "meaning": MEANINGS[word]} for word in _words(table)],
        plots=_plots(table, plots),
        seeds=_seeds(table, places),
        sources=[
            {"number": number, "text": line.source, "first_hand": line.first_hand}
            for number, line in text.source_list(numbers)
        ],
        recipes=context.recipes,
        command=context.command,
        made_with=_made_with(context),
    )


def _made_with(context: Context) -> dict[str, str]:
    """The facts that are not in the header. Names with one value (a data set in two roles) are joined."""
    names: dict[str, list[str]] = {}
    for name, value in context.facts.items():
        if name not in _IN_FRONT:
            names.setdefault(value, []).append(name)
    prefix = "data: "
    return {
        ", ".join([first, *(name.removeprefix(prefix) for name in others)]): value
        for value, (first, *others) in names.items()
    }


def _plots(table: Table, plots: Mapping[str, str]) -> list[dict[str, Any]]:
    """The plots that show something."""
    from markupsafe import Markup

    def shown(index: int) -> bool:
        cells = [row.cells[index] for row in table.rows]
        return any(cell.ours or cell.reported_delta is not None for cell in cells)

    titles, costs = {}, {}
    for index, column in enumerate(table.spec.columns):
        if shown(index):
            titles[column.metric] = column.title
            if table.spec.cost:
                costs[f"{column.metric}-cost"] = f"{column.title} against the cost of pretraining"
    return [
        {"title": title, "svg": Markup(plot.inline(plots[name], f"plot-{slug(name)}"))}
        for name, title in (titles | costs).items()
    ]


def _progress(table: Table) -> dict[str, str]:
    """How many cells are complete, and how many are stale."""
    cells = [cell for row in table.rows if row.spec.method for cell in row.cells]
    done = sum(cell.complete for cell in cells)
    stale = sum(cell.stale for cell in cells)
    return {"Cells": f"{done} of {len(cells)} complete" + (f", {stale} stale" if stale else "")}


def _words(table: Table) -> list[Word]:
    """The verdicts that occur in the table, in the order of `MEANINGS`: the legend explains these."""
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


def _row(table: Table, row: TableRow, anchor: str, numbers: Mapping[Reported, int]) -> dict[str, Any]:
    return {
        "anchor": f"row-{anchor}",
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
        "half": text.half_width(ours, decimals) if ours else "",
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


def _seeds(table: Table, places: Places) -> list[dict[str, Any]]:
    """Every run behind the table: row, column, seed, value, folder."""
    return [
        {
            "label": row.spec.label,
            "column": column.title,
            "seed": seed,
            "value": "" if outcome.value is None else text.number(outcome.value, 2),
            "status": outcome.status.replace("_", " "),
            "run": outcome.run,
            "href": _folder(outcome, places),
            "start": outcome.start,
            "start_href": _start(outcome, places),
            "note": outcome.note,
        }
        for row in table.rows
        for column, cell in zip(table.spec.columns, row.cells, strict=True)
        for seed, outcome in cell.outcomes.items()
    ]


def _folder(outcome: SeedOutcome, places: Places) -> str:
    """The link to the run's folder; empty if there is none."""
    made = outcome.status in ("ok", "stale", "failed", "damaged", "running")
    return address(f"{places.runs}/{outcome.run}/") if made and outcome.run and places.runs else ""


def _start(outcome: SeedOutcome, places: Places) -> str:
    """The link to the folder of the pretraining that the run starts from; empty if there is none."""
    done = outcome.status in ("ok", "stale")
    return address(f"{places.runs}/{outcome.start}/") if done and outcome.start and places.runs else ""

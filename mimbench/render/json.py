"""The table as JSON, for programs: the table's file, every cell, seed, run and verdict, and the recipes.

`schema` is the version of the format, so that a reader can refuse a version it does not know. Numbers have
ten significant digits; unknown values are null.

    schema, kind        1, "mimbench table"
    table, paper, title, section, links
    scale, comparable   whether our absolute numbers may be compared with the paper's
    seeds, summary      cells {complete, of, stale}; how often each verdict occurs
    rows[]              id, label, method, provenance, baseline, notes, cost, cells[]
    rows[].cells[]      task, metric, status, stale, ours, seeds {seed: value, status, run, note}, reported,
                        against, delta, reported_delta, verdict
    claims[]            label, row, against, metric, delta, reported_delta, reported[], verdict
    spec                the table's file as it was read
    recipes[]           title, rows, fields {name: value, source}
    command, facts      how to make the table again; data and version

An estimate (`ours`, `delta`) has n, mean, std, low and high: the 95 % t interval.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from mimbench.render import text
from mimbench.render.escape import segments
from mimbench.render.text import Context
from mimbench.table.cell import Cell, ClaimResult, Cost, SeedOutcome, Table, TableRow
from mimbench.table.reported import Reported
from mimbench.table.stats import Estimate
from mimbench.table.verdict import MEANINGS, Verdict

SCHEMA, KIND = 1, "mimbench table"


def render(table: Table, context: Context) -> str:
    spec = table.spec
    document = {
        "schema": SCHEMA,
        "kind": KIND,
        "table": spec.name,
        "paper": spec.paper,
        "title": spec.title,
        "section": spec.section,
        "links": [url for _, url in segments(spec.paper) if url],
        "scale": table.scale,
        "comparable": table.comparable,
        "seeds": list(table.seeds),
        "summary": _summary(table),
        "rows": [_row(table, row) for row in table.rows],
        "claims": [_claim(claim) for claim in table.claims],
        "spec": json.loads(spec.model_dump_json()),
        "recipes": [
            {
                "title": recipe.title,
                "rows": list(recipe.rows),
                "fields": {
                    name: {"value": value, "source": source}
                    for name, (value, source) in recipe.fields.items()
                },
            }
            for recipe in context.recipes
        ],
        "command": context.command,
        "facts": dict(context.facts),
    }
    return json.dumps(document, indent=1, allow_nan=False, default=str) + "\n"


def _summary(table: Table) -> dict[str, Any]:
    cells = [cell for row in table.rows if row.spec.method for cell in row.cells]
    verdicts = [cell.verdict for cell in cells] + [claim.verdict for claim in table.claims]
    words = Counter(verdict.word for verdict in verdicts if verdict)
    return {
        "cells": {
            "complete": sum(cell.complete for cell in cells),
            "of": len(cells),
            "stale": sum(cell.stale for cell in cells),
        },
        "verdicts": {word: words[word] for word in MEANINGS if words[word]},
    }


def _row(table: Table, row: TableRow) -> dict[str, Any]:
    return {
        "id": row.spec.id,
        "label": row.spec.label,
        "method": row.spec.method,
        "provenance": row.provenance or None,
        "baseline": text.is_baseline(table, row),
        "notes": text.row_notes(table, row, tags=False),
        "cost": _cost(row.cost),
        "cells": [
            {"task": column.task, "metric": column.metric, **_cell(cell)}
            for column, cell in zip(table.spec.columns, row.cells, strict=True)
        ],
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "status": cell.status,
        "stale": cell.stale,
        "ours": _estimate(cell.ours),
        "seeds": {str(seed): _seed(outcome) for seed, outcome in cell.outcomes.items()},
        "reported": _reported(cell.reported),
        "against": cell.against or None,
        "delta": _estimate(cell.delta),
        "reported_delta": _number(cell.reported_delta),
        "verdict": _verdict(cell.verdict),
    }


def _claim(claim: ClaimResult) -> dict[str, Any]:
    return {
        "label": claim.spec.label,
        "row": claim.spec.row,
        "against": claim.spec.against,
        "metric": claim.spec.column,
        "delta": _estimate(claim.delta),
        "reported_delta": _number(claim.reported_delta),
        "reported": [_reported(line) for line in claim.reported],
        "verdict": _verdict(claim.verdict),
    }


def _seed(outcome: SeedOutcome) -> dict[str, Any]:
    return {
        "value": _number(outcome.value),
        "status": outcome.status,
        "run": outcome.run or None,
        "note": outcome.note,
    }


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    numbers = {"mean": estimate.mean, "std": estimate.std, "low": estimate.low, "high": estimate.high}
    return {"n": estimate.n, **{name: _number(value) for name, value in numbers.items()}}


def _reported(line: Reported | None) -> dict[str, Any] | None:
    if line is None:
        return None
    return {
        "value": _number(line.value),
        "text": line.text,
        "source": line.source,
        "kind": line.kind,
        "first_hand": line.first_hand,
        "links": [url for _, url in segments(line.provenance) if url],
    }


def _cost(cost: Cost | None) -> dict[str, Any] | None:
    return {"flops": _number(cost.flops), "reported": _reported(cost.reported)} if cost else None


def _verdict(verdict: Verdict | None) -> dict[str, str] | None:
    return {"word": verdict.word, "reason": verdict.reason} if verdict else None


def _number(value: float | None) -> float | None:
    """Round to ten significant digits, which hides binary rounding; None for nan, which JSON cannot write."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.10g}")

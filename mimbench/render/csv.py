"""The table as CSV in long form: one line per cell and per claim, with every seed's value.

A text that a spreadsheet would evaluate (it begins with = + - @ or a tab and is not a number) gets an
apostrophe in front. Control characters are written out (`\\x1b`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from mimbench.errors import spreadsheet
from mimbench.table.cell import ClaimResult, Cost, Table, TableRow
from mimbench.table.reported import Reported
from mimbench.table.stats import Estimate
from mimbench.table.verdict import Verdict

FIELDS = (
    "kind", "table", "scale", "row", "label", "method", "provenance", "task", "metric", "status", "stale",
    "pretraining_flops", "reported_cost", "n", "mean", "std", "low", "high", "values", "runs", "notes",
    "reported", "reported_kind", "reported_source", "against", "delta_n", "delta", "delta_low", "delta_high",
    "reported_delta", "verdict", "reason",
)  # fmt: skip


def render(table: Table) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    lines = [line for row in table.rows for line in _cells(table, row)]
    lines += [_claim(table, claim) for claim in table.claims]
    for line in lines:
        safe = {name: spreadsheet(item) if isinstance(item, str) else item for name, item in line.items()}
        writer.writerow(safe)
    return out.getvalue()


def _cells(table: Table, row: TableRow) -> Iterator[dict[str, Any]]:
    for column, cell in zip(table.spec.columns, row.cells, strict=True):
        yield {
            "kind": "cell",
            "table": table.spec.name,
            "scale": table.scale,
            "row": row.spec.id,
            "label": row.spec.label,
            "method": row.spec.method or "",
            "provenance": row.provenance,
            "task": column.task,
            "metric": column.metric,
            **_cost(row.cost),
            "status": cell.status,
            "stale": int(cell.stale),
            **_estimate(cell.ours),
            "values": _by_seed({seed: _ten_digits(value) for seed, value in cell.values.items()}),
            "runs": _by_seed(cell.runs),
            "notes": _by_seed({seed: item.note for seed, item in cell.outcomes.items() if item.note}),
            **_reported(cell.reported),
            "against": cell.against,
            **_delta(cell.delta),
            "reported_delta": _ten_digits(cell.reported_delta),
            **_verdict(cell.verdict),
        }


def _claim(table: Table, claim: ClaimResult) -> dict[str, Any]:
    return {
        "kind": "claim",
        "table": table.spec.name,
        "scale": table.scale,
        "row": claim.spec.row,
        "label": claim.spec.label,
        "metric": claim.spec.column,
        "against": claim.spec.against,
        **_delta(claim.delta),
        "reported_delta": _ten_digits(claim.reported_delta),
        "reported_kind": "; ".join(dict.fromkeys(line.kind for line in claim.reported)),
        "reported_source": " minus ".join(line.source for line in claim.reported),
        **_verdict(claim.verdict),
    }


def _ten_digits(value: float | None) -> str:
    """Ten significant digits: enough to recompute everything, without the noise of binary fractions."""
    return "" if value is None else f"{value:.10g}"


def _by_seed(values: dict[int, str]) -> str:
    return ";".join(f"{seed}={value}" for seed, value in values.items())


def _cost(cost: Cost | None) -> dict[str, str]:
    if cost is None:
        return {}
    return {
        "pretraining_flops": _ten_digits(cost.flops),
        "reported_cost": cost.reported.text if cost.reported else "",
    }


def _estimate(ours: Estimate | None) -> dict[str, Any]:
    if ours is None:
        return {"n": 0}
    return {
        "n": ours.n,
        "mean": _ten_digits(ours.mean),
        "std": _ten_digits(ours.std),
        "low": _ten_digits(ours.low),
        "high": _ten_digits(ours.high),
    }


def _delta(delta: Estimate | None) -> dict[str, Any]:
    if delta is None:
        return {"delta_n": 0}
    return {
        "delta_n": delta.n,
        "delta": _ten_digits(delta.mean),
        "delta_low": _ten_digits(delta.low),
        "delta_high": _ten_digits(delta.high),
    }


def _reported(line: Reported | None) -> dict[str, str]:
    return {"reported": line.text, "reported_kind": line.kind, "reported_source": line.source} if line else {}


def _verdict(verdict: Verdict | None) -> dict[str, str]:
    return {"verdict": verdict.word, "reason": verdict.reason} if verdict else {}

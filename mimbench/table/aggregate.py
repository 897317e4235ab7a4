"""Computes a table's cells from the outcomes of runs: estimates, differences to the baseline, verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mimbench.table import verdict as rules
from mimbench.table.cell import Cell, ClaimResult, Cost, SeedOutcome, Status, Table, TableRow, difference
from mimbench.table.reported import Reported, find
from mimbench.table.spec import Claim, Row, TableSpec
from mimbench.table.stats import Estimate, estimate, paired
from mimbench.table.verdict import Verdict

_WORST_FIRST: tuple[Status, ...] = ("not_runnable", "damaged", "failed", "running", "missing", "stale", "ok")


def aggregate(
    spec: TableSpec,
    outcomes: Mapping[tuple[str, int], Mapping[int, SeedOutcome]],
    reported: Sequence[Reported],
    scale: str,
    provenance: Mapping[str, str] | None = None,
    flops: Mapping[str, float] | None = None,
    loaded: Mapping[str, str] | None = None,
    *,
    where: str = "table",
) -> Table:
    """Aggregate runs into a table.

    Args:
        outcomes: (row's id, column's index) to seed to outcome. A seed that one cell has and another lacks
            counts as missing in the second.
        reported: the lines of reported.csv.
        provenance: row's id to the origin of its method's code: official, reconstruction, own.
        flops: row's id to the FLOPs of its own pretraining.
        loaded: row's id to the checkpoint that is loaded instead of pretraining.
        where: name of the table's file in error messages.

    Raises:
        UserError: a reference does not match exactly one reported line.
    """
    seeds = tuple(sorted({seed for by_seed in outcomes.values() for seed in by_seed}))
    drafts: dict[tuple[str, int], Cell] = {}
    for row in spec.rows:
        for index, column in enumerate(spec.columns):
            line = _reported(row, column.metric, reported, where)
            protocol = row.other_protocol.get(column.metric, "")
            if row.method is None:
                drafts[row.id, index] = Cell("reported_only", reported=line, protocol=protocol)
                continue
            by_seed = outcomes.get((row.id, index), {})
            cell = {seed: by_seed.get(seed, SeedOutcome("missing")) for seed in seeds}
            done = [outcome.value for outcome in cell.values() if outcome.value is not None]
            statuses = {outcome.status for outcome in cell.values()} or {"missing"}
            drafts[row.id, index] = Cell(
                next(status for status in _WORST_FIRST if status in statuses),
                outcomes=cell,
                ours=estimate(done) if done else None,
                reported=line,
                protocol=protocol,
            )
    known = provenance or {}
    rows = tuple(_row(spec, row, drafts, scale, known.get(row.id, "")) for row in spec.rows)
    if spec.cost:
        figures = [_reported(row, spec.cost.metric, reported, where) for row in spec.rows]
        rows = tuple(
            replace(row, cost=Cost((flops or {}).get(row.spec.id), figure))
            for row, figure in zip(rows, figures, strict=True)
        )
    rows = tuple(replace(row, loaded=(loaded or {}).get(row.spec.id, "")) for row in rows)
    claims = tuple(_claim(spec, claim, drafts, reported, scale, where) for claim in spec.claims)
    return Table(spec, scale, seeds, rows, claims)


def _reported(row: Row, metric: str, lines: Sequence[Reported], where: str) -> Reported | None:
    """The line of reported.csv that a row names for a metric, if any."""
    reference = row.reported.get(metric)
    here = f"{where}: rows[{row.id}].reported.{metric}"
    return find(lines, reference, where=here) if reference else None


def _row(
    spec: TableSpec, row: Row, drafts: Mapping[tuple[str, int], Cell], scale: str, provenance: str
) -> TableRow:
    cells = tuple(_compare(spec, row, index, drafts, scale) for index in range(len(spec.columns)))
    verdicts = {cell.verdict for cell in cells}
    verdict = next(iter(verdicts))
    if len(verdicts) > 1 or verdict is None or verdict.word != "not runnable":
        return TableRow(row, cells, provenance)
    cells = tuple(replace(cell, verdict=Verdict(verdict.word)) for cell in cells)
    return TableRow(row, cells, provenance, unavailable=verdict.reason)


def _compare(
    spec: TableSpec, row: Row, index: int, drafts: Mapping[tuple[str, int], Cell], scale: str
) -> Cell:
    """The cell with its difference to the baseline and its verdict."""
    cell, against = drafts[row.id, index], spec.baseline_of(row)
    if against == row.id:
        against, baseline = "", None
    else:
        baseline = drafts[against, index]
    delta = paired(cell.values, baseline.values) if baseline else None
    reported_delta = difference(_both(cell, baseline)) if baseline else None
    return replace(
        cell,
        delta=delta,
        reported_delta=reported_delta,
        against=against,
        verdict=_verdict(cell, baseline, delta, reported_delta, spec.columns[index].metric, scale),
    )


def _verdict(
    cell: Cell,
    baseline: Cell | None,
    delta: Estimate | None,
    reported_delta: float | None,
    metric: str,
    scale: str,
) -> Verdict | None:
    """Applies the rules of `mimbench.table.verdict`, in order."""
    if cell.status == "reported_only":
        return None
    if not cell.complete:
        return _not_run(cell)
    if scale == "paper":
        if cell.ours is None or cell.reported is None or cell.protocol:
            return None
        return rules.absolute(cell.ours, cell.reported.value, metric)
    if baseline is None or reported_delta is None:
        return None
    if not baseline.complete:
        return Verdict("inconclusive", "the baseline is incomplete")
    return rules.direction(delta, reported_delta)


def _claim(
    spec: TableSpec,
    claim: Claim,
    drafts: Mapping[tuple[str, int], Cell],
    reported: Sequence[Reported],
    scale: str,
    where: str,
) -> ClaimResult:
    index = spec.column_index(claim.column)
    cell, against = drafts[claim.row, index], drafts[claim.against, index]
    delta = paired(cell.values, against.values)
    lines: tuple[Reported, ...] = ()
    if claim.reported_delta:
        here = f"{where}: claims[{claim.label}].reported_delta"
        lines = (find(reported, claim.reported_delta, where=here),)
    else:
        lines = _both(cell, against)
    stated = difference(lines)
    incomplete = next((c for c in (cell, against) if not c.complete and c.status != "reported_only"), None)
    verdict: Verdict | None
    if "reported_only" in (cell.status, against.status):
        verdict = None
    elif incomplete:
        verdict = _not_run(incomplete)
    elif stated is None:
        verdict = rules.direction(delta, 1.0)  # no figure: the claim only says that `row` is above
    elif scale == "paper" and (cell.protocol or against.protocol):
        verdict = None  # we cannot reproduce a difference under another protocol
    elif scale == "paper" and delta:
        verdict = rules.absolute(delta, stated, claim.column)
    else:
        verdict = rules.direction(delta, stated)
    return ClaimResult(claim, delta, lines, verdict)


def _both(cell: Cell, against: Cell) -> tuple[Reported, ...]:
    """The two reported values, if both are known and share a protocol."""
    if cell.reported and against.reported and cell.protocol == against.protocol:
        return cell.reported, against.reported
    return ()


def _not_run(cell: Cell) -> Verdict:
    """Why the cell is incomplete, from the first seed that has the cell's status."""
    seed, outcome = next(
        ((seed, outcome) for seed, outcome in cell.outcomes.items() if outcome.status == cell.status),
        (None, SeedOutcome("missing")),
    )
    if outcome.status == "not_runnable":
        return Verdict("not runnable", outcome.note)
    if outcome.status == "missing":
        partial = f"{cell.n} of {len(cell.outcomes)} seeds" if cell.n else ""
        return Verdict("not run", outcome.note or partial)
    return Verdict("not run", f"seed {seed} {outcome.status}" + (f": {outcome.note}" if outcome.note else ""))

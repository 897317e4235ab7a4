"""The wording and number formats that every renderer shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mimbench.table.cell import Cell, ClaimResult, Table, TableRow
from mimbench.table.reported import Reported
from mimbench.table.stats import Estimate, are_equal

NOT_COMPARABLE = "†"  # marks our numbers at every scale except paper
INTERVAL_NOTE = "± is half of the 95 % t interval of the mean over n seeds"
NO_SPREAD = "no spread"
NO_SPREAD_NOTE = f"{NO_SPREAD}: every seed gave the same, so there is no interval and no direction"
STALE = "! stale (code changed)"
VERDICT_SYMBOLS = {
    "reproduced": "✓",
    "within noise": "≈",
    "below": "▼",
    "above": "▲",
    "same direction": "✓",
    "opposite direction": "✗",
    "inconclusive": "?",
    "not run": "○",
    "not runnable": "⊘",
}


@dataclass(frozen=True)
class UsedRecipe:
    """A recipe behind the table: the method or task that uses it, the labels of its rows, its fields.

    Attributes:
        fields: name to (value, source).
    """

    title: str
    rows: tuple[str, ...]
    fields: Mapping[str, tuple[Any, str]]


@dataclass(frozen=True)
class Context:
    """What a report says beyond the table itself.

    Attributes:
        command: the command that makes this table again.
        facts: further lines for the header (data, version); nothing that differs between two equal runs.
        recipes: of every pretraining, teacher and task; a recipe that several rows share is listed once.
    """

    command: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    recipes: Sequence[UsedRecipe] = ()


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """Fixed digits, a true minus sign, never a negative zero."""
    rounded = round(value, digits) + 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.{digits}f}".replace("-", "−")


def digits(table: Table, index: int) -> int:
    """Decimals of our numbers in a column: two at paper scale or if every mean is below 10, else one."""
    means = [abs(row.cells[index].mean or 0.0) for row in table.rows]
    return 2 if table.comparable or max(means) < 10 else 1


def metric_title(table: Table, metric: str) -> str:
    return table.spec.columns[table.spec.column_index(metric)].title


def half_width(ours: Estimate, decimals: int) -> str:
    """`± 1.1`; empty if there is no interval."""
    return "" if ours.half_width is None else f"± {number(ours.half_width, decimals)}"


def no_spread(estimate: Estimate) -> bool:
    """Whether there are two seeds or more and all gave the same value."""
    return are_equal(estimate.values)


def plus_minus(ours: Estimate, decimals: int) -> str:
    """`41.2 ± 1.1`, or `41.2` if there is no interval."""
    return f"{number(ours.mean, decimals)} {half_width(ours, decimals)}".rstrip()


def count(cell: Cell) -> str:
    """`n=3`, or `n=2 of 3` where seeds are missing."""
    return f"n={cell.n}" if cell.complete else f"n={cell.n} of {len(cell.outcomes)}"


def ours(table: Table, cell: Cell, decimals: int) -> str:
    """`ours† 41.2 ± 1.1 (n=3)`; empty if no run is done."""
    if cell.ours is None:
        return ""
    mark = "" if table.comparable else NOT_COMPARABLE
    return f"ours{mark} {plus_minus(cell.ours, decimals)} ({count(cell)})"


def paper(cell: Cell) -> str:
    """`paper 85.4`, or `paper –`."""
    return f"paper {cell.reported.text}" if cell.reported else "paper –"


def difference(delta: Estimate, decimals: int) -> str:
    """`+4.1 [+2.0, +6.2]`, or `+8.3 (no spread)` where every seed gave the same."""
    mean = number(delta.mean, decimals, signed=True)
    if no_spread(delta):
        return f"{mean} ({NO_SPREAD})"
    if delta.interval is None:
        return mean
    low, high = (number(bound, decimals, signed=True) for bound in delta.interval)
    return f"{mean} [{low}, {high}]"


def delta(cell: Cell, decimals: int) -> str:
    """`Δ +4.1 [+2.0, +6.2]`: row minus baseline over paired seeds."""
    return f"Δ {difference(cell.delta, decimals)}" if cell.delta else ""


def verdict(item: Cell | ClaimResult) -> str:
    """`✓ same direction`; with the reason for `not run` and `not runnable`: others show in the numbers."""
    if item.verdict is None:
        return ""
    word = item.verdict.word
    reason = (
        f" ({item.verdict.reason})" if item.verdict.reason and word in ("not run", "not runnable") else ""
    )
    return f"{VERDICT_SYMBOLS[word]} {word}{reason}"


def cell_lines(table: Table, cell: Cell, decimals: int) -> list[str]:
    """The lines of a cell: paper, ours, difference to the baseline, verdict, stale mark."""
    stale = STALE if cell.stale else ""
    lines = (paper(cell), ours(table, cell, decimals), delta(cell, decimals), verdict(cell), stale)
    return [line for line in lines if line]


def row_notes(table: Table, row: TableRow, *, tags: bool = True) -> list[str]:
    """The lines under a row's label, tags last; `tags=False` leaves the tags out."""
    notes = [note] if (note := row_note(table, row)) else []
    if row.unavailable:
        notes.append(f"not runnable: {row.unavailable}")
    elif against := row_baseline(table, row):
        notes.append(f"Δ against {against}")
    if row.loaded:
        notes.append(f"pretraining loaded from {row.loaded}, not done here")
    return notes + (row_tags(row) if tags else [])


def row_tags(row: TableRow) -> list[str]:
    """Tags of a row: `reconstruction` or `own`, and `reported only`."""
    tags = [row.provenance] if row.provenance in ("reconstruction", "own") else []
    return tags + (["reported only"] if row.spec.method is None else [])


def row_note(table: Table, row: TableRow) -> str:
    """The row's note, its cost, and which of the paper's figures have another protocol."""
    by_protocol: dict[str, list[str]] = {}
    for metric, protocol in row.spec.other_protocol.items():
        by_protocol.setdefault(protocol, []).append(metric_title(table, metric))
    notes = [f"paper's {' and '.join(titles)}: {protocol}" for protocol, titles in by_protocol.items()]
    return "; ".join(filter(None, [row.spec.note, cost(table, row), *notes]))


def cost(table: Table, row: TableRow) -> str:
    """`pretraining: paper 16.4 GPU-days, ours 1.23e12 FLOPs`; empty if neither is known."""
    if row.cost is None or table.spec.cost is None:
        return ""
    theirs = f"paper {row.cost.reported.text} {table.spec.cost.unit}" if row.cost.reported else ""
    ours = f"ours {row.cost.flops:.2e} FLOPs".replace("e+", "e") if row.cost.flops else ""
    known = ", ".join(filter(None, [theirs, ours]))
    return f"pretraining: {known}" if known else ""


def is_baseline(table: Table, row: TableRow) -> bool:
    return any(table.spec.baseline_of(other.spec) == row.spec.id for other in table.rows)


def seeds(table: Table) -> str:
    return ", ".join(map(str, table.seeds)) or "none"


def scale_note(table: Table) -> str:
    """A sentence that says what may be compared at this scale."""
    if table.comparable:
        return "Paper scale: our values are compared with the paper's."
    return (
        f"{NOT_COMPARABLE} {table.scale} scale: our numbers are not comparable with the paper's in absolute "
        "terms. What is compared is the direction of the effect: row minus baseline over paired seeds."
    )


def one_baseline(table: Table) -> bool:
    """Whether all rows are compared with the same baseline."""
    return len({table.spec.baseline_of(row.spec) for row in table.rows}) == 1


def row_baseline(table: Table, row: TableRow) -> str:
    """The label of the row's baseline, if not all rows have the same; else empty."""
    against = table.spec.baseline_of(row.spec)
    if against == row.spec.id or row.spec.method is None or one_baseline(table):
        return ""
    return table.row(against).spec.label


def number_notes(table: Table) -> list[str]:
    """The meaning of ±, Δ and `no spread`, if the table has them."""
    cells = [cell for row in table.rows for cell in row.cells]
    interval = any(cell.ours and cell.ours.interval for cell in cells)
    deltas = [*(cell.delta for cell in cells), *(claim.delta for claim in table.claims)]
    notes = [*([INTERVAL_NOTE] if interval else []), delta_note(table)]
    return notes + ([NO_SPREAD_NOTE] if any(delta and no_spread(delta) for delta in deltas) else [])


def delta_note(table: Table) -> str:
    against = table.row(table.spec.baseline).spec.label if one_baseline(table) else "its baseline"
    return f"Δ is the row minus {against} over paired seeds, with its 95 % interval"


def findings(table: Table) -> list[str]:
    """Per column: which rows are above or below their baseline by the 95 % interval, and which are neither.

    Rows without an interval are left out: fewer than two paired seeds, or equal differences.
    """
    lines = []
    against = "the baseline" if one_baseline(table) else "their baselines"
    for index, column in enumerate(table.spec.columns):
        groups: dict[str, list[str]] = {"above": [], "below": [], "not told apart from": []}
        for row in table.rows:
            delta = row.cells[index].delta
            if delta is None or delta.interval is None:
                continue
            low, high = delta.interval
            word = "above" if low > 0 else "below" if high < 0 else "not told apart from"
            groups[word].append(row.spec.label)
        told = [f"{', '.join(labels)} {word} {against}" for word, labels in groups.items() if labels]
        if told:
            lines.append(f"{column.title}: {'; '.join(told)}")
    return lines


def sources(table: Table) -> dict[Reported, int]:
    """Every reported line that the table shows, with the number of its source, in reading order."""
    lines = []
    for row in table.rows:
        lines += [*(cell.reported for cell in row.cells), row.cost.reported if row.cost else None]
    lines += [line for claim in table.claims for line in claim.reported]
    numbers: dict[str, int] = {}
    return {line: numbers.setdefault(line.source, len(numbers) + 1) for line in lines if line}


def source_list(numbers: Mapping[Reported, int]) -> list[tuple[int, Reported]]:
    """The numbered sources, each once, with the first line that has it."""
    first: dict[int, Reported] = {}
    for line, number in numbers.items():
        first.setdefault(number, line)
    return sorted(first.items())


def claim_pair(table: Table, claim: ClaimResult) -> str:
    """`DTM − Feature MIM, ImageNet-1K top-1`."""
    row, against = (table.row(name).spec.label for name in (claim.spec.row, claim.spec.against))
    return f"{row} − {against}, {metric_title(table, claim.spec.column)}"


def claim_paper(claim: ClaimResult) -> str:
    """The paper's difference with its sign, with as many digits as the paper prints."""
    if claim.reported_delta is None:
        return "–"
    digits = max(len(line.text.partition(".")[2]) for line in claim.reported)
    return f"{claim.reported_delta:+.{digits}f}".replace("-", "−")

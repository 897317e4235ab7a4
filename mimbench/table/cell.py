"""A computed table: cells, rows, claims. Everything a renderer needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mimbench.table.reported import Reported
from mimbench.table.spec import Claim, Row, TableSpec
from mimbench.table.stats import Estimate
from mimbench.table.verdict import Verdict

Status = Literal["ok", "missing", "stale", "failed", "damaged", "running", "not_runnable"]
CellStatus = Literal[
    "ok", "missing", "stale", "failed", "damaged", "running", "not_runnable", "reported_only"
]


@dataclass(frozen=True)
class SeedOutcome:
    """The outcome of a cell's run with one seed.

    Attributes:
        value: the metric; only if the run is done (ok or stale).
        run: name of the run's folder. start: of the pretraining (or teacher) that it starts from.
        note: a reason, where there is one.
    """

    status: Status
    value: float | None = None
    run: str = ""
    note: str = ""
    start: str = ""

    def __post_init__(self) -> None:
        done = self.status in ("ok", "stale")
        if done != (self.value is not None) or (self.value is not None and not math.isfinite(self.value)):
            raise ValueError(f"an outcome that is {self.status} cannot have the value {self.value}")


@dataclass(frozen=True)
class Cell:
    """One row in one column. `ours` covers the seeds that are done; `status` is the worst of all seeds."""

    status: CellStatus
    outcomes: Mapping[int, SeedOutcome] = field(default_factory=dict)
    ours: Estimate | None = None
    reported: Reported | None = None
    delta: Estimate | None = None  # row minus baseline, over paired seeds
    reported_delta: float | None = None
    against: str = ""  # id of the baseline row; empty for the baseline itself
    verdict: Verdict | None = None
    protocol: str = ""  # of the reported value, if it differs from that of our runs

    @property
    def complete(self) -> bool:
        return self.status in ("ok", "stale")

    @property
    def open(self) -> bool:
        """Whether the cell lacks a run that can be run here."""
        return self.status in ("missing", "running", "failed", "damaged")

    @property
    def stale(self) -> bool:
        return any(outcome.status == "stale" for outcome in self.outcomes.values())

    @property
    def values(self) -> dict[int, float]:
        return {seed: outcome.value for seed, outcome in self.outcomes.items() if outcome.value is not None}

    @property
    def mean(self) -> float | None:
        return self.ours.mean if self.ours else None

    @property
    def interval(self) -> tuple[float, float] | None:
        return self.ours.interval if self.ours else None

    @property
    def n(self) -> int:
        return self.ours.n if self.ours else 0

    @property
    def runs(self) -> dict[int, str]:
        return {seed: outcome.run for seed, outcome in self.outcomes.items() if outcome.run}


@dataclass(frozen=True)
class Cost:
    """The cost of a row's own pretraining: our FLOPs, and the paper's figure in the table's unit."""

    flops: float | None
    reported: Reported | None


@dataclass(frozen=True)
class TableRow:
    """A row with its cells.

    Attributes:
        provenance: origin of its method's code: official, reconstruction, own; empty if it is only reported.
        unavailable: why none of its cells can be run here; the cells' verdicts then give no reason.
        cost: set if the table's file has a cost.
        loaded: the checkpoint that was loaded instead of pretraining; empty if none was.
    """

    spec: Row
    cells: tuple[Cell, ...]
    provenance: str
    unavailable: str = ""
    cost: Cost | None = None
    loaded: str = ""


@dataclass(frozen=True)
class ClaimResult:
    """A claim with our difference and the paper's.

    Attributes:
        reported: the one line that states the difference; or the two lines, of `row` and of `against`, whose
            difference it is; empty if neither is known.
    """

    spec: Claim
    delta: Estimate | None
    reported: tuple[Reported, ...]
    verdict: Verdict | None

    @property
    def reported_delta(self) -> float | None:
        return difference(self.reported)


@dataclass(frozen=True)
class Table:
    """Everything a renderer needs, so that a renderer computes no statistics."""

    spec: TableSpec
    scale: str
    seeds: tuple[int, ...]
    rows: tuple[TableRow, ...]
    claims: tuple[ClaimResult, ...] = ()

    @property
    def comparable(self) -> bool:
        """Whether our absolute numbers may be compared with the paper's."""
        return self.scale == "paper"

    def row(self, row_id: str) -> TableRow:
        return next(row for row in self.rows if row.spec.id == row_id)


def difference(lines: Sequence[Reported]) -> float | None:
    """The first of two reported values minus the second; or the value of the one line; None without lines."""
    if len(lines) == 2:
        return lines[0].value - lines[1].value
    return lines[0].value if lines else None

"""The statistics that a table needs: a mean with its t interval, and paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95  # of every interval


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; the standard deviation (n - 1) needs two values, the interval two that differ."""

    values: tuple[float, ...]
    mean: float
    std: float | None
    low: float | None
    high: float | None

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def half_width(self) -> float | None:
        return None if self.high is None else self.high - self.mean


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation (n - 1) and Student's t interval at `LEVEL` of at least one value.

    Equal values have no interval: they give no estimate of the spread, and one of width 0 would claim
    certainty.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(tuple(values), mean, None, None, None)
    std = statistics.stdev(values)
    if are_equal(values):
        return Estimate(tuple(values), mean, std, None, None)
    half = _t_quantile(len(values) - 1) * std / math.sqrt(len(values))
    return Estimate(tuple(values), mean, std, mean - half, mean + half)


def are_equal(values: Sequence[float]) -> bool:
    """Whether there are two values or more, and all are the same but for rounding."""
    return len(values) > 1 and math.isclose(min(values), max(values), abs_tol=1e-9)


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """The estimate of `values - baseline` over the seeds that both have; None if they share none."""
    seeds = sorted(values.keys() & baseline.keys())
    return estimate([values[seed] - baseline[seed] for seed in seeds]) if seeds else None


def _t_quantile(degrees: int) -> float:
    from scipy.special import stdtrit  # a tenth of the import time of scipy.stats

    return float(stdtrit(degrees, 0.5 + LEVEL / 2))

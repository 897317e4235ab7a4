"""Learning-rate schedules as pure functions of the step: resuming needs no state, tests need no optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence


def _warmup(step: int, peak: float, warmup: int, start: float) -> float | None:
    """Linear from `start` at step 0 to `peak` at the last warm-up step; None after the warm-up."""
    if step >= warmup:
        return None
    return start + (peak - start) * step / max(warmup - 1, 1)


def warmup_cosine(
    step: int, *, peak: float, total: int, warmup: int, final: float = 0.0, start: float = 0.0
) -> float:
    """Linear warm-up, then half a cosine from `peak` to `final`, reached at the last step.

    DTM, utils/utils.py: cosine_scheduler@322df2e. MAE and BEiT have the same curve except for the last step:
    theirs ends one step short of `final`, here the last step reaches it.
    """
    rising = _warmup(step, peak, warmup, start)
    if rising is not None:
        return rising
    progress = (step - warmup) / max(total - warmup, 1)
    if step == total - 1:
        progress = 1.0
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_poly(
    step: int,
    *,
    peak: float,
    total: int,
    warmup: int,
    power: float = 1.0,
    final: float = 0.0,
    start_ratio: float = 0.0,
) -> float:
    """Linear warm-up from `start_ratio * peak`, then polynomial decay over the rest (mmsegmentation 1.x)."""
    rising = _warmup(step, peak, warmup, peak * start_ratio)
    if rising is not None:
        return rising
    return final + (peak - final) * (1 - (step - warmup) / max(total - warmup, 1)) ** power


def warmup_multistep(
    step: int,
    *,
    peak: float,
    total: int,
    warmup: int,
    milestones: Sequence[int],
    gamma: float = 0.1,
    start_ratio: float = 0.0,
) -> float:
    """Linear warm-up from `start_ratio * peak`, then a factor `gamma` at every milestone (mmdetection)."""
    del total  # not needed; the argument keeps the three schedules interchangeable
    rising = _warmup(step, peak, warmup, peak * start_ratio)
    if rising is not None:
        return rising
    return peak * gamma ** sum(step >= milestone for milestone in milestones)

"""Verdicts: fixed words that say how our number compares with the paper's.

The first rule that applies gives the word:

| the cell | word |
|---|---|
| row without a method (reported only) | none |
| not runnable here | `not runnable` (with the reason) |
| any seed missing, running, failed or damaged | `not run` (with the reason); dropping it would flatter |
| scale `paper`: nothing reported, or a figure of another protocol | none |
| scale `paper`: absolute difference to the reported value at most the seed noise | `reproduced` |
| scale `paper`: a larger difference, but our 95 % interval contains the reported value | `within noise` |
| scale `paper`: otherwise, by the sign of the difference | `below`, `above` |
| smaller scale: the baseline row itself, or the paper reports no difference to it in one protocol | none |
| smaller scale: fewer than two paired seeds, incomplete baseline, the paper's difference 0 | `inconclusive` |
| smaller scale: all paired differences are equal, so that nothing estimates their spread | `inconclusive` |
| smaller scale: the interval of (row - baseline) contains 0 | `inconclusive` |
| smaller scale: that interval lies on the side of the paper's difference | `same direction` |
| smaller scale: on the other side | `opposite direction` |

The seed noise is the noise of fine-tuning at paper scale: 0.1 for top-1, 0.3 for mIoU, 0.2 for AP. A claim
(the difference of two rows) follows the same rules, with the reported difference instead of the reported
value. If no figure is known for it, only its direction is compared, at every scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mimbench.table.stats import Estimate

Word = Literal[
    "reproduced",
    "within noise",
    "below",
    "above",
    "same direction",
    "opposite direction",
    "inconclusive",
    "not run",
    "not runnable",
]

MEANINGS: dict[Word, str] = {
    "reproduced": "differs from the paper's value by at most the seed noise (0.1 top-1, 0.3 mIoU, 0.2 AP)",
    "within noise": "differs by more than the seed noise, but our 95 % interval contains the paper's value",
    "below": "below the paper's value by more than the seed noise and our interval",
    "above": "above the paper's value by more than the seed noise and our interval",
    "same direction": "row minus baseline, paired, has the paper's sign; its 95 % interval excludes 0",
    "opposite direction": "row minus baseline, paired, has the other sign; its 95 % interval excludes 0",
    "inconclusive": "the difference has no interval (one paired seed, or all equal), or it contains 0",
    "not run": "at least one seed is missing, running, failed or damaged",
    "not runnable": "cannot be run here, or is left out at this scale, for the reason given",
}

_NOISE = {"top1": 0.1, "top5": 0.1, "miou": 0.3, "macc": 0.3, "aacc": 0.3}
_ROUNDING = 1e-9  # 85.4 - 85.3 is a little more than 0.1 in binary


@dataclass(frozen=True)
class Verdict:
    word: Word
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.word} ({self.reason})" if self.reason else self.word


def seed_noise(metric: str) -> float:
    """The usual difference between seeds at paper scale; for an unknown metric, the largest known one."""
    return 0.2 if "_ap" in metric else _NOISE.get(metric, max(_NOISE.values()))


def absolute(ours: Estimate, reported: float, metric: str) -> Verdict:
    """At paper scale: our mean against the paper's value."""
    difference = ours.mean - reported
    if abs(difference) <= seed_noise(metric) + _ROUNDING:
        return Verdict("reproduced")
    if ours.interval and ours.interval[0] <= reported <= ours.interval[1]:
        return Verdict("within noise")
    return Verdict("below" if difference < 0 else "above")


def direction(delta: Estimate | None, reported_delta: float) -> Verdict:
    """At smaller scales: the sign of our paired difference against the sign of the paper's."""
    if delta is None or delta.n < 2:
        return Verdict("inconclusive", "fewer than two paired seeds")
    if delta.interval is None:
        return Verdict("inconclusive", "all paired differences are equal: there is no estimate of the spread")
    if abs(reported_delta) <= _ROUNDING:
        return Verdict("inconclusive", "the paper reports no difference")
    low, high = delta.interval
    if low <= 0 <= high:
        return Verdict("inconclusive", "the interval contains 0")
    return Verdict("same direction" if (low > 0) == (reported_delta > 0) else "opposite direction")

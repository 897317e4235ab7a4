import typing

import pytest

from mimbench.render.text import VERDICT_SYMBOLS
from mimbench.table.stats import Estimate, estimate
from mimbench.table.verdict import MEANINGS, Word, absolute, direction, seed_noise


def around(mean: float, half: float | None) -> Estimate:
    if half is None:
        return Estimate((mean,), mean, None, None, None)
    return Estimate((mean,) * 3, mean, half, mean - half, mean + half)


@pytest.mark.parametrize(
    ("metric", "noise"),
    [("top1", 0.1), ("miou", 0.3), ("box_ap", 0.2), ("mask_ap", 0.2), ("box_ap50", 0.2), ("something", 0.3)],
)
def test_seed_noise(metric, noise):
    assert seed_noise(metric) == noise


@pytest.mark.parametrize(
    ("ours", "half", "reported", "metric", "word"),
    [
        (85.4, None, 85.4, "top1", "reproduced"),
        (85.3, None, 85.4, "top1", "reproduced"),  # exactly the noise, although 85.4 - 85.3 > 0.1 in binary
        (85.5, 0.01, 85.4, "top1", "reproduced"),
        (85.29, None, 85.4, "top1", "below"),
        (85.51, None, 85.4, "top1", "above"),
        (85.1, 0.4, 85.4, "top1", "within noise"),
        (85.7, 0.3, 85.4, "top1", "within noise"),
        (85.1, 0.2, 85.4, "top1", "below"),
        (85.7, 0.2, 85.4, "top1", "above"),
        (47.8, None, 48.1, "miou", "reproduced"),
        (47.7, None, 48.1, "miou", "below"),
        (50.1, None, 50.3, "box_ap", "reproduced"),
        (45.2, None, 44.9, "mask_ap", "above"),
    ],
)
def test_absolute(ours, half, reported, metric, word):
    assert absolute(around(ours, half), reported, metric).word == word


@pytest.mark.parametrize(
    ("mean", "half", "reported_delta", "word"),
    [
        (2.0, 1.0, 1.1, "same direction"),
        (-2.0, 1.0, -0.3, "same direction"),
        (-2.0, 1.0, 1.1, "opposite direction"),
        (2.0, 1.0, -0.3, "opposite direction"),
        (2.0, 2.0, 1.1, "inconclusive"),  # the interval touches 0
        (-2.0, 2.0, 1.1, "inconclusive"),
        (0.5, 2.0, 1.1, "inconclusive"),
        (50.0, None, 1.1, "inconclusive"),  # one seed proves nothing, however large the difference
        (2.0, 1.0, 0.0, "inconclusive"),
    ],
)
def test_direction(mean, half, reported_delta, word):
    assert direction(around(mean, half), reported_delta).word == word


def test_direction_without_pairs():
    assert direction(None, 1.0).word == "inconclusive"


def test_direction_from_values():
    assert direction(estimate([1.0, 1.2, 0.9]), 0.4).word == "same direction"
    assert direction(estimate([1.0, -1.2, 0.9]), 0.4).word == "inconclusive"


@pytest.mark.parametrize("values", [[8.33, 8.33], [0.1 + 0.2, 0.3], [-2.0] * 3])
def test_equal_differences_tell_no_direction(values):
    verdict = direction(estimate(values), 1.0)
    assert verdict.word == "inconclusive" and "equal" in verdict.reason
    assert "equal" in MEANINGS["inconclusive"]


def test_every_word_has_a_meaning_and_a_symbol():
    words = set(typing.get_args(Word))
    assert words == set(MEANINGS) == set(VERDICT_SYMBOLS)

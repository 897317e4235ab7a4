"""Schedules in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mimbench.schedule import warmup_cosine, warmup_multistep, warmup_poly


@pytest.mark.parametrize(
    ("total", "warmup", "final"), [(100, 10, 0.0), (100, 0, 1e-5), (57, 1, 0.1), (10, 9, 0.0)]
)
def test_cosine(total: int, warmup: int, final: float) -> None:
    lr = [warmup_cosine(step, peak=2.0, total=total, warmup=warmup, final=final) for step in range(total)]
    np.testing.assert_allclose(lr[:warmup], np.linspace(0, 2.0, warmup))  # the endpoint included
    length = total - warmup
    cosine = [final + (2.0 - final) / 2 * (1 + math.cos(math.pi * i / length)) for i in range(length)]
    np.testing.assert_allclose(lr[warmup:-1], cosine[:-1])
    assert lr[-1] == pytest.approx(final, abs=1e-15)
    assert lr[warmup:] == sorted(lr[warmup:], reverse=True)


def test_cosine_may_start_above_zero() -> None:
    assert warmup_cosine(0, peak=1.0, total=10, warmup=4, start=0.25) == 0.25
    assert warmup_cosine(3, peak=1.0, total=10, warmup=4, start=0.25) == 1.0


@pytest.mark.parametrize("power", [1.0, 0.9])
def test_poly(power: float) -> None:
    lr = [
        warmup_poly(step, peak=2.0, total=50, warmup=10, power=power, final=0.1, start_ratio=1e-2)
        for step in range(51)
    ]
    np.testing.assert_allclose(lr[:10], np.linspace(0.02, 2.0, 10))
    np.testing.assert_allclose(lr[10:], [0.1 + 1.9 * (1 - i / 40) ** power for i in range(41)], atol=1e-12)


def test_multistep() -> None:
    lr = [
        warmup_multistep(step, peak=2.0, total=30, warmup=5, milestones=(20, 25), gamma=0.1, start_ratio=0.5)
        for step in range(30)
    ]
    np.testing.assert_allclose(lr[:5], np.linspace(1.0, 2.0, 5))
    np.testing.assert_allclose(lr[5:20], 2.0)
    np.testing.assert_allclose(lr[20:25], 0.2)
    np.testing.assert_allclose(lr[25:], 0.02)

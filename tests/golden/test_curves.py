"""Twenty steps of every method, teacher and task must go as they went: what alters no number moves no curve.

A change that is meant to alter them says so in the changelog, and rewrites the curves with make_curves.py.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

_spec = importlib.util.spec_from_file_location("make_curves", Path(__file__).with_name("make_curves.py"))
assert _spec and _spec.loader
make_curves = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_curves)

SURE = 3  # steps in which no rounding has grown yet
EXACT = 1e-4  # of a value: more than another processor's rounding moves it by before it grows
NUDGES = 3
NAMES = make_curves.names()


@pytest.fixture(scope="session")
def maker(tmp_path_factory: pytest.TempPathFactory) -> make_curves.CurveMaker:
    return make_curves.CurveMaker(tmp_path_factory.mktemp("curves"))


@pytest.fixture(scope="session")
def golden() -> dict[str, make_curves.Curve]:
    return make_curves.read()


@pytest.mark.parametrize("name", NAMES)
def test_the_curve_is_where_it_was(
    name: str, golden: dict[str, make_curves.Curve], maker: make_curves.CurveMaker
) -> None:
    remedy = f"`python tests/golden/make_curves.py {name.split('/')[1]}`"
    assert name in golden, f"{name} has no golden curve yet: {remedy} makes it."
    found = maker.curve(name)
    assert shape(found) == shape(golden[name]), (
        f"{name} has other steps or metrics than its golden curve: {remedy} makes it anew."
    )
    moved = differences(name, found, golden[name], maker)
    assert not moved, f"{name} moved. If that is meant, say so in the changelog and run {remedy}. {moved}"


def test_every_curve_is_of_something(golden: dict[str, make_curves.Curve]) -> None:
    left = sorted(golden.keys() - set(NAMES))
    assert not left, (
        f"Nothing makes these curves: delete them from {make_curves.FILE.name}: {', '.join(left)}"
    )


def differences(
    name: str, found: make_curves.Curve, known: make_curves.Curve, maker: make_curves.CurveMaker
) -> list[str]:
    """Where the curve is not the golden one to `EXACT`, or, where rounding grows, to three times its growth.

    The growth is measured here, by curves from weights that are moved by as much as rounding moves them. In
    the first steps nothing has grown yet, and a learning rate depends on no weight.
    """
    allowed = {part: EXACT * np.abs(values(known, part)) for part in known}
    moved = beyond(found, known, allowed)
    if not moved:
        return []
    nudged = [maker.curve(name, nudge=seed) for seed in range(NUDGES)]
    for part in known.keys() - {"lr"}:
        grown = np.max([np.abs(values(curve, part) - values(found, part)) for curve in nudged], axis=0)
        if part == "loss":
            grown = np.maximum.accumulate(grown)
            grown[:SURE] = 0
        allowed[part] += 3 * grown
    return beyond(found, known, allowed)


def beyond(found: make_curves.Curve, known: make_curves.Curve, allowed: dict[str, np.ndarray]) -> list[str]:
    """A line for each number that differs by more than it may."""
    lines = []
    for part in known:
        labels = (
            list(known[part]) if part == "metrics" else [f"step {i + 1}" for i in range(len(known[part]))]
        )
        rows = zip(labels, values(known, part), values(found, part), allowed[part], strict=True)
        lines += [
            f"{part} {label}: was {old:.7g}, is {new:.7g}, may differ by {most:.1g}"
            for label, old, new, most in rows
            if abs(new - old) > most
        ]
    return lines


def values(curve: make_curves.Curve, part: str) -> np.ndarray:
    """The numbers of `loss` or `lr`, step by step, or of `metrics`."""
    found = curve[part]
    return np.array(list(found.values()) if part == "metrics" else found)


def shape(curve: make_curves.Curve) -> dict[str, object]:
    """The number of steps and the names of the metrics."""
    return {part: list(found) if part == "metrics" else len(found) for part, found in curve.items()}

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
EXACT = 1e-4  # of a value: what another processor's rounding moves it by before it grows
NAMES = make_curves.names()


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> make_curves.Bench:
    return make_curves.Bench(tmp_path_factory.mktemp("curves"))


@pytest.fixture(scope="session")
def golden() -> dict[str, make_curves.Curve]:
    return make_curves.read()


@pytest.mark.parametrize("name", NAMES)
def test_the_curve_is_where_it_was(
    name: str, golden: dict[str, make_curves.Curve], bench: make_curves.Bench
) -> None:
    """To `EXACT`, or, where another processor's rounding grows, to three times what it grows to here by itself.

    How much that is show curves from weights that are moved by as much as rounding moves them. In the first
    steps nothing has grown yet, and the learning rates depend on no weight.
    """
    remedy = f"python tests/golden/make_curves.py {name.split('/')[1]}"
    assert name in golden, f"{name} has no curve yet: run `{remedy}`"
    found, known = bench.curve(name), golden[name]
    assert shape(found) == shape(known), f"{name} logs other things than its curve has: run `{remedy}`"
    allowed = {part: EXACT * np.abs(values(known, part)) for part in known}
    if moved(found, known, allowed):
        nudged = [bench.curve(name, nudge=seed) for seed in range(3)]
        for part in known.keys() - {"lr"}:
            grown = np.max([np.abs(values(x, part) - values(found, part)) for x in nudged], axis=0)
            if part == "loss":
                grown = np.maximum.accumulate(grown)
                grown[:SURE] = 0
            allowed[part] += 3 * grown
    assert not moved(found, known, allowed), (
        f"{name} moved. Where that is meant, say so in the changelog and run `{remedy}`."
    )


def test_every_curve_is_of_something(golden: dict[str, make_curves.Curve]) -> None:
    left = sorted(golden.keys() - set(NAMES))
    assert not left, f"of nothing there is: {', '.join(left)}. Delete these curves from {make_curves.FILE.name}."


def values(curve: make_curves.Curve, part: str) -> np.ndarray:
    """The numbers of `loss` or `lr` step by step, or those of `metrics`."""
    found = curve[part]
    return np.array(list(found.values()) if isinstance(found, dict) else found)


def shape(curve: make_curves.Curve) -> dict[str, object]:
    """What a curve has: the number of steps, the names of the metrics."""
    return {part: list(found) if isinstance(found, dict) else len(found) for part, found in curve.items()}


def moved(
    found: make_curves.Curve, known: make_curves.Curve, allowed: dict[str, np.ndarray]
) -> dict[str, dict[str, list[float]]]:
    """Of the parts that are not where they were: the differences, and what was allowed."""
    differences = {part: values(found, part) - values(known, part) for part in known}
    return {
        part: {"difference": difference.tolist(), "allowed": allowed[part].tolist()}
        for part, difference in differences.items()
        if (np.abs(difference) > allowed[part]).any()
    }

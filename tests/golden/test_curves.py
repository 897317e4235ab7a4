"""Twenty steps of every method must go as they went: a refactor that should alter no number alters none.

A change that is meant to alter them says so in the changelog, and rewrites the file with make_curves.py.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

_spec = importlib.util.spec_from_file_location("make_curves", Path(__file__).with_name("make_curves.py"))
assert _spec and _spec.loader
make_curves = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_curves)

SURE = 3  # steps in which no rounding has grown yet

CARDS = {f"{kind}/{card.name}": card for kind, card in make_curves.trained()}


@pytest.fixture(scope="module")
def golden() -> dict[str, list[float]]:
    return json.loads(make_curves.FILE.read_text())


def test_every_method_has_a_curve(golden: dict[str, list[float]]) -> None:
    assert set(golden) == set(CARDS), "run tests/golden/make_curves.py and check that no other curve moves"


@pytest.mark.parametrize("name", CARDS)
def test_the_curve_is_where_it_was(name: str, golden: dict[str, list[float]]) -> None:
    """To 1e-4, or, where another processor's rounding grows, to three times what it grows to here by itself.

    How much that is show curves from weights that are moved by as much as rounding moves them. In the first
    steps nothing has grown yet, and 1e-4 holds.
    """
    found, allowed = np.array(make_curves.curve(CARDS[name])), 1e-4 * np.abs(golden[name])
    if (np.abs(found - golden[name]) > allowed).any():
        nudged = [make_curves.curve(CARDS[name], nudge=seed) for seed in range(3)]
        allowed[SURE:] += 3 * np.maximum.accumulate(np.abs(np.array(nudged) - found).max(axis=0))[SURE:]
    assert (np.abs(found - golden[name]) <= allowed).all(), f"{found - golden[name]}, allowed {allowed}"

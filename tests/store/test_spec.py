"""A run's key: the same for the same run however it is written down, another for another run."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimbench.store.spec import RunSpec, canonical_json

numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)
recipes = st.dictionaries(st.text(min_size=1, max_size=6), values, min_size=1, max_size=6)


def spec(recipe: dict, **changes: object) -> RunSpec:
    facts = {
        "stage": "pretrain",
        "name": "m",
        "arch": "vit_toy",
        "data": {"imagenet": "ab"},
        "seed": 0,
        **changes,
    }
    return RunSpec(recipe=recipe, **facts)  # type: ignore[arg-type]


@given(recipes, st.randoms(use_true_random=False))
def test_key_does_not_depend_on_the_order_of_fields(recipe: dict, rng: random.Random) -> None:
    items = list(recipe.items())
    rng.shuffle(items)
    assert spec(dict(items)).key == spec(recipe).key


@given(recipes)
def test_key_survives_json(recipe: dict) -> None:
    original = spec(recipe, parents={"teacher": "0" * 16})
    again = RunSpec(**json.loads(json.dumps(original.as_dict())))
    assert again.key == original.key and again.folder == original.folder


@given(recipes, recipes)
def test_different_recipes_have_different_keys(one: dict, other: dict) -> None:
    assert (spec(one).key == spec(other).key) == (canonical_json(one) == canonical_json(other))


@given(st.integers(-1000, 1000))
def test_tuples_and_integral_floats_are_what_json_makes_of_them(number: int) -> None:
    assert spec({"x": (number, 2.5)}).key == spec({"x": [float(number), 2.5]}).key


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "teacher"},
        {"name": "n"},
        {"arch": "vit_base"},
        {"data": {"imagenet": "cd"}},
        {"seed": 1},
        {"parents": {"teacher": "1" * 16}},
        {"skip_corrupt": True},
    ],
)
def test_everything_that_determines_a_run_is_in_its_key(changes: dict) -> None:
    assert spec({"x": 1}, **changes).key != spec({"x": 1}).key


def test_key_is_stable_over_releases() -> None:
    assert spec({"epochs": 2.0, "betas": (0.9, 0.95), "clip_grad": None}).key == "38935cf2b49b13e2"


def test_nan_has_no_key() -> None:
    with pytest.raises(ValueError):
        _ = spec({"x": math.nan}).key

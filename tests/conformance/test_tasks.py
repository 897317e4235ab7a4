"""What every task's card must say; tests/downstream/test_tasks.py runs the tasks."""

from __future__ import annotations

import json

import pytest

from mimbench import catalog, discovery
from mimbench.contract import TaskCard, TransferRecipe
from mimbench.plan.request import ROLES
from mimbench.recipe import SCALES

CARDS = [catalog.task(name) for name in discovery.names("task")]
pytestmark = pytest.mark.parametrize("card", CARDS, ids=[card.name for card in CARDS])


def test_card_is_complete(card: TaskCard) -> None:
    assert card.name in discovery.names("task") and card.title and card.protocol
    assert card.data in ROLES


def test_metrics_are_named_once_and_readable(card: TaskCard) -> None:
    names = [metric.name for metric in card.metrics]
    assert names and len(set(names)) == len(names)
    assert all(metric.title for metric in card.metrics)


def test_every_scale_has_a_recipe_and_every_value_a_source(card: TaskCard) -> None:
    recipes = card.recipes()
    assert tuple(sorted(recipes)) == tuple(sorted(SCALES))
    for scale, recipe in recipes.items():
        assert isinstance(recipe, TransferRecipe)
        assert set(recipe.sources) == set(recipe.values()), scale
        assert all(source.strip() for source in recipe.sources.values()), scale
        assert type(recipe).from_values(json.loads(json.dumps(recipe.values()))) == recipe
    assert len({type(recipe) for recipe in recipes.values()}) == 1


def test_estimates_grow_with_the_scale(card: TaskCard) -> None:
    sizes = {"smoke": "vit_smoke", "toy": "vit_toy", "small": "vit_mini", "paper": "vit_base"}
    flops = [
        card.flops(card.recipes()[scale].values(), arch, 16 if scale == "paper" else 8)
        for scale, arch in sizes.items()
    ]
    assert flops == sorted(flops) and flops[0] > 0
    for recipe in card.recipes().values():
        assert 0 < card.images(recipe.values(), 100) <= card.images(recipe.values(), 1000)

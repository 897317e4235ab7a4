"""The base class of methods, and plain modules that are methods without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mimbench import catalog
from mimbench.checkpoint.encoder import load_encoder
from mimbench.method import Method, as_method
from mimbench.recipe import PretrainRecipe
from mimbench.store.folder import RunFolder
from mimbench.train import pretraining
from mimbench.vit import ViT


class Parts(Method):
    """Children of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.dropout = nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Dropout()
        self.teacher = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).requires_grad_(False)
        self.half_frozen = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
        self.absent = None


def test_frozen_children_stay_in_eval_mode_and_all_others_train() -> None:
    method = Parts().train()
    training = {name: child.training for name, child in method.named_children()}
    assert training == {"student": True, "dropout": True, "teacher": False, "half_frozen": True}
    assert method.training and not any(module.training for module in method.teacher.modules())
    assert all(module.training for module in method.half_frozen)
    assert not any(module.training for module in method.eval().modules())
    assert nn.Sequential(method).train()[0].teacher.training is False, "also through what holds the method"


def test_a_method_knows_its_steps_and_exempts_what_its_encoder_does() -> None:
    method = Parts()
    method.encoder = ViT(catalog.method("mae").recipes()["smoke"].vit_config())
    assert method.no_weight_decay() == method.encoder.no_weight_decay() != set()
    before = [tensor.clone() for tensor in method.state_dict().values()]
    method.before_train(7)
    method.after_step(1)
    assert method.steps == 7 and all(map(torch.equal, before, method.state_dict().values()))
    assert as_method(method) is method


class Plain(nn.Module):
    """A method that knows nothing of the base class."""

    def __init__(self, recipe: PretrainRecipe) -> None:
        super().__init__()
        self.encoder = ViT(recipe.vit_config())

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        return {"loss": self.encoder(images)[:, :, 0].mean()}


class Counting(Plain):
    """A plain one with two of the members."""

    def __init__(self, recipe: PretrainRecipe) -> None:
        super().__init__(recipe)
        self.told: list[Any] = []

    def before_train(self, steps: int) -> None:
        self.told.append(f"of {steps}")

    def after_step(self, step: int) -> None:
        self.told.append(step)


@pytest.mark.parametrize("kind", [Plain, Counting])
def test_a_plain_module_trains_as_a_method(
    kind: type[Plain], pretraining_folder: Callable[..., RunFolder]
) -> None:
    built: list[Any] = []

    def build(recipe: PretrainRecipe) -> Plain:
        built.append(kind(recipe))
        return built[-1]

    card = dataclasses.replace(catalog.method("mae"), build=build, load=None)
    folder = pretraining_folder(card, steps=3)
    pretraining.run(folder, card)
    method = built[0]
    assert folder.details["steps"] == 3 and method.no_weight_decay() == set()
    assert getattr(method, "told", None) == (["of 3", 1, 2, 3] if kind is Counting else None)
    trained, _ = load_encoder(folder.encoder_path)
    untrained = pretraining.initialise(card, card.recipe.from_values(folder.spec.recipe), folder.spec.seed)
    assert not torch.equal(trained.cls_token, untrained.encoder.cls_token)

"""A step of the training: what happens, in which order, and which rates and draws it has."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from mimbench.contract import TransferRecipe
from mimbench.store.folder import Inputs, RunFolder
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec
from mimbench.train.average import WeightAverage
from mimbench.train.checkpoint import Checkpoint
from mimbench.train.loader import MODEL_STREAM, seed_everything
from mimbench.train.metrics import Metrics
from mimbench.train.optimizer import param_groups
from mimbench.train.runner import fit

STEPS, SEED = 4, 5


class ScheduledRecipe(TransferRecipe):
    """A learning rate that tells the step; the weight decay's schedule starts at 0."""

    def lr_at(self, step: int, steps: int, epoch_steps: float) -> float:
        assert (steps, epoch_steps) == (STEPS, 7 / 2)
        return 0.1 * (step + 1)

    def weight_decay_at(self, step: int, steps: int) -> float:
        assert steps == STEPS
        return 0.1 * step


RECIPE = ScheduledRecipe(
    img_size=1, global_batch_size=2, base_lr=0.0, lr_rule="absolute", layer_decay=1.0, drop_path=0.0,
    weight_decay=0.05, betas=(0.9, 0.999), clip_grad=None, precision="fp32",
)  # fmt: skip


class Numbers:
    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((2,), float(index + 1))


class Watched(BaseModel):
    """Two layers whose gradients differ in size; keeps what each step had."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.small, self.large = nn.Linear(2, 1), nn.Linear(2, 1)
        self.rates: list[list[tuple[float, float]]] = []
        self.draws: list[float] = []
        self.wrapper: Any = None

    def train_step(self, data: Tensor, optim_wrapper: Any) -> dict[str, Tensor]:
        self.draws.append(torch.rand(()).item())
        self.wrapper = optim_wrapper
        groups = optim_wrapper.optimizer.param_groups
        self.rates.append([(group["lr"], group["weight_decay"]) for group in groups])
        optim_wrapper.update_params(loss := self.loss(data))
        return {"loss": loss}

    def loss(self, data: Tensor) -> Tensor:
        return 0.01 * self.small(data).mean() + 100 * self.large(data).mean()

    def forward(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError


class Still(Watched):
    """A loss without a slope: only the weight decay moves the weights."""

    def loss(self, data: Tensor) -> Tensor:
        return 0 * super().loss(data)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunStore(tmp_path).create(RunSpec("pretrain", "tiny", "vit_smoke", {}, {}, SEED), Inputs())


def train(model: Watched, folder: RunFolder, recipe: TransferRecipe = RECIPE, **options: Any) -> Watched:
    groups = param_groups(model, recipe.weight_decay)
    fit(model, Numbers(), folder, recipe, steps=STEPS, param_groups=groups, **options)
    return model


def test_a_step_goes_in_its_order(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[Any] = []

    def spy(owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any) -> Any:
            happened.append((name, *(arg for arg in args if isinstance(arg, int))))
            return original(*args)

        monkeypatch.setattr(owner, name, call)

    model = Watched()
    model.before_step = lambda step: happened.append(("before_step", step))
    model.after_step = lambda done: happened.append(("after_step", done))
    for owner, name in (
        (model, "train_step"),
        (WeightAverage, "update"),
        (Metrics, "log"),
        (Checkpoint, "save_if_due"),
        (Checkpoint, "save_last"),
    ):
        spy(owner, name)
    train(model, folder, ema_momentum=0.9)
    assert happened == [
        event
        for step in range(STEPS)
        for event in (
            ("before_step", step),
            ("train_step",),
            ("after_step", step + 1),
            ("update",),
            ("log", step + 1),
            ("save_if_due", step + 1),
        )
    ] + [("save_last", STEPS)]


def test_a_steps_scalars_are_gone_when_the_next_batch_is_loaded(folder: RunFolder) -> None:
    """A scalar that a method logs may hold a graph of its own, and with it the memory of a whole step."""
    kept: list[bool] = []
    scalars: list[weakref.ref[Tensor]] = []

    class Logging(Watched):
        def train_step(self, data: Tensor, optim_wrapper: Any) -> dict[str, Tensor]:
            logged = super().train_step(data, optim_wrapper) | {"size": self.small(data).exp().mean()}
            scalars.append(weakref.ref(logged["size"]))
            return logged

    class Asking(Numbers):
        def __getitem__(self, index: int) -> Tensor:
            kept.extend(scalar() is not None for scalar in scalars)
            return super().__getitem__(index)

    model = Logging()
    fit(model, Asking(), folder, RECIPE, steps=STEPS, param_groups=param_groups(model, 0.05))
    assert len(scalars) == STEPS and len(kept) == 2 * (1 + 2 + 3) and not any(kept)


def test_a_step_draws_from_its_own_seed(folder: RunFolder) -> None:
    model = train(Watched(), folder)
    for step, drawn in enumerate(model.draws):
        seed_everything(SEED, step, MODEL_STREAM)
        assert torch.rand(()).item() == drawn
    assert len(set(model.draws)) == STEPS


def test_the_recipe_gives_each_steps_rates(folder: RunFolder) -> None:
    """Of a whole run, at a step of an epoch; parameters of one dimension are never decayed."""
    undecayed, decayed = zip(*train(Watched(), folder).rates, strict=True)
    assert [lr for lr, _ in decayed] == [lr for lr, _ in undecayed] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [decay for _, decay in undecayed] == [0.0] * STEPS
    assert [decay for _, decay in decayed] == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_weight_decay_is_what_shrinks_the_weights(folder: RunFolder) -> None:
    """AdamW's decay is `w <- (1 - lr * decay) w`, apart from the gradient."""
    model = Still()
    before = model.small.weight.detach().clone()
    train(model, folder)
    expected = before * (1 - 0.2 * 0.1) * (1 - 0.3 * 0.2) * (1 - 0.4 * 0.3)
    torch.testing.assert_close(model.small.weight.detach(), expected)


def test_betas_and_clipping_are_the_recipes(folder: RunFolder) -> None:
    """AdamW's first step has one size, whatever the gradient's: its moments show the clipping."""

    class EachRecipe(ScheduledRecipe):
        clip_each = True

    values = {**dataclasses.asdict(RECIPE), "clip_grad": 0.5, "betas": (0.0, 0.0)}
    model = train(Watched(), folder, EachRecipe(**values))
    state = model.wrapper.optimizer.state
    assert state[model.large.weight]["exp_avg"].norm().item() == pytest.approx(0.5, rel=1e-4)
    assert 0 < state[model.small.weight]["exp_avg"].norm().item() < 0.1

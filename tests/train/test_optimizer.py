"""Clipping, and the schedules that reach the optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from mimbench.store.folder import Inputs, RunFolder
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec
from mimbench.train.optimizer import optim_wrapper, param_groups
from mimbench.train.runner import fit


class Numbers:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((2,), float(index + 1))


class Watched(BaseModel):
    """Two layers whose gradients differ in size; keeps what the optimizer had in each step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.small, self.large = nn.Linear(2, 1), nn.Linear(2, 1)
        self.groups: list[list[tuple[float, float]]] = []

    def train_step(self, data: Tensor, optim_wrapper: Any) -> dict[str, Tensor]:
        loss = 0.01 * self.small(data).mean() + 100 * self.large(data).mean()
        optim_wrapper.update_params(loss)
        groups = optim_wrapper.optimizer.param_groups
        self.groups.append([(group["lr"], group["weight_decay"]) for group in groups])
        return {"loss": loss}

    def forward(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunStore(tmp_path).create(RunSpec("pretrain", "tiny", "vit_smoke", {}, {}, 0), Inputs())


def train(model: Watched, folder: RunFolder, **changes: Any) -> Watched:
    options: dict[str, Any] = {"seed": 0, "steps": 4, "batch_size": 2, "lr_at": lambda step: 0.1 * (step + 1)}
    fit(model, Numbers(), folder=folder, param_groups=param_groups(model, 0.05), **{**options, **changes})
    return model


def clipped(clip_each: bool, clip_grad: float | None) -> list[tuple[Tensor, Tensor]]:
    """Every parameter's gradient before and after clipping."""
    model = Watched()
    wrapper = optim_wrapper(
        param_groups(model, 0.05),
        lr=0.0,
        betas=(0.9, 0.999),
        eps=1e-8,
        clip_grad=clip_grad,
        clip_each=clip_each,
        precision="fp32",
        device=torch.device("cpu"),
    )
    before: dict[Tensor, Tensor] = {}
    after: dict[Tensor, Tensor] = {}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: before.__setitem__(p, p.grad.clone()))
    wrapper.optimizer.register_step_pre_hook(
        lambda *_: after.update({p: p.grad.clone() for p in model.parameters()})
    )
    model.train_step(torch.ones(2, 2), wrapper)
    norms = sorted(grad.norm().item() for grad in before.values())
    assert norms[0] < 0.5 < norms[-1]
    return [(before[p], after[p]) for p in model.parameters()]


def test_clip_each_bounds_the_norm_of_every_tensor_by_itself() -> None:
    for before, after in clipped(clip_each=True, clip_grad=0.5):
        torch.testing.assert_close(after, before * min(1.0, 0.5 / before.norm().item()), rtol=1e-4, atol=1e-6)


def test_clipping_bounds_the_norm_of_all_otherwise() -> None:
    gradients = clipped(clip_each=False, clip_grad=0.5)
    whole = torch.cat([before.flatten() for before, _ in gradients]).norm()
    for before, after in gradients:
        torch.testing.assert_close(after, before * 0.5 / whole, rtol=1e-4, atol=1e-9)


def test_without_a_bound_nothing_is_clipped() -> None:
    assert all(torch.equal(before, after) for before, after in clipped(clip_each=True, clip_grad=None))


def test_clip_each_reaches_the_optimizer_through_fit(folder: RunFolder) -> None:
    """AdamW's first step has one size, whatever the gradient's: its moments show the clipping."""
    seen: list[float] = []
    model = Watched()
    model.large.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.norm().item()))
    wrappers: list[Any] = []
    step = model.train_step
    model.train_step = lambda data, optim_wrapper: wrappers.append(optim_wrapper) or step(data, optim_wrapper)
    train(model, folder, steps=1, clip_grad=0.5, clip_each=True, betas=(0.0, 0.0))
    state = wrappers[0].optimizer.state
    assert seen[0] > 0.5
    assert state[model.large.weight]["exp_avg"].norm().item() == pytest.approx(0.5, rel=1e-4)
    assert 0 < state[model.small.weight]["exp_avg"].norm().item() < 0.1


def test_weight_decay_of_a_step_reaches_the_decayed_parameters_only(folder: RunFolder) -> None:
    model = train(Watched(), folder, weight_decay_at=lambda step: 0.04 + 0.1 * step)
    undecayed, decayed = zip(*model.groups, strict=True)
    assert [decay for _, decay in undecayed] == [0.0] * 4
    assert [decay for _, decay in decayed] == pytest.approx([0.04, 0.14, 0.24, 0.34])
    assert [lr for lr, _ in decayed] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_weight_decay_stays_where_no_schedule_is_given(folder: RunFolder) -> None:
    model = train(Watched(), folder)
    assert {tuple(decay for _, decay in groups) for groups in model.groups} == {(0.0, 0.05)}


def test_weight_decay_is_what_shrinks_the_weights(folder: RunFolder) -> None:
    """AdamW's decay is `w <- (1 - lr * decay) w`, apart from the gradient."""
    model = Watched()
    before = model.small.weight.detach().clone()
    model.train_step = lambda data, optim_wrapper: (
        optim_wrapper.update_params(0 * (model.small(data) + model.large(data)).sum())
        or {"loss": torch.zeros(())}
    )
    train(model, folder, steps=2, weight_decay_at=lambda step: (0.5, 0.25)[step])
    expected = before * (1 - 0.1 * 0.5) * (1 - 0.2 * 0.25)
    torch.testing.assert_close(model.small.weight.detach(), expected)

"""Clipping, and the rates of the groups."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from mimbench.train.optimizer import optim_wrapper, param_groups, set_rates


class Watched(BaseModel):
    """Two layers whose gradients differ in size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.small, self.large = nn.Linear(2, 1), nn.Linear(2, 1)

    def train_step(self, data: Tensor, optim_wrapper: Any) -> dict[str, Tensor]:
        loss = 0.01 * self.small(data).mean() + 100 * self.large(data).mean()
        optim_wrapper.update_params(loss)
        return {"loss": loss}

    def forward(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError


def wrapped(groups: list[dict[str, Any]], **clipping: Any) -> OptimWrapper:
    return optim_wrapper(
        groups,
        lr=0.0,
        betas=(0.9, 0.999),
        eps=1e-8,
        precision="fp32",
        device=torch.device("cpu"),
        **{"clip_grad": None, **clipping},
    )


def clipped(clip_each: bool, clip_grad: float | None) -> list[tuple[Tensor, Tensor]]:
    """Every parameter's gradient before and after clipping."""
    model = Watched()
    wrapper = wrapped(param_groups(model, 0.05), clip_grad=clip_grad, clip_each=clip_each)
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


def test_each_group_has_its_rate_and_its_decay() -> None:
    """A decayed group stays one also after a step in which its weight decay is 0."""
    groups = [
        {"params": [nn.Parameter(torch.ones(2))], "weight_decay": decay, "lr_scale": scale}
        for decay, scale in ((0.0, 1.0), (0.05, 1.0), (0.05, 0.5))
    ]
    optimizer = wrapped(groups).optimizer
    for weight_decay in (0.4, 0.0, 0.2):
        set_rates(optimizer, 0.1, weight_decay)
        found = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        assert found == [(0.1, 0.0), (0.1, weight_decay), (0.05, weight_decay)]


def test_what_is_decayed_survives_a_resume_at_a_decay_of_0() -> None:
    first, second = (
        wrapped([{"params": [nn.Parameter(torch.ones(2))], "weight_decay": 0.05, "lr_scale": 1.0}])
        for _ in range(2)
    )
    set_rates(first.optimizer, 0.1, 0.0)
    second.load_state_dict(first.state_dict())
    set_rates(second.optimizer, 0.1, 0.2)
    assert second.optimizer.param_groups[0]["weight_decay"] == 0.2

"""The moving average of a model's weights."""

from __future__ import annotations

import torch
from torch import nn


class WeightAverage:
    """Exponential moving average of a model's weights and buffers, on the device."""

    def __init__(self, model: nn.Module, momentum: float) -> None:
        self.model, self.momentum = model, momentum
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def update(self) -> None:
        """Move by `1 - momentum` towards the model's weights; copy tensors that are not floating point."""
        live = self.model.state_dict()
        averaged = [name for name, value in live.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self.state[name] for name in averaged], [live[name] for name in averaged], 1 - self.momentum
        )
        for name in live.keys() - set(averaged):
            self.state[name].copy_(live[name])

    def apply(self) -> None:
        """Give the model its averaged weights."""
        self.model.load_state_dict(self.state)

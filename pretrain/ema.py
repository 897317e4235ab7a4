"""A teacher that is the moving average of its student: no gradient, always in eval mode."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy of the module, frozen and in eval mode."""
    return copy.deepcopy(module).eval().requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """`teacher <- momentum * teacher + (1 - momentum) * student`, for every parameter of the teacher.

    The student must have every parameter name of the teacher; it may have more (a decoder, a mask token).
    """
    source = dict(student.named_parameters())
    names, parameters = zip(*teacher.named_parameters(), strict=True)
    torch._foreach_lerp_(list(parameters), [source[name] for name in names], 1 - momentum)


def cosine_between(start: float, end: float, fraction: float) -> float:
    """The value between `start` and `end` at `fraction` (0..1), along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * fraction))


def epochs_of_step(step: int, steps: int, epochs: float) -> tuple[int, range]:
    """The epoch (from 0) of the step just done, and the epochs that ended with this step.

    Args:
        step: number of steps done.
        steps: number of steps in all `epochs`; an epoch need not be a whole number of steps.
    """
    epoch, done = int((step - 1) * epochs // steps), int(step * epochs // steps)
    return epoch, range(epoch, done)

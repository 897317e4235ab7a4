"""A teacher that is the moving average of its student: no gradient, always in eval mode."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn


def frozen_copy(module: nn.Module) -> nn.Module:
    """The module's equal at this moment, frozen and in eval mode."""
    return copy.deepcopy(module).eval().requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """`teacher <- momentum * teacher + (1 - momentum) * student`, for every parameter of the teacher.

    The student may have more parameters (a decoder, a mask token); it must have the teacher's, by name.
    """
    source = dict(student.named_parameters())
    names, parameters = zip(*teacher.named_parameters(), strict=True)
    torch._foreach_lerp_(list(parameters), [source[name] for name in names], 1 - momentum)


def cosine_between(start: float, end: float, fraction: float) -> float:
    """From `start` to `end` over fraction 0..1, along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * fraction))


def epochs_of_step(step: int, steps: int, epochs: float) -> tuple[int, range]:
    """The epoch, from 0, of the step that is just done, and the epochs that ended with it.

    Args:
        step: number of steps done, of `steps` in `epochs`; an epoch need not be a whole number of steps.
    """
    epoch, done = int((step - 1) * epochs // steps), int(step * epochs // steps)
    return epoch, range(epoch, done)

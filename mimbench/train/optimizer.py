"""AdamW and its parameter groups."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn


def param_groups(
    module: nn.Module, weight_decay: float, no_weight_decay: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Two groups: no weight decay for one-dimensional tensors, biases and the named ones; decay for the rest.

    MAE uses this rule (main_pretrain.py@efb2a80), through timm. BEiT also names `pos_embed` and `cls_token`.

    Args:
        no_weight_decay: names of parameters without decay, matched by their last dotted component.
    """
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim <= 1 or name.endswith(".bias") or name.rsplit(".", 1)[-1] in no_weight_decay
        (undecayed if exempt else decayed).append(parameter)
    groups = [{"params": undecayed, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
    return [{**group, "lr_scale": 1.0} for group in groups if group["params"]]


class _QuietClip:
    """Clips without logging the norm: mmengine's `float(norm)` would wait for the device in every step."""

    optimizer: torch.optim.Optimizer
    clip_grad_kwargs: dict[str, Any]

    def _clip_grad(self) -> None:
        parameters = [
            p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        if self.clip_grad_kwargs["each"]:
            for parameter in parameters:
                nn.utils.clip_grad_norm_(parameter, self.clip_grad_kwargs["max_norm"])
        else:
            nn.utils.clip_grad_norm_(parameters, self.clip_grad_kwargs["max_norm"])


class _Wrapper(_QuietClip, OptimWrapper):
    pass


class _AmpWrapper(_QuietClip, AmpOptimWrapper):
    pass


def optim_wrapper(
    groups: list[dict[str, Any]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    clip_grad: float | None,
    precision: str,
    device: torch.device,
    clip_each: bool = False,
) -> OptimWrapper:
    """AdamW in mmengine's wrapper: fp32, or autocast in fp16 (with dynamic loss scaling) or bf16.

    Args:
        groups: each with its `weight_decay`; groups with decay above 0 are marked for `set_rates`.
        clip_grad: bound on the L2 norm of all gradients together, or of each tensor's with `clip_each`.
    """
    for group in groups:
        group["decayed"] = group["weight_decay"] > 0
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=device.type == "cuda")
    clip = {"max_norm": clip_grad, "each": clip_each} if clip_grad is not None else None
    if precision == "fp32":
        return _Wrapper(optimizer, clip_grad=clip)
    if precision == "fp16":
        return _AmpWrapper(optimizer=optimizer, clip_grad=clip, loss_scale="dynamic", dtype="float16")
    return _AmpWrapper(optimizer=optimizer, clip_grad=clip, loss_scale=1.0, dtype="bfloat16")


def set_rates(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Set every group's learning rate, and the weight decay of the groups marked as decayed."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        if group["decayed"]:  # a mark, not `weight_decay > 0`: a schedule may pass through 0
            group["weight_decay"] = weight_decay

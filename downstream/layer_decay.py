"""Layer-wise learning-rate decay (BEiT, Bao et al., 2022; MAE's util/lr_decay.py)."""

from __future__ import annotations

from typing import Any

from torch import nn

# More than one dimension, and still not decayed (timm's ViT, MAE, BEiT).
NO_WEIGHT_DECAY = ("pos_embed", "cls_token")
# What comes before the blocks; rel_pos_bias is the shared table.
_FIRST = ("cls_token", "pos_embed", "mask_token", "patch_embed", "rel_pos_bias")


def layer_id(name: str, depth: int) -> int:
    """0 for what comes before the blocks, i + 1 for block i, depth + 1 for the rest of the encoder."""
    if name.split(".")[0] in _FIRST:
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1


def param_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float, depth: int, prefix: str
) -> list[dict[str, Any]]:
    """A group for each layer and decay, `lr_scale = layer_decay^(depth + 1 - id)`, of what trains.

    mmsegmentation's and mmdetection's own constructors know their own backbones' names only: they put timm's
    `blocks` into the top group and decay the position embedding.

    Args:
        depth: number of the encoder's blocks.
        prefix: where the encoder sits in the model (`backbone.net.`).
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inside = name.startswith(prefix)
        layer = layer_id(name.removeprefix(prefix), depth) if inside else depth + 1
        exempt = inside and name.removeprefix(prefix) in NO_WEIGHT_DECAY
        decayed = parameter.ndim > 1 and not name.endswith(".bias") and not exempt
        group = groups.setdefault(
            (layer, decayed),
            {
                "params": [],
                "weight_decay": weight_decay if decayed else 0.0,
                "lr_scale": layer_decay ** (depth + 1 - layer),
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]

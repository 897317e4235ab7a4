"""Layer-wise learning-rate decay (BEiT, Bao et al., 2022; MAE's util/lr_decay.py)."""

from __future__ import annotations

from typing import Any

from torch import nn

# Not decayed although they have more than one dimension (timm's ViT, MAE, BEiT).
NO_WEIGHT_DECAY = ("pos_embed", "cls_token")
# Parts before the blocks; rel_pos_bias is the shared table.
_FIRST = ("cls_token", "pos_embed", "mask_token", "patch_embed", "rel_pos_bias")


def layer_id(name: str, depth: int) -> int:
    """0 for the parts before the blocks, i + 1 for block i, depth + 1 for the rest of the encoder."""
    if name.split(".")[0] in _FIRST:
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1


def param_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float, depth: int, prefix: str
) -> list[dict[str, Any]]:
    """Trainable parameters, grouped by layer and weight decay; `lr_scale = layer_decay^(depth + 1 - id)`.

    mmsegmentation's and mmdetection's constructors know only the names of their own backbones: they would put
    timm's `blocks` into the top group and decay the position embedding.

    Args:
        depth: number of the encoder's blocks.
        prefix: of the encoder's parameter names in the model (`backbone.net.`).
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

"""Weight initialisation of MAE and BEiT."""

from __future__ import annotations

import math

from torch import Tensor, nn

from mimbench.vit import ViT


def xavier(module: nn.Module) -> None:
    """MAE's: Xavier-uniform Linear weights, zero biases (models_mae.py@efb2a80); for `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def xavier_patch_embed(vit: ViT) -> None:
    """MAE's patch embedding: Xavier-uniform as for a Linear with 3 p^2 inputs; PyTorch's default bias."""
    conv = vit.patch_embed.proj
    conv.reset_parameters()
    nn.init.xavier_uniform_(conv.weight.view(conv.weight.shape[0], -1))


def narrow_normal_(tensor: Tensor, std: float = 0.02) -> Tensor:
    """BEiT's: a normal distribution truncated at one standard deviation."""
    return nn.init.trunc_normal_(tensor, std=std, a=-std, b=std)


def beit(module: nn.Module) -> None:
    """BEiT's pretraining weights: narrow normal Linear and Conv2d, zero biases; for `Module.apply`."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        narrow_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def rescale_residual_branches(vit: ViT) -> None:
    """BEiT's: divide the weights of `attn.proj` and `mlp.fc2` in block l (from 1) by sqrt(2 l)."""
    for layer, block in enumerate(vit.blocks, start=1):
        block.attn.proj.weight.data /= math.sqrt(2 * layer)
        block.mlp.fc2.weight.data /= math.sqrt(2 * layer)

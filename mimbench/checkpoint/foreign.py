"""Other people's checkpoints: maps parameter names of MAE, BEiT, iBOT, DINO and related codes to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mimbench.arch import ViTConfig
from mimbench.checkpoint.networks import (
    Export,
    ForeignReport,
    Rules,
    find,
    place,
    require_dense,
    require_heads,
)
from mimbench.checkpoint.reader import read
from mimbench.errors import UserError
from mimbench.vit import ViT, relative_position_index, sincos_position_embedding

__all__ = ["VIT", "convert", "read"]

RENAMED = (
    (r"\.gamma_([12])$", r".ls\1.gamma"),  # BEiT's layer scale
    (r"(^|\.)relative_position_bias_table$", r"\1rel_pos_bias.table"),
    (r"^rel_pos_bias\.rel_pos_bias\.", r"rel_pos_bias."),  # BEiT wraps its shared table in a module
)
BESIDE = re.compile(  # what pretraining adds to an encoder: first parts of names
    r"mask(ed)?_(tokens?|emb|embed|embedding)"  # iBOT: masked_embed
    r"|.*heads?|head_\w+|fc_norm|pre_logits|classifier|fc"  # BEiT: lm_head; a classifier's norm and layer
    r"|(decoders?|predictor|pred|projector|projection|regressor|regression|prototypes?|center|queue)(_\w+)?"
    r"|(\w+_)?(loss|criterion)|logit_scale"
    r"|cls_pt_layers"  # BEiT v2: blocks on top of an early class token
    r"|(teacher|momentum|ema|clip|vqkd|dvae|tokenizer|discriminator)(_\w+)?"
)
PARTS = re.compile(  # names that only an encoder's tensors have
    r"(blocks|patch_embed|rope(_embed)?|rel_pos_bias|norm(_pre)?)\."
    r"|((cls|reg|register|storage|dist)_tokens?|pos_embed)$"
)


def rename(name: str) -> str:
    """Our name of a ViT's tensor."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def droppable(name: str, tensor: Tensor) -> bool:
    """Whether a ViT does without a tensor.

    That holds for heads, decoders, mask tokens and their like, and for buffers that repeat what we compute.
    """
    if BESIDE.fullmatch(name.split(".")[0]):
        return True
    if name.endswith(".relative_position_index"):  # BEiT
        side = round(max(len(tensor) - 1, 0) ** 0.5) if tensor.ndim else 0
        own = relative_position_index(side, side, torch.device("cpu")) if 0 < side < 64 else None
        return own is not None and torch.equal(tensor.cpu().long(), own)
    return name.endswith(".attn.k_bias") and not tensor.any()  # timm's BEiT: keys without bias, as zeros


VIT = Rules("ViT", "patch_embed.proj.weight", rename, droppable, PARTS)


def convert(
    state: Mapping[str, Tensor],
    config: ViTConfig,
    path: Path,
    *,
    export: Export | None = None,
    field: str = "weights",
) -> tuple[ViT, ForeignReport]:
    """Build a plain ViT and load the encoder's weights from `state`.

    The tensors do not show the number of heads, except in the columns of a relative position table. Where the
    file's options name it (`num_heads`), it is compared too. Nor do they show a norm's epsilon or the
    activation: ours are those of the MIM families.

    Args:
        state: the tensors of a file, by name.
        config: the recipe's model size, patch size and image size. The variant (positions, biases, layer
            scale) is read from the tensors found.
        export: which of student and teacher the recipe hands over, if it says.

    Raises:
        UserError: a tensor is missing, has no place, another shape or a value that is not finite, or `state`
            holds several encoders.
    """
    where = f"{field} {path}"
    network = find(state, VIT, export, where)
    found = network.tensors
    _require_depth(found, config, where)
    require_heads(state, config.num_heads, where)
    for name in {"pos_embed", "blocks.0.ls1.gamma"} & found.keys():  # the variant is read from their values
        require_dense(where, name, found[name])
    vit = ViT(_variant(config, found))
    own = vit.state_dict()
    tables = any(name.endswith("rel_pos_bias.table") for name in own)
    weights = place(own, network, VIT, where, "Set arch, img_size or patch_size, or is it another method's?")
    if "pos_embed" not in own and not tables:
        needed = tuple(sincos_position_embedding(config.embed_dim, config.grid_size).shape)
        remedy = (
            f"The checkpoint has no positions: neither this tensor, {needed}, nor relative position tables."
        )
        raise UserError(where, "pos_embed", remedy=remedy)
    vit.load_state_dict(weights)
    return vit, network.report(weights)


def _require_depth(found: Mapping[str, Tensor], config: ViTConfig, where: str) -> None:
    """Refuse a file with more blocks than the recipe; fewer are missing tensors."""
    numbers = [int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", name) for name in found) if m]
    depth = 1 + max(numbers, default=-1)
    if depth > config.depth:
        remedy = f"The file has {depth} blocks; the recipe's ViT has {config.depth}. Set arch."
        raise UserError(where, f"blocks.{depth - 1}", remedy=remedy)


def _variant(config: ViTConfig, found: Mapping[str, Tensor]) -> ViTConfig:
    """The recipe's size, with the variant that the checkpoint's tensors show."""
    positions = found.get("pos_embed")
    fixed = sincos_position_embedding(config.embed_dim, config.grid_size)
    is_fixed = (
        positions is not None
        and positions.shape == fixed.shape
        and torch.allclose(positions.float(), fixed, atol=4e-3)  # bfloat16 keeps 8 bits
    )
    block, shared = "blocks.0.attn.rel_pos_bias.table" in found, "rel_pos_bias.table" in found
    tables = "block+shared" if block and shared else "block" if block else "shared" if shared else "none"
    scale = found.get("blocks.0.ls1.gamma")
    return ViTConfig(
        config.img_size,
        config.patch_size,
        config.embed_dim,
        config.depth,
        config.num_heads,
        config.mlp_ratio,
        pos_embed="none" if positions is None else "sincos" if is_fixed else "learned",
        rel_pos=tables,  # type: ignore[arg-type]
        layer_scale_init=None if scale is None else float(scale.float().mean()),
        key_bias="blocks.0.attn.q_bias" not in found,
    )

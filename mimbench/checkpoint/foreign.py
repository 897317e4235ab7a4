"""Reads other people's checkpoints: maps parameter names of MAE, BEiT, iBOT and related codes to ours."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mimbench.arch import ViTConfig
from mimbench.checkpoint.encoder import LoadReport
from mimbench.errors import UserError
from mimbench.vit import ViT, sincos_position_embedding

NESTING = ("model", "state_dict", "teacher", "student", "module")  # where a checkpoint keeps its weights
PREFIXES = ("module.", "backbone.", "encoder.", "visual_encoder.")
RENAMED = (
    (r"\.gamma_([12])$", r".ls\1.gamma"),  # BEiT's layer scale
    (r"(^|\.)relative_position_bias_table$", r"\1rel_pos_bias.table"),
    (r"^rel_pos_bias\.rel_pos_bias\.", r"rel_pos_bias."),  # BEiT wraps its shared table in a module
)


def read(path: Path) -> dict[str, Tensor]:
    """The state dict of a .safetensors or a PyTorch checkpoint; no code in the file is run.

    Raises:
        UserError: it is neither, or holds no tensors.
    """
    remedy = "Give a state dict as .safetensors, or as a PyTorch file that loads without running code."
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # many also keep their options
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError("weights", str(path), remedy=remedy) from error
    for name in NESTING:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not tensors:
        raise UserError("weights", str(path), remedy=remedy)
    return tensors


def convert(state: Mapping[str, Tensor], config: ViTConfig, path: Path) -> tuple[ViT, LoadReport]:
    """Build a plain ViT and load the encoder's weights from `state`.

    Args:
        config: the recipe's model size, patch size and image size. The variant (positions, biases, layer
            scale) is read from the tensors found.

    Raises:
        UserError: a tensor is missing or has another shape, or `state` holds several encoders.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if _rename(name) in found:
            remedy = "It holds several encoders: save the one that is meant by itself."
            raise UserError(f"weights {path}", name, remedy=remedy)
        found[_rename(name)] = tensor.float()
    config = _variant(config, found)
    vit = ViT(config)
    report = LoadReport()
    weights = {}
    for name, own in vit.state_dict().items():
        if name not in found:
            raise UserError(
                f"weights {path}", name, remedy="The checkpoint lacks it; is it another method's?"
            )
        if found[name].shape != own.shape:
            shapes = f"Its shape is {tuple(found[name].shape)}; the recipe needs {tuple(own.shape)}."
            raise UserError(f"weights {path}", name, remedy=f"{shapes} Set arch, img_size or patch_size.")
        weights[name] = found[name]
        report.loaded.append(name)
    report.dropped = sorted(set(found) - set(weights))
    vit.load_state_dict(weights)
    return vit, report


def _rename(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _variant(config: ViTConfig, found: Mapping[str, Tensor]) -> ViTConfig:
    """The recipe's size, with the variant that the checkpoint's tensors show."""
    positions = found.get("pos_embed")
    fixed = sincos_position_embedding(config.embed_dim, config.grid_size)
    is_fixed = (
        positions is not None
        and positions.shape == fixed.shape
        and torch.allclose(positions, fixed, atol=1e-3)  # some are stored in half precision
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
        layer_scale_init=None if scale is None else float(scale.mean()),
        key_bias="blocks.0.attn.q_bias" not in found,
    )

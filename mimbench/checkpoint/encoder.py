"""The encoder file that pretraining hands to every task: safetensors, with the shape in its header."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mimbench.arch import ViTConfig
from mimbench.atomic import write_bytes
from mimbench.checkpoint.reader import ENCODER
from mimbench.checkpoint.values import require_sound
from mimbench.errors import UserError
from mimbench.vit import ViT, resize_position_embedding, sincos_position_embedding

DAMAGED = (
    "The file is damaged, or its pretraining diverged: `mimbench runs rm` removes that run, and the same "
    "command computes it again."
)


@dataclass
class LoadReport:
    """What became of each tensor when an encoder file was loaded; lists of parameter names."""

    loaded: list[str] = field(default_factory=list)
    interpolated: list[str] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, list[str]]:
        return dataclasses.asdict(self)


def save_encoder(vit: ViT, path: Path, *, method: str) -> None:
    """Write the encoder's weights and configuration atomically."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in vit.state_dict().items()}
    # One entry only: safetensors writes several in random order, and equal encoders must be equal files.
    header = {ENCODER: json.dumps({"method": method, "config": vit.config.as_dict()})}
    write_bytes(path, lambda file: file.write(save(state, header)))  # save_file would hide a full disk


def read_encoder(path: str | Path) -> tuple[ViTConfig, dict[str, Tensor]]:
    """Configuration and tensors of an encoder file.

    Raises:
        UserError: missing, truncated, not an encoder file of this project, or with a weight that is NaN,
            infinite or beyond 1e8; the message names the tensor.
    """
    path = Path(path)
    remedy = "Give an encoder.safetensors written by a pretraining run."
    if not path.is_file():
        raise UserError("encoder", str(path), remedy=f"No such file. {remedy}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise UserError(
            "encoder", str(path), remedy=f"Not readable as safetensors ({error}). {remedy}"
        ) from error
    if ENCODER not in header:
        raise UserError("encoder", str(path), remedy=f"Its header does not say {ENCODER!r}. {remedy}")
    try:
        config = ViTConfig(**json.loads(header[ENCODER])["config"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError("encoder", str(path), remedy=f"Its header is damaged ({error}). {remedy}") from error
    for name, tensor in state.items():
        require_sound(f"encoder {path}", name, tensor, DAMAGED)
    return config, state


def load_encoder(
    path: str | Path,
    *,
    drop_path: float = 0.0,
    img_size: int | None = None,
    add_rel_pos: bool = False,
    add_layer_scale: float | None = None,
    positions: Literal["interpolate", "regenerate"] = "interpolate",
) -> tuple[ViT, LoadReport]:
    """Build the ViT of an encoder file for fine-tuning and load it strictly.

    A shared relative position table is added to the table of every block and then removed, as DTM and BEiT
    do before fine-tuning (block table := block table + shared table). Positions are resized if `img_size`
    differs from the pretraining size.

    Args:
        drop_path: stochastic depth of the fine-tuned network.
        img_size: the fine-tuning image's side in pixels; None = as pretrained.
        add_rel_pos: give an encoder without relative positions a table of zeros in each block (MAE's transfer
            to ADE20K, appendix A.4).
        add_layer_scale: give an encoder without layer scale one that starts at this value (1 in the same
            appendix).
        positions: how fixed sin-cos positions are adapted to another grid: interpolated, as the official
            codes do, or computed again for that grid.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape; the message names it and both shapes.
    """
    config, state = read_encoder(path)
    _check_shapes(config, state, path)
    report, anew = LoadReport(), []
    if "shared" in config.rel_pos:
        _fold_shared_table(config, state, report)
        config = dataclasses.replace(config, rel_pos="block")
    if img_size is not None and img_size != config.img_size:
        new = dataclasses.replace(config, img_size=img_size)
        if positions == "regenerate" and config.pos_embed == "sincos":
            state["pos_embed"] = sincos_position_embedding(config.embed_dim, new.grid_size)
            anew = ["pos_embed"]
        _resize_positions(config, new, state, report)
        config = new
    if add_rel_pos and config.rel_pos == "none":
        config = dataclasses.replace(config, rel_pos="block")
    if add_layer_scale is not None and config.layer_scale_init is None:
        config = dataclasses.replace(config, layer_scale_init=add_layer_scale)
    vit = ViT(config, drop_path)
    added = [name for name in vit.state_dict() if name not in state]
    vit.load_state_dict(state, strict=not added)
    report.new = [*anew, *added]
    changed = {*report.interpolated, *report.folded, *report.new}
    report.loaded = [name for name in vit.state_dict() if name not in changed]
    return vit, report


def _check_shapes(config: ViTConfig, state: dict[str, Tensor], path: str | Path) -> None:
    """The file must hold exactly the tensors of the encoder that its header describes."""
    with torch.device("meta"):
        expected = ViT(config).state_dict()
    for name in sorted({*expected, *state}):
        if name not in state:
            raise UserError(f"encoder {path}", name, remedy="This tensor is missing from the file.")
        if name not in expected:
            raise UserError(
                f"encoder {path}", name, remedy="This tensor is unknown to the encoder it describes."
            )
        if state[name].shape != expected[name].shape:
            found, wanted = tuple(state[name].shape), tuple(expected[name].shape)
            raise UserError(
                f"encoder {path}", name, remedy=f"Its shape is {found}; the encoder needs {wanted}."
            )


def _fold_shared_table(config: ViTConfig, state: dict[str, Tensor], report: LoadReport) -> None:
    shared = state.pop("rel_pos_bias.table")
    for i in range(config.depth):
        name = f"blocks.{i}.attn.rel_pos_bias.table"
        state[name] = state[name] + shared if name in state else shared.clone()
        report.folded.append(name)


def _resize_positions(old: ViTConfig, new: ViTConfig, state: dict[str, Tensor], report: LoadReport) -> None:
    for name, tensor in state.items():
        if name == "pos_embed" and tensor.shape[1] == 1 + new.grid_size**2:
            continue
        if name == "pos_embed":
            state[name] = resize_position_embedding(tensor, (new.grid_size, new.grid_size))
        elif name.endswith("rel_pos_bias.table"):
            state[name] = resize_relative_table(tensor, old.grid_size, new.grid_size)
        else:
            continue
        report.interpolated.append(name)


def resize_relative_table(table: Tensor, old_grid: int, new_grid: int) -> Tensor:
    """Resize a relative position table `[(2G-1)^2 + 3, heads]` to another grid, as BEiT's fine-tuning does.

    The old offsets are placed on a geometric sequence: near offsets hardly move, far ones move most. A cubic
    spline through them is evaluated at the new integer offsets. The last three rows (class token) are kept.
    """
    from scipy.interpolate import RectBivariateSpline

    if old_grid == new_grid:
        return table
    old_side, new_side = 2 * old_grid - 1, 2 * new_grid - 1
    offsets = table[:-3].T.reshape(-1, old_side, old_side).double().numpy()  # [heads, 2G-1, 2G-1]
    x, target = _geometric_offsets(old_grid, new_grid), np.arange(-(new_grid - 1), new_grid)
    degree = min(3, old_side - 1)
    resized = np.stack(
        [RectBivariateSpline(x, x, head, kx=degree, ky=degree)(target, target) for head in offsets]
    )
    body = torch.from_numpy(resized.reshape(len(offsets), new_side * new_side).T).to(table)
    return torch.cat([body, table[-3:]])


def _geometric_offsets(old_grid: int, new_grid: int) -> np.ndarray:
    """Places of the old offsets: sums of powers of q. q is chosen so that the last one is the new edge."""
    low, high = 1.01, 1.5
    if new_grid < old_grid:
        low, high = 0.1, 0.999999
    edge = new_grid - 1
    while high - low > 1e-6:
        q = (low + high) / 2
        if sum(q**i for i in range(old_grid - 1)) > edge:
            high = q
        else:
            low = q
    steps = np.cumsum([q**i for i in range(old_grid - 1)])
    return np.concatenate([-steps[::-1], [0.0], steps])

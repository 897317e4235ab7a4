"""What segmentation and detection share: recipe fields, backbone, fine-tuning, FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from downstream.estimate import encoder_flops
from mimbench.arch import size_of
from mimbench.contract import TransferRecipe
from mimbench.recipe import require_range

if TYPE_CHECKING:
    from mmengine.model import BaseModel

    from mimbench.store.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class DenseRecipe(TransferRecipe):
    """Fields of fine-tuning on a dense task."""

    add_rel_pos: bool  # give an encoder without relative positions a table of zeros in each block
    add_layer_scale: float | None  # initial layer scale for an encoder that has none; None: add none
    final_norm: bool  # apply the encoder's final norm to the taps; off: the norm is removed
    positions: Literal["interpolate", "regenerate"]  # how sin-cos positions adapt to another grid
    window: int  # side of the attention windows, in patches; four evenly spaced blocks are global; 0: all are
    checkpoint_blocks: bool  # compute the blocks again in the backward pass: less memory, a third more time

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("window", self.window, 0)

    def backbone(self, encoder: Path) -> dict[str, Any]:
        """The mm-series configuration that makes the encoder file the backbone."""
        from downstream.backbone import ViTBackbone

        return {
            "type": ViTBackbone,
            "encoder": str(encoder),
            "img_size": self.img_size,
            "drop_path": self.drop_path,
            "add_rel_pos": self.add_rel_pos,
            "add_layer_scale": self.add_layer_scale,
            "norm": self.final_norm,
            "positions": self.positions,
            "window": self.window,
            "checkpoint_blocks": self.checkpoint_blocks,
        }


def fit_dense(model: BaseModel, train: Any, folder: RunFolder, recipe: DenseRecipe, *, steps: int) -> None:
    """Fine-tune with layer decay on the images of mmsegmentation's or mmdetection's dataset."""
    from mmengine.dataset import pseudo_collate

    from downstream.layer_decay import param_groups
    from mimbench.train.runner import fit

    folder.details["load_report"] = model.backbone.load_report.as_dict()
    groups = param_groups(
        model,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        depth=len(model.backbone.net.blocks),
        prefix="backbone.net.",
    )
    fit(model, train, folder, recipe, steps=steps, param_groups=groups, collate=pseudo_collate)


def dense_flops(recipe: Mapping[str, Any], arch: str, patch_size: int) -> float:
    """FLOPs of the forward pass of the encoder and `MultiTapPyramid` on an image of side `img_size`."""
    cells = (recipe["img_size"] // patch_size) ** 2
    pyramid = 2 * cells * size_of(arch).embed_dim ** 2 * (4 + 16 + 4)
    return encoder_flops(recipe, arch, patch_size) + pyramid

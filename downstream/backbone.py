"""The pretrained ViT as a backbone of mmsegmentation and mmdetection: images in, feature maps out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from mimbench.checkpoint.encoder import load_encoder
from mimbench.vit import ViT

OFFICIAL_TAPS = {12: (3, 5, 7, 11), 24: (7, 11, 15, 23)}  # BEiT, MAE, iBOT: ViT-B and ViT-L


def default_taps(depth: int) -> tuple[int, ...]:
    """The official codes' four blocks (0-based); at other depths four evenly spaced blocks up to the last."""
    return OFFICIAL_TAPS.get(depth) or tuple(depth * (i + 1) // 4 - 1 for i in range(4))


@MODELS.register_module()
class ViTBackbone(BaseModule):
    """An encoder file as an mm-series backbone.

    Args:
        encoder: the encoder file.
        img_size: side of the training crop in pixels; positions are resized to it once. For images of other
            sizes `forward` resizes them.
        drop_path: stochastic depth of the last block.
        taps: 0-based blocks whose outputs are returned; default: `default_taps`.
        norm: apply the encoder's final norm to each tap (iBOT); otherwise this norm is removed.
        frozen_blocks: number of first blocks that are frozen, together with all parts before them; 0 = none.
        add_rel_pos, add_layer_scale, positions: see `load_encoder`.
        window: side of the attention windows, in patches, in all blocks except the last of each quarter
            (ViTDet, Li et al., 2022); 0 = global attention everywhere.
        checkpoint_blocks: compute the blocks again in the backward pass, which saves memory.

    Attributes:
        load_report: how each tensor of the file was loaded.
        out_channels, out_strides: of each returned map.
    """

    def __init__(
        self,
        encoder: str | Path,
        *,
        img_size: int | None = None,
        drop_path: float = 0.0,
        taps: Sequence[int] | None = None,
        norm: bool = False,
        frozen_blocks: int = 0,
        add_rel_pos: bool = False,
        add_layer_scale: float | None = None,
        positions: Literal["interpolate", "regenerate"] = "interpolate",
        window: int = 0,
        checkpoint_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.load_report = load_encoder(
            Path(encoder),
            drop_path=drop_path,
            img_size=img_size,
            add_rel_pos=add_rel_pos,
            add_layer_scale=add_layer_scale,
            positions=positions,
        )
        depth = len(self.net.blocks)
        self.net.window, self.net.checkpoint_blocks = window, checkpoint_blocks
        self.net.global_blocks = tuple(depth * (i + 1) // 4 - 1 for i in range(4))
        self.taps = tuple(taps) if taps is not None else default_taps(depth)
        self.out_channels = [self.net.embed_dim] * len(self.taps)
        self.out_strides = [self.net.config.patch_size] * len(self.taps)
        self.norm = norm
        if not norm:
            self.load_report.dropped += remove_final_norm(self.net)
        if frozen_blocks:
            self._freeze(frozen_blocks)

    def init_weights(self) -> None:
        """Does nothing: the weights are loaded already, and mm-series models call this on every part."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps `[B, D, H/patch, W/patch]` of images `[B, 3, H, W]`; the patch size must divide H and W."""
        maps = self.net.taps(images, self.taps)
        if self.norm:
            maps = [self.net.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for x in maps]
        return tuple(maps)

    def _freeze(self, blocks: int) -> None:
        for parameter in self.net.parameters(recurse=False):  # class token, positions
            parameter.requires_grad_(False)
        for module in (self.net.patch_embed, *self.net.blocks[:blocks]):
            module.requires_grad_(False)


def remove_final_norm(vit: ViT) -> list[str]:
    """Remove the encoder's final norm, which fine-tuning does not use; returns the names removed."""
    names = [f"norm.{name}" for name, _ in vit.norm.named_parameters()]
    vit.norm = nn.Identity()
    return names

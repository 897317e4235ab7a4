"""The student of feature-target methods, as in BEiT v2: mask tokens replace the masked patches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from mimbench.arch import size_of
from mimbench.data.augment import MEAN, STD
from mimbench.recipe import PretrainRecipe, require_range
from pretrain import weight_init
from pretrain.masked_vit import MaskedViT
from pretrain.masking import block_masks

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class FeatureRecipe(PretrainRecipe):
    """A BEiT-style student and a frozen CLIP teacher."""

    num_masked: int  # patches hidden from the student
    min_mask_block: int  # least area of a mask block, in patches
    layer_scale_init: float
    target_dim: int  # channels of a target token
    project_target: bool  # apply CLIP's projection to the target; off: the features before it
    clip_normalisation: bool  # give the teacher CLIP's own image statistics instead of the student's
    normalize_target: bool  # standardise each target token over its channels
    loss_type: Literal["smoothl1", "l1", "l2", "negcosine"]  # see `token_distance`

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("num_masked", self.num_masked, 0, self.num_patches)
        require_range("min_mask_block", self.min_mask_block, 1, self.num_patches)

    def step_flops(self, teacher: PretrainRecipe) -> float:
        head = 2.0 * self.num_patches * size_of(self.arch).embed_dim * self.target_dim
        return 3 * (self.encoder_flops() + head) + teacher.encoder_flops()


class FeatureStudent(MaskedViT):
    """A masked ViT and one linear head on every patch token.

    modeling_dtm.py@322df2e: no absolute positions; a relative position table in each block and one shared by
    all; no key bias; layer scale; the class token passes through the blocks but has no loss.
    """

    def __init__(self, recipe: FeatureRecipe) -> None:
        super().__init__(recipe, positions="block+shared", layer_scale_init=recipe.layer_scale_init)
        self.head = nn.Linear(self.encoder.embed_dim, recipe.target_dim)
        self.head.apply(weight_init.beit)
        self.num_masked, self.min_mask_block = recipe.num_masked, recipe.min_mask_block

    def draw_masks(self, images: Tensor) -> Tensor:
        """Block-wise masks `[B, N]`, 1 = masked."""
        counts = self.num_masked, self.min_mask_block
        return block_masks(len(images), self.grid_size, *counts, images.device)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Predicted target of every patch token, masked or not: `[B, N, target_dim]`."""
        return self.head(super().forward(images, mask)[:, 1:])


def teacher_tokens(
    teacher: nn.Module, images: Tensor, *, project: bool, clip_normalisation: bool = False
) -> Tensor:
    """The frozen teacher's patch tokens `[B, N, C]`, without gradient.

    The teacher gets the student's normalised images, as in DTM's released code. With `clip_normalisation` the
    images are first changed to CLIP's mean and standard deviation, as in DeepMIM (7bf1e80).
    """
    with torch.no_grad():
        if clip_normalisation:
            images = to_clip_statistics(images)
        return teacher(images, project=project)[:, 1:]


def to_clip_statistics(images: Tensor) -> Tensor:
    """Change images `[B, 3, H, W]` from ImageNet's mean and standard deviation to OpenAI CLIP's."""
    scale, shift = _clip_scale_and_shift(images.device)
    return images * scale + shift


@lru_cache
def _clip_scale_and_shift(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std, clip_mean, clip_std = (
        torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD, CLIP_MEAN, CLIP_STD)
    )
    return std / clip_std, (mean - clip_mean) / clip_std


def token_distance(pred: Tensor, target: Tensor, loss_type: str) -> Tensor:
    """Mean distance between token features, both `[B, N, C]`; engine_for_dtm.py@322df2e.

    `smoothl1` is the smooth L1 loss with beta = 2; `negcosine` is 1 - cos with eps 1e-6, averaged over
    tokens.
    """
    if loss_type == "smoothl1":
        return nn.functional.smooth_l1_loss(pred, target, beta=2.0)
    if loss_type == "l1":
        return nn.functional.l1_loss(pred, target)
    if loss_type == "l2":
        return nn.functional.mse_loss(pred, target)
    if loss_type == "negcosine":
        return 1 - nn.functional.cosine_similarity(pred, target, dim=-1, eps=1e-6).mean()
    raise ValueError(f"loss_type must be smoothl1, l1, l2 or negcosine, not {loss_type!r}")

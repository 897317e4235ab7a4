"""iBOT: Image BERT Pre-Training with Online Tokenizer (Zhou et al., ICLR 2022, arXiv 2111.07832).

Section 3.2: student and moving-average teacher have the same architecture and head. L_cls is DINO's loss: the
class token of every view predicts the teacher's class tokens of the other global views. L_MIM is masked image
modelling with the teacher as tokenizer: the student's masked patches predict the teacher's patches of the
same view, which the teacher sees whole. On average half of the global crops are not masked at all. Algorithm
1 is `IBOT.forward` and `IBOT.forward_loss`.

Follows bytedance/ibot@da316d8 with the settings of its README: class and patch tokens share the head, and
their temperatures and centre momenta are equal; golden: ibot_tiny.npz. See also
pretrain/self_distillation.py. Deviations: fine-tuning pools the patches, as for every method here, instead of
taking the class token. The paper fine-tunes with the best of four learning rates; the recipe has one of them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mimbench.contract import MethodCard, TransferOverrides
from mimbench.recipe import SMALL, SMOKE, cite, require_range
from mimbench.vit import ViT
from pretrain.masking import block_masks
from pretrain.self_distillation import (
    FEW_STEPS,
    NUM_GLOBAL,
    Center,
    DistillationRecipe,
    MultiCrop,
    SelfDistillation,
    cross_view_loss,
    health,
)


class IBOT(SelfDistillation):
    """Self-distillation of class tokens across views, and of masked patches within a view."""

    recipe: IBOTRecipe

    def __init__(self, recipe: IBOTRecipe) -> None:
        super().__init__(recipe)
        self.masked_embed = nn.Parameter(torch.zeros(1, self.student.encoder.embed_dim))
        self.patch_center = Center(recipe.out_dim, recipe.center_momentum)

    @property
    def encoder(self) -> ViT:
        return (self.teacher if self.recipe.export == "teacher" else self.student).encoder

    def draw_masks(self, images: Tensor) -> Tensor:
        """Block-wise masks `[B, N]`, 1 = masked; each image draws its own mask ratio."""
        r, side = self.recipe, self.student.encoder.config.grid_size
        counts = [r.draw_mask_ratio() * side**2 for _ in range(len(images))]
        return block_masks(len(images), side, counts, (side // 3) ** 2, images.device, exact=False)

    def encode_masked(self, images: Tensor, mask: Tensor) -> Tensor:
        """The student's tokens of masked images, after the final norm, `[B, 1+N, D]`."""
        vit = self.student.encoder
        return vit.norm(vit.encode(vit.embed(images, mask, self.masked_embed))[-1])

    def forward_loss(
        self, student: Tensor, local_cls: Tensor, teacher: Tensor, mask: Tensor, epoch: float
    ) -> dict[str, Tensor]:
        """The weighted sum of both losses, each loss, and signs of collapse (`health`).

        Args:
            student, teacher: tokens of the global crops, crop after crop, `[2B, 1+N, D]`.
            local_cls: the student's class tokens of the local crops, `[L * B, D]`.
            mask: `[2B, N]`, 1 = masked from the student.
        """
        r = self.recipe
        temp, frozen = r.teacher_temp_at(epoch), self.last_layer_frozen(epoch)
        with torch.no_grad():
            logits = self.teacher.head(teacher)  # [2B, 1+N, K]
            target_cls = self.center.targets(logits[:, 0], temp).unflatten(0, (NUM_GLOBAL, -1))  # [2, B, K]
            target_patch = self.patch_center.targets(logits[:, 1:], temp)  # [2B, N, K]
        pred_cls = self.student.head(torch.cat([student[:, 0], local_cls]), frozen)
        pred_cls = pred_cls.unflatten(0, (-1, target_cls.shape[1]))  # [2+L, B, K]
        pred_patch = self.student.head(student[:, 1:], frozen)  # [2B, N, K]
        loss_cls = cross_view_loss(pred_cls, target_cls, r.student_temp)
        loss_patch = patch_loss(pred_patch, target_patch, mask, r.student_temp)
        loss = r.cls_weight * loss_cls + r.patch_weight * loss_patch
        return {"loss": loss, "loss_cls": loss_cls, "loss_patch": loss_patch, **health(target_cls)}

    def forward(self, crops: tuple[Tensor, ...], step_fraction: float) -> dict[str, Tensor]:
        images = torch.cat(crops[:NUM_GLOBAL])  # [2B, 3, H, W]
        mask = self.draw_masks(images)
        with torch.no_grad():
            teacher = self.teacher.encoder(images)
        student = self.encode_masked(images, mask)
        local_cls = self.local_class_tokens(crops[NUM_GLOBAL:])
        return self.forward_loss(student, local_cls, teacher, mask, step_fraction * self.recipe.epochs)


def patch_loss(logits: Tensor, target: Tensor, mask: Tensor, temp: float) -> Tensor:
    """Cross-entropy, averaged over the masked patches of each crop (0 if there are none), then over crops.

    Args:
        logits, target: the student's logits and the teacher's probabilities, `[B, N, K]`.
        mask: `[B, N]`, 1 = masked.
    """
    entropy = -(target * (logits.float() / temp).log_softmax(dim=-1)).sum(dim=-1)  # [B, N]
    return ((entropy * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()


@dataclass(frozen=True, kw_only=True)
class IBOTRecipe(DistillationRecipe):
    mask_ratio: tuple[float, ...]  # a global crop draws one of these, plus or minus its `mask_ratio_var`
    mask_ratio_var: tuple[float, ...]
    cls_weight: float  # lambda 1
    patch_weight: float  # lambda 2
    export: Literal["teacher", "student"]  # whose encoder the downstream tasks get

    def __post_init__(self) -> None:
        super().__post_init__()
        for ratio, var in zip(self.mask_ratio, self.mask_ratio_var, strict=True):
            require_range("mask_ratio_var", var, 0, min(ratio, 1 - ratio))

    @property
    def head_tokens(self) -> int:
        return 1 + self.num_patches

    def draw_mask_ratio(self) -> float:
        """One crop's mask ratio, from Python's `random`."""
        ratio, var = random.choice(list(zip(self.mask_ratio, self.mask_ratio_var, strict=True)))
        return random.uniform(ratio - var, ratio + var)


def recipes() -> Mapping[str, IBOTRecipe]:
    readme = "code, README.md@da316d8 (its ViT-S command)"
    code = "code, main_ibot.py@da316d8"
    paper = IBOTRecipe.of(
        cite("paper, section 4.1: ViT-B/16", arch="vit_base", img_size=224, patch_size=16),
        cite("paper, section 4.1: ViT-B/16", epochs=400.0, global_batch_size=1024),
        cite("paper, section 4.1: ViT-B/16", min_crop_scale=0.32, local_min_scale=0.05),
        cite(readme, num_local_crops=10, mask_ratio=(0.0, 0.3), mask_ratio_var=(0.0, 0.2)),
        cite(readme, teacher_temp=0.07, warmup_teacher_temp_epochs=30, out_dim=8192),
        cite("code, models/head.py@da316d8", head_hidden_dim=2048, bottleneck_dim=256),
        cite(code, base_lr=5e-4, lr_rule="linear", min_lr=1e-6, warmup_epochs=10.0, precision="fp16"),
        cite(code, betas=(0.9, 0.999), weight_decay=0.04, weight_decay_end=0.4, clip_grad=3.0, drop_path=0.1),
        cite(code, momentum=0.996, center_momentum=0.9, student_temp=0.1, warmup_teacher_temp=0.04),
        cite(code, cls_weight=1.0, patch_weight=1.0, freeze_last_layer=1.0),
        cite(code, local_img_size=96, color_jitter=0.4),
        cite(code, blur_probs=(1.0, 0.1, 0.5), blur_radius=2.0, solarize_prob=0.2),
        cite("code, evaluation/eval_cls.py@da316d8", export="teacher"),
    )
    small = paper.at_small(
        cite(SMALL, out_dim=128, head_hidden_dim=96, bottleneck_dim=32, freeze_last_layer=0.1, drop_path=0.0),
        cite(SMALL, epochs=2.0, warmup_epochs=0.3, global_batch_size=16, weight_decay_end=0.1),
        cite(SMALL, base_lr=1.5e-3, lr_rule="absolute", min_lr=1e-5),
        cite(SMALL, local_img_size=32, num_local_crops=2, blur_radius=0.6),
        *FEW_STEPS,
    )
    toy = small.vary("ours: about what MAE costs", epochs=3.0, warmup_epochs=0.3)
    smoke = toy.at_smoke(
        cite(SMOKE, out_dim=64, head_hidden_dim=32, bottleneck_dim=16, freeze_last_layer=0.0),
        cite(SMOKE, local_img_size=16, warmup_epochs=0.3),
    )
    return {"paper": paper, "small": small, "toy": toy, "smoke": smoke}


def transfer() -> TransferOverrides:
    """iBOT's fine-tuning of ViT-B."""
    code = "iBOT code, evaluation/README.md@da316d8"
    best = f"{code}; the learning rate is one of its four"
    cascade = f"{code}, of its Cascade Mask R-CNN"
    return {
        "classification": {
            "paper": [
                cite(best, base_lr=1e-3, lr_rule="absolute", layer_decay=0.65, drop_path=0.2),
                cite(best, epochs=100.0, warmup_epochs=20.0),
            ]
        },
        "segmentation": {
            "paper": [
                cite(code, base_lr=8e-5, layer_decay=0.65, drop_path=0.1),
                cite(code, add_rel_pos=False, add_layer_scale=None, final_norm=True),
            ]
        },
        "detection": {"paper": [cite(cascade, base_lr=1e-4, global_batch_size=16, milestones=(8.0, 11.0))]},
    }


METHOD = MethodCard(
    name="ibot",
    title="iBOT",
    paper="Zhou et al., iBOT: Image BERT Pre-Training with Online Tokenizer, ICLR 2022",
    code="bytedance/ibot@da316d8",
    provenance="official",
    recipes=recipes,
    build=IBOT,
    augment=MultiCrop,
    transfer=transfer,
    golden=("ibot_tiny.npz",),
    points=11,
)

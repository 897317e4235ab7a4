"""data2vec: a General Framework for Self-supervised Learning (Baevski et al., ICML 2022), on pictures.

Section 3: a student sees a picture with masked blocks; a teacher, the moving average of the student (3.3),
sees it whole. At the masked patches the student regresses the mean of the teacher's top K blocks, each
normalised (3.3, equation for y_t), by a smooth L1 loss (3.4, beta = 2). Follows
facebookresearch/data2vec_vision@af9a363 (`beit/run_cyclical.py`, the README's ViT-B command), with BEiT's
encoder; the student's encoder is exported, as there.

Differs: the head also runs on visible tokens, whose error does not count (a step must not wait for the mask).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.arch import patch_embed_flops, size_of, transformer_flops
from mimbench.contract import MethodCard, TransferOverrides
from mimbench.recipe import PretrainRecipe, require_range
from mimbench.vit import ViT
from pretrain import weight_init
from pretrain.ema import follow, frozen_copy
from pretrain.masked_vit import MaskedViT
from pretrain.masking import block_masks


class Data2vec(nn.Module):
    """A masked student and a teacher that follows it."""

    def __init__(self, recipe: Data2vecRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.student = MaskedViT(recipe, positions="shared", layer_scale_init=recipe.layer_scale_init)
        self.head = nn.Linear(self.encoder.embed_dim, self.encoder.embed_dim)
        self.head.apply(weight_init.beit)
        self.teacher = frozen_copy(self.encoder)  # before the student's attention starts to drop
        for block in self.encoder.blocks:
            block.attn.attend = self.attend

    @property
    def encoder(self) -> ViT:
        return self.student.encoder

    def train(self, mode: bool = True) -> Data2vec:
        super().train(mode)
        self.teacher.eval()
        return self

    def no_weight_decay(self) -> set[str]:
        return self.encoder.no_weight_decay()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Tensor:
        """The student's attention, with dropout on its weights while it trains."""
        dropout = self.recipe.attention_dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, **rest)

    def draw_masks(self, images: Tensor) -> Tensor:
        """Block-wise masks `[B, N]`, 1 = masked; where blocks stall, fewer than `num_masked`."""
        r = self.recipe
        grid_size = self.student.grid_size
        return block_masks(
            images.shape[0], grid_size, r.num_masked, r.min_mask_block, images.device, exact=False
        )

    @torch.no_grad()
    def forward_target(self, images: Tensor) -> Tensor:
        """y: mean of the teacher's normalised top K blocks, normalised again, of whole pictures, `[B, N, D]`.

        The blocks' raw outputs are taken: the final norm has no part in it, and no norm here learns.
        """
        depth, dim = len(self.teacher.blocks), (self.teacher.embed_dim,)
        taps = range(depth - self.recipe.num_target_layers, depth)
        outputs = self.teacher.encode(self.teacher.embed(images), taps=taps)[: len(taps)]
        layers = [F.layer_norm(x[:, 1:].float(), dim) for x in outputs]
        return F.layer_norm(torch.stack(layers).mean(dim=0), dim)

    def predict(self, images: Tensor, mask: Tensor) -> Tensor:
        """The student's prediction for every patch, `[B, N, D]`."""
        return self.head(self.student(images, mask)[:, 1:])

    def forward_loss(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Smooth L1 distance on the masked patches, all of the batch weighing alike."""
        beta = self.recipe.smooth_l1_beta
        error = F.smooth_l1_loss(pred.float(), target, beta=beta, reduction="none").mean(dim=-1)  # [B, N]
        return (error * mask).sum() / mask.sum()

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        mask = self.draw_masks(images)
        return {"loss": self.forward_loss(self.predict(images, mask), self.forward_target(images), mask)}

    def after_step(self, step: int) -> None:
        follow(self.teacher, self.encoder, self.recipe.momentum)


@dataclass(frozen=True, kw_only=True)
class Data2vecRecipe(PretrainRecipe):
    num_masked: int  # patches hidden from the student, at most
    min_mask_block: int  # least area of a mask block, in patches
    layer_scale_init: float
    attention_dropout: float  # of the student's attention weights
    momentum: float  # of the teacher, constant
    num_target_layers: int  # K: the teacher's last blocks that are averaged
    smooth_l1_beta: float  # differences below it count squared

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("num_masked", self.num_masked, 1, self.num_patches)
        require_range("min_mask_block", self.min_mask_block, 1, self.num_patches)
        require_range("attention_dropout", self.attention_dropout, 0, 1)
        require_range("momentum", self.momentum, 0, 1)
        require_range("num_target_layers", self.num_target_layers, 1, size_of(self.arch).depth)
        require_range("smooth_l1_beta", self.smooth_l1_beta, 0)

    def step_flops(self) -> float:
        dim, depth, _ = size_of(self.arch)
        encoder = transformer_flops(dim, depth, self.num_patches + 1)
        encoder += patch_embed_flops(dim, self.num_patches, self.patch_size)
        head = 2.0 * self.num_patches * dim**2
        return 3 * (encoder + head) + encoder  # student forward and backward, teacher forward


def recipes() -> Mapping[str, Data2vecRecipe]:
    paper = Data2vecRecipe.cited(
        {
            "code, README's ViT-B command@af9a363": {
                "arch": "vit_base",
                "num_masked": 120,
                "min_mask_block": 16,
                "num_target_layers": 6,
                "momentum": 0.9998,
                "global_batch_size": 2048,
                "base_lr": 2e-3,
                "lr_rule": "absolute",
                "warmup_epochs": 10.0,
                "epochs": 800.0,
                "clip_grad": 3.0,
                "drop_path": 0.25,
                "layer_scale_init": 1e-4,
                "smooth_l1_beta": 2.0,
                "weight_decay": 0.05,
                "attention_dropout": 0.05,
            },
            "code, parser defaults of run_cyclical.py@af9a363": {
                "img_size": 224,
                "min_lr": 1e-5,
                "color_jitter": 0.4,
                "betas": (0.9, 0.999),
            },
            "code, modeling_cyclical.py@af9a363": {"patch_size": 16},
            "code, datasets.py and transforms.py@af9a363": {"min_crop_scale": 0.08},
            "code, engine_for_cyclical.py@af9a363": {"precision": "fp16"},
        }
    )
    small = paper.at_small(
        num_masked=39,  # 61 % of 64 patches, as 120 of 196
        min_mask_block=5,  # 8 % of the grid, as 16 of 196
        num_target_layers=2,  # half of the blocks, as 6 of 12
        momentum=0.99,  # a memory of a tenth of a thousand steps
        layer_scale_init=0.1,  # a thousand steps do not open branches scaled by 1e-4
        drop_path=0.1,
        epochs=6.0,
    )
    toy = small.at_toy(epochs=11.0, color_jitter=0.0)
    smoke = toy.at_smoke(num_masked=10, min_mask_block=2)
    return {"paper": paper, "small": small, "toy": toy, "smoke": smoke}


def transfer() -> TransferOverrides:
    """data2vec's own fine-tuning: 4e-3 for 1024 pictures."""
    return {
        "classification": {
            "paper": {
                "code, README's fine-tuning command@af9a363": {
                    "base_lr": 4e-3,
                    "lr_rule": "absolute",
                    "layer_decay": 0.65,
                    "drop_path": 0.2,
                    "weight_decay": 0.0,
                    "epochs": 100.0,
                    "warmup_epochs": 10.0,
                },
            }
        }
    }


METHOD = MethodCard(
    name="data2vec",
    title="data2vec",
    paper="Baevski et al., data2vec: A General Framework for Self-supervised Learning in Speech, Vision and "
    "Language, ICML 2022",
    code="facebookresearch/data2vec_vision@af9a363",
    reconstruction=False,
    recipes=recipes,
    build=Data2vec,
    transfer=transfer,
    points=9,
)

"""data2vec: a General Framework for Self-supervised Learning (Baevski et al., ICML 2022), on images.

Section 3: a student sees an image with masked blocks. A teacher, the moving average of the student (3.3),
sees the whole image. At the masked patches the student regresses the mean of the teacher's top K blocks, each
normalised (3.3, equation for y_t), with a smooth L1 loss (3.4, beta = 2). Follows
facebookresearch/data2vec_vision@af9a363 (`beit/run_cyclical.py`, the README's ViT-B command), with BEiT's
encoder. The student's encoder is exported, as in the code.

Differs: the head also runs on visible tokens, but their error does not count. This gives fixed shapes, so a
step need not wait for the mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.arch import size_of
from mimbench.contract import MethodCard, TransferOverrides
from mimbench.method import Method
from mimbench.recipe import SMALL, PretrainRecipe, cite, require_range
from mimbench.vit import ViT
from pretrain import weight_init
from pretrain.ema import follow, frozen_copy
from pretrain.masked_vit import MaskedViT
from pretrain.masking import block_masks
from pretrain.target import masked_mean


class Data2vec(Method):
    """A masked student and a teacher that follows it."""

    def __init__(self, recipe: Data2vecRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.student = MaskedViT(recipe, positions="shared", layer_scale_init=recipe.layer_scale_init)
        self.head = nn.Linear(self.encoder.embed_dim, self.encoder.embed_dim)
        self.head.apply(weight_init.beit)
        self.teacher = frozen_copy(self.encoder)  # before the student's attention gets dropout
        for block in self.encoder.blocks:
            block.attn.attend = self.attend

    @property
    def encoder(self) -> ViT:
        return self.student.encoder

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Tensor:
        """The student's attention, with dropout on its weights while it trains."""
        dropout = self.recipe.attention_dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, **rest)

    def draw_masks(self, images: Tensor) -> Tensor:
        """Block-wise masks `[B, N]`, 1 = masked: `num_masked` patches, or fewer if no more block fits."""
        r, grid = self.recipe, self.student.grid_size
        return block_masks(len(images), grid, r.num_masked, r.min_mask_block, images.device, exact=False)

    @torch.no_grad()
    def forward_target(self, images: Tensor) -> Tensor:
        """y: mean of the teacher's normalised top K blocks on whole images, normalised again, `[B, N, D]`.

        It takes the blocks' raw outputs, without the final norm. The norms here have no learned weights.
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
        """Smooth L1 distance, averaged over all masked patches of the batch."""
        beta = self.recipe.smooth_l1_beta
        error = F.smooth_l1_loss(pred.float(), target, beta=beta, reduction="none").mean(dim=-1)  # [B, N]
        return masked_mean(error, mask)

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        mask = self.draw_masks(images)
        return {"loss": self.forward_loss(self.predict(images, mask), self.forward_target(images), mask)}

    def after_step(self, step: int) -> None:
        follow(self.teacher, self.encoder, self.recipe.momentum)


@dataclass(frozen=True, kw_only=True)
class Data2vecRecipe(PretrainRecipe):
    num_masked: int  # patches hidden from the student, at most
    min_mask_block: int  # smallest area of a mask block, in patches
    layer_scale_init: float
    attention_dropout: float  # of the student's attention weights
    momentum: float  # of the teacher, constant
    num_target_layers: int  # K: number of the teacher's last blocks that are averaged
    smooth_l1_beta: float  # below it the loss is quadratic, above it linear

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("num_masked", self.num_masked, 1, self.num_patches)
        require_range("min_mask_block", self.min_mask_block, 1, self.num_patches)
        require_range("attention_dropout", self.attention_dropout, 0, 1)
        require_range("momentum", self.momentum, 0, 1)
        require_range("num_target_layers", self.num_target_layers, 1, size_of(self.arch).depth)
        require_range("smooth_l1_beta", self.smooth_l1_beta, 0)

    def step_flops(self) -> float:
        head = 2.0 * self.num_patches * size_of(self.arch).embed_dim ** 2
        return 3 * (self.encoder_flops() + head) + self.encoder_flops()  # the teacher's pass is forward only


def recipes() -> Mapping[str, Data2vecRecipe]:
    readme = "code, README's ViT-B command@af9a363"
    parser = "code, parser defaults of run_cyclical.py@af9a363"
    paper = Data2vecRecipe.of(
        cite(readme, arch="vit_base", layer_scale_init=1e-4, drop_path=0.25, attention_dropout=0.05),
        cite(readme, epochs=800.0, warmup_epochs=10.0, global_batch_size=2048),
        cite(readme, base_lr=2e-3, lr_rule="absolute", weight_decay=0.05, clip_grad=3.0),
        cite(readme, num_masked=120, min_mask_block=16),
        cite(readme, num_target_layers=6, momentum=0.9998, smooth_l1_beta=2.0),
        cite(parser, img_size=224, min_lr=1e-5, betas=(0.9, 0.999), color_jitter=0.4),
        cite("code, modeling_cyclical.py@af9a363", patch_size=16),
        cite("code, datasets.py and transforms.py@af9a363", min_crop_scale=0.08),
        cite("code, engine_for_cyclical.py@af9a363", precision="fp16"),
    )
    small = paper.at_small(
        cite(SMALL, num_masked=39, min_mask_block=5),  # of 64 patches as much as 120 and 16 are of 196
        cite(SMALL, num_target_layers=2),  # half of the blocks, as 6 of 12
        cite(SMALL, momentum=0.99),  # a memory of a tenth of a thousand steps
        cite(SMALL, layer_scale_init=0.1),  # a thousand steps do not open branches scaled by 1e-4
        cite(SMALL, drop_path=0.1, epochs=6.0),
    )
    toy = small.at_toy(epochs=11.0, color_jitter=0.0)
    smoke = toy.at_smoke(num_masked=10, min_mask_block=2)
    return {"paper": paper, "small": small, "toy": toy, "smoke": smoke}


def transfer() -> TransferOverrides:
    """data2vec's own fine-tuning: learning rate 4e-3 for 1024 images."""
    readme = "code, README's fine-tuning command@af9a363"
    return {
        "classification": {
            "paper": [
                cite(readme, base_lr=4e-3, lr_rule="absolute", layer_decay=0.65, drop_path=0.2),
                cite(readme, weight_decay=0.0, epochs=100.0, warmup_epochs=10.0),
            ]
        }
    }


METHOD = MethodCard(
    name="data2vec",
    title="data2vec",
    paper="Baevski et al., data2vec: A General Framework for Self-supervised Learning in Speech, Vision and "
    "Language, ICML 2022",
    code="facebookresearch/data2vec_vision@af9a363",
    provenance="official",
    recipes=recipes,
    build=Data2vec,
    transfer=transfer,
    points=9,
)

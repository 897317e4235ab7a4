"""SdAE: Self-distillated Masked Autoencoder (Chen et al., ECCV 2022, arXiv 2208.00449).

An MAE whose decoder predicts a teacher's features at the masked patches. The teacher is a ViT of the
student's size and the moving average of the student's encoder, updated once per epoch. The masked patches are
cut into folds of as many patches as the student sees. Each fold goes through the teacher alone, so teacher
and student have the same amount of information (multi-fold masking). The loss is one minus the mean cosine of
the prediction and the standardised target.

Follows the released code (AbrahamYabo/SdAE@2e08b31), which is complete for pretraining and ImageNet; the
paper's body could not be read. Golden: tests/golden/sdae_tiny.json. Options of the code, and points where it
may differ from the text, are recipe fields; the code's value comes first:

    teacher_input     folds | full         masked patches in `num_folds` folds, or the whole image
    num_folds         3                    `ncrop_loss` of the code; 1 = its None, one sequence
    cosine_axis       token | channel      see `cosine_loss`; with `full` the code's is `channel`
    cadence           per_epoch | per_step
    normalize_target  True | False
    export            student | teacher    which network the downstream tasks get

The teacher does not start as a copy of the student. It has its own initial weights and learned positions,
which move towards the student's weights and fixed positions. Unlike in the code, `num_teacher_tokens` below
the number of masked patches also works if the number of folds divides it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from mimbench.arch import patch_embed_flops, size_of, transformer_flops
from mimbench.contract import MethodCard
from mimbench.method import Method
from mimbench.recipe import SMALL, TOY, PretrainRecipe, cite, require_range
from mimbench.vit import ViT
from pretrain import weight_init
from pretrain.decoder import MAEDecoder
from pretrain.ema import cosine_between, epochs_of_step, follow
from pretrain.masking import gather_tokens, random_masking
from pretrain.target import standardise


def cosine_loss(pred: Tensor, target: Tensor, axis: str) -> Tensor:
    """One minus the mean cosine of pred and target, both `[B * K, L, D]`.

    `channel`: the cosine of each token's features. `token`: the cosine of each channel's values over the L
    tokens of a fold; the released code gives no `dim`, and 1 is the default (engine_pretrain.py@2e08b31).
    """
    return 1 - cosine_similarity(target, pred, dim={"token": 1, "channel": 2}[axis]).mean()


class SdAE(Method):
    """A masked autoencoder that distils its own moving average."""

    def __init__(self, recipe: SdAERecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.student = ViT(recipe.vit_config(), drop_path=recipe.drop_path)
        self.student.pos_embed.requires_grad_(False)
        self.decoder = MAEDecoder.of(recipe, self.student.embed_dim)
        self.apply(weight_init.xavier)
        weight_init.xavier_patch_embed(self.student)
        for token in (self.student.cls_token, self.decoder.mask_token):
            nn.init.normal_(token, std=0.02)
        self.teacher = ViT(recipe.vit_config(pos_embed="learned")).requires_grad_(False)
        self.teacher.patch_embed.proj.reset_parameters()  # as timm leaves it

    @property
    def encoder(self) -> ViT:
        return self.student if self.recipe.export == "student" else self.teacher

    def no_weight_decay(self) -> set[str]:
        return set()  # the code decays the class token, too

    def after_step(self, step: int) -> None:
        """Update the teacher: for each epoch that ended with this step, with the momentum of that epoch.

        With `per_step`: once, with the momentum of the current epoch.
        """
        r = self.recipe
        epoch, ended = epochs_of_step(step, self.steps, r.epochs)
        for e in ended if r.cadence == "per_epoch" else [epoch]:
            follow(self.teacher, self.student, cosine_between(*r.momentum, e / r.epochs))

    def forward_student(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predicted features of all patches `[B, N, D]`; ids of the masked ones `[B, M]`, shuffled."""
        x = self.student.embed(images)  # [B, N, D]
        ids_keep, ids_restore, _ = random_masking(*x.shape[:2], self.recipe.mask_ratio, x.device, noise)
        latent = self.student.norm(self.student.encode(gather_tokens(x, ids_keep))[-1])  # [B, 1+V, D]
        ids_masked = ids_restore.argsort(dim=1)[:, ids_keep.shape[1] :]
        return self.decoder(latent, ids_restore), ids_masked

    @torch.no_grad()
    def forward_teacher(self, images: Tensor, ids_masked: Tensor) -> Tensor:
        """Features of the masked patches, `[B * K, L, D]`; each fold is a separate sequence."""
        x = self.teacher.embed(images)  # [B, N, D], with positions: a patch keeps its own in its fold
        full = self.recipe.teacher_input == "full"
        if not full:
            x = self.fold(x, ids_masked)  # [B * K, L, D]
        x = self.teacher.norm(self.teacher.encode(x)[-1])[:, 1:]
        return self.fold(x, ids_masked) if full else x

    def fold(self, x: Tensor, ids_masked: Tensor) -> Tensor:
        """From all patches `[B, N, D]` to the masked ones in folds `[B * K, L, D]`, image after image."""
        num_folds, length = self.recipe.fold_shape
        return gather_tokens(x, ids_masked[:, : num_folds * length]).reshape(-1, length, x.shape[2])

    def forward_loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """Loss between pred and target, both `[B * K, L, D]`; only the target is standardised."""
        if self.recipe.normalize_target:
            target = standardise(target)
        return cosine_loss(pred, target, self.recipe.cosine_axis)

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        pred, ids_masked = self.forward_student(images)
        target = self.forward_teacher(images, ids_masked)
        return {"loss": self.forward_loss(self.fold(pred, ids_masked), target)}


@dataclass(frozen=True, kw_only=True)
class SdAERecipe(PretrainRecipe):
    mask_ratio: float
    decoder_dim: int
    decoder_depth: int
    decoder_heads: int
    teacher_input: Literal["folds", "full"]
    num_folds: int  # K: number of sequences that the masked patches are cut into
    num_teacher_tokens: int  # masked patches that the teacher sees and the loss covers, in all folds together
    cosine_axis: Literal["token", "channel"]
    normalize_target: bool  # standardise each target token over its channels
    momentum: tuple[float, float]  # of the teacher in the first epoch and the last; between: half a cosine
    cadence: Literal["per_epoch", "per_step"]  # when the teacher moves
    export: Literal["student", "teacher"]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("mask_ratio", self.mask_ratio, 1 / self.num_patches, 1 - 1 / self.num_patches)
        require_range("num_teacher_tokens", self.num_teacher_tokens, 1, self.num_patches - self.num_visible)
        require_range("num_folds", self.num_folds, 1, self.num_teacher_tokens)
        for value in self.momentum:
            require_range("momentum", value, 0, 1)

    @property
    def num_visible(self) -> int:
        """Patches that the student sees."""
        return int(self.num_patches * (1 - self.mask_ratio))

    @property
    def fold_shape(self) -> tuple[int, int]:
        """Number K and length L of the folds. Patches that do not fill a fold are left out.

        With `full`, all masked patches are one fold.
        """
        if self.teacher_input == "full":
            return 1, self.num_patches - self.num_visible
        return self.num_folds, self.num_teacher_tokens // self.num_folds

    def step_flops(self) -> float:
        size = size_of(self.arch)
        folds, length = (1, self.num_patches) if self.teacher_input == "full" else self.fold_shape
        embed = patch_embed_flops(size.embed_dim, self.num_patches, self.patch_size)
        decoder = transformer_flops(self.decoder_dim, self.decoder_depth, self.num_patches + 1)
        decoder += 2.0 * self.num_patches * self.decoder_dim * size.embed_dim
        teacher = embed + folds * transformer_flops(size.embed_dim, size.depth, length + 1)
        return 3 * (self.encoder_flops(self.num_visible) + decoder) + teacher


def recipes() -> Mapping[str, SdAERecipe]:
    readme = "code, README's command @2e08b31 (8 GPUs of 96)"
    parser, engine = "code, main_pretrain.py@2e08b31", "code, engine_pretrain.py@2e08b31"
    paper = SdAERecipe.of(
        cite(readme, arch="vit_base", drop_path=0.25, mask_ratio=0.75),
        cite(readme, epochs=300.0, warmup_epochs=60.0, global_batch_size=768, base_lr=2.666e-4),
        cite(readme, num_folds=3, num_teacher_tokens=147, momentum=(0.96, 0.99), cadence="per_epoch"),
        cite(parser, img_size=224, patch_size=16, min_crop_scale=0.2, color_jitter=0.0, precision="fp16"),
        cite(parser, lr_rule="linear", min_lr=0.0, betas=(0.9, 0.95), weight_decay=0.04, clip_grad=None),
        cite("code, models_mae.py@2e08b31", decoder_dim=512, decoder_depth=8, decoder_heads=16),
        cite(engine, teacher_input="folds", cosine_axis="token", normalize_target=True),
        cite("code, default model_mode of main_finetune.py@2e08b31", export="student"),
    )
    left = (
        "ours: a tenth of the teacher's first weights is left at the end, as after 100 of the paper's epochs"
    )
    small = paper.at_small(
        cite(SMALL, decoder_dim=64, decoder_depth=2, decoder_heads=2, drop_path=0.1),
        cite(SMALL, epochs=8.0, base_lr=1.5e-3, lr_rule="absolute"),
        cite(SMALL, num_teacher_tokens=48),  # all masked patches, in folds of the 16 that the student sees
        cite(left, momentum=(0.7, 0.85)),
    )
    faster = "ours: as at scale small; of five, the faster the worse"
    toy = small.at_toy(cite(TOY, epochs=24.0), cite(faster, momentum=(0.9, 0.95)))
    smoke = toy.at_smoke(num_teacher_tokens=12, decoder_dim=32, decoder_depth=1, momentum=(0.4, 0.7))
    return {"paper": paper, "small": small, "toy": toy, "smoke": smoke}


METHOD = MethodCard(
    name="sdae",
    title="SdAE",
    paper="Chen et al., SdAE: Self-distillated Masked Autoencoder, ECCV 2022",
    code="AbrahamYabo/SdAE@2e08b31",
    provenance="official",
    recipes=recipes,
    build=SdAE,
    golden=("sdae_tiny.json",),
    points=15,
)

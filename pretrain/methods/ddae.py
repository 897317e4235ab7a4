"""DDAE: Towards Deep Dynamic Vision BERT Pretraining (Chen et al., AAAI 2024).

A masked autoencoder with two objectives on several blocks of its encoder: the pixels of masked patches, and
the features that a momentum encoder gives them; the momentum encoder sees the whole image. Both errors are
weighted for each patch by deep dynamic supervision (pretrain/deep_dynamic.py).

RECONSTRUCTION, not reproduction. There is no official code. Only the abstracts of the AAAI paper and of its
ICLR 2023 submission (OpenReview k4p382L0bw), the head of the introduction and the caption of Figure 2 could
be read. They say: the encoder sees only visible patches, a momentum encoder the whole image; pixel regression
and feature self-distillation "for intermediate layers", both with the dynamic loss. The rest is our choice,
after related methods: BootMAE (LightDXY/BootMAE@d604b18) for features and momentum, DeepMIM
(OliverRensu/DeepMIM@7bf1e80) for taps. Fields in addition to those of `mae_dds`:

    gamma           weight of the feature loss; 0: no momentum encoder, MAE with deep dynamic supervision
    feature_target  same_depth | last: the momentum encoder's block at the tap's depth, or its last block
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.arch import size_of, transformer_flops
from mimbench.contract import MethodCard, TransferOverrides
from mimbench.recipe import SMALL, cite, require_range
from mimbench.vit import LAYER_NORM_EPS
from pretrain.ema import follow, frozen_copy
from pretrain.methods import mae_dds
from pretrain.methods.mae_dds import MAEDDS, MAEDDSRecipe
from pretrain.target import squared_error


class DDAE(MAEDDS):
    """The deep dynamic autoencoder."""

    recipe: DDAERecipe

    def __init__(self, recipe: DDAERecipe) -> None:
        super().__init__(recipe)
        self.teacher = frozen_copy(self.encoder) if recipe.gamma else None

    def out_dims(self) -> list[int]:
        return [*super().out_dims(), self.encoder.embed_dim] if self.recipe.gamma else super().out_dims()

    def after_step(self, step: int) -> None:
        if self.teacher is not None:
            epochs_per_step = self.recipe.epochs / self.steps
            follow(self.teacher, self.encoder, self.recipe.momentum_at((step - 1) * epochs_per_step))

    @torch.no_grad()
    def feature_target(self, images: Tensor) -> Tensor:
        """The momentum encoder's patch tokens on the full image, standardised: `[S, B, N, D]`."""
        assert self.teacher is not None
        *taps, last = self.teacher.encode(self.teacher.embed(images), taps=self.recipe.tap_indices[:-1])
        taps = taps if self.recipe.feature_target == "same_depth" else [last] * len(taps)
        return normalise_token(torch.stack([*taps, last])[:, :, 1:])

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        if self.teacher is None:
            return super().forward(images, step_fraction)
        latent, ids_restore, mask = self.forward_encoder(images, self.draw_noise(images))
        pixel, feature = self.decoder(latent, ids_restore)  # [S, B, N, p*p*3], [S, B, N, D]
        feature_error = squared_error(normalise_token(feature), self.feature_target(images))
        losses = torch.stack([self.pixel_error(images, pixel), feature_error])  # [2, S, B, N]
        pixel_loss, feature_loss = self.supervision(losses, mask, step_fraction).unbind()
        return {
            "loss": pixel_loss + self.recipe.gamma * feature_loss,
            "pixel_loss": pixel_loss.detach(),
            "feature_loss": feature_loss.detach(),
            **self.supervision.log(step_fraction),
        }


def normalise_token(x: Tensor) -> Tensor:
    """LayerNorm over the channels, without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)


@dataclass(frozen=True, kw_only=True)
class DDAERecipe(MAEDDSRecipe):
    gamma: float
    feature_target: Literal["same_depth", "last"]
    momentum: float  # of the momentum encoder, per step, at the start
    final_momentum: float
    momentum_epochs: float  # epochs over which it rises linearly to `final_momentum`

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("gamma", self.gamma, 0)
        require_range("momentum", self.momentum, 0, 1)
        require_range("final_momentum", self.final_momentum, 0, 1)

    def momentum_at(self, epoch: float) -> float:
        """The momentum after that many epochs."""
        grown = min(epoch / self.momentum_epochs, 1.0) if self.momentum_epochs else 1.0
        return self.momentum + (self.final_momentum - self.momentum) * grown

    def step_flops(self) -> float:
        if not self.gamma:
            return super().step_flops()
        tokens = self.num_patches + 1
        features = 2.0 * tokens * self.decoder_dim * size_of(self.arch).embed_dim
        if self.decoders == "per_target":
            features += transformer_flops(self.decoder_dim, self.decoder_depth, tokens)
        return super().step_flops() + self.encoder_flops() + 3 * len(self.taps) * features


BOOTMAE = "reconstruction: BootMAE, LightDXY/BootMAE@d604b18"
LOCALMIM = "reconstruction: LocalMIM's for 100 epochs, Haoqing-Wang/LocalMIM@314a6e5"
ABSTRACT = "ICLR 2023 abstract: 83.5 top-1 with 100 epochs (the longer schedule is not stated)"


def recipes() -> Mapping[str, DDAERecipe]:
    paper = DDAERecipe.based_on(
        mae_dds.recipes()["paper"],
        cite(BOOTMAE, gamma=1.0, momentum=0.999, final_momentum=0.9999, momentum_epochs=100.0),
        cite("ICLR 2023 abstract: self-distillation for intermediate layers", feature_target="same_depth"),
        cite(ABSTRACT, epochs=100.0),
        cite(LOCALMIM, warmup_epochs=10.0),
        cite("reconstruction: half of MAE's, as it serves four taps", decoder_depth=4),
    )
    small = paper.at_small(
        cite(SMALL, taps=(1, 2, 3, 4), min_mask_block=5),
        cite(SMALL, decoder_dim=64, decoder_heads=2, decoder_depth=1),  # the decoder runs four times
        cite(SMALL, epochs=6.0, base_lr=1.5e-3, lr_rule="absolute"),
        cite(SMALL, momentum=0.99, final_momentum=0.995, momentum_epochs=2.0),  # thousands of steps in all
    )
    toy = small.at_toy(mask_ratio=0.6, taps=(2, 4), epochs=15.0, momentum_epochs=3.0)
    smoke = toy.at_smoke(taps=(1, 2, 3, 4), min_mask_block=2, decoder_dim=32, momentum_epochs=1.0)
    return {"paper": paper, "small": small, "toy": toy, "smoke": smoke}


def transfer() -> TransferOverrides:
    """Fine-tuning after 100 epochs of pretraining."""
    return {"classification": {"paper": [cite(LOCALMIM, base_lr=1e-3, layer_decay=0.75, warmup_epochs=20.0)]}}


METHOD = MethodCard(
    name="ddae",
    title="DDAE",
    paper="Chen et al., DDAE: Towards Deep Dynamic Vision BERT Pretraining, AAAI 2024",
    code=None,
    provenance="reconstruction",
    recipes=recipes,
    build=DDAE,
    points=13,
    transfer=transfer,
)

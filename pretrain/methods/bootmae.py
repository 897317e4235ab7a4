"""BootMAE: Bootstrapped Masked Autoencoders (Dong et al., ECCV 2022, arXiv 2207.07116).

An MAE with a second target and a decoder for each target. One decoder predicts normalised pixels. The other
predicts the features that a moving average of the encoder gives for the whole image. Each decoder block also
attends to the encoder directly, so that the encoder's output need not keep what only one target needs: the
pixel decoder attends to the output of the first block, the feature decoder to the output of the last block.

Follows the released code (LightDXY/BootMAE@d604b18), which was read in full; the paper was not. Easily
missed: of the 147 masked patches 120 come from blocks, the others are random, and up to three patches of the
blocks stay visible; errors inside a block have a larger weight (`block_weights`); pixels are normalised per
channel; feature targets are the last block's output before the final norm, standardised like the prediction.

Deviations: images have ImageNet's statistics, not mean and deviation 0.5. If no block fits in ten attempts
(the code tries any number), random patches follow. The first half of the sin-cos positions encodes the
column.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.arch import patch_embed_flops, size_of
from mimbench.contract import MethodCard, TransferOverrides
from mimbench.errors import UserError
from mimbench.method import Method
from mimbench.recipe import SMALL, SMOKE, PretrainRecipe, cite, require_range
from mimbench.vit import LAYER_NORM_EPS, ViT
from pretrain import weight_init
from pretrain.ema import epochs_of_step, follow, frozen_copy
from pretrain.masking import block_masks, gather_tokens
from pretrain.target import patchify, squared_error, standardise_channels
from pretrain.target_aware_decoder import TargetAwareDecoder, target_aware_decoder_flops


def draw_ids(blocks: Tensor) -> Tensor:
    """Patch ids in random order `[B, N]`, patches of the blocks last; the caller masks the last ones.

    Up to three of the last (the same number in the whole batch) move to the front, so they stay visible.

    Args:
        blocks: block-wise masks, `[B, N]`.
    """
    return (blocks + torch.rand_like(blocks)).argsort(dim=1).roll(random.randint(0, 3), dims=1)


def block_weights(mask: Tensor, grid_size: int) -> Tensor:
    """Loss weights `[B, N]`: 0 for visible patches, else 1 + masked share of the 3 x 3 patches around it."""
    grid = mask.reshape(-1, 1, grid_size, grid_size)
    return (grid * F.avg_pool2d(grid, 3, stride=1, padding=1) + grid).flatten(1)


class BootMAE(Method):
    """A masked autoencoder that predicts pixels and the features of its own moving average."""

    def __init__(self, recipe: BootMAERecipe) -> None:
        super().__init__()
        self.recipe = recipe
        config = recipe.vit_config(key_bias=False)
        self.encoder = ViT(config, drop_path=recipe.drop_path)
        self.encoder.pos_embed.requires_grad_(False)
        dim, narrow, side = config.embed_dim, recipe.decoder_dim, recipe.patch_size
        decoder = partial(TargetAwareDecoder, dim, config.grid_size, num_heads=config.num_heads)
        self.pixel_decoder = decoder(dim=narrow, depth=recipe.decoder_depth)
        self.pixel_head = nn.ConvTranspose2d(narrow, 3, side, stride=side)
        self.feature_decoder = decoder(dim=dim, depth=recipe.decoder_depth)
        self.feature_head = nn.Linear(dim, dim)
        self.init_weights()
        self.teacher = frozen_copy(self.encoder)

    def init_weights(self) -> None:
        """Xavier. Self-attention initialises q, k and v separately, cross-attention k and v as one matrix."""
        self.apply(weight_init.xavier)
        weight_init.xavier_patch_embed(self.encoder)
        nn.init.zeros_(self.encoder.patch_embed.proj.bias)
        nn.init.normal_(self.encoder.cls_token, std=1e-6)
        separate = [block.attn.qkv.weight.chunk(3) for block in self.encoder.blocks]
        for decoder in (self.pixel_decoder, self.feature_decoder):
            separate += [block.attn.kv.weight.chunk(2) for block in decoder.blocks]
        for parts in separate:
            for weight in parts:
                nn.init.xavier_uniform_(weight.data)

    def after_step(self, step: int) -> None:
        """Update the teacher with the momentum of this step's epoch."""
        epoch, _ = epochs_of_step(step, self.steps, self.recipe.epochs)
        follow(self.teacher, self.encoder, self.recipe.momentum_at(epoch))

    def draw_ids(self, images: Tensor) -> Tensor:
        """Patch ids in random order `[B, N]`; the last `num_masked` are masked, the others visible."""
        r = self.recipe
        grid, device = self.encoder.config.grid_size, images.device
        counts = r.num_block_masked, r.min_mask_block
        return draw_ids(block_masks(len(images), grid, *counts, device, max_block=r.max_mask_block))

    def forward_encoder(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latent and the outputs of the first and last block for visible patches, each `[B, 1+V, D]`."""
        x = self.encoder.embed(images)  # [B, N, D]
        visible = ids[:, : ids.shape[1] - self.recipe.num_masked]
        first, last = self.encoder.encode(gather_tokens(x, visible), taps=(0,))
        return self.encoder.norm(last), first, last

    def predict(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted pixels `[B, N, p*p*3]` and features `[B, N, D]` of all patches."""
        latent, first, last = self.forward_encoder(images, ids)
        x = self.pixel_decoder(latent, first, ids).transpose(1, 2)  # [B, Dd, N]
        grid = self.encoder.config.grid_size
        pixels = patchify(self.pixel_head(x.unflatten(2, (grid, grid))), self.recipe.patch_size)
        return pixels, self.feature_head(self.feature_decoder(latent, last, ids))

    @torch.no_grad()
    def forward_teacher(self, images: Tensor) -> Tensor:
        """The teacher's features of all patches, from the whole image, before its final norm: `[B, N, D]`."""
        return self.teacher.encode(self.teacher.embed(images))[-1][:, 1:]

    def forward_loss(
        self, images: Tensor, ids: Tensor, pixels: Tensor, features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Squared errors of the pixels and of the standardised features, weighted by `block_weights`."""
        num_masked = self.recipe.num_masked
        mask = (ids.argsort(dim=1) >= ids.shape[1] - num_masked).float()  # [B, N]
        weight = block_weights(mask, self.encoder.config.grid_size) if self.recipe.weigh_blocks else mask
        target = self.forward_teacher(images)
        target, features = (F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS) for x in (target, features))
        pixel_target = standardise_channels(patchify(images, self.recipe.patch_size))
        pixel_error = squared_error(pixels, pixel_target)  # [B, N]
        feature_error = squared_error(features, target)
        return (weight * pixel_error).sum() / mask.sum(), (weight * feature_error).sum() / mask.sum()

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        ids = self.draw_ids(images)
        pixel_loss, feature_loss = self.forward_loss(images, ids, *self.predict(images, ids))
        loss = pixel_loss + self.recipe.feature_weight_at(step_fraction) * feature_loss
        return {"loss": loss, "pixel_loss": pixel_loss, "feature_loss": feature_loss}


@dataclass(frozen=True, kw_only=True)
class BootMAERecipe(PretrainRecipe):
    num_masked: int  # patches hidden from the encoder
    num_block_masked: int  # of these, patches masked by blocks; the others are random
    min_mask_block: int  # smallest area of a mask block, in patches
    max_mask_block: int  # largest area of a mask block, in patches
    weigh_blocks: bool  # errors inside a block have up to twice the weight
    decoder_dim: int  # of the pixel decoder; the feature decoder is as wide as the encoder
    decoder_depth: int  # of both
    feature_weight: float  # of the feature loss, after `feature_warmup`
    feature_warmup: float  # share of the epochs in which it grows linearly
    momentum: tuple[float, float, float]  # of the teacher: at the start and at both `momentum_epochs`
    momentum_epochs: tuple[float, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("num_masked", self.num_masked, 1, self.num_patches - 1)
        require_range("num_block_masked", self.num_block_masked, 0, self.num_masked)
        require_range("min_mask_block", self.min_mask_block, 1, self.max_mask_block)
        require_range("feature_warmup", self.feature_warmup, 0, 1)
        first, last = self.momentum_epochs
        if not 0 < first < last:
            raise UserError("momentum_epochs", [first, last], remedy="Give two ascending numbers above 0.")

    def momentum_at(self, epoch: float) -> float:
        """The teacher's momentum in an epoch: linear interpolation between the three given values."""
        return float(np.interp(epoch, (0.0, *self.momentum_epochs), self.momentum))

    def feature_weight_at(self, step_fraction: float) -> float:
        """The weight of the feature loss: it grows once per epoch during the warm-up."""
        done = math.floor(step_fraction * self.epochs + 1e-9) + 1  # epochs, this one included
        return self.feature_weight * min(done / max(self.feature_warmup * self.epochs, 1e-9), 1.0)

    def step_flops(self) -> float:
        dim, tokens = size_of(self.arch).embed_dim, self.num_patches + 1
        visible = self.num_patches - self.num_masked
        trained = self.encoder_flops(visible)
        trained += patch_embed_flops(self.decoder_dim, self.num_patches, self.patch_size)
        trained += 2.0 * self.num_patches * dim**2
        for width in (self.decoder_dim, dim):
            trained += target_aware_decoder_flops(
                dim, tokens, visible + 1, dim=width, depth=self.decoder_depth
            )
        return 3 * trained + self.encoder_flops()


def recipes() -> Mapping[str, BootMAERecipe]:
    script = "code, scripts/pretrain/bash_pre_BootMAE_Base_800.sh@d604b18"
    parser = "code, run_pretraining.py@d604b18"
    paper = BootMAERecipe.of(
        cite("code, README@d604b18 (16 GPUs of 256)", epochs=800.0, global_batch_size=4096),
        cite(script, arch="vit_base", base_lr=1.5e-4, min_lr=1e-4, warmup_epochs=40.0),
        cite(script, num_masked=147, weigh_blocks=True, feature_weight=1.0),
        cite(parser, img_size=224, patch_size=16, drop_path=0.0, precision="fp16"),
        cite(parser, lr_rule="linear", weight_decay=0.05, clip_grad=None),
        cite(parser, min_crop_scale=0.2, color_jitter=0.0),
        cite(parser, num_block_masked=120, min_mask_block=16, max_mask_block=60, feature_warmup=0.25),
        cite("code, optim_factory.py@d604b18, whatever --opt_betas says", betas=(0.9, 0.95)),
        cite("code, models/modeling_pretrain_bootmae.py@d604b18", decoder_dim=512, decoder_depth=2),
        cite("code, utils.py@d604b18", momentum=(0.999, 0.9999, 0.99999), momentum_epochs=(100.0, 400.0)),
    )
    few = "ours: a few thousand steps, not several hundred thousand"
    small = paper.at_small(
        cite(SMALL, num_masked=48, num_block_masked=39),  # of 64 patches the paper's shares of 196
        cite(SMALL, min_mask_block=5, max_mask_block=20),
        cite(SMALL, decoder_dim=48, decoder_depth=1),
        cite(SMALL, epochs=6.0, base_lr=1.5e-3, lr_rule="absolute", min_lr=6e-5),
        cite(few, momentum=(0.97, 0.99, 0.995), momentum_epochs=(0.8, 3.0)),
    )
    toy = small.at_toy(num_masked=38, num_block_masked=31, epochs=12.0, momentum_epochs=(1.0, 4.5))
    smoke = toy.at_smoke(
        cite(SMOKE, num_masked=10, num_block_masked=8, min_mask_block=2, max_mask_block=5),
        cite(SMOKE, decoder_dim=32, momentum_epochs=(0.5, 1.0)),
    )
    return {"paper": paper, "small": small, "toy": toy, "smoke": smoke}


def transfer() -> TransferOverrides:
    script = "BootMAE code, scripts/finetune/bash_fine_BootMAE_Base_800.sh@d604b18"
    upernet = "BootMAE code, Segmentation/configs@d604b18"
    return {
        "classification": {
            "paper": [
                cite(script, global_batch_size=2048, base_lr=5e-3, lr_rule="absolute", layer_decay=0.6),
                cite(script, warmup_epochs=20.0, ema_momentum=0.9998),
            ]
        },
        "segmentation": {"paper": [cite(upernet, base_lr=4e-4, layer_decay=0.65, clip_grad=3.0)]},
    }


METHOD = MethodCard(
    name="bootmae",
    title="BootMAE",
    paper="Dong et al., Bootstrapped Masked Autoencoders for Vision BERT Pretraining, ECCV 2022",
    code="LightDXY/BootMAE@d604b18",
    provenance="official",
    recipes=recipes,
    build=BootMAE,
    transfer=transfer,
    golden=("bootmae_tiny.json",),
    points=13,
)

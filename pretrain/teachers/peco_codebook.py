"""The perceptual codebook of PeCo (Dong et al., AAAI 2023, arXiv 2111.12710): a reconstruction.

A VQ-VAE (van den Oord et al., 2017) with a perceptual loss: the features of the reconstruction in a frozen
self-supervised network must be close to those of the image. The loss is the distance of pixels, the distance
of features at several of the network's blocks, and the commitment loss. There is no public code. From the
abstract: the codebook and the perceptual loss with a self-supervised ViT. Everything else is recalled or
ours: DALL-E's convolutional networks instead of PeCo's, MAE instead of its ViT, features compared after
standardising each token, and no adversarial loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.contract import MethodCard
from mimbench.method import Method
from mimbench.recipe import PretrainRecipe, cite
from pretrain.conv_vae import ConvDecoder, ConvEncoder, conv_flops
from pretrain.quantizer import VectorQuantizer
from pretrain.weights import load_trained

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder


class Tokenizer(nn.Module):
    """Encoder and codebook: images to one of `num_codes` codes per patch."""

    def __init__(self, recipe: CodebookRecipe) -> None:
        super().__init__()
        self.img_size = recipe.img_size
        self.encoder = ConvEncoder(
            width=recipe.width,
            out_channels=recipe.code_dim,
            patch_size=recipe.patch_size,
            num_blocks=recipe.num_blocks,
        )
        self.quantizer = VectorQuantizer(recipe.num_codes, recipe.code_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Vectors before quantisation, `[B, N, code_dim]`."""
        if images.shape[-1] != self.img_size:
            images = resize(images, self.img_size)
        return self.encoder(images).flatten(2).mT

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """The code of every patch of normalised images: ids `[B, N]` in raster order."""
        return self.quantizer.nearest(self(images).float())


def resize(images: Tensor, side: int) -> Tensor:
    """Square images `[B, 3, H, H]` to `[B, 3, side, side]`."""
    return F.interpolate(images, (side, side), mode="bicubic", antialias=True)


class PeCoCodebook(Method):
    """Tokenizer and decoder, trained together.

    Args:
        perceptual: a trained masked autoencoder; frozen, in eval mode.
    """

    def __init__(self, recipe: CodebookRecipe, perceptual: nn.Module) -> None:
        super().__init__()
        self.recipe = recipe
        self.tokenizer = Tokenizer(recipe)
        self.decoder = ConvDecoder(
            width=recipe.width,
            in_channels=recipe.code_dim,
            out_channels=3,
            patch_size=recipe.patch_size,
            num_blocks=recipe.num_blocks,
        )
        self.perceptual = perceptual

    def no_weight_decay(self) -> set[str]:
        return set()  # it has no class token and no positions

    def after_step(self, step: int) -> None:
        self.tokenizer.quantizer.update()

    def features(self, images: Tensor) -> list[Tensor]:
        """The frozen encoder's standardised tokens, unmasked, `[B, 1+N', D]` for each block of the recipe."""
        encoder = self.perceptual.encoder
        side = encoder.config.img_size
        images = resize(images, side) if images.shape[-1] != side else images
        blocks = self.recipe.perceptual_blocks
        tapped = encoder.encode(encoder.embed(images), taps=blocks)[: len(blocks)]
        return [F.layer_norm(x, x.shape[-1:]) for x in tapped]

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        r, side = self.recipe, self.recipe.img_size // self.recipe.patch_size
        z, _, commitment = self.tokenizer.quantizer(self.tokenizer(images))  # [B, N, code_dim]
        pred = self.decoder(z.mT.unflatten(2, (side, side)))  # [B, 3, H, W]
        pixel = F.mse_loss(pred, images)
        with torch.no_grad():
            target = self.features(images)
        distances = [F.mse_loss(*pair) for pair in zip(self.features(pred), target, strict=True)]
        perceptual = torch.stack(distances).mean()
        loss = pixel + r.perceptual_weight * perceptual + r.commitment_weight * commitment
        return {"loss": loss, "pixel": pixel, "perceptual": perceptual, "commitment": commitment}


@dataclass(frozen=True, kw_only=True)
class CodebookRecipe(PretrainRecipe):
    """img_size and patch_size are the tokenizer's own."""

    num_codes: int
    code_dim: int
    width: int  # channels at full resolution
    num_blocks: int  # per resolution
    commitment_weight: float
    perceptual_weight: float  # 0 = a plain VQ-VAE
    perceptual_blocks: tuple[int, ...]  # of the frozen encoder, 0-based, ascending

    def encoder_flops(self, num_visible: int | None = None) -> float:
        del num_visible  # a convolutional net sees the whole image
        return conv_flops(self.width, self.code_dim, self.img_size, self.patch_size, self.num_blocks)

    def step_flops(self, perceptual: PretrainRecipe) -> float:
        features = 3 * perceptual.encoder_flops()  # two forward passes; backward to the pixels only
        return 6 * self.encoder_flops() + features


def recipes() -> Mapping[str, CodebookRecipe]:
    recalled, unknown = "recalled, not read: PeCo paper, section 4", "ours: not known"
    paper = CodebookRecipe.of(
        cite(recalled, img_size=224, patch_size=16, num_codes=8192, code_dim=256),
        cite(recalled, perceptual_blocks=(2, 5, 8, 11), perceptual_weight=1.0),
        cite(recalled, epochs=100.0, global_batch_size=128, base_lr=5e-5, lr_rule="absolute"),
        cite("VQ-VAE paper, section 3.2", commitment_weight=0.25),
        cite("the frozen network's size, MAE's", arch="vit_base"),
        cite(unknown, width=128, num_blocks=2, drop_path=0.0, precision="fp32"),
        cite(unknown, warmup_epochs=1.0, min_lr=0.0, betas=(0.9, 0.95), weight_decay=1e-4, clip_grad=None),
        cite(unknown, min_crop_scale=0.2, color_jitter=0.0),
    )
    ours = "ours: two CPU cores"
    toy = paper.vary(
        cite(ours, arch="vit_toy", img_size=32, patch_size=4, perceptual_blocks=(0, 1, 2, 3)),
        cite(ours, num_codes=256, code_dim=16, width=16, num_blocks=1),
        cite(ours, epochs=2.0, warmup_epochs=0.2, global_batch_size=16, base_lr=5e-3, min_crop_scale=0.6),
    )
    smoke = toy.at_smoke(img_size=16, num_codes=64, warmup_epochs=0.2, perceptual_blocks=(1, 3))
    return {"paper": paper, "small": toy, "toy": toy, "smoke": smoke}


def load(folder: RunFolder) -> nn.Module:
    """The tokenizer of a finished run."""
    return load_trained(Tokenizer(CodebookRecipe.from_values(folder.spec.recipe)), folder, "tokenizer.")


METHOD = MethodCard(
    name="peco-codebook",
    title="PeCo's codebook",
    paper="Dong et al., PeCo: Perceptual Codebook for BERT Pre-training of Vision Transformers, AAAI 2023",
    code=None,
    provenance="reconstruction",
    recipes=recipes,
    build=PeCoCodebook,
    stage="teacher",
    needs={"perceptual": "mae"},
    load=load,
)

"""DALL-E's discrete VAE, BEiT's tokenizer: Zero-Shot Text-to-Image Generation (Ramesh et al., ICML 2021).

At paper scale OpenAI's encoder is loaded from the file that the user names (`--weights dall-e=PATH`). At
smaller scales a small discrete VAE is trained here as in sections 2.1 and A.2: codes are drawn by the
Gumbel-softmax relaxation, whose temperature falls; a logit-Laplace likelihood of the pixels; the divergence
from the uniform prior. The loss is divided by the number of pixel values, so the divergence of a code has the
weight `kl_weight / (3 p^2)`: each code represents p x p pixels of three colours.

Follows openai/DALL-E's encoder, from its copy in microsoft/unilm@768a3c8 (beit/dall_e).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.checkpoint.networks import Rules
from mimbench.checkpoint.reader import read
from mimbench.contract import MethodCard
from mimbench.data.augment import MEAN, STD
from mimbench.recipe import PretrainRecipe, cite
from pretrain.conv_vae import ConvDecoder, ConvEncoder, conv_flops
from pretrain.ema import cosine_between
from pretrain.weights import load_into, load_trained, recorded

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder

PIXEL_MARGIN = 0.1  # keeps logits of pixels finite


class Encoder(ConvEncoder):
    """DALL-E's encoder: images to the logits of one code for every patch."""

    mean: Tensor
    std: Tensor

    def __init__(self, recipe: DVAERecipe) -> None:
        super().__init__(
            width=recipe.width,
            out_channels=recipe.num_codes,
            patch_size=recipe.patch_size,
            num_blocks=recipe.num_blocks,
        )
        self.img_size = recipe.img_size
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def pixels(self, images: Tensor) -> Tensor:
        """Map images normalised with ImageNet's statistics to values in [0.1, 0.9], at the encoder's size."""
        if images.shape[-1] != self.img_size:
            images = F.interpolate(images, (self.img_size, self.img_size), mode="bicubic", antialias=True)
        return (images * self.std + self.mean).clamp(0, 1) * (1 - 2 * PIXEL_MARGIN) + PIXEL_MARGIN

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """The most likely code of every patch of normalised images: ids `[B, N]` in raster order."""
        return self(self.pixels(images)).argmax(dim=1).flatten(1)


class DVAE(nn.Module):
    """Encoder and decoder, trained to describe each patch by one of `num_codes` codes."""

    def __init__(self, recipe: DVAERecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.encoder = Encoder(recipe)
        self.decoder = ConvDecoder(
            width=recipe.width,
            in_channels=recipe.num_codes,
            out_channels=6,  # location and log scale of each colour
            patch_size=recipe.patch_size,
            num_blocks=recipe.num_blocks,
        )

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        r = self.recipe
        pixels = self.encoder.pixels(images)
        logits = self.encoder(pixels).float()  # [B, K, h, w]
        annealed = min(step_fraction / r.anneal_fraction, 1.0)
        temperature = cosine_between(1.0, r.final_temperature, annealed)
        codes = F.gumbel_softmax(logits, tau=temperature, dim=1)
        location, log_scale = self.decoder(codes).float().chunk(2, dim=1)  # each [B, 3, H, W]
        distortion = logit_laplace(pixels, location, log_scale).mean()
        log_q = logits.log_softmax(dim=1)
        kl = (log_q.exp() * (log_q + math.log(r.num_codes))).sum(dim=1).mean()  # of a code, in nats
        weight = cosine_between(0.0, r.kl_weight, annealed) / (3 * r.patch_size**2)
        return {"loss": distortion + weight * kl, "distortion": distortion, "kl": kl}


def logit_laplace(pixels: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """Negative log likelihood of pixels in (0, 1) if their logit is Laplace distributed (section A.3)."""
    jacobian = (2 * pixels * (1 - pixels)).log()
    return jacobian + log_scale + (pixels.logit() - location).abs() * (-log_scale).exp()


@dataclass(frozen=True, kw_only=True)
class DVAERecipe(PretrainRecipe):
    """img_size and patch_size are the tokenizer's own: half of the student's."""

    num_codes: int
    width: int  # channels at full resolution
    num_blocks: int  # per resolution
    final_temperature: float  # of the Gumbel-softmax, which starts at 1
    kl_weight: float  # final weight; starts at 0
    anneal_fraction: float  # share of the training after which both have their final value
    weights: str  # the name under which the user gives pretrained weights; "" = trained here

    def encoder_flops(self, num_visible: int | None = None) -> float:
        del num_visible  # a convolutional net sees the whole image
        return conv_flops(self.width, self.num_codes, self.img_size, self.patch_size, self.num_blocks)

    def step_flops(self) -> float:
        return 6 * self.encoder_flops()  # the decoder costs nearly the same


OFFICIAL = (  # our parameter's name, OpenAI's name
    (r"stem", r"blocks.input"),
    (r"head", r"blocks.output.conv"),
    (r"groups\.(\d)\.(\d)\.skip", r"blocks.group_{0}.block_{1}.id_path"),
    (r"groups\.(\d)\.(\d)\.convs\.(\d)", r"blocks.group_{0}.block_{1}.res_path.conv_{2}"),
)


def official_name(name: str) -> str:
    """OpenAI's name of the encoder's parameter `name`."""
    module, _, kind = name.rpartition(".")
    for pattern, official in OFFICIAL:
        found = re.fullmatch(pattern, module)
        if found:
            return official.format(*(int(i) + 1 for i in found.groups())) + "." + kind[0]
    raise KeyError(name)


DALLE = Rules("DALL-E encoder", "blocks.input.w")


def load_official(recipe: DVAERecipe, path: Path) -> Encoder:
    """DALL-E's encoder with the weights of a state dict file.

    Raises:
        UserError: another kind of file, such as OpenAI's own pickled module, or tensors that do not fit.
    """
    field = f"--weights {recipe.weights}"
    state = read(path, field)
    wanted = "Give the encoder of DALL-E's discrete VAE."
    return load_into(Encoder(recipe), state, DALLE, f"{field} ({path})", wanted, their_name=official_name)


def load(folder: RunFolder) -> nn.Module:
    """The tokenizer of a run: OpenAI's weights if the recipe names them, else trained here."""
    recipe = DVAERecipe.from_values(folder.spec.recipe)
    if recipe.weights:
        return recorded(load_official(recipe, folder.weights[recipe.weights]), folder)
    return load_trained(Encoder(recipe), folder, "encoder.")


def recipes() -> Mapping[str, DVAERecipe]:
    beit = "BEiT paper, section 2.1: OpenAI's tokenizer, 8192 codes"
    recalled, loaded = "recalled, not read: DALL-E paper, section A.2", "loaded, not trained"
    paper = DVAERecipe.of(
        cite(beit, num_codes=8192, weights="dall-e"),
        cite("BEiT code, run_beit_pretraining.py@768a3c8", img_size=112),
        cite("BEiT code, dall_e/encoder.py@768a3c8", patch_size=8, width=256, num_blocks=2),
        cite("a convolutional net: the size of the students that it serves", arch="vit_base"),
        cite(recalled, final_temperature=1 / 16, kl_weight=6.6, anneal_fraction=0.05),
        cite(recalled, betas=(0.9, 0.999), weight_decay=1e-4),
        cite(loaded, epochs=0.0, warmup_epochs=0.0, global_batch_size=1, precision="fp32"),
        cite(loaded, base_lr=0.0, lr_rule="absolute", min_lr=0.0, clip_grad=None, drop_path=0.0),
        cite(loaded, min_crop_scale=0.08, color_jitter=0.0),
    )
    ours = "ours: two CPU cores"
    toy = paper.vary(
        cite(ours, arch="vit_toy", img_size=32, patch_size=4, weights=""),
        cite(ours, num_codes=256, width=16, num_blocks=1),
        cite(ours, final_temperature=0.5, anneal_fraction=0.3),
        cite(ours, kl_weight=1.0),  # 6.6 leaves too little of the image after so few steps
        cite(ours, epochs=3.0, warmup_epochs=0.3, base_lr=1e-2, min_crop_scale=0.6),
        cite(ours, global_batch_size=16),  # many steps rather than large ones: else few codes are used
    )
    smoke = toy.at_smoke(img_size=16, num_codes=64, warmup_epochs=0.3)
    return {"paper": paper, "small": toy, "toy": toy, "smoke": smoke}


METHOD = MethodCard(
    name="dvae",
    title="DALL-E's tokenizer",
    paper="Ramesh et al., Zero-Shot Text-to-Image Generation, ICML 2021",
    code="openai/DALL-E",
    provenance="official",
    recipes=recipes,
    build=DVAE,
    stage="teacher",
    load=load,
    golden=("dalle_tiny.npz",),
)

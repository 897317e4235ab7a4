"""VQ-KD: the tokenizer of BEiT v2 (Peng et al., 2022, arXiv 2208.06366, section 2.2).

A ViT encodes the image. Each patch token is projected to a short vector and replaced by the code with the
largest cosine. A shallow decoder predicts CLIP's tokens from the codes. The loss is 1 - cos to CLIP's
features plus the commitment loss. Sizes and recipe are from microsoft/unilm@80d673a (beit2/modeling_vqkd.py).

RECONSTRUCTION, like the DTM host that uses it. What differs: the codes are updated and restarted as in
pretrain/quantizer.py, but the code initialises them by k-means and averages normalised means; the decoder has
no class token; images are normalised with ImageNet's statistics, but the code maps them to [-1, 1]; it is
trained at every scale, no weights are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mimbench.arch import size_of, transformer_flops
from mimbench.contract import MethodCard
from mimbench.method import Method
from mimbench.recipe import SMALL, PretrainRecipe, cite
from mimbench.vit import Block, LayerNorm, ViT
from pretrain.feature_student import teacher_tokens
from pretrain.quantizer import VectorQuantizer
from pretrain.target import cosine_error
from pretrain.weights import load_trained

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder


def task_layer(dim: int, out_dim: int) -> nn.Sequential:
    """The layers between a ViT and the codes, or between the decoder and CLIP's features."""
    return nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, out_dim))


class Tokenizer(nn.Module):
    """Images to one code for every patch."""

    def __init__(self, recipe: VQKDRecipe) -> None:
        super().__init__()
        config = recipe.vit_config(pos_embed="learned")
        self.encoder = ViT(config, drop_path=recipe.drop_path)
        self.task_layer = task_layer(config.embed_dim, recipe.code_dim)
        self.quantizer = VectorQuantizer(recipe.num_codes, recipe.code_dim, decay=recipe.decay, cosine=True)

    @property
    def num_codes(self) -> int:
        return len(self.quantizer.codebook)

    def features(self, images: Tensor) -> Tensor:
        """The vector of each patch before it is quantised, `[B, N, code_dim]`."""
        return self.task_layer(self.encoder(images)[:, 1:])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors `[B, N, code_dim]` before quantisation and the ids `[B, N]` of their codes."""
        z = self.features(images).float()
        return z, self.quantizer(z)[1]


class Decoder(nn.Module):
    """Codes `[B, N, code_dim]` to predicted features `[B, N, out_dim]`."""

    def __init__(self, recipe: VQKDRecipe) -> None:
        super().__init__()
        size = size_of(recipe.arch)
        self.embed = nn.Linear(recipe.code_dim, size.embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, recipe.num_patches, size.embed_dim))
        self.blocks = nn.Sequential(
            *(Block(size.embed_dim, size.num_heads) for _ in range(recipe.decoder_depth))
        )
        self.norm = LayerNorm(size.embed_dim)
        self.task_layer = task_layer(size.embed_dim, recipe.target_dim)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, codes: Tensor) -> Tensor:
        return self.task_layer(self.norm(self.blocks(self.embed(codes) + self.pos_embed)))


class VQKD(Method):
    """Tokenizer and decoder, trained to encode CLIP's features as codes."""

    def __init__(self, recipe: VQKDRecipe, teacher: nn.Module) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(recipe)
        self.decoder = Decoder(recipe)
        self.teacher, self.clip_normalisation = teacher, recipe.clip_normalisation

    @property
    def encoder(self) -> nn.Module:
        return self.tokenizer.encoder

    def after_step(self, step: int) -> None:
        self.tokenizer.quantizer.update()

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        target = teacher_tokens(  # [B, N, C]
            self.teacher, images, project=True, clip_normalisation=self.clip_normalisation
        )
        codes, _, commitment = self.tokenizer.quantizer(self.tokenizer.features(images))
        distance = cosine_error(self.decoder(codes), target).mean() / 2  # 1 - cos
        return {"loss": distance + commitment, "distance": distance.detach()}


@dataclass(frozen=True, kw_only=True)
class VQKDRecipe(PretrainRecipe):
    num_codes: int
    code_dim: int
    decay: float  # of the codes' moving averages
    decoder_depth: int
    target_dim: int  # of CLIP's projected tokens
    clip_normalisation: bool  # give the teacher CLIP's own image statistics instead of the student's

    def step_flops(self, teacher: PretrainRecipe) -> float:
        dim, tokens = size_of(self.arch).embed_dim, self.num_patches
        decoder = transformer_flops(dim, self.decoder_depth, tokens)
        layers = 2.0 * tokens * dim * (2 * dim + 2 * self.code_dim + self.target_dim)
        return 3 * (self.encoder_flops() + decoder + layers) + teacher.encoder_flops()


def load(folder: RunFolder) -> nn.Module:
    """The tokenizer of a run, without the decoder."""
    return load_trained(Tokenizer(VQKDRecipe.from_values(folder.spec.recipe)), folder, "tokenizer.")


def recipes() -> Mapping[str, VQKDRecipe]:
    doc = "BEiT v2 code, TOKENIZER.md@edf2b0a"
    model = "BEiT v2 code, modeling_vqkd.py@80d673a"
    parser = "BEiT v2 code, run_vqkd_training.py@80d673a"
    paper = VQKDRecipe.of(
        cite(model, arch="vit_base", img_size=224, patch_size=16, drop_path=0.0, decay=0.99),
        cite(model, target_dim=512, clip_normalisation=True),
        cite(doc, num_codes=8192, code_dim=32, decoder_depth=3),
        cite(doc, epochs=100.0, warmup_epochs=10.0, global_batch_size=512),
        cite(doc, betas=(0.9, 0.99), weight_decay=1e-4, min_crop_scale=0.08),
        cite(f"{parser}: 5e-5 * 512 / 128", base_lr=2e-4, lr_rule="absolute"),
        cite(parser, min_lr=1e-5, clip_grad=None, color_jitter=0.0, precision="fp16"),
    )
    ours = "ours: two CPU cores"
    toy = paper.vary(
        cite(ours, arch="vit_toy", img_size=64, patch_size=8, precision="fp32"),
        cite(ours, num_codes=256, code_dim=16, decoder_depth=1, target_dim=64),
        cite(ours, clip_normalisation=False),  # our CLIP learns from images as the student sees them
        cite(ours, epochs=6.0, warmup_epochs=1.0, global_batch_size=32, base_lr=1.5e-3, min_crop_scale=0.6),
    )
    small = toy.vary(SMALL, epochs=4.0)
    smoke = toy.at_smoke(num_codes=64)
    return {"paper": paper, "small": small, "toy": toy, "smoke": smoke}


METHOD = MethodCard(
    name="vqkd",
    title="VQ-KD",
    paper="Peng et al., BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers, 2022",
    code=None,
    provenance="reconstruction",
    recipes=recipes,
    build=VQKD,
    stage="teacher",
    needs={"teacher": "clip"},
    load=load,
)

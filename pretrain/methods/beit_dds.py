"""A BEiT-style host with deep dynamic supervision (Chen et al., DDAE, AAAI 2024).

The abstract of DDAE's ICLR 2023 submission names BEiT-v2 as a second host of its supervision. How it was
attached could not be read, and there is no official code. The host here has what distinguishes the BEiT
family from MAE (microsoft/unilm@768a3c8): block-wise masks, an encoder that sees all patches, with a mask
token instead of each masked one, relative positions, layer scale, and a linear head, here one for each
supervised block. It predicts pixels, normalised per patch as in MAE, so that the two hosts do not also differ
by a tokenizer. With one tap and beta = 0 it is the host alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mimbench.arch import patch_embed_flops, size_of
from mimbench.contract import MethodCard
from mimbench.method import Method
from mimbench.recipe import SMALL, cite, require_range
from mimbench.vit import LayerNorm
from pretrain import weight_init
from pretrain.deep_dynamic import DeepDynamicRecipe, DeepDynamicSupervision
from pretrain.masked_vit import MaskedViT
from pretrain.masking import block_masks
from pretrain.methods import mae_dds
from pretrain.target import patchify, squared_error, standardise


class BEiTDDS(Method):
    """A ViT with mask tokens that predicts pixels from several of its blocks."""

    def __init__(self, recipe: BEiTDDSRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.student = MaskedViT(recipe, positions="shared", layer_scale_init=recipe.layer_scale_init)
        dim, out_dim = self.encoder.embed_dim, 3 * recipe.patch_size**2
        self.norms = nn.ModuleList(LayerNorm(dim) for _ in recipe.taps[:-1])
        self.heads = nn.ModuleList(nn.Linear(dim, out_dim) for _ in recipe.taps)
        self.heads.apply(weight_init.beit)
        self.supervision = DeepDynamicSupervision(recipe, self.student.grid_size)

    @property
    def encoder(self) -> nn.Module:
        return self.student.encoder

    def predict(self, images: Tensor, mask: Tensor) -> Tensor:
        """Every tap's prediction of every patch, `[S, B, N, p*p*3]`; mask `[B, N]`, 1 = masked."""
        x = self.encoder.embed(images, mask, self.student.mask_token)  # [B, N, D]
        taps = self.encoder.encode(x, taps=self.recipe.tap_indices[:-1])  # S x [B, 1+N, D]
        norms = [*self.norms, self.encoder.norm]
        parts = zip(self.heads, norms, taps, strict=True)
        return torch.stack([head(norm(tap)[:, 1:]) for head, norm, tap in parts])

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        r, grid = self.recipe, self.student.grid_size
        mask = block_masks(len(images), grid, r.num_masked, r.min_mask_block, images.device, exact=False)
        target = standardise(patchify(images, r.patch_size))
        errors = squared_error(self.predict(images, mask), target)  # [S, B, N]
        loss = self.supervision(errors, mask, step_fraction)
        return {"loss": loss, **self.supervision.log(step_fraction)}


@dataclass(frozen=True, kw_only=True)
class BEiTDDSRecipe(DeepDynamicRecipe):
    num_masked: int  # patches replaced by a mask token, at most
    min_mask_block: int  # smallest area of a mask block, in patches
    layer_scale_init: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("num_masked", self.num_masked, 1, self.num_patches - 1)
        require_range("min_mask_block", self.min_mask_block, 1, self.num_patches)

    def step_flops(self) -> float:
        head = patch_embed_flops(size_of(self.arch).embed_dim, self.num_patches, self.patch_size)
        return 3 * (self.encoder_flops() + len(self.taps) * head)


def recipes() -> Mapping[str, BEiTDDSRecipe]:
    table = "BEiT paper, Table 12"
    code = "BEiT code, run_beit_pretraining.py, datasets.py, transforms.py, microsoft/unilm@768a3c8"
    paper = BEiTDDSRecipe.of(
        cite("BEiT paper, Table 4 (ablations)", epochs=300.0, arch="vit_base"),
        cite(table, global_batch_size=2048, base_lr=1.5e-3, lr_rule="absolute", min_lr=1e-5),
        cite(table, warmup_epochs=10.0, betas=(0.9, 0.999), weight_decay=0.05, clip_grad=3.0, drop_path=0.1),
        cite(code, img_size=224, patch_size=16, layer_scale_init=0.1, precision="fp16"),
        cite(code, num_masked=75, min_mask_block=16, color_jitter=0.4, min_crop_scale=0.08),
        *mae_dds.RULES,
    )
    small = paper.at_small(
        cite(SMALL, num_masked=24, min_mask_block=5),  # of 64 patches as much as 75 and 16 are of 196
        cite(SMALL, taps=(1, 2, 3, 4), drop_path=0.0, epochs=6.0),
    )
    toy = small.at_toy(color_jitter=0.0, epochs=8.0)
    smoke = toy.at_smoke(num_masked=6, min_mask_block=2)
    return {"paper": paper, "small": small, "toy": toy, "smoke": smoke}


METHOD = MethodCard(
    name="beit-dds",
    title="BEiT-style + deep dynamic supervision",
    paper="Chen et al., DDAE: Towards Deep Dynamic Vision BERT Pretraining, AAAI 2024 (on another host)",
    code=None,
    provenance="reconstruction",
    recipes=recipes,
    build=BEiTDDS,
)

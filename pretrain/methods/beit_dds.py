"""A BEiT-style host under deep dynamic supervision (Chen et al., DDAE, AAAI 2024).

The abstract of DDAE's ICLR 2023 submission names BEiT-v2 as a second host of its supervision; how it was
attached could not be read, and there is no official code. Here the host is what sets that family apart from
MAE: the encoder sees all patches, masked ones as a mask token, under block-wise masks (BEiT,
microsoft/unilm@768a3c8, with its relative positions and layer scale), and predicts them by a linear head,
here one for each supervised block. What it predicts are pixels, normalised per patch as MAE's, so that no
tokenizer stands between the two hosts. One tap and beta = 0 leave the host alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mimbench.arch import patch_embed_flops, size_of, transformer_flops
from mimbench.contract import MethodCard
from mimbench.recipe import require_range
from mimbench.vit import LayerNorm
from pretrain import weight_init
from pretrain.deep_dynamic import DeepDynamicRecipe, DeepDynamicSupervision
from pretrain.masked_vit import MaskedViT
from pretrain.masking import block_masks
from pretrain.methods import mae_dds
from pretrain.target import patchify, standardise


class BEiTDDS(nn.Module):
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

    def no_weight_decay(self) -> set[str]:
        return self.encoder.no_weight_decay()

    def predict(self, images: Tensor, mask: Tensor) -> Tensor:
        """Every tap's prediction of every patch, `[S, B, N, p*p*3]`; mask `[B, N]`, 1 = masked."""
        x = self.encoder.embed(images, mask, self.student.mask_token)  # [B, N, D]
        taps = self.encoder.encode(x, taps=self.recipe.tap_indices[:-1])  # S x [B, 1+N, D]
        norms = [*self.norms, self.encoder.norm]
        parts = zip(self.heads, norms, taps, strict=True)
        return torch.stack([head(norm(tap)[:, 1:]) for head, norm, tap in parts])

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        r = self.recipe
        mask = block_masks(
            images.shape[0],
            self.student.grid_size,
            r.num_masked,
            r.min_mask_block,
            images.device,
            exact=False,
        )
        target = standardise(patchify(images, r.patch_size))
        errors = (self.predict(images, mask) - target).square().mean(dim=-1)  # [S, B, N]
        loss = self.supervision(errors, mask, step_fraction)
        return {"loss": loss, **self.supervision.log(step_fraction)}


@dataclass(frozen=True, kw_only=True)
class BEiTDDSRecipe(DeepDynamicRecipe):
    num_masked: int  # patches behind a mask token
    min_mask_block: int  # least area of a mask block, in patches
    layer_scale_init: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("num_masked", self.num_masked, 1, self.num_patches - 1)
        require_range("min_mask_block", self.min_mask_block, 1, self.num_patches)

    def step_flops(self) -> float:
        size = size_of(self.arch)
        encoder = transformer_flops(size.embed_dim, size.depth, self.num_patches + 1)
        embed = patch_embed_flops(size.embed_dim, self.num_patches, self.patch_size)
        return 3 * (encoder + (1 + len(self.taps)) * embed)  # a head costs what the patch embedding costs


def recipes() -> Mapping[str, BEiTDDSRecipe]:
    paper = BEiTDDSRecipe.cited(
        {
            "BEiT paper, Table 12": {
                "global_batch_size": 2048,
                "base_lr": 1.5e-3,
                "lr_rule": "absolute",
                "min_lr": 1e-5,
                "betas": (0.9, 0.999),
                "weight_decay": 0.05,
                "warmup_epochs": 10.0,
                "clip_grad": 3.0,
                "drop_path": 0.1,
            },
            "BEiT paper, Table 4 (ablations)": {"epochs": 300.0, "arch": "vit_base"},
            "BEiT code, run_beit_pretraining.py, datasets.py, transforms.py, microsoft/unilm@768a3c8": {
                "img_size": 224,
                "patch_size": 16,
                "num_masked": 75,
                "min_mask_block": 16,
                "layer_scale_init": 0.1,
                "color_jitter": 0.4,
                "min_crop_scale": 0.08,
                "precision": "fp16",
            },
            **mae_dds.RULES,
        }
    )
    small = paper.at_small(
        taps=(1, 2, 3, 4),
        num_masked=24,  # 38 % of 64 patches, as 75 of 196
        min_mask_block=5,  # 8 % of the grid, as 16 of 196
        drop_path=0.0,
        epochs=6.0,
    )
    toy = small.at_toy(color_jitter=0.0, epochs=8.0)
    smoke = toy.at_smoke(num_masked=6, min_mask_block=2)
    return {"paper": paper, "small": small, "toy": toy, "smoke": smoke}


METHOD = MethodCard(
    name="beit-dds",
    title="BEiT-style + deep dynamic supervision",
    paper="Chen et al., DDAE: Towards Deep Dynamic Vision BERT Pretraining, AAAI 2024 (on another host)",
    code=None,
    reconstruction=True,
    recipes=recipes,
    build=BEiTDDS,
)

"""MAE: Masked Autoencoders Are Scalable Vision Learners (He et al., CVPR 2022, arXiv 2111.06377).

Section 3: three quarters of the patches are dropped; the encoder sees the rest; a light decoder, given mask
tokens in the empty places, reconstructs the pixels; the loss is the mean squared error on the dropped
patches, on pixels normalised per patch. Follows facebookresearch/mae@efb2a80; golden:
tests/golden/mae_tiny.npz.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safetensors.torch import load_file
from torch import Tensor, nn

from mimbench.arch import ViTConfig, patch_embed_flops, size_of, transformer_flops
from mimbench.contract import MethodCard
from mimbench.recipe import PretrainRecipe, require_range
from mimbench.vit import ViT
from pretrain import weight_init
from pretrain.decoder import MAEDecoder
from pretrain.masking import random_masking
from pretrain.target import patchify, standardise

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder


class MAE(nn.Module):
    """The masked autoencoder."""

    def __init__(self, recipe: MAERecipe) -> None:
        super().__init__()
        self.mask_ratio, self.norm_pix_loss = recipe.mask_ratio, recipe.norm_pix_loss
        self.patch_size = recipe.patch_size
        config = ViTConfig.named(recipe.arch, img_size=recipe.img_size, patch_size=recipe.patch_size)
        self.encoder = ViT(config, drop_path=recipe.drop_path)
        self.encoder.pos_embed.requires_grad_(False)
        self.decoder = MAEDecoder(
            config.embed_dim,
            config.grid_size,
            dim=recipe.decoder_dim,
            depth=recipe.decoder_depth,
            num_heads=recipe.decoder_heads,
            out_dim=3 * recipe.patch_size**2,
        )
        self.apply(weight_init.xavier)
        weight_init.xavier_patch_embed(self.encoder)
        for token in (self.encoder.cls_token, self.decoder.mask_token):
            nn.init.normal_(token, std=0.02)

    def forward_encoder(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Latent `[B, 1+K, D]` of the visible patches, ids_restore `[B, N]`, mask `[B, N]` (1 = masked)."""
        x = self.encoder.embed(images)  # [B, N, D]
        ids_keep, ids_restore, mask = random_masking(*x.shape[:2], self.mask_ratio, x.device, noise)
        x = x.gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, x.shape[2]))  # [B, K, D]
        return self.encoder.norm(self.encoder.encode(x)[-1]), ids_restore, mask

    def forward_loss(self, images: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error of pred `[B, N, p*p*3]` on the masked patches."""
        target = patchify(images, self.patch_size)
        if self.norm_pix_loss:
            target = standardise(target)
        error = (pred - target).square().mean(dim=-1)  # [B, N]
        return (error * mask).sum() / mask.sum()

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        latent, ids_restore, mask = self.forward_encoder(images)
        pred = self.decoder(latent, ids_restore)  # [B, N, p*p*3]
        return {"loss": self.forward_loss(images, pred, mask)}


@dataclass(frozen=True, kw_only=True)
class MAERecipe(PretrainRecipe):
    mask_ratio: float
    norm_pix_loss: bool
    decoder_dim: int
    decoder_depth: int
    decoder_heads: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("mask_ratio", self.mask_ratio, 1 / self.num_patches, 1 - 1 / self.num_patches)

    def step_flops(self) -> float:
        size, num_keep = size_of(self.arch), int(self.num_patches * (1 - self.mask_ratio))
        encoder = transformer_flops(size.embed_dim, size.depth, num_keep + 1)
        decoder = transformer_flops(self.decoder_dim, self.decoder_depth, self.num_patches + 1)
        embed = patch_embed_flops(size.embed_dim, self.num_patches, self.patch_size)
        predict = patch_embed_flops(self.decoder_dim, self.num_patches, self.patch_size)
        return 3 * (encoder + decoder + embed + predict)


def recipes() -> Mapping[str, MAERecipe]:
    paper = MAERecipe.cited(
        {
            "paper, Table 3": {"epochs": 1600.0, "arch": "vit_base"},
            "paper, Table 8": {
                "warmup_epochs": 40.0,
                "global_batch_size": 4096,
                "base_lr": 1.5e-4,
                "lr_rule": "linear",
                "betas": (0.9, 0.95),
                "weight_decay": 0.05,
            },
            "paper, section 4": {"img_size": 224, "patch_size": 16, "mask_ratio": 0.75, "color_jitter": 0.0},
            "paper, Table 1 (a, b)": {"decoder_dim": 512, "decoder_depth": 8},
            "paper, Table 1 (d)": {"norm_pix_loss": True},
            "code, main_pretrain.py": {
                "min_lr": 0.0,
                "min_crop_scale": 0.2,
                "clip_grad": None,
                "precision": "fp16",
            },
            "code, models_mae.py": {"decoder_heads": 16, "drop_path": 0.0},
        }
    )
    small = paper.at_small(
        decoder_dim=64, decoder_depth=2, decoder_heads=2, epochs=8.0, base_lr=1.5e-3, lr_rule="absolute"
    )
    toy = small.at_toy(mask_ratio=0.6, epochs=12.0)
    smoke = toy.at_smoke(decoder_dim=32, decoder_depth=1)
    return {"paper": paper, "small": small, "toy": toy, "smoke": smoke}


def load(folder: RunFolder) -> nn.Module:
    """The whole autoencoder of a finished run, for methods that learn from its reconstructions."""
    mae = MAE(MAERecipe.from_values(folder.spec.recipe))
    mae.load_state_dict(load_file(folder.path / "teacher.safetensors"))
    return mae


METHOD = MethodCard(
    name="mae",
    title="MAE",
    paper="He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022",
    code="facebookresearch/mae@efb2a80",
    reconstruction=False,
    recipes=recipes,
    build=MAE,
    load=load,
    golden=("mae_tiny.npz",),
    points=12,
)

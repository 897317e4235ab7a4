"""MAE: Masked Autoencoders Are Scalable Vision Learners (He et al., CVPR 2022, arXiv 2111.06377).

Section 3: three quarters of the patches are dropped, and the encoder sees only the others. A light decoder
gets mask tokens for the dropped patches and reconstructs the pixels. The loss is the mean squared error on
the dropped patches, with pixels normalised per patch. Follows facebookresearch/mae@efb2a80; golden:
tests/golden/mae_tiny.npz.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mimbench.arch import patch_embed_flops, transformer_flops
from mimbench.contract import MethodCard
from mimbench.method import Method
from mimbench.recipe import SMALL, PretrainRecipe, cite, require_range
from mimbench.vit import ViT
from pretrain import weight_init
from pretrain.decoder import MAEDecoder
from pretrain.masking import gather_tokens, random_masking
from pretrain.target import masked_mean, pixel_target, squared_error
from pretrain.weights import load_trained

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder


class MAE(Method):
    """The masked autoencoder."""

    def __init__(self, recipe: MAERecipe) -> None:
        super().__init__()
        self.mask_ratio, self.norm_pix_loss = recipe.mask_ratio, recipe.norm_pix_loss
        self.patch_size = recipe.patch_size
        self.encoder = ViT(recipe.vit_config(), drop_path=recipe.drop_path)
        self.encoder.pos_embed.requires_grad_(False)
        self.decoder = MAEDecoder.of(recipe, 3 * recipe.patch_size**2)
        self.apply(weight_init.xavier)
        weight_init.xavier_patch_embed(self.encoder)
        for token in (self.encoder.cls_token, self.decoder.mask_token):
            nn.init.normal_(token, std=0.02)

    def no_weight_decay(self) -> set[str]:
        return set()  # the code decays the class token, too

    def forward_encoder(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Latent `[B, 1+K, D]` of the visible patches, ids_restore `[B, N]`, mask `[B, N]` (1 = masked)."""
        x = self.encoder.embed(images)  # [B, N, D]
        ids_keep, ids_restore, mask = random_masking(*x.shape[:2], self.mask_ratio, x.device, noise)
        latent = self.encoder.encode(gather_tokens(x, ids_keep))[-1]  # [B, 1+K, D]
        return self.encoder.norm(latent), ids_restore, mask

    def pixel_target(self, images: Tensor) -> Tensor:
        """The pixels of every patch, `[B, N, p*p*3]`."""
        return pixel_target(images, self.patch_size, norm_pix_loss=self.norm_pix_loss)

    def forward_loss(self, images: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error of pred `[B, N, p*p*3]` on the masked patches."""
        return masked_mean(squared_error(pred, self.pixel_target(images)), mask)

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

    @property
    def num_visible(self) -> int:
        """Patches that the encoder sees."""
        return int(self.num_patches * (1 - self.mask_ratio))

    def step_flops(self) -> float:
        return 3 * self.forward_flops()

    def forward_flops(self) -> float:
        return self.encoder_flops(self.num_visible) + self.decoder_flops()

    def decoder_flops(self) -> float:
        """The decoder's forward pass, from its first block to the predicted pixels."""
        predict = patch_embed_flops(self.decoder_dim, self.num_patches, self.patch_size)
        return predict + transformer_flops(self.decoder_dim, self.decoder_depth, self.num_patches + 1)


def recipes() -> Mapping[str, MAERecipe]:
    paper = MAERecipe.of(
        cite("paper, Table 3", arch="vit_base", epochs=1600.0),
        cite("paper, section 4", img_size=224, patch_size=16, mask_ratio=0.75, color_jitter=0.0),
        cite("paper, Table 1 (a, b)", decoder_dim=512, decoder_depth=8),
        cite("paper, Table 1 (d)", norm_pix_loss=True),
        cite("paper, Table 8", global_batch_size=4096, base_lr=1.5e-4, lr_rule="linear", warmup_epochs=40.0),
        cite("paper, Table 8", betas=(0.9, 0.95), weight_decay=0.05),
        cite("code, models_mae.py", decoder_heads=16, drop_path=0.0),
        cite("code, main_pretrain.py", min_lr=0.0, min_crop_scale=0.2, clip_grad=None, precision="fp16"),
    )
    small = paper.at_small(
        cite(SMALL, decoder_dim=64, decoder_depth=2, decoder_heads=2),
        cite(SMALL, epochs=8.0, base_lr=1.5e-3, lr_rule="absolute"),
    )
    toy = small.at_toy(mask_ratio=0.6, epochs=12.0)
    smoke = toy.at_smoke(decoder_dim=32, decoder_depth=1)
    return {"paper": paper, "small": small, "toy": toy, "smoke": smoke}


def load(folder: RunFolder) -> nn.Module:
    """The whole autoencoder of a finished run, for methods that learn from its reconstructions."""
    return load_trained(MAE(MAERecipe.from_values(folder.spec.recipe)), folder)


METHOD = MethodCard(
    name="mae",
    title="MAE",
    paper="He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022",
    code="facebookresearch/mae@efb2a80",
    provenance="official",
    recipes=recipes,
    build=MAE,
    load=load,
    golden=("mae_tiny.npz",),
    points=12,
)

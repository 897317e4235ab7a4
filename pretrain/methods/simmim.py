"""SimMIM: a Simple Framework for Masked Image Modeling (Xie et al., CVPR 2022, arXiv 2111.09886), with a ViT.

Section 3: random squares of 32 pixels are masked; the encoder sees a mask token instead of each masked patch;
one linear layer predicts the raw pixels of each token; the loss is the l1 distance on the masked pixels.
Follows microsoft/SimMIM@d3e29bc with its ViT-B: BEiT's encoder, one relative position table, layer scale.

Differs: crops are resized bicubically (the code leaves torchvision's bilinear default).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from mimbench.arch import patch_embed_flops, size_of
from mimbench.contract import MethodCard, TransferOverrides
from mimbench.errors import UserError
from mimbench.method import Method
from mimbench.recipe import SMALL, PretrainRecipe, cite, require_range
from mimbench.schedule import warmup_multistep
from mimbench.vit import ViT
from pretrain.masked_vit import MaskedViT
from pretrain.masking import random_masking

WARMUP_START = 5e-7 / 1e-4  # of the peak; config.py: TRAIN.WARMUP_LR


class SimMIM(Method):
    """A masked ViT that predicts the pixels of what it does not see."""

    def __init__(self, recipe: SimMIMRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.student = MaskedViT(recipe, positions="shared", layer_scale_init=recipe.layer_scale_init)
        self.decoder = nn.Sequential(
            nn.Conv2d(self.encoder.embed_dim, 3 * recipe.patch_size**2, kernel_size=1),
            nn.PixelShuffle(recipe.patch_size),
        )

    @property
    def encoder(self) -> ViT:
        return self.student.encoder

    def draw_masks(self, images: Tensor) -> Tensor:
        """Masks `[B, G, G]` of the tokens, 1 = masked, made of random squares of `mask_patch_size` pixels."""
        r = self.recipe
        side, scale = r.img_size // r.mask_patch_size, r.mask_patch_size // r.patch_size
        _, _, mask = random_masking(len(images), side**2, r.mask_ratio, images.device)
        mask = mask.reshape(-1, side, side)
        return mask.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)

    def predict(self, images: Tensor, mask: Tensor) -> Tensor:
        """The predicted image `[B, 3, H, W]`."""
        x = self.student(images, mask.flatten(1))[:, 1:]  # [B, N, D]
        return self.decoder(x.transpose(1, 2).unflatten(2, mask.shape[1:]))

    def forward_loss(self, images: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Mean absolute error of pred `[B, 3, H, W]` on the masked pixels."""
        p = self.recipe.patch_size
        mask = mask.repeat_interleave(p, dim=1).repeat_interleave(p, dim=2).unsqueeze(1)  # [B, 1, H, W]
        return ((pred - images).abs() * mask).sum() / (mask.sum() + 1e-5) / images.shape[1]

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        mask = self.draw_masks(images)
        return {"loss": self.forward_loss(images, self.predict(images, mask), mask)}


@dataclass(frozen=True, kw_only=True)
class SimMIMRecipe(PretrainRecipe):
    mask_ratio: float  # share of the squares that are masked; rounded up to whole squares
    mask_patch_size: int  # pixels: side of the squares that are masked, a multiple of the patch
    layer_scale_init: float
    decay_at: float  # share of the training after which the learning rate falls to a tenth

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.mask_patch_size
        if size < 1 or size % self.patch_size or self.img_size % size:
            remedy = f"It must be a multiple of patch_size, {self.patch_size}, that divides img_size, "
            raise UserError("mask_patch_size", size, remedy=f"{remedy}{self.img_size}.")
        num_squares = (self.img_size // size) ** 2
        require_range("mask_ratio", self.mask_ratio, 1 / num_squares, 1)
        require_range("decay_at", self.decay_at, 0, 1)

    def lr_at(self, step: int, steps: int, epoch_steps: float | None = None) -> float:
        """Linear warm-up, then constant, with one drop to a tenth."""
        warmup = round(self.warmup_epochs * steps / self.epochs)
        fall = round(self.decay_at * steps)
        start = {"peak": self.peak_lr, "start_ratio": WARMUP_START}
        return warmup_multistep(step, total=steps, warmup=warmup, milestones=[fall], **start)

    def step_flops(self) -> float:
        pixels = patch_embed_flops(size_of(self.arch).embed_dim, self.num_patches, self.patch_size)
        return 3 * (self.encoder_flops() + pixels)  # the head costs what the patch embedding costs


def recipes() -> Mapping[str, SimMIMRecipe]:
    config = "code, simmim_pretrain__vit_base__img224__800ep.yaml@d3e29bc"
    parser = "code, config.py@d3e29bc"
    paper = SimMIMRecipe.of(
        cite(config, arch="vit_base", img_size=224, drop_path=0.1, weight_decay=0.05),
        cite(config, mask_patch_size=32, mask_ratio=0.6),
        cite(config, epochs=800.0, warmup_epochs=10.0, decay_at=700 / 800),
        cite("code, the same file: 1e-4 for 512 images", base_lr=5e-5, lr_rule="linear"),
        cite(parser, patch_size=16, layer_scale_init=0.1, betas=(0.9, 0.999), clip_grad=5.0),
        cite(f"{parser}: not used by a multistep schedule", min_lr=5e-6),
        cite("code, README@d3e29bc: 16 GPUs of 128", global_batch_size=2048),
        cite("code, data/data_simmim.py@d3e29bc", min_crop_scale=0.67, color_jitter=0.0),
        cite("code, main_simmim.py@d3e29bc: apex O1", precision="fp16"),
    )
    small = paper.at_small(
        cite(SMALL, mask_patch_size=16),  # 2 x 2 patches, as 32 pixels of 16
        cite(SMALL, epochs=6.0, base_lr=1.5e-3, lr_rule="absolute"),
    )
    toy = small.at_toy(epochs=11.0)
    smoke = toy.at_smoke()
    return {"paper": paper, "small": small, "toy": toy, "smoke": smoke}


def transfer() -> TransferOverrides:
    """SimMIM's own fine-tuning: learning rate 1.25e-3 for 512 images; every block gets the shared table."""
    config = "code, simmim_finetune__vit_base__img224__800ep.yaml@d3e29bc"
    return {
        "classification": {
            "paper": [
                cite(config, base_lr=6.25e-4, lr_rule="linear", layer_decay=0.65, drop_path=0.1),
                cite(config, epochs=100.0, warmup_epochs=20.0),
                cite(f"{config}: 2.5e-7 for 512 images", min_lr=5e-7),
                cite("code, config.py@d3e29bc", clip_grad=5.0),
            ]
        }
    }


METHOD = MethodCard(
    name="simmim",
    title="SimMIM",
    paper="Xie et al., SimMIM: a Simple Framework for Masked Image Modeling, CVPR 2022",
    code="microsoft/SimMIM@d3e29bc",
    provenance="official",
    recipes=recipes,
    build=SimMIM,
    transfer=transfer,
    points=9,
)

"""MaskFeat: Masked Feature Prediction for Self-Supervised Visual Pre-Training (Wei et al., CVPR 2022).

Section 3, on images: blocks of patches are replaced by a mask token; a plain ViT sees the whole sequence; a
linear layer on its last tokens predicts the histogram of oriented gradients (HOG) of the masked patches; the
loss is the mean squared error. Follows facebookresearch/SlowFast@287ec00 (`configs/masked_ssl`,
`models/masked.py`); golden: tests/golden/hog_tiny.npz (the target).

Differs: the head also runs on visible tokens, but their error does not count (fixed shapes, so a step need
not wait for the mask); warm-up starts at 0 instead of 1e-6; the patch embedding's bias starts at 0 (in the
code it is random).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from mimbench.arch import size_of
from mimbench.contract import MethodCard, TransferOverrides
from mimbench.method import Method
from mimbench.recipe import SMALL, PretrainRecipe, cite, require_range
from mimbench.vit import ViT
from pretrain.hog import hog, hog_dim
from pretrain.masked_vit import MaskedViT
from pretrain.masking import block_masks
from pretrain.target import masked_mean, squared_error


class MaskFeat(Method):
    """A masked ViT that predicts the HOG of what it does not see."""

    def __init__(self, recipe: MaskFeatRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.student = MaskedViT(recipe, positions="absolute", layer_scale_init=None, key_bias=True)
        self.head = nn.Linear(self.encoder.embed_dim, hog_dim(recipe.patch_size))
        self.apply(_init_weights)
        nn.init.zeros_(self.head.bias)
        nn.init.zeros_(self.encoder.norm.bias)
        for token in (self.encoder.cls_token, self.encoder.pos_embed, self.student.mask_token):
            nn.init.trunc_normal_(token, std=0.02)

    @property
    def encoder(self) -> ViT:
        return self.student.encoder

    def no_weight_decay(self) -> set[str]:
        return set()  # the code decays the class token and the positions, too

    def draw_masks(self, images: Tensor) -> Tensor:
        """Block-wise masks `[B, N]`, 1 = masked: `num_masked` patches, or fewer if no more block fits."""
        r, grid = self.recipe, self.student.grid_size
        return block_masks(len(images), grid, r.num_masked, r.min_mask_block, images.device, exact=False)

    def predict(self, images: Tensor, mask: Tensor) -> Tensor:
        """The predicted HOG of every patch, `[B, N, 27 * cells]`."""
        return self.head(self.student(images, mask)[:, 1:])

    def forward_loss(self, images: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Squared error of pred, averaged over all masked patches of the batch."""
        return masked_mean(squared_error(pred, hog(images, self.recipe.patch_size)), mask)

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        mask = self.draw_masks(images)
        return {"loss": self.forward_loss(images, self.predict(images, mask), mask)}


def _init_weights(module: nn.Module) -> None:
    """As the code: N(0, 0.02^2) weights, biases of 0.02 in linear layers and norms, no rescaling by depth."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, (nn.Linear, nn.LayerNorm)):
        nn.init.constant_(module.bias, 0.02)


@dataclass(frozen=True, kw_only=True)
class MaskFeatRecipe(PretrainRecipe):
    num_masked: int  # patches hidden from the student, at most
    min_mask_block: int  # smallest area of a mask block, in patches

    def __post_init__(self) -> None:
        super().__post_init__()
        hog_dim(self.patch_size)
        require_range("num_masked", self.num_masked, 1, self.num_patches)
        require_range("min_mask_block", self.min_mask_block, 1, self.num_patches)

    def step_flops(self) -> float:
        head = 2.0 * self.num_patches * size_of(self.arch).embed_dim * hog_dim(self.patch_size)
        return 3 * (self.encoder_flops() + head)


def recipes() -> Mapping[str, MaskFeatRecipe]:
    config = "code, configs/masked_ssl/in1k_VIT_B_MaskFeat_PT.yaml@287ec00"
    shard = "code, in1k_VIT_B_MaskFeat_PT.yaml@287ec00: 1e-6 a shard of 256, as the rate"
    share = "code, datasets/imagenet.py@287ec00: 40 %, blocks of at least a fifth of them"
    paper = MaskFeatRecipe.of(
        cite(config, arch="vit_base", img_size=224, patch_size=16, drop_path=0.0),
        cite(config, base_lr=2e-4, lr_rule="linear", weight_decay=0.05, warmup_epochs=30.0, clip_grad=0.02),
        cite(config, min_crop_scale=0.5, color_jitter=0.0),
        cite(shard, min_lr=8e-6),
        cite(share, num_masked=78, min_mask_block=15),
        cite("code, defaults.py@287ec00", betas=(0.9, 0.999), precision="fp32"),
        cite("paper: 2048 images a step", global_batch_size=2048),
        cite("code, projects/maskfeat: epochs of the published model", epochs=1600.0),
    )
    small = paper.at_small(
        cite(SMALL, num_masked=26, min_mask_block=5),  # 40 % of 64 patches
        cite(SMALL, epochs=6.0, base_lr=1.5e-3, lr_rule="absolute", min_lr=1e-5),
    )
    toy = small.at_toy(epochs=11.0)
    smoke = toy.at_smoke(num_masked=6, min_mask_block=2)
    return {"paper": paper, "small": small, "toy": toy, "smoke": smoke}


def transfer() -> TransferOverrides:
    """MaskFeat's own fine-tuning: learning rate 2e-3 per shard of 512 images."""
    config = "code, configs/masked_ssl/in1k_VIT_B_MaskFeat_FT.yaml@287ec00"
    shards = f"{config}: four shards, each with 1e-6 of it"
    return {
        "classification": {
            "paper": [
                cite(config, base_lr=1e-3, lr_rule="linear", layer_decay=0.65, drop_path=0.1),
                cite(config, epochs=100.0, warmup_epochs=20.0),
                cite(shards, global_batch_size=2048, min_lr=4e-6),
                cite("code, defaults.py@287ec00", precision="fp32"),
            ]
        }
    }


METHOD = MethodCard(
    name="maskfeat",
    title="MaskFeat",
    paper="Wei et al., Masked Feature Prediction for Self-Supervised Visual Pre-Training, CVPR 2022",
    code="facebookresearch/SlowFast@287ec00",
    provenance="official",
    recipes=recipes,
    build=MaskFeat,
    transfer=transfer,
    golden=("hog_tiny.npz",),
    points=10,
)

"""BEiT: BERT Pre-Training of Image Transformers (Bao et al., ICLR 2022, arXiv 2106.08254).

Section 2: blocks of patches are masked (Algorithm 1); the ViT sees a learned mask token in their place and
predicts, for each masked patch, the visual token that a frozen tokenizer gives it (section 2.3). Student and
tokenizer see one crop at two resolutions.

Follows microsoft/unilm@768a3c8 (beit); golden: tests/golden/beit_tiny.npz. The paper's main model and the
released code's default differ; the recipe says which, the code's first:

    positions         shared | absolute    one table of relative position biases, or learned positions
    layer_scale_init  0.1 | None           the code's layer scale, or none
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.arch import patch_embed_flops, size_of, transformer_flops
from mimbench.contract import MethodCard, TransferOverrides
from mimbench.recipe import PretrainRecipe, require_range
from pretrain import weight_init
from pretrain.conv_vae import conv_flops
from pretrain.masked_vit import MaskedViT
from pretrain.masking import block_masks
from pretrain.two_views import TwoViews


class BEiT(nn.Module):
    """Masked image modelling: classify masked patches by their visual tokens.

    Args:
        tokenizer: `tokenizer.tokens(images)` gives ids `[B, N]`; frozen, in eval mode.
    """

    def __init__(self, recipe: BEiTRecipe, tokenizer: nn.Module) -> None:
        super().__init__()
        self.recipe = recipe
        self.student = MaskedViT(recipe, positions=recipe.positions, layer_scale_init=recipe.layer_scale_init)
        self.head = nn.Linear(self.encoder.embed_dim, recipe.num_codes)
        self.head.apply(weight_init.beit)
        self.tokenizer = tokenizer

    @property
    def encoder(self) -> nn.Module:
        return self.student.encoder

    def train(self, mode: bool = True) -> BEiT:
        super().train(mode)
        self.tokenizer.eval()
        return self

    def no_weight_decay(self) -> set[str]:
        return self.encoder.no_weight_decay()

    def draw_masks(self, images: Tensor) -> Tensor:
        """Block-wise masks `[B, N]`, 1 = masked: `num_masked` patches or, where no block fits, fewer."""
        r, grid = self.recipe, self.student.grid_size
        return block_masks(images.shape[0], grid, r.num_masked, r.min_mask_block, images.device, exact=False)

    def predict(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the codes at the masked patches.

        So that shapes are fixed, every picture has `num_masked` rows: its masked patches, then visible ones.

        Returns:
            logits `[B, M, num_codes]`, the patches' indices `[B, M]`, and weight `[B, M]`: 1 = masked.
        """
        x = self.student(images, mask)[:, 1:]  # [B, N, D]
        weight, indices = mask.topk(self.recipe.num_masked, dim=1)
        x = x.gather(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[2]))  # [B, M, D]
        return self.head(x), indices, weight

    def forward(self, images: tuple[Tensor, Tensor], step_fraction: float) -> dict[str, Tensor]:
        pictures, small = images
        ids = self.tokenizer.tokens(small)  # type: ignore[operator]  # [B, N]
        logits, indices, weight = self.predict(pictures, self.draw_masks(pictures))
        target = ids.gather(1, indices)  # [B, M]
        return {
            "loss": masked_mean(F.cross_entropy(logits.mT, target, reduction="none"), weight),
            "token_acc": masked_mean((logits.argmax(dim=2) == target).float(), weight),
        }


def masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean over all masked tokens of the batch: pictures with more of them count for more."""
    return (values * weight).sum() / weight.sum()


@dataclass(frozen=True, kw_only=True)
class BEiTRecipe(PretrainRecipe):
    positions: Literal["shared", "absolute"]  # see the module's text
    layer_scale_init: float | None  # None = no layer scale
    num_masked: int  # patches hidden from the student, at most
    min_mask_block: int  # least area of a mask block, in patches
    num_codes: int  # the tokenizer's vocabulary
    token_size: int  # pixels: side of the tokenizer's picture

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("num_masked", self.num_masked, 1, self.num_patches)
        require_range("min_mask_block", self.min_mask_block, 1, self.num_masked)

    def step_flops(self) -> float:
        size = size_of(self.arch)
        student = transformer_flops(size.embed_dim, size.depth, self.num_patches + 1)
        student += patch_embed_flops(size.embed_dim, self.num_patches, self.patch_size)
        student += 2.0 * self.num_masked * size.embed_dim * self.num_codes
        return 3 * student + self.tokenizer_flops()

    def tokenizer_flops(self) -> float:
        """The tokenizer's forward pass: DALL-E's encoder at paper scale, our own small ones below."""
        deepest, num_blocks = (2048, 2) if self.img_size >= 224 else (64, 1)
        patch_size = self.token_size * self.patch_size // self.img_size
        return conv_flops(deepest // patch_size, self.num_codes, self.token_size, patch_size, num_blocks)


def augment(recipe: BEiTRecipe) -> TwoViews:
    """The student's picture and the tokenizer's."""
    return TwoViews(recipe.img_size, recipe.token_size, recipe.min_crop_scale, recipe.color_jitter)


def recipes() -> Mapping[str, BEiTRecipe]:
    paper = BEiTRecipe.cited(
        {
            "paper, Table 12": {
                "arch": "vit_base",
                "epochs": 800.0,
                "warmup_epochs": 10.0,
                "global_batch_size": 2048,
                "base_lr": 1.5e-3,
                "lr_rule": "absolute",
                "min_lr": 1e-5,
                "betas": (0.9, 0.999),
                "weight_decay": 0.05,
                "clip_grad": 3.0,
                "drop_path": 0.1,
                "img_size": 224,
                "patch_size": 16,
                "color_jitter": 0.4,
            },
            "paper, section 2.1": {"num_codes": 8192},
            "code, run_beit_pretraining.py@768a3c8": {
                "positions": "shared",
                "layer_scale_init": 0.1,
                "num_masked": 75,
                "min_mask_block": 16,
                "token_size": 112,
            },
            "code, transforms.py@768a3c8": {"min_crop_scale": 0.08},
            "code, engine_for_pretraining.py@768a3c8": {"precision": "fp16"},
        }
    )
    small = paper.at_small(
        num_masked=24,  # 38 % of 64 patches, as 75 of 196
        min_mask_block=5,  # 8 % of the grid, as 16 of 196
        num_codes=256,
        token_size=32,  # half of the student's side, as 112 of 224
        epochs=5.0,
    )
    toy = small.at_toy(color_jitter=0.0, drop_path=0.0, epochs=11.0)
    smoke = toy.at_smoke(num_masked=6, min_mask_block=2, num_codes=64, token_size=16)
    return {"paper": paper, "small": small, "toy": toy, "smoke": smoke}


def transfer() -> TransferOverrides:
    """BEiT's fine-tuning (Tables 13 and 14 of the paper; README of microsoft/unilm@768a3c8, beit)."""
    return {
        "classification": {
            "paper": {
                "BEiT code, get_started_for_image_classification.md@768a3c8; 4e-3 is of the paper's sweep": {
                    "base_lr": 4e-3,
                    "lr_rule": "absolute",
                    "layer_decay": 0.65,
                    "drop_path": 0.1,
                    "epochs": 100.0,
                    "warmup_epochs": 20.0,
                }
            }
        },
        "segmentation": {
            "paper": {
                "BEiT code, upernet_beit_base_12_512_slide_160k_ade20k_pt.py@768a3c8": {
                    "base_lr": 7e-4,
                    "layer_decay": 0.65,
                    "drop_path": 0.1,
                }
            }
        },
    }


METHOD = MethodCard(
    name="beit",
    title="BEiT",
    paper="Bao et al., BEiT: BERT Pre-Training of Image Transformers, ICLR 2022",
    code="microsoft/unilm@768a3c8",
    reconstruction=False,
    recipes=recipes,
    build=BEiT,
    needs={"tokenizer": "dvae"},
    augment=augment,
    transfer=transfer,
    golden=("beit_tiny.npz",),
    points=10,
)

"""BEiT: BERT Pre-Training of Image Transformers (Bao et al., ICLR 2022, arXiv 2106.08254).

Section 2: blocks of patches are masked (Algorithm 1). The ViT sees a learned mask token instead of each
masked patch and predicts the visual token that a frozen tokenizer gives the patch (section 2.3). Student and
tokenizer see the same crop at two resolutions.

Follows microsoft/unilm@768a3c8 (beit); golden: tests/golden/beit_tiny.npz. The paper's main model and the
released code's default differ in two recipe fields; the code's value comes first:

    positions         shared | absolute    one table of relative position biases, or learned positions
    layer_scale_init  0.1 | None           the code's layer scale, or none
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.arch import size_of
from mimbench.contract import MethodCard, TransferOverrides
from mimbench.method import Method
from mimbench.recipe import SMALL, PretrainRecipe, cite, require_range
from pretrain import weight_init
from pretrain.masked_vit import MaskedViT
from pretrain.masking import block_masks, gather_tokens
from pretrain.target import masked_mean
from pretrain.two_views import TwoViews


class BEiT(Method):
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

    def draw_masks(self, images: Tensor) -> Tensor:
        """Block-wise masks `[B, N]`, 1 = masked: `num_masked` patches, or fewer if no more block fits."""
        r, grid = self.recipe, self.student.grid_size
        return block_masks(len(images), grid, r.num_masked, r.min_mask_block, images.device, exact=False)

    def predict(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the codes at the masked patches.

        To keep shapes fixed, every image has `num_masked` rows: its masked patches, then visible ones.

        Returns:
            logits `[B, M, num_codes]`, the patches' indices `[B, M]`, and weight `[B, M]`: 1 = masked.
        """
        x = self.student(images, mask)[:, 1:]  # [B, N, D]
        weight, indices = mask.topk(self.recipe.num_masked, dim=1)
        return self.head(gather_tokens(x, indices)), indices, weight

    def forward(self, views: tuple[Tensor, Tensor], step_fraction: float) -> dict[str, Tensor]:
        images, small = views
        ids = self.tokenizer.tokens(small)  # type: ignore[operator]  # [B, N]
        logits, indices, weight = self.predict(images, self.draw_masks(images))
        target = ids.gather(1, indices)  # [B, M]
        return {
            "loss": masked_mean(F.cross_entropy(logits.mT, target, reduction="none"), weight),
            "token_acc": masked_mean((logits.argmax(dim=2) == target).float(), weight),
        }


@dataclass(frozen=True, kw_only=True)
class BEiTRecipe(PretrainRecipe):
    positions: Literal["shared", "absolute"]  # see the module's docstring
    layer_scale_init: float | None  # None = no layer scale
    num_masked: int  # patches hidden from the student, at most
    min_mask_block: int  # smallest area of a mask block, in patches
    num_codes: int  # the tokenizer's vocabulary
    token_size: int  # pixels: side of the tokenizer's image

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("num_masked", self.num_masked, 1, self.num_patches)
        require_range("min_mask_block", self.min_mask_block, 1, self.num_masked)

    def step_flops(self, tokenizer: PretrainRecipe) -> float:
        head = 2.0 * self.num_masked * size_of(self.arch).embed_dim * self.num_codes
        return 3 * (self.encoder_flops() + head) + tokenizer.encoder_flops()


def augment(recipe: BEiTRecipe) -> TwoViews:
    """The student's view and the tokenizer's."""
    return TwoViews(recipe.img_size, recipe.token_size, recipe.min_crop_scale, recipe.color_jitter)


def recipes() -> Mapping[str, BEiTRecipe]:
    code = "code, run_beit_pretraining.py@768a3c8"
    paper = BEiTRecipe.of(
        cite("paper, Table 12", arch="vit_base", img_size=224, patch_size=16, drop_path=0.1),
        cite("paper, Table 12", epochs=800.0, warmup_epochs=10.0, global_batch_size=2048),
        cite("paper, Table 12", base_lr=1.5e-3, lr_rule="absolute", min_lr=1e-5),
        cite("paper, Table 12", betas=(0.9, 0.999), weight_decay=0.05, clip_grad=3.0, color_jitter=0.4),
        cite("paper, section 2.1", num_codes=8192),
        cite(code, positions="shared", layer_scale_init=0.1),
        cite(code, num_masked=75, min_mask_block=16, token_size=112),
        cite("code, transforms.py@768a3c8", min_crop_scale=0.08),
        cite("code, engine_for_pretraining.py@768a3c8", precision="fp16"),
    )
    small = paper.at_small(
        cite(SMALL, num_masked=24, min_mask_block=5),  # of 64 patches as much as 75 and 16 are of 196
        cite(SMALL, token_size=32, num_codes=256, epochs=5.0),  # half of the student's side, as 112 of 224
    )
    toy = small.at_toy(color_jitter=0.0, drop_path=0.0, epochs=11.0)
    smoke = toy.at_smoke(num_masked=6, min_mask_block=2, num_codes=64, token_size=16)
    return {"paper": paper, "small": small, "toy": toy, "smoke": smoke}


def transfer() -> TransferOverrides:
    """BEiT's fine-tuning (Tables 13 and 14 of the paper; README of microsoft/unilm@768a3c8, beit)."""
    sweep = "BEiT code, get_started_for_image_classification.md@768a3c8; 4e-3 is of the paper's sweep"
    upernet = "BEiT code, upernet_beit_base_12_512_slide_160k_ade20k_pt.py@768a3c8"
    return {
        "classification": {
            "paper": [
                cite(sweep, base_lr=4e-3, lr_rule="absolute", layer_decay=0.65, drop_path=0.1),
                cite(sweep, epochs=100.0, warmup_epochs=20.0),
            ]
        },
        "segmentation": {"paper": [cite(upernet, base_lr=7e-4, layer_decay=0.65, drop_path=0.1)]},
    }


METHOD = MethodCard(
    name="beit",
    title="BEiT",
    paper="Bao et al., BEiT: BERT Pre-Training of Image Transformers, ICLR 2022",
    code="microsoft/unilm@768a3c8",
    provenance="official",
    recipes=recipes,
    build=BEiT,
    needs={"tokenizer": "dvae"},
    augment=augment,
    transfer=transfer,
    golden=("beit_tiny.npz",),
    points=10,
)

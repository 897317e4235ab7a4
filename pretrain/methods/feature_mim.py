"""Feature MIM: DTM with morphing off. The same student, teacher and recipe, distilled token by token.

The baseline of DTM's claim ("bipartite matching minus no-morphing baseline"). In DTM's released code
(naver-ai/dtm@322df2e) it is the case in which no token is merged: `smooth_l1(u, v, beta=2)` over all patch
tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mimbench.contract import MethodCard, TransferOverrides
from mimbench.method import Method
from mimbench.recipe import SMALL, cite
from pretrain.feature_student import FeatureRecipe, FeatureStudent, teacher_tokens, token_distance
from pretrain.target import standardise


class FeatureMIM(Method):
    """A masked student regresses every patch token of a frozen CLIP teacher.

    Args:
        teacher: `teacher(images, project=...)` gives all tokens `[B, 1+N, C]`; frozen, in eval mode.
    """

    def __init__(self, recipe: FeatureRecipe, teacher: nn.Module) -> None:
        super().__init__()
        self.recipe = recipe
        self.student = FeatureStudent(recipe)
        self.teacher = teacher

    @property
    def encoder(self) -> nn.Module:
        return self.student.encoder

    def forward_loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """Distance between pred and target, both `[B, N, C]`, averaged over all tokens, masked or visible."""
        if self.recipe.normalize_target:
            target = standardise(target)
        return token_distance(pred, target, self.recipe.loss_type)

    def forward(self, images: Tensor, step_fraction: float) -> dict[str, Tensor]:
        r = self.recipe
        target = teacher_tokens(  # [B, N, C]
            self.teacher, images, project=r.project_target, clip_normalisation=r.clip_normalisation
        )
        pred = self.student(images, self.student.draw_masks(images))  # [B, N, C]
        return {"loss": self.forward_loss(pred, target)}


def base_recipes() -> Mapping[str, FeatureRecipe]:
    """The recipes that DTM and its no-morphing baseline share."""
    docs, parser = "DTM code, docs/Training.md@322df2e", "DTM code, run_pretrain_dtm.py@322df2e"
    beit2 = "inherited from BEiT v2's 300-epoch recipe, not stated by DTM"
    paper = FeatureRecipe.of(
        cite("DTM code, modeling_dtm.py@322df2e", arch="vit_base"),
        cite(docs, layer_scale_init=0.1, num_masked=75, base_lr=1.5e-3, clip_grad=3.0),
        cite(parser, img_size=224, patch_size=16, min_mask_block=16, color_jitter=0.4, precision="fp16"),
        cite(parser, lr_rule="sqrt", min_lr=1e-5, weight_decay=0.05),
        cite(parser, target_dim=512, project_target=True, clip_normalisation=False),
        cite(parser, normalize_target=False, loss_type="smoothl1"),
        cite("DTM paper, as quoted by a review: 300 epochs", epochs=300.0),
        cite("recalled, not read: total batch", global_batch_size=1024),
        cite(beit2, betas=(0.9, 0.98), warmup_epochs=10.0, drop_path=0.0, min_crop_scale=0.2),
    )
    small = paper.at_small(
        cite(SMALL, num_masked=24, min_mask_block=5),  # of 64 patches as much as 75 and 16 are of 196
        cite(SMALL, target_dim=64, epochs=5.0, base_lr=2e-3, lr_rule="absolute"),
    )
    toy = small.at_toy(color_jitter=0.0, epochs=11.0)
    smoke = toy.at_smoke(num_masked=6, min_mask_block=2)
    return {"paper": paper, "small": small, "toy": toy, "smoke": smoke}


def transfer() -> TransferOverrides:
    """DTM's fine-tuning of the relative-position student; docs of naver-ai/dtm@322df2e."""
    slower = [cite("ours: chosen for this student, of 1e-3 and 2e-3", base_lr=1e-3)]
    docs, beit2 = "DTM code, docs", "inherited from BEiT v2, not stated by DTM"
    return {
        "classification": {
            "paper": [
                cite(docs, base_lr=5e-4, lr_rule="absolute", layer_decay=0.65, drop_path=0.1),
                cite(beit2, epochs=100.0, warmup_epochs=20.0),
            ]
        },
        "segmentation": {"paper": [cite(beit2, base_lr=5e-5, layer_decay=0.75, drop_path=0.15)]},
        "detection": {"small": slower, "toy": slower},
    }


METHOD = MethodCard(
    name="feature-mim",
    title="Feature MIM (DTM without morphing)",
    paper="Kim et al., Morphing Tokens Draw Strong Masked Image Models, ICLR 2025 (its no-morphing baseline)",
    code="naver-ai/dtm@322df2e",
    provenance="official",
    recipes=base_recipes,
    build=FeatureMIM,
    needs={"teacher": "clip"},
    transfer=transfer,
)

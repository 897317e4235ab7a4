"""DINO: Emerging Properties in Self-Supervised Vision Transformers (Caron et al., ICCV 2021).

A teacher of patch features. At paper scale DINO's ViT-B/16 is loaded from the file that the user names
(`--weights dino=PATH`). At smaller scales a small DINO is trained here on the run's images: multi-crop,
moving-average teacher, centring and sharpening (Algorithm 1). Follows facebookresearch/dino@7c446df.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mimbench.checkpoint.foreign import VIT
from mimbench.checkpoint.reader import read
from mimbench.contract import MethodCard
from mimbench.recipe import SMOKE, cite
from mimbench.vit import ViT
from pretrain.self_distillation import (
    FEW_STEPS,
    NUM_GLOBAL,
    DistillationRecipe,
    MultiCrop,
    SelfDistillation,
    backbone,
    cross_view_loss,
    health,
)
from pretrain.weights import load_into, recorded, trained

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder


class DINO(SelfDistillation):
    """Every view's class token predicts the teacher's class tokens of the other global views."""

    @property
    def encoder(self) -> nn.Module:
        return self.teacher.encoder

    def forward(self, crops: tuple[Tensor, ...], step_fraction: float) -> dict[str, Tensor]:
        r, epoch = self.recipe, step_fraction * self.recipe.epochs
        images = torch.cat(crops[:NUM_GLOBAL])  # [2B, 3, H, W]
        with torch.no_grad():
            logits = self.teacher.head(self.teacher.encoder(images)[:, 0]).unflatten(0, (NUM_GLOBAL, -1))
            target = self.center.targets(logits, r.teacher_temp_at(epoch))  # [2, B, K]
        tokens = [self.student.encoder(images)[:, 0], self.local_class_tokens(crops[NUM_GLOBAL:])]
        pred = self.student.head(torch.cat(tokens), self.last_layer_frozen(epoch))
        loss = cross_view_loss(pred.unflatten(0, (len(crops), -1)), target, r.student_temp)
        return {"loss": loss, **health(target)}


@dataclass(frozen=True, kw_only=True)
class DINORecipe(DistillationRecipe):
    weights: str  # the name under which the user gives pretrained weights; "" = trained here


def read_weights(path: Path, name: str = "dino") -> Mapping[str, Tensor]:
    """The tensors of a DINO checkpoint, from .safetensors or a plain .pth.

    Raises:
        UserError: the file only loads by running the code inside it, or is not a state dict.
    """
    return read(path, f"--weights {name}")


def load_backbone(state: Mapping[str, Tensor], recipe: DINORecipe, path: Path) -> ViT:
    """The recipe's ViT with its tensors from `state`; heads are left out.

    Accepts the published backbone, timm's file, and DINO's or iBOT's full checkpoint (its teacher is taken).
    """
    wanted = f"For {recipe.arch} give DINO's ViT-B/16."
    field = f"--weights {recipe.weights or 'dino'} ({path})"
    vit = backbone(recipe)
    heads = vit.config.num_heads
    return load_into(vit, state, VIT, field, wanted, export="teacher", num_heads=heads)


def load(folder: RunFolder) -> nn.Module:
    """The backbone of a DINO run: `module(images)` gives all tokens after the final norm, `[B, 1+N, D]`."""
    recipe = DINORecipe.from_values(folder.spec.recipe)
    if recipe.weights:
        path = folder.weights[recipe.weights]
        return recorded(load_backbone(read_weights(path, recipe.weights), recipe, path), folder)
    return load_backbone(trained(folder, "teacher.encoder."), recipe, folder.path)


def recipes() -> Mapping[str, DINORecipe]:
    readme = "DINO code, README.md@7c446df: the published ViT-B/16"
    code = "loaded, not trained; code, main_dino.py: the defaults"
    paper = DINORecipe.of(
        cite(readme, arch="vit_base", img_size=224, patch_size=16, weights="dino"),
        cite("loaded, not trained", epochs=0.0, warmup_epochs=0.0),
        cite(code, out_dim=65536, head_hidden_dim=2048, bottleneck_dim=256, drop_path=0.1),
        cite(code, global_batch_size=1024, base_lr=5e-4, lr_rule="linear", min_lr=1e-6, precision="fp16"),
        cite(code, betas=(0.9, 0.999), weight_decay=0.04, weight_decay_end=0.4, clip_grad=3.0),
        cite(code, momentum=0.996, center_momentum=0.9, student_temp=0.1, freeze_last_layer=1.0),
        cite(code, warmup_teacher_temp=0.04, teacher_temp=0.04, warmup_teacher_temp_epochs=0),
        cite(code, num_local_crops=8, local_img_size=96, min_crop_scale=0.4, local_min_scale=0.05),
        cite(code, color_jitter=0.4, blur_probs=(1.0, 0.1, 0.5), blur_radius=2.0, solarize_prob=0.2),
    )
    ours = "ours: some hundred steps on two CPU cores"
    toy = paper.vary(
        cite(ours, arch="vit_toy", img_size=64, patch_size=8, weights=""),
        cite(ours, out_dim=128, head_hidden_dim=96, bottleneck_dim=32, freeze_last_layer=0.1, drop_path=0.0),
        cite(ours, epochs=3.0, warmup_epochs=0.3, global_batch_size=16, weight_decay_end=0.1),
        cite(ours, base_lr=1.5e-3, lr_rule="absolute", min_lr=1e-5, precision="fp32"),
        cite(ours, local_img_size=32, num_local_crops=2, blur_radius=0.6),
        *FEW_STEPS,
    )
    smoke = toy.at_smoke(
        cite(SMOKE, out_dim=64, head_hidden_dim=32, bottleneck_dim=16, freeze_last_layer=0.0),
        cite(SMOKE, local_img_size=16, warmup_epochs=0.3),
    )
    return {"paper": paper, "small": toy, "toy": toy, "smoke": smoke}


METHOD = MethodCard(
    name="dino",
    title="DINO",
    paper="Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021",
    code="facebookresearch/dino@7c446df",
    provenance="official",
    recipes=recipes,
    build=DINO,
    stage="teacher",
    augment=MultiCrop,
    load=load,
)

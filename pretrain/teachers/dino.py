"""DINO: Emerging Properties in Self-Supervised Vision Transformers (Caron et al., ICCV 2021).

A teacher of patch features. At paper scale DINO's ViT-B/16 is loaded from the file the user names
(`--weights dino=PATH`). At the smaller scales a small DINO is really trained, here, on the project's
pictures: multi-crop, moving-average teacher, centring and sharpening (Algorithm 1). Follows
facebookresearch/dino@7c446df.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mimbench.contract import MethodCard
from mimbench.errors import UserError
from mimbench.vit import ViT
from pretrain.self_distillation import (
    NUM_GLOBAL,
    DistillationRecipe,
    MultiCrop,
    SelfDistillation,
    backbone,
    cross_view_loss,
    health,
)

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder


class DINO(SelfDistillation):
    """Every view's class token predicts the teacher's of the other global view."""

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


def read_weights(path: Path) -> dict[str, Tensor]:
    """The backbone's tensors of a DINO checkpoint, by timm's names, from .safetensors or a plain .pth.

    Takes the published backbone, timm's, and DINO's or iBOT's full checkpoint (of which the teacher).

    Raises:
        UserError: a file that only loads by running the code inside it, or that holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("teacher", "state_dict"):
            state = state.get(key, state)
        return {
            name.removeprefix("module.").removeprefix("backbone."): w.float() for name, w in state.items()
        }
    except Exception as error:
        remedy = "Not a plain state dict. Save its state_dict() as .safetensors: code in a file is not run."
        raise UserError("weights dino", str(path), remedy=remedy) from error


def load_backbone(state: Mapping[str, Tensor], recipe: DINORecipe, path: Path) -> ViT:
    """The recipe's ViT with the tensors of that name; others (a head) are left out."""
    vit = backbone(recipe)
    expected = vit.state_dict()
    for name, tensor in expected.items():
        if name not in state or state[name].shape != tensor.shape:
            found = tuple(state[name].shape) if name in state else "missing"
            remedy = f"It is {found}; {recipe.arch} needs {tuple(tensor.shape)}. Give DINO's ViT-B/16."
            raise UserError(f"weights dino ({path})", name, remedy=remedy)
    vit.load_state_dict({name: state[name] for name in expected})
    return vit


def load(folder: RunFolder) -> nn.Module:
    """The backbone of a DINO run: `module(images)` gives all tokens after the final norm, `[B, 1+N, D]`."""
    recipe = DINORecipe.from_values(folder.spec.recipe)
    if recipe.weights:
        path = folder.weights[recipe.weights]
        return load_backbone(read_weights(path), recipe, path)
    path = folder.path / "teacher.safetensors"
    prefix = "teacher.encoder."
    state = {n.removeprefix(prefix): w for n, w in load_file(path).items() if n.startswith(prefix)}
    return load_backbone(state, recipe, path)


def recipes() -> Mapping[str, DINORecipe]:
    paper = DINORecipe.cited(
        {
            "DINO code, README.md@7c446df: the published ViT-B/16": {
                "arch": "vit_base", "img_size": 224, "patch_size": 16, "weights": "dino",
            },
            "loaded, not trained": {"epochs": 0.0, "warmup_epochs": 0.0},
            "loaded, not trained; code, main_dino.py: the defaults": {
                "global_batch_size": 1024, "base_lr": 5e-4, "lr_rule": "linear", "min_lr": 1e-6,
                "betas": (0.9, 0.999), "weight_decay": 0.04, "weight_decay_end": 0.4, "clip_grad": 3.0,
                "drop_path": 0.1, "precision": "fp16", "min_crop_scale": 0.4, "local_min_scale": 0.05,
                "num_local_crops": 8, "local_img_size": 96, "color_jitter": 0.4,
                "blur_probs": (1.0, 0.1, 0.5), "blur_radius": 2.0, "solarize_prob": 0.2,
                "out_dim": 65536, "head_hidden_dim": 2048, "bottleneck_dim": 256, "momentum": 0.996,
                "center_momentum": 0.9, "student_temp": 0.1, "warmup_teacher_temp": 0.04,
                "teacher_temp": 0.04, "warmup_teacher_temp_epochs": 0, "freeze_last_layer": 1.0,
            },
        }
    )  # fmt: skip
    toy = paper.vary(
        "ours: some hundred steps on two CPU cores",
        arch="vit_toy", img_size=64, patch_size=8, weights="", local_img_size=32, num_local_crops=2,
        epochs=3.0, warmup_epochs=0.3, global_batch_size=16, base_lr=1.5e-3, lr_rule="absolute", min_lr=1e-5,
        weight_decay_end=0.1, drop_path=0.0, precision="fp32", blur_radius=0.6, out_dim=128,
        head_hidden_dim=96, bottleneck_dim=32, freeze_last_layer=0.1,
    ).vary(
        "ours: with the paper's values all targets are alike after a hundred steps",
        momentum=0.99, center_momentum=0.8, warmup_teacher_temp=0.02, teacher_temp=0.02,
        warmup_teacher_temp_epochs=0, min_crop_scale=0.6, local_min_scale=0.25, color_jitter=0.2,
        blur_probs=(0.2, 0.1, 0.1),
    )  # fmt: skip
    smoke = toy.at_smoke(
        local_img_size=16, warmup_epochs=0.3, out_dim=64, head_hidden_dim=32, bottleneck_dim=16,
        freeze_last_layer=0.0,
    )  # fmt: skip
    return {"paper": paper, "small": toy, "toy": toy, "smoke": smoke}


METHOD = MethodCard(
    name="dino",
    title="DINO",
    paper="Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021",
    code="facebookresearch/dino@7c446df",
    reconstruction=False,
    recipes=recipes,
    build=DINO,
    stage="teacher",
    augment=MultiCrop,
    load=load,
)

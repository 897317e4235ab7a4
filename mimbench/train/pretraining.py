"""The pretraining stage, for methods and teachers: from a card and a run's folder to an encoder file."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.model import BaseModel
from safetensors.torch import save
from torch import Tensor, nn

from mimbench.atomic import write_bytes
from mimbench.contract import MethodCard
from mimbench.data.augment import PretrainAugment, normalise
from mimbench.data.image_folder import CaptionedPictures, ImageFolder, PretrainPictures
from mimbench.encoder import save_encoder
from mimbench.recipe import PretrainRecipe
from mimbench.train.optimizer import param_groups
from mimbench.train.runner import fit
from mimbench.train.schedule import warmup_cosine
from mimbench.vit import ViT

if TYPE_CHECKING:
    from mimbench.store import RunFolder

INIT_STREAM = 7919  # keeps the initialisation's draws apart from every step's


class MethodModel(BaseModel):
    """A method in the dress mmengine's Runner expects; pictures are normalised here, on the device."""

    def __init__(self, method: nn.Module, steps: int) -> None:
        super().__init__()
        self.method, self.steps = method, steps
        self.step = 0

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        with optim_wrapper.optim_context(self):
            scalars = self.method(self.prepare(data), self.step / self.steps)
        optim_wrapper.update_params(scalars["loss"])
        return scalars

    def prepare(self, data: Any) -> Any:
        """uint8 pictures `[B, 3, H, W]` (with caption tokens or without) to normalised floats."""
        device = next(self.method.parameters()).device
        if isinstance(data, (list, tuple)):
            pictures, tokens = data
            return normalise(pictures.to(device, non_blocking=True)), tokens.to(device, non_blocking=True)
        return normalise(data.to(device, non_blocking=True))

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        """The contract of mmengine's BaseModel; training goes through `train_step`."""
        return self.method(inputs, self.step / self.steps)


def num_steps(recipe: PretrainRecipe, num_pictures: int) -> int:
    """Optimizer steps of the recipe on that many pictures."""
    return max(round(recipe.epochs * num_pictures / recipe.global_batch_size), 0)


def initialise(card: MethodCard, recipe: PretrainRecipe, seed: int, **parts: Any) -> nn.Module:
    """Build the method with weights that depend on the seed alone."""
    random.seed(seed + INIT_STREAM)
    np.random.seed(seed + INIT_STREAM)
    torch.manual_seed(seed + INIT_STREAM)
    return card.build(recipe, **parts)


def run(folder: RunFolder, card: MethodCard) -> dict[str, float]:
    """Train the method, write its encoder, and return the final scalars.

    Args:
        folder: the run's folder; parents named by `card.needs` are done.
    """
    spec = folder.spec
    recipe = type(next(iter(card.recipes().values()))).from_values(spec.recipe)
    pictures = ImageFolder(folder.data(card.data), "train", skip_corrupt=spec.skip_corrupt)
    hflip = 0.0 if card.inputs == "image+caption" else 0.5  # a caption may say left or right
    augment = PretrainAugment(recipe.img_size, recipe.min_crop_scale, recipe.color_jitter, hflip)
    parts: dict[str, Any] = {role: load_teacher(folder, role) for role in card.needs}
    if card.inputs == "image+caption":
        dataset: Any = CaptionedPictures(pictures, augment)
        parts["tokenizer"] = dataset.tokenizer
    else:
        dataset = PretrainPictures(pictures, augment)
    method = initialise(card, recipe, spec.seed, **parts)
    steps = num_steps(recipe, len(pictures)) if card.trains else 0
    model = MethodModel(method, max(steps, 1))
    if hasattr(method, "before_train"):
        method.before_train(steps)  # type: ignore[operator]

    warmup = round(recipe.warmup_epochs * steps / recipe.epochs) if steps else 0
    fit(
        model,
        dataset,
        folder=folder,
        seed=spec.seed,
        steps=steps,
        batch_size=recipe.global_batch_size,
        param_groups=param_groups(
            method,
            recipe.weight_decay,
            method.no_weight_decay() if hasattr(method, "no_weight_decay") else (),  # type: ignore[operator]
        ),
        lr_at=lambda step: warmup_cosine(
            step, peak=recipe.peak_lr, total=steps, warmup=warmup, final=recipe.min_lr
        ),
        betas=recipe.betas,
        clip_grad=recipe.clip_grad,
        precision=recipe.precision,
        before_step=lambda step: setattr(model, "step", step),
        after_step=getattr(method, "after_step", None),
    )
    if pictures.skipped:
        folder.details["skipped_pictures"] = pictures.skipped
    folder.details["steps"] = steps
    if card.stage == "teacher":
        state = {name: tensor.cpu().contiguous() for name, tensor in method.state_dict().items()}
        write_bytes(folder.path / "teacher.safetensors", lambda file: file.write(save(state)))
    else:
        assert isinstance(method.encoder, ViT), f"{card.name}.encoder must be the plain ViT"
        save_encoder(method.encoder, folder.encoder_path, method=card.name)
    return folder.last_metrics()


def load_teacher(folder: RunFolder, role: str) -> nn.Module:
    """The frozen network of the parent run in that role."""
    from mimbench import catalog

    parent = folder.parents[role]
    card = catalog.teacher(parent.spec.name)
    assert card.load is not None, f"teacher {card.name} has no `load`"
    return card.load(parent).eval().requires_grad_(False)

"""The pretraining stage, for methods and teachers: from a card and a run's folder to an encoder file."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from safetensors.torch import save
from torch import Tensor, nn

from mimbench.atomic import write_bytes
from mimbench.checkpoint.encoder import save_encoder
from mimbench.contract import MethodCard
from mimbench.data.augment import PretrainAugment, normalise
from mimbench.data.image_folder import CaptionedImages, ImageFolder, PretrainImages
from mimbench.errors import RunFailed
from mimbench.method import Method, as_method
from mimbench.recipe import PretrainRecipe
from mimbench.train.optimizer import param_groups
from mimbench.train.runner import fit
from mimbench.vit import ViT

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder

INIT_STREAM = 7919  # seeds initialisation differently from every step


class MethodModel(BaseModel):
    """Adapts a method to mmengine's BaseModel, whose `train_step` does the rest.

    Args:
        steps: number of steps of the whole run.
    """

    def __init__(self, method: nn.Module, steps: int) -> None:
        super().__init__(data_preprocessor=Preparation())
        self.method, self.steps = as_method(method), steps
        self.step = 0

    def before_step(self, step: int) -> None:
        self.step = step

    def after_step(self, done: int) -> None:
        """Let the method update what no gradient updates (an EMA teacher)."""
        self.method.after_step(done)

    def forward(self, inputs: Any, mode: str = "loss") -> dict[str, Tensor]:
        """The method's scalars for a prepared batch."""
        del mode
        return self.method(inputs, self.step / self.steps)

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Minimise `loss`, log all. mmengine's version would add up every scalar with `loss` in its name."""
        return losses["loss"], losses


class Preparation(BaseDataPreprocessor):
    """Moves a batch to the model's device and normalises its images there."""

    def forward(self, data: Any, training: bool = False) -> dict[str, Any]:
        """The batch as `MethodModel.forward` takes it."""
        del training
        return {"inputs": prepare(data, self.device)}


def prepare(data: Any, device: torch.device) -> Any:
    """Move a nested batch to the device and normalise its uint8 tensors, which are the images."""
    if isinstance(data, Mapping):
        return {name: prepare(part, device) for name, part in data.items()}
    if isinstance(data, (list, tuple)):
        return tuple(prepare(part, device) for part in data)
    data = data.to(device, non_blocking=True)
    return normalise(data) if data.dtype == torch.uint8 else data


def num_steps(recipe: PretrainRecipe, num_images: int) -> int:
    """Optimizer steps of the recipe on that many images."""
    return max(round(recipe.epochs * num_images / recipe.global_batch_size), 0)


def augmentation(card: MethodCard, recipe: PretrainRecipe) -> Callable[[Any], Any]:
    """The transform of an image before it is batched."""
    if card.augment is not None:
        return card.augment(recipe)
    hflip = 0.0 if card.inputs == "image+caption" else 0.5  # a caption may say left or right
    return PretrainAugment(recipe.img_size, recipe.min_crop_scale, recipe.color_jitter, hflip)


def initialise(card: MethodCard, recipe: PretrainRecipe, seed: int, **parts: Any) -> Method:
    """Build the method with weights that depend on the seed alone."""
    random.seed(seed + INIT_STREAM)
    np.random.seed(seed + INIT_STREAM)
    torch.manual_seed(seed + INIT_STREAM)
    return as_method(card.build(recipe, **parts))


def run(folder: RunFolder, card: MethodCard) -> dict[str, float]:
    """Train the method, write its encoder, and return the final scalars.

    Args:
        folder: the run's folder; the runs that the recipe needs (teachers) must be done.
    """
    recipe = card.recipe.from_values(folder.spec.recipe)
    parts = {role: load_teacher(folder, role) for role in card.needed(recipe)}
    if card.trains:
        method = _train(folder, card, recipe, parts)
    else:  # it reads no images
        method = initialise(card, recipe, folder.spec.seed, **parts)
        folder.details["steps"] = 0
    if card.load is not None:
        state = {name: tensor.cpu().contiguous() for name, tensor in method.state_dict().items()}
        write_bytes(folder.path / "teacher.safetensors", lambda file: file.write(save(state)))
    if card.stage == "pretrain":
        assert isinstance(method.encoder, ViT), f"{card.name}.encoder must be the plain ViT"
        save_encoder(method.encoder, folder.encoder_path, method=card.name)
    return folder.last_metrics()


def _train(
    folder: RunFolder, card: MethodCard, recipe: PretrainRecipe, parts: Mapping[str, nn.Module]
) -> Method:
    """Build the method with the frozen networks that it needs, and train it."""
    spec = folder.spec
    images = ImageFolder(folder.data(card.data), "train", skip_corrupt=spec.skip_corrupt)
    augment = augmentation(card, recipe)
    more = {}
    if card.inputs == "image+caption":
        dataset: Any = CaptionedImages(images, augment)
        more["tokenizer"] = dataset.tokenizer
    else:
        dataset = PretrainImages(images, augment)
    method = initialise(card, recipe, spec.seed, **parts, **more)
    steps = num_steps(recipe, len(images))
    model = MethodModel(method, max(steps, 1))
    method.before_train(steps)
    fit(
        model,
        dataset,
        folder,
        recipe,
        steps=steps,
        param_groups=param_groups(method, recipe.weight_decay, method.no_weight_decay()),
    )
    if images.skipped:
        folder.details["skipped_images"] = images.skipped
    folder.details["steps"] = steps
    return method


def load_teacher(folder: RunFolder, role: str) -> nn.Module:
    """The frozen network of the parent run that has this role."""
    from mimbench import catalog

    parent = folder.parents[role]
    card = catalog.card("teacher" if parent.spec.stage == "teacher" else "method", parent.spec.name)
    assert card.load is not None, f"{card.name} has no `load`"
    if not parent.weights and not (parent.path / "teacher.safetensors").is_file():
        raise RunFailed(
            f"{parent.path.name} was computed by code that kept no teacher.safetensors: compute it again "
            "with --rerun-stale, or delete it with `mimbench runs rm`."
        )
    return card.load(parent).eval().requires_grad_(False)

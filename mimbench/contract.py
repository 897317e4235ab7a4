"""What a method's file and a task's file must define: a `MethodCard` or a `TaskCard`.

A method's file (`pretrain/methods/x.py`, `pretrain/teachers/x.py`) ends in `METHOD = MethodCard(...)`, a
task's file (`downstream/x.py`) in `TASK = TaskCard(...)`. Discovery finds them there; nothing else needs an
edit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from mimbench.errors import UserError
from mimbench.recipe import Cited, PretrainRecipe, Recipe, require_optimizer, require_range
from mimbench.schedule import warmup_cosine

if TYPE_CHECKING:
    from PIL import Image
    from torch import nn

    from mimbench.store.folder import RunFolder


TransferOverrides = Mapping[str, Mapping[str, Sequence[Cited]]]
"""task -> scale -> fields with their sources: where fine-tuning differs from the task's own recipe."""


Provenance = Literal["official", "reconstruction", "own"]
PROVENANCES = get_args(Provenance)


@dataclass(frozen=True, kw_only=True)
class MethodCard:
    """Everything that a method's file tells about the method.

    Attributes:
        paper: the citation as tables show it.
        code: the official code as `owner/name@commit`; None if there is none.
        provenance: `official`: follows the authors' code; `reconstruction`: a published method without
            official code; `own`: an idea of this file's author. Shown wherever the name is. May be a function
            of the recipe, if the authors released only some of the variants.
        needs: role to the name of what must be trained first: a teacher (a file in pretrain/teachers), or a
            method with `load`. May be a function of the recipe.
        data: the data role that it trains on (`imagenet`, `captions`).
        recipes: scale to recipe; every field with its source.
        build: `build(recipe, **teachers)` makes the `mimbench.method.Method`. The teachers are passed by
            role, frozen.
        augment: `augment(recipe)` returns a function from an image to what the loader batches: a tensor of
            uint8 `[3, H, W]`, or a tuple, list or dictionary of them. Default: one crop (`PretrainAugment`).
        transfer: where fine-tuning differs for this method.
        load: `load(folder)` returns the trained network, frozen and in eval mode. It reads
            `teacher.safetensors` (the whole module) in the run's folder, or the checkpoint that the recipe's
            `weights` names. Only for teachers, and for methods that others need.
        trains: False for a "method" that only initialises its encoder (training from scratch).
        golden: files in tests/golden with numbers of the official code; tests compare the method with them.
        points: how many points of its specification have a test in tests/pretrain/test_<module>_points.py.
    """

    name: str
    title: str
    paper: str
    code: str | None
    provenance: Provenance | Callable[[Any], Provenance]
    recipes: Callable[[], Mapping[str, PretrainRecipe]]
    build: Callable[..., nn.Module]
    stage: Literal["pretrain", "teacher"] = "pretrain"
    needs: Mapping[str, str] | Callable[[Any], Mapping[str, str]] = field(default_factory=dict)
    data: str = "imagenet"
    inputs: Literal["image", "image+caption"] = "image"
    augment: Callable[[Any], Callable[[Image.Image], Any]] | None = None
    transfer: Callable[[], TransferOverrides] = dict
    load: Callable[[RunFolder], nn.Module] | None = None
    trains: bool = True
    golden: tuple[str, ...] = ()
    points: int = 0

    def __post_init__(self) -> None:
        if not callable(self.provenance) and self.provenance not in PROVENANCES:
            raise UserError(f"{self.name}: provenance", self.provenance, allowed=PROVENANCES)
        if self.provenance == "official" and self.code is None:
            remedy = "A card whose provenance is official names its authors' code as owner/name@commit."
            raise UserError(f"{self.name}: code", None, remedy=remedy)

    @property
    def recipe(self) -> type[PretrainRecipe]:
        """The class of the method's recipes."""
        return type(next(iter(self.recipes().values())))

    def needed(self, recipe: PretrainRecipe) -> Mapping[str, str]:
        """Role to the name of the teacher or method that must be trained before this recipe."""
        return self.needs(recipe) if callable(self.needs) else self.needs

    def provenance_of(self, recipe: PretrainRecipe) -> Provenance:
        """Where this recipe's code comes from."""
        return self.provenance(recipe) if callable(self.provenance) else self.provenance


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A column's number: `name` as in result.json, `title` as people read it; percentages are in [0, 100]."""

    name: str
    title: str
    unit: str = "%"
    higher_is_better: bool = True


@dataclass(frozen=True, kw_only=True)
class TransferRecipe(Recipe):
    """The fields of every downstream recipe. Tasks add their own."""

    img_size: int  # pixels: the training crop's side
    global_batch_size: int
    base_lr: float
    lr_rule: Literal["linear", "absolute"]  # linear: base_lr * global_batch_size / 256
    layer_decay: float  # 1 = none
    drop_path: float
    weight_decay: float
    betas: tuple[float, float]
    clip_grad: float | None
    precision: Literal["fp32", "fp16", "bf16"]

    def __post_init__(self) -> None:
        require_range("img_size", self.img_size, 1)
        require_range("global_batch_size", self.global_batch_size, 1)
        require_range("layer_decay", self.layer_decay, 0, 1)
        require_range("drop_path", self.drop_path, 0, 1)
        require_optimizer(self.base_lr, self.weight_decay, self.betas, self.clip_grad)

    @property
    def peak_lr(self) -> float:
        return self.base_lr * (self.global_batch_size / 256 if self.lr_rule == "linear" else 1.0)

    clip_each: ClassVar[bool] = False  # True: clip_grad bounds each tensor's norm, not the norm of all

    def lr_at(self, step: int, steps: int, epoch_steps: float) -> float:
        """Learning rate of a step, before layer decay: half a cosine to 0. Tasks may override it.

        Args:
            steps: steps of the whole run.
            epoch_steps: steps of an epoch; a fraction if the batches do not divide the data.
        """
        del epoch_steps
        return warmup_cosine(step, peak=self.peak_lr, total=steps, warmup=0)

    def weight_decay_at(self, step: int, steps: int) -> float:
        """Weight decay of the decayed parameters in a step: constant."""
        del step, steps
        return self.weight_decay


@dataclass(frozen=True, kw_only=True)
class TaskCard:
    """Everything that a task's file tells about the task.

    Attributes:
        data: the data role it trains and evaluates on (`imagenet`, `ade20k`, `coco`).
        takes: what it evaluates: a pretrained `encoder` file, or a `teacher` run (the row names a teacher).
        metrics: the numbers it returns, by the field's names; the first is the headline.
        recipes: scale to recipe.
        run: `run(folder)` fine-tunes or probes the encoder at `folder.parents["encoder"].encoder_path`,
            evaluates after the last epoch and returns the metrics. It resumes from `folder.trainer_path`. If
            it takes a teacher, it uses what the teacher's `load` returns for that parent folder.
        flops: `flops(recipe_values, arch, patch_size)`: FLOPs of one training image, forward and backward.
        images: `images(recipe_values, data_size)`: images seen in training, for the plan's estimate.
    """

    name: str
    title: str
    protocol: str
    data: str
    metrics: tuple[Metric, ...]
    recipes: Callable[[], Mapping[str, TransferRecipe]]
    run: Callable[[RunFolder], dict[str, float]]
    flops: Callable[[Mapping[str, Any], str, int], float]
    images: Callable[[Mapping[str, Any], int], int]
    takes: Literal["encoder", "teacher"] = "encoder"

    @property
    def recipe(self) -> type[TransferRecipe]:
        """The class of the task's recipes."""
        return type(next(iter(self.recipes().values())))

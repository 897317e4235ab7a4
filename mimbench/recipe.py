"""Recipes: frozen dataclasses in which every hyper-parameter carries the source of its value."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from typing_extensions import Self

from mimbench.errors import UserError
from mimbench.schedule import warmup_cosine

SCALES = ("smoke", "toy", "small", "paper")
Scale = Literal["smoke", "toy", "small", "paper"]
Precision = Literal["fp32", "fp16", "bf16"]


class Cited(NamedTuple):
    """Values of a recipe's fields, by name, and the source that they come from."""

    source: str
    values: Mapping[str, Any]


def cite(source: str, /, **values: Any) -> Cited:
    """Fields of a recipe with their source: `cite("paper, Table 8", epochs=800.0, drop_path=0.1)`."""
    return Cited(source, values)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Base of every recipe. `sources` says for each field where its value comes from."""

    sources: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, *groups: Cited) -> Self:
        """Build a recipe from its fields and their sources.

        Raises:
            TypeError: a field is missing, unknown, or given twice.
        """
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for source, group in groups:
            for name, value in group.items():
                if name in values:
                    raise TypeError(f"{cls.__name__}.{name} is given twice: {sources[name]!r} and {source!r}")
                values[name], sources[name] = value, source
        return cls(**values, sources=sources)

    @classmethod
    def cited(cls, groups: Mapping[str, Mapping[str, Any]]) -> Self:
        """`of`, from `{source: {field: value}}`."""
        return cls.of(*(Cited(*item) for item in groups.items()))

    @classmethod
    def based_on(
        cls, host: Recipe, *groups: Cited | Mapping[str, Mapping[str, Any]], prefix: str = ""
    ) -> Self:
        """The recipe of a method that stands on another.

        Args:
            host: what each field that this kind of recipe has too is taken from, with its source.
            groups: further fields, or other values for the host's; the later holds.
            prefix: what the host's sources are to begin with (`as MAE: `).

        Raises:
            TypeError: a field is missing or unknown.
        """
        shared = host.values().keys() & {f.name for f in dataclasses.fields(cls)}
        values = {name: getattr(host, name) for name in shared}
        sources = {name: prefix + source for name, source in host.sources.items() if name in shared}
        pairs = (pair for each in groups for pair in ([each] if isinstance(each, Cited) else each.items()))
        for source, group in pairs:
            values |= group
            sources |= dict.fromkeys(group, source)
        return cls(**values, sources=sources)

    def vary(self, source: str | Cited, /, *groups: Cited, **changes: Any) -> Self:
        """A copy with other values, each of them with its new source.

        `recipe.vary("ours", epochs=3.0)` is short for `recipe.vary(cite("ours", epochs=3.0))`.
        """
        first = cite(source, **changes) if isinstance(source, str) else source
        return self.based_on(self, first, *groups)

    def values(self) -> dict[str, Any]:
        """The hyper-parameters as plain JSON values, without their sources."""
        return {
            f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "sources"
        }

    @classmethod
    def from_values(cls, values: Mapping[str, Any], sources: Mapping[str, str] | None = None) -> Self:
        """The inverse of `values`: lists become tuples where the field is a tuple.

        Raises:
            UserError: a value of another kind than the field's, or not one of a choice's.
        """
        hints = typing.get_type_hints(cls)
        checked = {name: _checked(value, hints[name], name) for name, value in values.items()}
        return cls(**checked, sources=dict(sources or {}))


def _checked(value: Any, hint: Any, name: str) -> Any:
    """`value` as the field's type hint has it: a list as a tuple, a whole number as a float."""
    if _fits(value, hint):
        return _as(value, hint)
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        raise UserError(name, value, allowed=choices)
    raise UserError(name, value, remedy="It needs a value." if value is None else f"Give {words(hint)}.")


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is Literal:
        return value in parts
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is tuple and isinstance(value, (list, tuple)):
        items = parts[:1] * len(value) if parts[-1] is ... else parts
        return len(items) == len(value) and all(map(_fits, value, items))
    if kind in (int, float) and (isinstance(value, bool) or value != value or value in (math.inf, -math.inf)):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def _as(value: Any, hint: Any) -> Any:
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return _as(value, next(part for part in parts if _fits(value, part)))
    if kind is tuple:
        return tuple(map(_as, value, parts[:1] * len(value) if parts[-1] is ... else parts))
    return float(value) if kind is float else value


def words(hint: Any) -> str:
    """A type hint for people."""
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return " or ".join(words(part) for part in parts)
    if kind is tuple:
        count = "" if parts[-1] is ... else f"{len(parts)} "
        return f"a list of {count}{words(parts[0]).split(' ', 1)[1]}s"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(kind, "none")


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def require_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises UserError unless `low <= value <= high`."""
    if not low <= value <= high:
        bounds = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        raise UserError(name, value, remedy=f"It must be {bounds}.")


def require_above(name: str, value: float, low: float) -> None:
    """Raises UserError unless `low < value`."""
    if not low < value:
        raise UserError(name, value, remedy=f"It must be above {low}.")


def require_optimizer(
    base_lr: float, weight_decay: float, betas: tuple[float, ...], clip_grad: float | None
) -> None:
    """Raises UserError for what AdamW and the clipping of gradients cannot take."""
    require_range("base_lr", base_lr, 0)
    require_range("weight_decay", weight_decay, 0)
    if not all(0 <= beta < 1 for beta in betas):
        raise UserError("betas", list(betas), remedy="Each must be at least 0 and below 1.")
    if clip_grad is not None:
        require_above("clip_grad", clip_grad, 0)


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(Recipe):
    """What every pretraining run must say. Methods add their own fields."""

    arch: str  # a name in mimbench.arch.ARCHS
    img_size: int  # pixels
    patch_size: int  # pixels
    epochs: float
    warmup_epochs: float
    global_batch_size: int  # images a step, over all devices and accumulation
    base_lr: float
    lr_rule: Literal["linear", "sqrt", "absolute"]  # see `peak_lr`
    min_lr: float
    betas: tuple[float, float]
    weight_decay: float
    clip_grad: float | None  # global L2 norm
    drop_path: float
    min_crop_scale: float  # RandomResizedCrop area, lower bound
    color_jitter: float  # brightness, contrast and saturation; 0 = off
    precision: Precision

    def __post_init__(self) -> None:
        require_range("patch_size", self.patch_size, 1)
        require_range("img_size", self.img_size, self.patch_size)
        require_optimizer(self.base_lr, self.weight_decay, self.betas, self.clip_grad)
        require_range("min_lr", self.min_lr, 0)
        require_range("color_jitter", self.color_jitter, 0)
        if self.img_size % self.patch_size:
            remedy = f"It must be a multiple of patch_size, {self.patch_size}."
            raise UserError("img_size", self.img_size, remedy=remedy)
        require_range("global_batch_size", self.global_batch_size, 1)
        require_range("epochs", self.epochs, 0)
        require_range("warmup_epochs", self.warmup_epochs, 0, self.epochs)
        require_range("drop_path", self.drop_path, 0, 1)
        require_range("min_crop_scale", self.min_crop_scale, 0, 1)

    @property
    def peak_lr(self) -> float:
        """`base_lr` scaled to the batch: by B/256 (MAE), by sqrt(B/2048) (DTM's code), or taken as it is."""
        scale = {"linear": self.global_batch_size / 256, "sqrt": math.sqrt(self.global_batch_size / 2048)}
        return self.base_lr * scale.get(self.lr_rule, 1.0)

    clip_each: ClassVar[bool] = False  # clip_grad bounds every tensor's norm by itself, not the norm of all

    def lr_at(self, step: int, steps: int, epoch_steps: float | None = None) -> float:
        """Learning rate of a step: linear warm-up from 0, then half a cosine to `min_lr`.

        Args:
            steps: of the whole run; the warm-up is a share of them.
            epoch_steps: of an epoch; not used here, unlike by the tasks' recipes.
        """
        del epoch_steps
        warmup = round(self.warmup_epochs * steps / self.epochs)
        return warmup_cosine(step, peak=self.peak_lr, total=steps, warmup=warmup, final=self.min_lr)

    def weight_decay_at(self, step: int, steps: int) -> float:
        """Weight decay of the decayed parameters in a step: constant."""
        del step, steps
        return self.weight_decay

    @property
    def num_patches(self) -> int:
        return (self.img_size // self.patch_size) ** 2

    def at_small(self, **own: Any) -> Self:
        """A recipe of scale paper at scale small: what all methods share there, and `own`."""
        common = {
            "arch": "vit_toy", "img_size": 64, "patch_size": 8, "global_batch_size": 32, "warmup_epochs": 1.0,
            "precision": "fp32",
        }  # fmt: skip
        return self._scaled("ours: minutes on two CPU cores for a few thousand pictures", common, own)

    def at_toy(self, **own: Any) -> Self:
        """A recipe of scale small at scale toy."""
        return self._scaled("ours: two CPU cores, pictures of few patches", {"min_crop_scale": 0.6}, own)

    def at_smoke(self, **own: Any) -> Self:
        """A recipe of scale toy at scale smoke."""
        common = {
            "arch": "vit_smoke", "img_size": 32, "epochs": 2.0, "warmup_epochs": 0.5, "global_batch_size": 16,
        }  # fmt: skip
        return self._scaled("ours: seconds", common, own)

    def _scaled(self, source: str, common: Mapping[str, Any], own: Mapping[str, Any]) -> Self:
        """What is the same at both scales keeps its source."""
        changes = {name: value for name, value in {**common, **own}.items() if getattr(self, name) != value}
        return self.vary(source, **changes)

    def step_flops(self) -> float:
        """FLOPs of one image's pretraining step, forward and backward; methods say theirs."""
        raise NotImplementedError

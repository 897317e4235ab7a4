"""Recipes: frozen dataclasses in which every hyper-parameter carries the source of its value."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from typing_extensions import Self

from mimbench.arch import ViTConfig, patch_embed_flops, size_of, transformer_flops
from mimbench.errors import UserError
from mimbench.schedule import warmup_cosine

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCALES = ("smoke", "toy", "small", "paper")
Scale = Literal["smoke", "toy", "small", "paper"]
Precision = Literal["fp32", "fp16", "bf16"]

# The sources of the values that we chose for the smaller scales; see `PretrainRecipe.at_small`.
SMALL = "ours: minutes on two CPU cores for a few thousand images"
TOY = "ours: two CPU cores, images of few patches"
SMOKE = "ours: seconds"


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
    def based_on(cls, host: Recipe, *groups: Cited, prefix: str = "") -> Self:
        """The recipe of a method that builds on another method.

        Args:
            host: the other method's recipe. Fields that this class has too are copied, with their sources.
            groups: further fields, or new values for the host's; a later group wins.
            prefix: written before each of the host's sources (`as MAE: `).

        Raises:
            TypeError: a field is missing or unknown.
        """
        shared = host.values().keys() & {f.name for f in dataclasses.fields(cls)}
        values = {name: getattr(host, name) for name in shared}
        sources = {name: prefix + source for name, source in host.sources.items() if name in shared}
        for source, group in groups:
            values |= group
            sources |= dict.fromkeys(group, source)
        return cls(**values, sources=sources)

    def vary(self, source: str | Cited, /, *groups: Cited, **changes: Any) -> Self:
        """A copy with new values, each with its source.

        `recipe.vary("ours", epochs=3.0)` is short for `recipe.vary(cite("ours", epochs=3.0))`.
        """
        assert isinstance(source, str) or not changes, "a field outside of a group has no source"
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
            UserError: a value has the wrong type, or is not one of the allowed choices.
        """
        hints = typing.get_type_hints(cls)
        checked = {name: _checked(value, hints[name], name) for name, value in values.items()}
        return cls(**checked, sources=dict(sources or {}))

    @classmethod
    def plain(cls, name: str, value: Any) -> Any:
        """A value of the field as `values` gives it: a tuple is a list, a number of a float field a float.

        Raises:
            UserError: a value of another kind than the field's, or not one of a choice's.
        """
        return _plain(_checked(value, typing.get_type_hints(cls)[name], name))


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter  # here, because `mimbench --help` needs no validator

    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False))


def _checked(value: Any, hint: Any, name: str) -> Any:
    """`value` converted to the field's type: a list to a tuple, a whole number to a float."""
    from pydantic import ValidationError

    try:
        return _adapter(hint).validate_python(_tuples(value))
    except ValidationError:
        if typing.get_origin(hint) is Literal:
            raise UserError(name, value, allowed=typing.get_args(hint)) from None
        remedy = "It needs a value." if value is None else f"Give {_words(hint)}."
        raise UserError(name, value, remedy=remedy) from None


def _words(hint: Any) -> str:
    """A type hint in words."""
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return " or ".join(_words(part) for part in parts)
    if kind is tuple:
        count = "" if parts[-1] is ... else f"{len(parts)} "
        return f"a list of {count}{_words(parts[0]).split(' ', 1)[1]}s"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(kind, "none")


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    """The inverse of `_plain`: no field of a recipe is a list."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


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
    """Raises UserError for values that AdamW or gradient clipping cannot use."""
    require_range("base_lr", base_lr, 0)
    require_range("weight_decay", weight_decay, 0)
    if not all(0 <= beta < 1 for beta in betas):
        raise UserError("betas", list(betas), remedy="Each must be at least 0 and below 1.")
    if clip_grad is not None:
        require_above("clip_grad", clip_grad, 0)


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(Recipe):
    """The fields of every pretraining recipe. Methods add their own."""

    arch: str  # a name in mimbench.arch.ARCHS
    img_size: int  # pixels
    patch_size: int  # pixels
    epochs: float
    warmup_epochs: float
    global_batch_size: int  # images per step, over all devices and accumulation
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

    clip_each: ClassVar[bool] = False  # True: clip_grad bounds each tensor's norm, not the norm of all

    def lr_at(self, step: int, steps: int, epoch_steps: float | None = None) -> float:
        """Learning rate of a step: linear warm-up from 0, then half a cosine to `min_lr`.

        Args:
            steps: steps of the whole run; the warm-up is a share of them.
            epoch_steps: steps of an epoch; only the tasks' recipes use it.
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

    def at_small(self, *groups: Cited, **own: Any) -> Self:
        """This paper-scale recipe at scale small: the changes that all methods share, then the method's own.

        Args:
            groups: the method's own values. A value that cites `SMALL` but equals the paper's keeps the
                paper's source.
            own: short for `cite(SMALL, **own)`.
        """
        return self._scaled(
            SMALL,
            cite(SMALL, arch="vit_toy", img_size=64, patch_size=8, precision="fp32"),
            cite(SMALL, global_batch_size=32, warmup_epochs=1.0),
            cite(SMALL, **own),
            *groups,
        )

    def at_toy(self, *groups: Cited, **own: Any) -> Self:
        """This small-scale recipe at scale toy; like `at_small`, with `TOY`."""
        return self._scaled(TOY, cite(TOY, min_crop_scale=0.6), cite(TOY, **own), *groups)

    def at_smoke(self, *groups: Cited, **own: Any) -> Self:
        """This toy-scale recipe at scale smoke; like `at_small`, with `SMOKE`."""
        return self._scaled(
            SMOKE,
            cite(SMOKE, arch="vit_smoke", img_size=32),
            cite(SMOKE, epochs=2.0, warmup_epochs=0.5, global_batch_size=16),
            cite(SMOKE, **own),
            *groups,
        )

    def _scaled(self, scale: str, *groups: Cited) -> Self:
        """Like `vary`, but an unchanged value that cites `scale` keeps its old source."""
        last = {name: value for group in groups for name, value in group.values.items()}
        same = {name for name, value in last.items() if getattr(self, name) == value}

        def changed(group: Cited) -> Cited:
            kept = same if group.source == scale else ()
            return cite(group.source, **{n: value for n, value in group.values.items() if n not in kept})

        return self.based_on(self, *map(changed, groups))

    def vit_config(self, **variant: Any) -> ViTConfig:
        """The encoder's size, patches and image; `variant` holds what differs from the plain ViT."""
        return ViTConfig.named(self.arch, img_size=self.img_size, patch_size=self.patch_size, **variant)

    def encoder_flops(self, num_visible: int | None = None) -> float:
        """Forward FLOPs of the encoder on one image; its blocks see all patches, or `num_visible` of them."""
        size, num_patches = size_of(self.arch), self.num_patches
        num_tokens = 1 + (num_patches if num_visible is None else num_visible)
        embed = patch_embed_flops(size.embed_dim, num_patches, self.patch_size)
        return embed + transformer_flops(size.embed_dim, size.depth, num_tokens)

    def step_flops(self, **teachers: Any) -> float:
        """FLOPs of one image's pretraining step, forward and backward. Each method defines its own.

        Args:
            teachers: the recipes of the method's teachers, by the roles of `MethodCard.build`.
        """
        raise NotImplementedError

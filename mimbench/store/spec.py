"""What determines a run, and the key that is computed from it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Generic, Literal, TypeVar

Value = TypeVar("Value")
Stage = Literal["teacher", "pretrain", "downstream"]


def canonical_json(value: Any, *, allow_nan: bool = False) -> str:
    """The same text for equal values: sorted keys, no spaces, 1.0 written as 1.

    Raises:
        ValueError: NaN or an infinite number, unless they are allowed.
    """
    return json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=allow_nan)


def _canonical(value: Any) -> Any:
    if type(value) in (str, int, bool):  # most of what there is; the abstract Mapping is slow to ask for
        return value
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


@dataclass(frozen=True)
class RunSpec:
    """One run: a stage of a method or a task, its resolved recipe, its data, its seed and its parents.

    Attributes:
        name: the method (`dtm`), the teacher (`clip`) or the task (`segmentation`).
        arch: the encoder's size, a name in `mimbench.arch.ARCHS`; part of the folder's name.
        recipe: the resolved recipe's plain values.
        data: data role (`imagenet`, `ade20k`, `coco`, `captions`) to the digest of what the stage reads of
            the dataset, or `weights NAME` to that of a checkpoint that the run loads.
        parents: role (`teacher`, `encoder`) to the key of the run that must be done first.
        skip_corrupt: the user lets unreadable images be left out, and there are some.
    """

    stage: Stage
    name: str
    arch: str
    recipe: Mapping[str, Any]
    data: Mapping[str, str]
    seed: int
    parents: Mapping[str, str] = field(default_factory=dict)
    skip_corrupt: bool = False

    @functools.cached_property
    def key(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the canonical JSON."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return hashlib.sha256(canonical_json(values).encode()).hexdigest()[:16]

    @property
    def folder(self) -> str:
        """`<stage>-<name>-<arch>-<key8>`, the run's folder in the store."""
        return f"{self.stage}-{self.name}-{self.arch}-{self.key[:8]}"

    @property
    def adopted(self) -> bool:
        """Whether it is a pretraining that loads a checkpoint instead of training."""
        return self.stage == "pretrain" and any(role.startswith("weights ") for role in self.data)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class PerRecipe(Generic[Value]):
    """Caches `make(recipe)` for each recipe object: runs may share one."""

    def __init__(self, make: Callable[[Mapping[str, Any]], Value]) -> None:
        self.make = make
        self._made: dict[
            int, tuple[Mapping[str, Any], Value]
        ] = {}  # with the recipe, so that its id stays its own

    def __call__(self, recipe: Mapping[str, Any]) -> Value:
        known = self._made.get(id(recipe))
        if known is None:
            known = self._made[id(recipe)] = recipe, self.make(recipe)
        return known[1]

"""Finds the network that is meant among the tensors of a checkpoint, and gives each of its tensors a place.

A checkpoint may wrap its weights (`model.`, `module.`, `_orig_mod.`, Lightning's `model.` in `state_dict`)
and may hold several networks (a student, its moving average, a decoder). One tensor, the anchor, tells where
a network is: what precedes the anchor's name is the network's prefix. Nothing inside that prefix is lost
silently: what has no place and may not be dropped is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mimbench.checkpoint.encoder import LoadReport
from mimbench.checkpoint.values import require_sound
from mimbench.errors import UserError

Export = Literal["student", "teacher"]

# What torch.compile, FSDP and activation checkpointing put between the parts of a name.
INSERTED = re.compile(r"(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")
TEACHER = re.compile(r"(^|_)(teacher|ema|momentum|target|averaged|shadow)(_|$)")
STUDENT = re.compile(r"(^|_)(student|online)(_|$)")
OTHERS = re.compile(r"(^|_)(decoders?|predictor|discriminator)(_|$)|^optim")
SHOWN = 6  # names in a message
OTHER = "Without them it would be another network: the file is of another architecture or method."
ALONE = "Save the network that is meant by itself, under the names of its own code, as .safetensors."
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Rules:
    """How the tensors of one kind of network are called.

    Attributes:
        title: the kind, for messages.
        anchor: a tensor that every such network has.
        rename: their name, without the prefix, to ours.
        droppable: whether a tensor of this name (ours) and content may be left out.
        stray: names that are parts of such a network even outside the prefix (`encoder.`), beside it.
    """

    title: str
    anchor: str
    rename: Callable[[str], str] = str
    droppable: Callable[[str, Tensor], bool] = lambda name, tensor: False
    stray: re.Pattern[str] | None = None


@dataclass
class ForeignReport(LoadReport):
    """Also the prefix of the network that was taken, and whether the file calls it student or teacher."""

    prefix: str = ""
    network: str = ""


@dataclass
class Network:
    """One network of a checkpoint.

    Attributes:
        tensors: its tensors, by our names.
        prefix: what precedes them in the file.
        role: student or teacher, if the prefix says so.
        dropped: tensors of the file that are none of its own.
    """

    tensors: dict[str, Tensor]
    prefix: str
    role: Export | None
    dropped: list[str] = field(default_factory=list)

    def report(self, loaded: Iterable[str]) -> ForeignReport:
        """What became of the file's tensors, once `place` has found the places of those that are loaded."""
        return ForeignReport(
            loaded=list(loaded), dropped=self.dropped, prefix=self.prefix, network=self.role or ""
        )


def find(state: Mapping[str, Tensor], rules: Rules, export: Export | None, where: str) -> Network:
    """The network that is meant.

    Args:
        export: which of student and teacher the recipe hands over; None if it does not say. Then a file with
            both is refused, and of `model` and `model_ema` the first is taken, as the official codes do.
        where: the file, for messages.

    Raises:
        UserError: there is none, there are several, or only the one that is not meant.
    """
    plain: dict[str, str] = {}
    for name in state:
        short = INSERTED.sub(r"\1", name)
        if short in plain:
            raise UserError(where, name, remedy=f"It is the same tensor as {plain[short]!r}. {ALONE}")
        plain[short] = name
    found = [name.removesuffix(rules.anchor) for name in plain if f".{name}".endswith(f".{rules.anchor}")]
    prefixes = [prefix for prefix in found if not any(map(OTHERS.search, prefix.split(".")))]
    if not prefixes:
        raise UserError(
            where, rules.anchor, remedy=f"There is no tensor of this name, under any prefix. {_names(plain)}"
        )
    prefix = _meant(prefixes, export, where)
    network = Network({}, prefix, _role(prefix))
    ancestors = [prefix[: i + 1] for i in range(len(prefix)) if prefix[i] == "."][:-1][::-1]
    others = [other for other in found if other != prefix and other.startswith(prefix)]
    stray = []
    for short, name in plain.items():
        rest = short.removeprefix(prefix)
        if short.startswith(prefix) and not any(map(short.startswith, others)):
            ours = rules.rename(rest)
            if ours in network.tensors:
                raise UserError(where, name, remedy=f"The file holds this tensor under two names. {ALONE}")
            network.tensors[ours] = state[name]
            continue
        if not short.startswith(prefix):
            beside = next(filter(short.startswith, ancestors), "")
            rest = short.removeprefix(beside)
            if (
                rules.stray and rules.stray.match(rest) and beside not in found
            ):  # else it is another network's
                stray.append(short)
        network.dropped.append(rest)
    if stray:
        remedy = f"Outside the prefix {prefix!r}, where the other tensors of the {rules.title} are. {ALONE}"
        raise UserError(where, _some(stray), remedy=remedy)
    return network


def _meant(prefixes: list[str], export: Export | None, where: str) -> str:
    """The prefix of the network that is meant. Raises UserError."""
    by_role: dict[Export | None, list[str]] = {None: [], "student": [], "teacher": []}
    for prefix in prefixes:
        by_role[_role(prefix)].append(prefix)
    if len(prefixes) == 1 and (export is None or _role(prefix) in (None, export)):
        return prefixes[0]
    meant = by_role[export]
    if not meant and export == "student":  # `model` beside `model_ema`
        meant = by_role[None]
    if len(meant) == 1:
        return meant[0]
    shown = _some([prefix.rstrip(".") or "(no prefix)" for prefix in prefixes])
    if export and not meant:
        remedy = (
            f"The recipe hands over the {export}, and the file does not say that it holds that one alone: "
            f"these are the prefixes of the networks in it. {ALONE}"
        )
    else:
        says = "" if export else "; this recipe does not say which of student and teacher it hands over"
        remedy = f"The file holds several encoders, under these prefixes{says}. {ALONE}"
    raise UserError(where, shown, remedy=remedy)


def _role(prefix: str) -> Export | None:
    words = re.sub(r"-|(?<=[a-z])(?=[A-Z])", "_", prefix)  # model-ema, teacherModel
    parts = words.lower().split(".")
    if any(map(TEACHER.search, parts)):
        return "teacher"
    return "student" if any(map(STUDENT.search, parts)) else None


def place(
    own: Mapping[str, Tensor], network: Network, rules: Rules, where: str, wanted: str
) -> dict[str, Tensor]:
    """A tensor of the network for each of `own`, in fp32; adds what is left out to `network.dropped`.

    Args:
        own: what the recipe's network needs, by the names of `network`.
        wanted: which file to give or what to set, for the message.

    Raises:
        UserError: a tensor has no place, is missing, has another shape or type, or is not finite.
    """
    where = f"{where}, prefix {network.prefix!r}" if network.prefix else where
    homeless = [n for n in network.tensors if n not in own and not rules.droppable(n, network.tensors[n])]
    if homeless:
        remedy = f"The recipe's {rules.title} has no place for these tensors of the file. {OTHER}"
        raise UserError(where, _some(homeless), remedy=remedy)
    weights = {}
    for name, tensor in own.items():
        needed = tuple(tensor.shape)
        if name not in network.tensors:
            remedy = f"The checkpoint lacks it; the recipe needs {needed}. {wanted}"
            raise UserError(where, name, remedy=remedy)
        theirs = network.tensors[name]
        if tuple(theirs.shape) != needed:
            remedy = f"Its shape is {tuple(theirs.shape)}; the recipe needs {needed}. {wanted}"
            raise UserError(where, name, remedy=remedy)
        require_dense(where, name, theirs)
        weights[name] = theirs.float()
        require_sound(where, name, weights[name], "The checkpoint is damaged, or its training diverged.")
    network.dropped = sorted([*network.dropped, *(name for name in network.tensors if name not in own)])
    return weights


def require_dense(where: str, name: str, tensor: Tensor) -> None:
    """Refuse weights that fp32 does not hold as they are: quantised, sparse, or without values."""
    if tensor.dtype not in FLOATS or tensor.layout != torch.strided or tensor.is_meta:
        kind = "a tensor without values" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
        remedy = f"It is {kind}; weights must be dense float32, float64, float16 or bfloat16."
        raise UserError(where, name, remedy=remedy)


def require_heads(state: Mapping[str, Tensor], num_heads: int, where: str) -> None:
    """Compare the number of heads with the file's options, if they name it; the tensors do not show it."""
    said: frozenset[int] = getattr(state, "num_heads", frozenset())
    if said and num_heads not in said:
        remedy = f"The file's options say so; the recipe has {num_heads}. Set arch."
        raise UserError(f"{where}: num_heads", ", ".join(map(str, sorted(said))), remedy=remedy)


def _some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _names(plain: Mapping[str, str]) -> str:
    return f"Its tensors are called {_some(list(plain))}."

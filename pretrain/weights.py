"""Weights of teachers and tokenizers: from a finished run, or from other people's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor, nn

from mimbench.checkpoint.networks import Export, Rules, find, place, require_heads
from mimbench.checkpoint.reader import read
from mimbench.checkpoint.values import require_sound
from mimbench.errors import UserError

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder

M = TypeVar("M", bound=nn.Module)
TRAINED = "teacher.safetensors"


def trained(folder: RunFolder, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of a finished run whose names begin with `prefix`; the keys are the names without it.

    Raises:
        UserError: the file is missing or damaged, or a weight is not finite.
    """
    path = folder.path / TRAINED
    remedy = f"`mimbench runs rm {folder.path.name}` removes the run; the same command computes it again."
    state = read(path, "teacher", remedy)
    for name, tensor in state.items():
        require_sound(f"teacher {path}", name, tensor, f"The file is damaged. {remedy}")
    return {name.removeprefix(prefix): w for name, w in state.items() if name.startswith(prefix)}


def load_trained(module: M, folder: RunFolder, prefix: str = "") -> M:
    """Load a finished run's tensors into the module strictly; `prefix` as in `trained`.

    Raises:
        UserError: as `trained`; or a tensor is missing, unknown, or has another shape.
    """
    state, own = trained(folder, prefix), module.state_dict()
    remedy = f"`mimbench runs rm {folder.path.name}` removes the run; the same command computes it again."
    for name in sorted({*own, *state}):
        if name not in state:
            what = f"This tensor is missing from the file; the recipe needs {tuple(own[name].shape)}."
        elif name not in own:
            what = "This tensor is unknown to the recipe's network."
        elif state[name].shape != own[name].shape:
            what = f"Its shape is {tuple(state[name].shape)}; the recipe needs {tuple(own[name].shape)}."
        else:
            continue
        raise UserError(f"teacher {folder.path / TRAINED}", prefix + name, remedy=f"{what} {remedy}")
    module.load_state_dict(state)
    return module


def load_into(
    module: M,
    state: Mapping[str, Tensor],
    rules: Rules,
    field: str,
    wanted: str,
    *,
    export: Export | None = None,
    num_heads: int | None = None,
    their_name: Callable[[str], str] = str,
) -> M:
    """Load the network that `rules` describe into the module, in fp32; `load_report` of the module says how.

    Args:
        state: the tensors of a file (`mimbench.checkpoint.reader.read`).
        field: what the state is, for the error message.
        wanted: which file to give, for the error message.
        export: which of student and teacher is meant, if the file holds both.
        num_heads: of the module, to compare with what the file's options say.
        their_name: maps a tensor's name in the module to its name in the state.

    Raises:
        UserError: a tensor is missing, has no place, another shape or a value that is not finite, or it is
            not clear which network is meant.
    """
    names = {name: their_name(name) for name in module.state_dict()}
    own = {names[name]: tensor for name, tensor in module.state_dict().items()}
    if num_heads is not None:
        require_heads(state, num_heads, field)
    network = find(state, rules, export, field)
    weights = place(own, network, rules, field, wanted)
    module.load_state_dict({name: weights[theirs] for name, theirs in names.items()})
    module.load_report = network.report(names)  # type: ignore[assignment]
    return module


def recorded(module: M, folder: RunFolder) -> M:
    """The module; what became of the checkpoint's tensors goes into the run's result."""
    folder.details["load_report"] = module.load_report.as_dict()  # type: ignore[union-attr, operator]
    return module

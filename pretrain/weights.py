"""Weights of teachers and tokenizers: those of a finished run, and those of other people's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mimbench.errors import UserError

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder

M = TypeVar("M", bound=nn.Module)


def trained(folder: RunFolder, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a finished run's module whose names begin with `prefix`, by the rest of the name."""
    state = load_file(folder.path / "teacher.safetensors")
    return {name.removeprefix(prefix): w for name, w in state.items() if name.startswith(prefix)}


def read(path: Path, field: str, *, nested: Sequence[str] = ()) -> dict[str, Any]:
    """The state dict in a .safetensors file, or in a PyTorch file that can be read without running code.

    Args:
        field: the weights' name, for the error (`weights clip`).
        nested: keys under which the state dict may lie, one in the other.

    Raises:
        UserError: a file of another kind, such as a pickled module or a TorchScript archive.
    """
    try:
        is_plain = path.suffix == ".safetensors"
        state: Any = load_file(path) if is_plain else torch.load(path, map_location="cpu", weights_only=True)
        for key in nested:
            state = state.get(key, state)
        return dict(state)
    except Exception as error:
        remedy = "Not a plain state dict. Save its state_dict() as .safetensors: code in a file is not run."
        raise UserError(field, str(path), remedy=remedy) from error


def load_into(
    module: M, state: Mapping[str, Tensor], field: str, wanted: str, their_name: Callable[[str], str] = str
) -> M:
    """The module with the tensors of its own names, in fp32; the state's others are left out.

    Args:
        field: what the state is, for the error.
        wanted: which file to give, for the error.
        their_name: from a tensor's name in the module to its name in the state.

    Raises:
        UserError: a tensor is missing or of another shape.
    """
    weights = {}
    for name, tensor in module.state_dict().items():
        theirs = their_name(name)
        found = tuple(state[theirs].shape) if isinstance(state.get(theirs), Tensor) else "missing"
        if found != tuple(tensor.shape):
            remedy = f"It is {found}; it must be {tuple(tensor.shape)}. {wanted}"
            raise UserError(field, theirs, remedy=remedy)
        weights[name] = state[theirs].float()
    module.load_state_dict(weights)
    return module

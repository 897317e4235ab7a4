"""Weights of teachers and tokenizers: from a finished run, or from other people's files."""

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
    """Tensors of a finished run whose names begin with `prefix`; the keys are the names without it."""
    state = load_file(folder.path / "teacher.safetensors")
    return {name.removeprefix(prefix): w for name, w in state.items() if name.startswith(prefix)}


def read(path: Path, field: str, *, nested: Sequence[str] = ()) -> dict[str, Any]:
    """The state dict in a .safetensors file, or in a PyTorch file that can be read without running code.

    Args:
        field: the weights' name in the error message (`weights clip`).
        nested: keys under which the state dict may be nested, from the outside in.

    Raises:
        UserError: another kind of file, such as a pickled module or a TorchScript archive.
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
    """Load into the module every tensor that it has, in fp32; ignore the other tensors of the state.

    Args:
        field: what the state is, for the error message.
        wanted: which file to give, for the error message.
        their_name: maps a tensor's name in the module to its name in the state.

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

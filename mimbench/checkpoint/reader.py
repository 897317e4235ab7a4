"""Reads the tensors of a checkpoint file: .safetensors, or a PyTorch file that loads without running code.

Every file of weights comes in here: the user's (`--weights`) for methods and teachers, and those of our own
runs' teachers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from mimbench.checkpoint.outside import first_line, problem_of_archive, problem_of_file, problem_of_start
from mimbench.errors import UserError

LEFTOVERS: list[Any] = [argparse.Namespace]  # many codes save their options; a namespace is plain data
TRAINER = re.compile(r"(optim|lr_sched|scheduler|scaler|loss_scaler|amp|callbacks|loops)")  # not weights
FORM = "Give a state dict as .safetensors, or as a PyTorch file that loads without running code."
CONVERT = (
    "If you trust the file, make a .safetensors of it yourself: state = torch.load(PATH, weights_only=False, "
    "map_location='cpu'); then the part that holds the weights (state = state['model'], or "
    "state = state.state_dict() of a whole module); then "
    "safetensors.torch.save_file({k: v.contiguous().clone() for k, v in state.items()}, 'x.safetensors')."
)
SHOWN = 8  # names in a message
ENCODER = "mimbench-encoder-1"  # the entry in the header of our own encoder files
DEEPEST = 16  # levels of dictionaries


class Checkpoint(dict[str, Tensor]):
    """The tensors of a file by name. Keys of nested dictionaries are joined by dots (`model.norm.bias`).

    Attributes:
        num_heads: what the file's options say about the number of heads; empty if they say nothing.
        method: the method of the run that wrote the file; empty if it is no encoder of this project.
    """

    num_heads: frozenset[int] = frozenset()
    method: str = ""


def read(path: Path, field: str = "weights", remedy: str = FORM) -> Checkpoint:
    """The tensors of a .safetensors or a PyTorch checkpoint; no code in the file is run.

    Optimizers and schedulers are left out.

    Args:
        field: what the file is, for the message (`--weights mae`).
        remedy: which file to give instead.

    Raises:
        UserError: the file is missing, no regular file, empty, damaged, too large for this machine or of
            another kind, or it holds objects that only code can rebuild; the message names their classes.
    """

    def refused(why: str) -> UserError:
        return UserError(field, str(path), remedy=f"{why} {remedy}")

    problem = problem_of_file(path)
    if problem:
        raise refused(problem)
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise refused(f"It cannot be read ({error.strerror}).") from error
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        try:
            return _safetensors(path)
        except Exception as error:  # the library raises errors of many types for damaged files
            raise refused(f"Not readable as safetensors: it is damaged ({first_line(error)}).") from error
    problem = problem_of_archive(path, checksums=True) if start.startswith(b"PK") else problem_of_start(start)
    if problem:
        raise refused(problem)
    try:
        with safe_globals(LEFTOVERS):
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # anything may be wrong in a pickle
        raise refused(_obstacle(path, error)) from error
    try:
        return _checkpoint(value)
    except ValueError as error:
        raise refused(str(error)) from error


def _obstacle(path: Path, error: Exception) -> str:
    """Why torch.load refused a file: the classes and functions it would have to call, or the damage."""
    names: list[str] = []
    try:
        with safe_globals(LEFTOVERS):
            names = sorted(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not an archive, or damaged: the error's own text must do
        names = re.findall(r"\bGLOBAL ([\w.]+)", str(error))[:1]
    if names:
        more = f" and {len(names) - SHOWN} more classes" if len(names) > SHOWN else ""
        return f"It holds objects of {', '.join(names[:SHOWN])}{more}: reading them would run code. {CONVERT}"
    reason = re.search(r"WeightsUnpickler error:\s*([^\n]+)", str(error))
    why = reason[1] if reason else first_line(error)
    return (
        f"torch.load cannot read it without running code ({why}). Is it damaged or no state dict? {CONVERT}"
    )


def _safetensors(path: Path) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        found = Checkpoint({name: file.get_tensor(name) for name in file.keys()})
        header = file.metadata() or {}
    if not found:
        raise ValueError("it holds no tensors")
    for name, text in header.items():
        with contextlib.suppress(ValueError, RecursionError):  # entries are free text, ours are JSON
            value = json.loads(text)
            found.num_heads |= frozenset(_head_counts(value))
            if name == ENCODER and isinstance(value, dict):
                found.method = str(value.get("method", ""))
    return found


def _checkpoint(value: Any) -> Checkpoint:
    """What torch.load gave, as tensors by name. Raises ValueError if that is not possible."""
    found = Checkpoint()
    for name, tensor in _tensors(value):
        if name in found:
            raise ValueError(f"It holds two tensors called {name!r}.")
        found[name] = tensor
    if not found:
        keys = ", ".join(map(repr, list(value)[:SHOWN])) if isinstance(value, Mapping) else ""
        what = f"a dictionary with the keys {keys}" if keys else f"a {type(value).__name__}"
        raise ValueError(f"It is {what}, without tensors that have names.")
    found.num_heads = frozenset(_head_counts(value))
    return found


def _tensors(value: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of nested dictionaries. Raises ValueError if they are nested too deeply."""
    if depth > DEEPEST:
        raise ValueError(f"Its dictionaries are nested more than {DEEPEST} levels deep.")
    for key, entry in value.items() if isinstance(value, Mapping) else ():
        if not isinstance(key, str):
            continue
        if isinstance(entry, Tensor):
            yield prefix + key, entry.detach()
        elif isinstance(entry, Mapping) and not TRAINER.match(key):
            yield from _tensors(entry, f"{prefix}{key}.", depth + 1)


HEADS = ("num_heads", "n_heads", "num_attention_heads")  # what options call it


def _head_counts(value: Any, depth: int = 0) -> Iterator[int]:
    """Every number of heads in a checkpoint's options, except those of decoders and other heads."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, (list, tuple)) and depth <= DEEPEST:
        for entry in (each for each in value if isinstance(each, (Mapping, list, tuple))):
            yield from _head_counts(entry, depth + 1)
    if not isinstance(value, Mapping) or depth > DEEPEST:
        return
    for key, entry in value.items():
        if key in HEADS and type(entry) is int:
            yield entry
        elif isinstance(key, str) and not re.search("decoder|predictor|text|head|teacher", key):
            yield from _head_counts(entry, depth + 1)

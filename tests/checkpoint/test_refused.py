"""Checkpoints that do not fit: refused before a run begins, and by name when a run's own file is damaged."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from mimbench import catalog
from mimbench.cli import app
from mimbench.errors import UserError
from mimbench.store.folder import Inputs, RunFolder
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec
from mimbench.vit import ViT
from tests.conftest import ROOT

Change = Callable[[dict[str, Tensor]], object]

NAME = "blocks.0.attn.proj.weight"
CHANGES: dict[str, Change] = {
    "shape is": lambda state: state.update({NAME: state[NAME][:-1].clone()}),
    "lacks it": lambda state: state.pop(NAME),
    "no place": lambda state: state.update({"blocks.0.more.weight": torch.zeros(2)}),
    "NaN": lambda state: state[NAME].fill_(float("nan")),
}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    recipe = catalog.method("mae").recipes()["smoke"]
    state = {name: tensor.clone() for name, tensor in ViT(recipe.vit_config()).state_dict().items()}
    save_file(state, tmp_path / "mae.safetensors")
    return tmp_path / "mae.safetensors"


def call(weights: Path) -> tuple[int, str]:
    words = ["run", "mae", "classification", "--scale", "smoke", "--weights", f"mae={weights}"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    return done.exit_code, " ".join(done.output.split())


@pytest.mark.parametrize("message", CHANGES)
def test_a_checkpoint_that_does_not_fit_leaves_no_run(workspace: Path, weights: Path, message: str) -> None:
    state = load_file(weights)
    CHANGES[message](state)
    save_file(state, weights)
    status, told = call(weights)
    assert status == 2 and message in told and "--weights mae" in told and str(weights) in told
    assert ("blocks.0.more.weight" if message == "no place" else NAME) in told
    assert not list(workspace.glob("runs/*-*"))
    assert not (workspace / "data").exists()


@pytest.mark.parametrize("form", ["safetensors", "pth"])
def test_a_file_that_was_cut_is_refused_at_once(workspace: Path, weights: Path, form: str) -> None:
    if form == "pth":
        state, weights = load_file(weights), weights.with_suffix(".pth")
        torch.save(state, weights)
    weights.write_bytes(weights.read_bytes()[:-100])
    status, told = call(weights)
    assert status == 2 and "damaged or cut short" in told and not list(workspace.glob("runs/*-*"))
    script = (
        f"import sys; from mimbench.checkpoint.outside import problem; print(problem(Path({str(weights)!r})))"
        "; assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path; {script}"], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0 and b"cut short" in done.stdout, done.stderr


def test_a_sound_one_is_loaded(workspace: Path, weights: Path) -> None:
    done = CliRunner().invoke(
        app, ["run", "mae", "--scale", "smoke", "--weights", f"mae={weights}"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert len(list(workspace.glob("runs/pretrain-mae-*/encoder.safetensors"))) == 1


# -- files of our own runs -----------------------------------------------------------------------------------

OWN = {
    "mae": ("pretrain.methods.mae", "MAE", ""),
    "vqkd": ("pretrain.teachers.vqkd", "Tokenizer", "tokenizer."),
    "peco-codebook": ("pretrain.teachers.peco_codebook", "Tokenizer", "tokenizer."),
    "dvae": ("pretrain.teachers.dvae", "Encoder", "encoder."),
}


@pytest.fixture(params=OWN)
def taught(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[RunFolder, Callable[[RunFolder], nn.Module], str]:
    """A finished teacher's folder, the function that loads it, and what precedes the names of its tensors."""
    module, kind, prefix = OWN[request.param]
    card = importlib.import_module(module).METHOD
    recipe = card.recipes()["smoke"]
    spec = RunSpec(card.stage, card.name, recipe.arch, recipe.values(), {}, 0)
    folder = RunStore(tmp_path / "runs").create(spec, Inputs())
    network = getattr(importlib.import_module(module), kind)(recipe)
    state = {prefix + name: tensor.clone() for name, tensor in network.state_dict().items()}
    save_file(state, folder.path / "teacher.safetensors")
    return folder, card.load, prefix


def test_a_file_of_our_own_loads(taught: tuple[RunFolder, Callable[[RunFolder], nn.Module], str]) -> None:
    folder, load, prefix = taught
    stored = load_file(folder.path / "teacher.safetensors")
    for name, tensor in load(folder).state_dict().items():
        assert torch.equal(tensor, stored[prefix + name])


@pytest.mark.parametrize("how", ["shape", "missing", "unknown"])
def test_a_tensor_that_does_not_fit_is_named(
    taught: tuple[RunFolder, Callable[[RunFolder], nn.Module], str], how: str
) -> None:
    folder, load, prefix = taught
    path = folder.path / "teacher.safetensors"
    state = load_file(path)
    name = next(name for name, tensor in state.items() if tensor.ndim > 1)
    was = tuple(state[name].shape)
    if how == "shape":
        state[name] = state[name][:-1].clone()
        message = rf"Its shape is \({was[0] - 1}, .*the recipe needs \({was[0]}, "
    elif how == "missing":
        del state[name]
        message = rf"missing from the file; the recipe needs \({was[0]}, "
    else:
        name = f"{prefix}extra.weight"
        state[name] = torch.zeros(2)
        message = "unknown to the recipe's network"
    save_file(state, path)
    with pytest.raises(UserError, match=message) as found:
        load(folder)
    told = str(found.value)
    assert str(path) in told and name in told and f"mimbench runs rm {folder.path.name}" in told

"""Our own 20-step loss curves at scale smoke, to notice a change that was to alter no number.

`python tests/golden/make_curves.py` rewrites curves.json, with which test_curves.py compares.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import default_collate
from torchvision.transforms.functional import to_pil_image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from mimbench import catalog, discovery  # noqa: E402
from mimbench.contract import MethodCard  # noqa: E402
from mimbench.data.captions import Tokenizer  # noqa: E402
from mimbench.store.folder import Inputs  # noqa: E402
from mimbench.store.runs import RunStore  # noqa: E402
from mimbench.store.spec import RunSpec  # noqa: E402
from mimbench.train.loader import LOADER_STREAM, MODEL_STREAM, seed_everything  # noqa: E402
from mimbench.train.optimizer import optim_wrapper, param_groups  # noqa: E402
from mimbench.train.pretraining import MethodModel, initialise  # noqa: E402

FILE = HERE / "curves.json"
STEPS, BATCH, SEED = 20, 16, 0
NUDGE = 1e-7  # of a weight: the last bit of single precision
COLOURS, SHAPES = ("red", "green", "blue", "grey"), ("disc", "cross", "square", "triangle")
CAPTIONS = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
TOKENIZER = Tokenizer.build(CAPTIONS)


def trained() -> list[tuple[str, MethodCard]]:
    """Every method and teacher that takes steps, by kind."""
    kinds = ("method", "teacher")
    cards = [(kind, catalog.card(kind, name)) for kind in kinds for name in discovery.names(kind)]
    return [(kind, card) for kind, card in cards if card.trains]


def curve(card: MethodCard, nudge: int | None = None) -> list[float]:
    """The loss of each step, before its update, on random pictures.

    Args:
        nudge: a seed; every weight is moved by about what rounding moves it, `NUDGE` of itself.
    """
    torch.set_num_threads(1)
    recipe = card.recipes()["smoke"]
    model = MethodModel(build(card), STEPS).train()
    if nudge is not None:
        generator = torch.Generator().manual_seed(nudge)
        for parameter in model.parameters():
            parameter.data *= 1 + NUDGE * torch.randn(parameter.shape, generator=generator)
    exempt = model.method.no_weight_decay() if hasattr(model.method, "no_weight_decay") else ()
    wrapper = optim_wrapper(
        param_groups(model.method, recipe.weight_decay, exempt),
        lr=0.0,
        betas=recipe.betas,
        eps=1e-8,
        clip_grad=recipe.clip_grad,
        clip_each=recipe.clip_each,
        precision=recipe.precision,
        device=torch.device("cpu"),
    )
    losses = []
    for step in range(STEPS):
        batch = batch_of(card, recipe.img_size, step)
        model.step = step
        seed_everything(SEED, step, MODEL_STREAM)
        lr = recipe.lr_at(step, STEPS)
        for group in wrapper.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        losses.append(model.train_step(batch, wrapper)["loss"].item())
        if hasattr(model.method, "after_step"):
            model.method.after_step(step + 1)
    return losses


def build(card: MethodCard) -> nn.Module:
    """The module at scale smoke; its teachers have random weights."""
    with tempfile.TemporaryDirectory() as folder:
        needs = card.needed(card.recipes()["smoke"])
        parts: dict[str, Any] = {role: teacher(name, Path(folder)) for role, name in needs.items()}
        if card.inputs == "image+caption":
            parts["tokenizer"] = TOKENIZER
        method = initialise(card, card.recipes()["smoke"], SEED, **parts)
    if hasattr(method, "before_train"):
        method.before_train(STEPS)
    return method


def teacher(name: str, folder: Path) -> nn.Module:
    """An untrained teacher, by way of the file that a trained one would leave."""
    card = catalog.card(discovery.kind_of(name), name)
    recipe = card.recipes()["smoke"]
    run = RunStore(folder).create(
        RunSpec(card.stage, name, recipe.arch, recipe.values(), {}, SEED), Inputs(data={}, weights={})
    )
    save_file(build(card).state_dict(), run.path / "teacher.safetensors")
    assert card.load is not None
    return card.load(run).eval().requires_grad_(False)


def batch_of(card: MethodCard, img_size: int, step: int) -> Any:
    """Pictures as the loader gives them: blocks of random colours, so that there is something to predict."""
    seed_everything(SEED, step, LOADER_STREAM)
    blocks = torch.randint(0, 256, (BATCH, 3, 4, 4), dtype=torch.uint8)
    pictures = nn.functional.interpolate(blocks, size=(img_size, img_size))  # nearest
    if card.augment is not None:
        view = card.augment(card.recipes()["smoke"])
        return default_collate([view(to_pil_image(picture)) for picture in pictures])
    if card.inputs == "image":
        return pictures
    picked: Tensor = torch.randint(0, len(CAPTIONS), (BATCH,))
    return pictures, torch.tensor([TOKENIZER.encode(CAPTIONS[index]) for index in picked])


if __name__ == "__main__":
    curves = {f"{kind}/{card.name}": [float(f"{x:.7g}") for x in curve(card)] for kind, card in trained()}
    FILE.write_text(json.dumps(curves, indent=1) + "\n")

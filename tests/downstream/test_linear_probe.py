"""Linear probing: what is frozen, which features are read, and a run from end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from downstream.linear_probe import TASK, LinearProbe, LinearRecipe
from mimbench.checkpoint.encoder import load_encoder
from mimbench.errors import UserError
from mimbench.recipe import Recipe
from mimbench.store.folder import RunFolder
from mimbench.vit import ViT

SMOKE = TASK.recipes()["smoke"]
MakeFolder = Callable[[str, str, Recipe], RunFolder]


@pytest.fixture
def encoder(encoder_file: Path) -> ViT:
    """An encoder whose norm and drop path would show."""
    vit, _ = load_encoder(encoder_file, drop_path=0.5)
    nn.init.normal_(vit.norm.weight)
    return vit


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def probe(encoder: ViT, **changes: object) -> LinearProbe:
    recipe = LinearRecipe.from_values({**SMOKE.values(), **changes})
    return LinearProbe(encoder, 12, recipe).train()


@pytest.mark.parametrize("token", ["mean", "cls"])
@pytest.mark.parametrize("layer", [0, 1, 3, 4])
def test_features_are_those_of_the_layer(encoder: ViT, images: Tensor, layer: int, token: str) -> None:
    outputs: list[Tensor] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda _, args, output: outputs.append(output))
    found = probe(encoder, layer=layer, token=token).features(images)
    x = outputs[layer - 1] if layer else encoder.norm(outputs[3])
    expected = x[:, 0] if token == "cls" else x[:, 1:].mean(dim=1)
    assert found.shape == (4, 32) and torch.equal(found, expected)


def test_only_the_linear_layer_learns(encoder: ViT, images: Tensor) -> None:
    model = probe(encoder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(trainable) == {"head.weight", "head.bias"}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = model(images, torch.arange(4), mode="loss")["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"} | {
        f"norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_frozen_encoder_drops_nothing_while_the_head_trains(encoder: ViT, images: Tensor) -> None:
    model = probe(encoder)
    assert model.norm.training and not any(module.training for module in encoder.modules())
    assert torch.equal(model.features(images), model.features(images))


def test_batch_norm_has_no_weights_and_makes_the_scale_irrelevant(encoder: ViT, images: Tensor) -> None:
    model = probe(encoder)
    assert (model.norm.affine, model.norm.eps) == (False, 1e-6)
    encoder.norm.weight.data *= 1e3  # from here on eps plays no part
    logits = model(images)
    encoder.norm.weight.data *= 50
    torch.testing.assert_close(model(images), logits, rtol=1e-3, atol=1e-4)
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.15)


def test_a_layer_that_does_not_exist_is_refused(encoder: ViT) -> None:
    with pytest.raises(UserError, match=r"layer.*5"):
        probe(encoder, layer=5)
    with pytest.raises(UserError, match="layer"):
        probe(encoder, layer=-1)


def test_paper_recipe_is_beits() -> None:
    paper = TASK.recipes()["paper"]
    assert (paper.peak_lr, paper.weight_decay, paper.epochs) == (4e-3, 1e-4, 50.0)
    assert (paper.token, paper.layer, paper.min_crop_scale) == ("mean", 0, 0.08)
    forward = TASK.flops(paper.values(), "vit_base", 16)
    assert 30e9 < forward < 40e9  # ViT-B at 224 pixels, no backward pass


def test_smoke_run(task_folder: MakeFolder) -> None:
    folder = task_folder("linear", "imagenet", SMOKE)
    metrics = TASK.run(folder)
    assert list(metrics) == ["top1_linear"] and 0 <= metrics["top1_linear"] <= 100
    report = folder.details["load_report"]
    assert "norm.weight" in report["loaded"] and report["dropped"] == report["new"] == []
    assert folder.details["steps"] == round(folder.details["labelled_images"] / 8)
    logged = folder.metrics()
    assert logged and all(np.isfinite(line["loss"]) for line in logged)
    assert TASK.run(folder) == metrics and folder.metrics() == logged  # done already: evaluated again


def test_every_layer_has_a_run_of_its_own(task_folder: MakeFolder) -> None:
    keys = {task_folder("linear", "imagenet", SMOKE.vary("t", layer=layer)).spec.key for layer in range(5)}
    assert len(keys) == 5

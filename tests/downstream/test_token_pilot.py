"""DTM's pilot study: the aggregation, what is measured, and a run from end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstream.token_pilot import (
    TASK,
    TokenClassifier,
    TokenRecipe,
    aggregate,
    class_texts,
    measure,
    neighbour_cosine,
)
from mimbench import catalog
from mimbench.store.folder import Inputs, RunFolder
from mimbench.store.spec import RunSpec
from mimbench.train import pretraining
from pretrain.methods.dtm import Branch, morph

SMOKE = TASK.recipes()["smoke"]


class Fixed(nn.Module):
    """A teacher whose tokens are the images themselves, `[B, 1+N, C]`."""

    def forward(self, images: Tensor) -> Tensor:
        return images


def classifier(**changes: object) -> TokenClassifier:
    torch.manual_seed(0)
    return TokenClassifier(Fixed(), 8, 3, TokenRecipe.from_values({**SMOKE.values(), **changes}))


@pytest.mark.parametrize("rounds", [(0, 1), (8, 4), (14, 7), (3, 2), (100, 5)])
def test_aggregation_is_that_of_dtm(rounds: tuple[int, int]) -> None:
    x = torch.randn(3, 64, 8, generator=torch.Generator().manual_seed(0))
    morphing = morph(x, Branch(*rounds), split="alternate", merge="group_mean", protect_first=True)
    torch.testing.assert_close(aggregate(x, *rounds), morphing(x), rtol=0, atol=1e-5)


def test_neighbour_cosine_counts_every_pair_of_neighbours_once() -> None:
    up, right, left = torch.tensor([[0.0, 2.0], [3.0, 0.0], [-1.0, 0.0]])
    x = torch.stack([torch.stack([right, left, right, up]), torch.stack([up, up, up, up])])
    torch.testing.assert_close(neighbour_cosine(x), torch.tensor([(-1.0 + 1.0 + 0.0 + 0.0) / 4, 1.0]))


def test_only_the_linear_layer_learns() -> None:
    teacher = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    model = TokenClassifier(teacher, 8, 3, SMOKE).train()
    assert not model.teacher.training
    model(torch.randn(2, 17, 8), torch.tensor([0, 2]), mode="loss")["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert model.head.weight.grad.abs().max() > 0


def test_the_loss_is_of_every_patch_against_its_images_label() -> None:
    model = classifier(matching="none").eval()
    nn.init.normal_(model.head.weight)
    images, labels = torch.randn(2, 17, 8), torch.tensor([2, 0])
    logits = model(images)
    assert logits.shape == (2, 16, 3)
    by_hand = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(16))
    torch.testing.assert_close(model(images, labels, mode="loss")["loss"], by_hand)


def test_accuracies_are_shares_of_patches() -> None:
    """Four patches with the directions 0, 0, 1, 2 of three classes: half are right for class 0."""
    model = classifier(matching="none")
    model.norm = nn.Identity()
    model.head.weight.data, model.head.bias.data = torch.eye(3, 8).roll(1, dims=0), torch.zeros(3)
    tokens = torch.cat([torch.zeros(1, 8), torch.eye(8)[[0, 0, 1, 2]]])
    images = [(tokens, 0), (tokens, 1), (tokens, 2)]
    metrics = measure(model, images, torch.eye(3, 8), batch_size=2)
    assert metrics["zero_shot_acc"] == pytest.approx(100 * (0.5 + 0.25 + 0.25) / 3)
    assert metrics["linear_probe_acc"] == pytest.approx(100 * (0.25 + 0.5 + 0.25) / 3)
    linear = measure(model, images[:1], None)
    assert linear["linear_probe_acc"] == pytest.approx(25), "the linear layer calls direction 2 class 0"
    assert set(linear) == {"linear_probe_acc", "patchwise_cosine_similarity"}


@pytest.fixture
def clip_run(pretraining_folder: Callable[..., RunFolder]) -> RunFolder:
    folder = pretraining_folder(catalog.teacher("clip"), steps=2)
    pretraining.run(folder, catalog.teacher("clip"))
    return folder


@pytest.mark.parametrize("matching", ["none", "bipartite"])
def test_smoke_run(clip_run: RunFolder, smoke_data: Path, matching: str) -> None:
    recipe = SMOKE.vary("test", matching=matching)
    spec = RunSpec(
        "downstream",
        TASK.name,
        "vit_smoke",
        recipe.values(),
        {"imagenet": "smoke"},
        0,
        {"encoder": clip_run.spec.key},
    )
    folder = clip_run.store.create(spec, Inputs(data={"imagenet": str(smoke_data / "imagenet")}))
    metrics = TASK.run(folder)
    assert list(metrics) == [metric.name for metric in TASK.metrics]
    assert all(np.isfinite(value) for value in metrics.values())
    assert -1 <= metrics["patchwise_cosine_similarity"] <= 1
    assert TASK.run(folder) == metrics, "done already: measured again, not trained again"


def test_texts_are_the_trained_text_towers(clip_run: RunFolder) -> None:
    classes = ["checked-cross", "striped-disc"]
    texts = class_texts(clip_run, classes)
    assert texts.shape == (2, 64)
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    assert torch.equal(class_texts(clip_run, classes[::-1]).flip(0), texts)
    assert not torch.equal(texts[0], texts[1])


def test_without_a_text_tower_there_are_no_texts(clip_run: RunFolder) -> None:
    values = {**clip_run.spec.recipe, "weights": "clip"}
    spec = RunSpec("teacher", "clip", "vit_smoke", values, {"captions": "smoke"}, 0)
    assert class_texts(clip_run.store.create(spec, Inputs()), ["checked-cross"]) is None

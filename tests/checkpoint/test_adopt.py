"""An official checkpoint instead of a pretraining."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mimbench import catalog
from mimbench.arch import ViTConfig
from mimbench.checkpoint import adopt
from mimbench.checkpoint.encoder import load_encoder, save_encoder
from mimbench.contract import MethodCard
from mimbench.errors import UserError
from mimbench.store.folder import RunFolder
from mimbench.vit import ViT


def official(card: MethodCard, **variant: Any) -> ViT:
    recipe = card.recipes()["smoke"]
    size = ViTConfig.named(recipe.arch, img_size=recipe.img_size, patch_size=recipe.patch_size, **variant)
    torch.manual_seed(0)
    vit = ViT(size).eval()
    torch.nn.init.normal_(vit.cls_token)
    return vit


@pytest.fixture
def adopted(pretraining_folder: Callable[..., RunFolder], tmp_path: Path) -> Callable[..., RunFolder]:
    """Adopts a checkpoint of a method; gives the run's folder."""

    def make(card: MethodCard, content: Any, name: str = "x.pth") -> RunFolder:
        path = tmp_path / name
        if content is not None:
            torch.save(content, path)
        folder = pretraining_folder(card)
        folder.inputs = replace(folder.inputs, weights={card.name: str(path)})
        assert adopt.run(folder, card) == {}
        return folder

    return make


def test_adopted_encoder_is_the_checkpoints(adopted: Callable[..., RunFolder]) -> None:
    card = catalog.method("mae")
    vit = official(card)
    folder = adopted(card, {"model": vit.state_dict()})
    report = folder.details["load_report"]
    assert sorted(report["loaded"]) == sorted(vit.state_dict())
    assert (report["prefix"], report["network"]) == ("model.", "")
    found, _ = load_encoder(folder.encoder_path)
    side = vit.config.img_size
    images = torch.randn(2, 3, side, side)
    assert torch.equal(found.eval()(images), vit(images))


def test_an_encoder_of_this_project_says_whose_it_is(
    adopted: Callable[..., RunFolder], tmp_path: Path
) -> None:
    card = catalog.method("mae")
    save_encoder(official(card), tmp_path / "own.safetensors", method="mae")
    assert adopted(card, None, "own.safetensors").encoder_path.exists()
    with pytest.raises(UserError, match="A run of mae wrote it: give --weights mae=PATH"):
        adopted(catalog.method("simmim"), None, "own.safetensors")


@pytest.mark.parametrize("name", ["ibot", "sdae"])
def test_the_recipes_export_decides_between_student_and_teacher(
    name: str, adopted: Callable[..., RunFolder]
) -> None:
    card = catalog.method(name)
    student = official(card, pos_embed="learned").state_dict()
    teacher = {key: tensor + 1 for key, tensor in student.items()}
    folder = adopted(card, {"student": student, "teacher": teacher})
    export = card.recipes()["smoke"].export
    assert export == {"ibot": "teacher", "sdae": "student"}[name]
    assert folder.details["load_report"]["network"] == export
    found, _ = load_encoder(folder.encoder_path)
    assert torch.equal(found.cls_token, {"student": student, "teacher": teacher}[export]["cls_token"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_weights_that_are_not_finite_write_no_encoder(
    value: float, adopted: Callable[..., RunFolder], pretraining_folder: Callable[..., RunFolder]
) -> None:
    card = catalog.method("mae")
    state = official(card).state_dict()
    state["blocks.2.mlp.fc1.weight"][0, 0] = value
    with pytest.raises(UserError, match=r"--weights mae .*x\.pth.*blocks\.2\.mlp\.fc1\.weight"):
        adopted(card, {"model": state})
    assert not pretraining_folder(card).encoder_path.exists()


def test_an_encoder_of_another_head_count_is_refused(
    adopted: Callable[..., RunFolder], tmp_path: Path
) -> None:
    """The shapes are the same; only the header of our own file says it."""
    card = catalog.method("mae")
    vit = official(card)
    save_encoder(vit, tmp_path / "mine.safetensors", method="mae")
    adopted(card, None, "mine.safetensors")
    vit.config = replace(vit.config, num_heads=2 * vit.config.num_heads)
    save_encoder(vit, tmp_path / "other.safetensors", method="mae")
    with pytest.raises(UserError, match="num_heads"):
        adopted(card, None, "other.safetensors")
    save_file(vit.state_dict(), tmp_path / "plain.safetensors")  # says nothing of heads
    adopted(card, None, "plain.safetensors")

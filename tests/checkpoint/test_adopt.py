"""An official checkpoint instead of a pretraining."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from mimbench import catalog
from mimbench.arch import ViTConfig
from mimbench.checkpoint import adopt
from mimbench.checkpoint.encoder import load_encoder
from mimbench.store.folder import RunFolder
from mimbench.vit import ViT


def test_adopted_encoder_is_the_checkpoints(
    pretraining_folder: Callable[..., RunFolder], tmp_path: Path
) -> None:
    card = catalog.method("mae")
    recipe = card.recipes()["smoke"]
    size = ViTConfig.named(recipe.arch, img_size=recipe.img_size, patch_size=recipe.patch_size)
    torch.manual_seed(0)
    official = ViT(size).eval()
    torch.save({"model": official.state_dict()}, tmp_path / "mae.pth")
    folder = pretraining_folder(card)
    folder.inputs = replace(folder.inputs, weights={"mae": str(tmp_path / "mae.pth")})
    assert adopt.run(folder, card) == {}
    assert sorted(folder.details["load_report"]["loaded"]) == sorted(official.state_dict())
    vit, _ = load_encoder(folder.encoder_path)
    images = torch.randn(2, 3, recipe.img_size, recipe.img_size)
    assert torch.equal(vit.eval()(images), official(images))

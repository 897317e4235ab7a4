"""MAE against numbers of its official code on random weights; how they were made: README.md beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mimbench import arch
from mimbench.train.optimizer import param_groups
from pretrain.methods.mae import MAE, METHOD

GOLDEN = Path(__file__).parent / "mae_tiny.npz"


def official_name(name: str) -> str:
    """The official parameter's name for one of ours."""
    name = name.removeprefix("encoder.")
    for ours, theirs in {
        "decoder.embed": "decoder_embed",
        "decoder.mask_token": "mask_token",
        "decoder.pos_embed": "decoder_pos_embed",
        "decoder.blocks": "decoder_blocks",
        "decoder.norm": "decoder_norm",
        "decoder.pred": "decoder_pred",
    }.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return {name: value.astype(np.float32) for name, value in np.load(GOLDEN).items()}


@pytest.fixture
def build(golden, monkeypatch):
    monkeypatch.setitem(arch.ARCHS, "vit_golden", arch.Size(48, 2, 4))

    def make(kind: str) -> MAE:
        recipe = METHOD.recipes()["paper"].vary(
            "golden",
            arch="vit_golden",
            img_size=32,
            patch_size=8,
            decoder_dim=32,
            decoder_depth=1,
            decoder_heads=4,
            norm_pix_loss=kind == "norm_pix",
        )
        model = MAE(recipe)
        fixed = model.encoder.pos_embed.clone(), model.decoder.pos_embed.clone()
        state = {name: torch.tensor(golden[f"param/{official_name(name)}"]) for name in model.state_dict()}
        model.load_state_dict(state)
        for analytic, official in zip(fixed, (model.encoder.pos_embed, model.decoder.pos_embed), strict=True):
            torch.testing.assert_close(analytic, official.data, atol=1e-3, rtol=0)  # stored in fp16
        return model

    return make


def losses(model: MAE, golden: dict[str, np.ndarray], noise: np.ndarray) -> torch.Tensor:
    images = torch.tensor(golden["imgs"])
    latent, ids_restore, mask = model.forward_encoder(images, torch.tensor(noise))
    return model.forward_loss(images, model.decoder(latent, ids_restore), mask)


@pytest.mark.parametrize("kind", ["pixel", "norm_pix"])
def test_forward_and_gradients(build, golden, kind):
    model = build(kind)
    images = torch.tensor(golden["imgs"])
    latent, ids_restore, mask = model.forward_encoder(images, torch.tensor(golden["noise"]))
    pred = model.decoder(latent, ids_restore)
    loss = model.forward_loss(images, pred, mask)
    loss.backward()
    np.testing.assert_array_equal(ids_restore, golden["ids_restore"])
    np.testing.assert_array_equal(mask, golden["mask"])
    np.testing.assert_allclose(latent.detach(), golden["latent"], atol=1e-5)
    np.testing.assert_allclose(pred.detach(), golden["pred"], atol=1e-5)
    assert loss.item() == pytest.approx(float(golden[f"{kind}/loss"]), abs=1e-6)
    gradients = {official_name(name): p.grad for name, p in model.named_parameters()}
    checked = [name for name in golden if name.startswith(f"{kind}/grad/")]
    assert len(checked) == 8
    for name in checked:
        np.testing.assert_allclose(
            gradients[name.removeprefix(f"{kind}/grad/")], golden[name], atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("kind", ["pixel", "norm_pix"])
def test_twenty_steps_follow_the_official_curve(build, golden, kind):
    model = build(kind)
    optimizer = torch.optim.AdamW(param_groups(model, 0.05), lr=1e-3, betas=(0.9, 0.95))
    curve = []
    for noise in golden["curve_noise"]:
        loss = losses(model, golden, noise)
        curve.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(curve, golden[f"{kind}/curve"], atol=5e-6)
    assert curve[-1] < curve[0]

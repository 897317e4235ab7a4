"""DeepMIM against numbers of its official code on random weights (methods' specification, section g)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mimbench import arch
from pretrain.clip_vit import ClipVisual
from pretrain.methods import mae_clip
from pretrain.methods.deepmim import METHOD, DeepMIM, DeepMIMRecipe

GOLDEN = Path(__file__).parent / "deepmim_tiny.npz"


def official_name(name: str, first: int = 1) -> str:
    """The official parameter's name for one of ours; our first decoder is theirs of that number."""
    if not name.startswith("decoders."):
        return name.removeprefix("encoder.")
    _, branch, part, *rest = name.split(".")
    if part == "pos_embed":
        return "decoder_pos_embed"
    prefix = "" if part == "mask_token" else "decoder_"
    return ".".join([f"{prefix}{part}{first + int(branch)}", *rest])


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN))


@pytest.fixture
def build(golden, monkeypatch):
    monkeypatch.setitem(arch.ARCHS, "vit_golden", arch.Size(16, 12, 2))

    def make(paper: DeepMIMRecipe, first: int = 1) -> DeepMIM:
        """The model with the official weights, its decoders those from number `first` on."""
        recipe = paper.vary(
            "golden",
            arch="vit_golden",
            img_size=32,
            patch_size=8,
            decoder_dim=16,
            decoder_depth=1,
            decoder_heads=2,
        )
        teacher = ClipVisual(img_size=32, patch_size=8, width=64, depth=1, num_heads=1, output_dim=512)
        prefix = "teacher::"
        teacher.load_state_dict(
            {k.removeprefix(prefix): torch.tensor(v) for k, v in golden.items() if k.startswith(prefix)}
        )
        model = DeepMIM(recipe, teacher.eval().requires_grad_(False))
        fixed = model.encoder.pos_embed.clone(), model.decoders[0].pos_embed.clone()
        state = {f"teacher.{name}": tensor for name, tensor in teacher.state_dict().items()}
        for name in model.state_dict().keys() - state.keys():
            state[name] = torch.tensor(golden[f"student::{official_name(name, first)}"])
        model.load_state_dict(state)
        for analytic, official in zip(
            fixed, (model.encoder.pos_embed, model.decoders[0].pos_embed), strict=True
        ):
            torch.testing.assert_close(analytic, official.data, atol=1e-6, rtol=0)
        return model

    return make


def losses(model: DeepMIM, golden: dict[str, np.ndarray]) -> torch.Tensor:
    images, noise = torch.tensor(golden["x"]), torch.tensor(golden["noise"])
    features, ids_restore, mask = model.forward_encoder(images, noise)
    targets = model.branch_targets(images, ids_restore)
    return torch.stack(
        [
            model.forward_loss(decoder(x, ids_restore), target, mask)
            for decoder, x, target in zip(model.decoders, features, targets, strict=True)
        ]
    )


def test_features_predictions_and_target(build, golden):
    model = build(METHOD.recipes()["paper"])
    images, noise = torch.tensor(golden["x"]), torch.tensor(golden["noise"])
    with torch.no_grad():
        features, ids_restore, mask = model.forward_encoder(images, noise)
        target = model.forward_target(images)
    np.testing.assert_array_equal(ids_restore, golden["ids_restore"])
    np.testing.assert_array_equal(mask, golden["mask"])
    np.testing.assert_allclose(features[0], golden["feat6"], atol=1e-5)
    np.testing.assert_allclose(features[-1], golden["feat12_normed"], atol=1e-5)
    np.testing.assert_allclose(target, golden["teacher_out"][:, 1:], atol=1e-5)
    for number, (decoder, x) in enumerate(zip(model.decoders, features, strict=True), start=1):
        with torch.no_grad():
            pred = decoder(x, ids_restore)
        np.testing.assert_allclose(pred, golden[f"pred{number}"][:, 1:], atol=1e-5)


def test_losses_and_gradients_of_their_sum(build, golden, monkeypatch):
    model = build(METHOD.recipes()["paper"])
    np.testing.assert_allclose(losses(model, golden).detach(), golden["losses"], rtol=1e-5)
    noise = torch.tensor(golden["noise"])
    monkeypatch.setattr(torch, "rand", lambda *shape, device: noise)
    scalars = model(torch.tensor(golden["x"]), 0.0)
    assert scalars["loss"].item() == pytest.approx(golden["losses"].sum(), rel=1e-5)
    scalars["loss"].backward()
    gradients = {official_name(name): p.grad for name, p in model.named_parameters() if "teacher" not in name}
    checked = [name.removeprefix("grad::") for name in golden if name.startswith("grad::")]
    assert len(checked) == 7
    for name in checked:
        np.testing.assert_allclose(gradients[name], golden[f"grad::{name}"], atol=1e-6, err_msg=name)


def test_mae_clip_is_the_last_branch(build, golden):
    model = build(mae_clip.METHOD.recipes()["paper"], first=4)
    np.testing.assert_allclose(losses(model, golden).detach(), golden["losses"][3:], rtol=1e-5)

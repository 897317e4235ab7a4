"""BEiT and DALL-E's tokenizer against numbers of the official code on random weights."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from mimbench import arch
from mimbench.data.augment import normalise
from pretrain.masking import block_mask
from pretrain.methods.beit import METHOD, BEiT
from pretrain.target import masked_mean
from pretrain.teachers import dvae

HERE = Path(__file__).parent
VARIANTS = {"absolute": None, "shared": 0.1}  # positions and layer scale


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(HERE / "beit_tiny.npz"))


def official_name(name: str) -> str:
    """The official parameter's name for one of ours."""
    name = name.removeprefix("student.").removeprefix("encoder.")
    name = name.replace("rel_pos_bias.table", "rel_pos_bias.relative_position_bias_table")
    name = name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
    return "lm_head" + name.removeprefix("head") if name.startswith("head") else name


class Ids(nn.Module):
    """A tokenizer that returns given tokens."""

    def __init__(self, ids: torch.Tensor) -> None:
        super().__init__()
        self.ids = ids

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        return self.ids


@pytest.fixture(params=VARIANTS)
def method(
    golden: dict[str, np.ndarray], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> BEiT:
    monkeypatch.setitem(arch.ARCHS, "vit_golden", arch.Size(48, 2, 4))
    recipe = METHOD.recipes()["smoke"].vary(
        "golden",
        arch="vit_golden",
        num_codes=32,
        positions=request.param,
        layer_scale_init=VARIANTS[request.param],
    )
    method = BEiT(recipe, Ids(torch.tensor(golden["ids"]).long()))
    names = method.state_dict()
    method.load_state_dict(
        {name: torch.tensor(golden[f"param/{official_name(name)}"]).float() for name in names}
    )
    used = {f"param/{official_name(name)}" for name in names}
    other = {"pos_embed"} if request.param == "shared" else {"table", "gamma_1", "gamma_2"}
    unused = {name for name in golden if name.startswith("param/")} - used
    assert {name.split("/")[1].split("_bias_")[-1].split(".")[-1] for name in unused} == other
    return method


def test_logits_loss_and_gradients(golden, method, monkeypatch):
    variant, images = method.recipe.positions, torch.tensor(golden["imgs"]).float()
    mask = torch.tensor(golden["mask"])
    logits, indices, weight = method.predict(images, mask.float())
    raster = torch.zeros(4, 16, 32).scatter(1, indices.unsqueeze(-1).expand_as(logits), logits)
    np.testing.assert_allclose(raster[mask].detach(), golden[f"{variant}/logits"], atol=1e-5)
    assert weight.sum() == mask.sum() < weight.numel(), "the last image has fewer masked patches"

    monkeypatch.setattr(method, "draw_masks", lambda images: mask.float())
    scalars = method((images, images), 0.0)
    scalars["loss"].backward()
    assert scalars["loss"].item() == pytest.approx(float(golden[f"{variant}/loss"]), abs=1e-6)
    assert scalars["token_acc"].item() == pytest.approx(float(golden[f"{variant}/accuracy"]), abs=1e-6)
    gradients = {official_name(name): p.grad for name, p in method.named_parameters()}
    prefix = f"{variant}/grad/"
    checked = [name.removeprefix(prefix) for name in golden if name.startswith(prefix)]
    assert len(checked) >= 10
    for name in checked:
        np.testing.assert_allclose(gradients[name], golden[prefix + name], atol=1e-6, err_msg=name)


def test_loss_is_the_mean_over_the_batchs_masked_tokens(golden):
    mask, ids = torch.tensor(golden["mask"]), torch.tensor(golden["ids"]).long()
    logits = torch.tensor(golden["shared/logits"])
    values = torch.zeros(4, 16)
    values[mask] = F.cross_entropy(logits, ids[mask], reduction="none")
    assert masked_mean(values, mask.float()).item() == pytest.approx(float(golden["shared/loss"]), abs=1e-6)


def test_block_masks_are_those_of_the_official_generator(golden):
    """Both draw from Python's `random` in the same order."""
    random.seed(0)
    masks = torch.stack([block_mask(14, 75, 16, exact=False) for _ in range(20)]).numpy()
    assert np.array_equal(np.packbits(masks, axis=1), golden["masks/first"])


def test_block_mask_statistics(golden):
    random.seed(1)
    masks = torch.stack([block_mask(14, 75, 16, exact=False) for _ in range(3000)]).float()
    counts = masks.sum(dim=1)
    official = golden["masks/count"] / golden["masks/count"].sum()
    assert counts.max() == 75
    assert (counts == 75).float().mean().item() == pytest.approx(official[75], abs=0.03)
    assert counts.mean().item() == pytest.approx((official * np.arange(76)).sum(), abs=0.1)
    np.testing.assert_allclose(masks.mean(dim=0).reshape(14, 14), golden["masks/frequency"], atol=0.05)


def test_the_tokenizer_loads_and_equals_openais_encoder(tmp_path):
    golden = dict(np.load(HERE / "dalle_tiny.npz"))
    prefix = "param/"
    state = {
        name.removeprefix(prefix): torch.tensor(w) for name, w in golden.items() if name.startswith(prefix)
    }
    save_file(state, tmp_path / "encoder.safetensors")
    torch.save(state, tmp_path / "encoder.pt")
    recipe = dvae.METHOD.recipes()["paper"].vary("golden", img_size=32, width=8, num_codes=16)
    for name in ("encoder.safetensors", "encoder.pt"):
        encoder = dvae.load_official(recipe, tmp_path / name)
        assert len(state) == len(encoder.state_dict())
        images = normalise(torch.tensor(golden["pictures"]))
        with torch.no_grad():
            np.testing.assert_allclose(encoder(encoder.pixels(images)), golden["logits"], atol=2e-5)
        assert encoder.tokens(images).tolist() == golden["ids"].tolist()

"""BootMAE against numbers of its official code on weights given by a formula; README.md beside has it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mimbench import arch
from pretrain.methods.bootmae import METHOD, BootMAE

GOLDEN = json.loads((Path(__file__).parent / "bootmae_tiny.json").read_text(encoding="utf-8"))
K = torch.arange(12288, dtype=torch.float64)
IMAGES = torch.sin(0.01 * K + 2 * torch.sin(0.0037 * K)).reshape(4, 3, 32, 32)
IDS = (torch.sin(12.9898 * K[:256]) * 43758.5453).frac().abs().reshape(4, 64).argsort(dim=1)


def official_name(name: str) -> str:
    """The official parameter's name for one of ours."""
    name = name.removeprefix("encoder.").removeprefix("teacher.")
    for decoder, suffix in (("pixel_decoder", ""), ("feature_decoder", "_1")):
        for ours, theirs in (
            ("embed", "down"),
            ("mask_token", "mask_token"),
            ("blocks", "decode_blocks"),
            ("norm", "decode_norm"),
        ):
            name = re.sub(rf"^{decoder}\.{ours}\b", theirs + suffix, name)
    name = re.sub(r"(decode_blocks.*)\.attn\.(q|kv)\.weight", r"\1.attn.qkv.weight", name)
    name = name.replace("attn.q.bias", "attn.q_bias").replace("cross_attn", "c_attn")
    return name.replace("pixel_head", "lm_head.proj").replace("feature_head", "lm_head_1")


def fill_with_waves(model: BootMAE) -> None:
    """0.3 sin(0.37 i + phase) over an official parameter's elements, the phase given by its name."""
    for name, parameter in model.named_parameters():
        if name.endswith("pos_embed"):
            continue
        official = official_name(name)
        phase = 2 * math.pi * (sum(map(ord, official)) % 97) / 97 + name.startswith("teacher.")
        rest_of_qkv = ".attn.kv" in name  # its first third is our q
        i = torch.arange(parameter.numel(), dtype=torch.float64) + rest_of_qkv * (parameter.numel() // 2)
        shift = 1.0 if "norm" in official and official.endswith("weight") else 0.0
        parameter.data.copy_((0.3 * torch.sin(0.37 * i + phase)).reshape(parameter.shape) + shift)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[..., BootMAE]:
    monkeypatch.setitem(arch.ARCHS, "vit_golden", arch.Size(24, 3, 3))

    def make(weigh_blocks: bool = True) -> BootMAE:
        recipe = METHOD.recipes()["paper"].vary(
            "golden",
            arch="vit_golden",
            img_size=32,
            patch_size=4,
            num_masked=48,
            num_block_masked=40,
            decoder_dim=16,  # of three heads: 15 channels
            weigh_blocks=weigh_blocks,
        )
        model = BootMAE(recipe).double()
        fill_with_waves(model)
        return model

    return make


def test_predictions_and_targets(build: Callable[..., BootMAE]) -> None:
    model = build()
    assert IDS[0, :8].tolist() == GOLDEN["visible_first8"]
    pixels, features = model.predict(IMAGES, IDS)
    for name, x in (("pixels", pixels), ("features", features), ("target", model.forward_teacher(IMAGES))):
        assert x.sum().item() == pytest.approx(GOLDEN[f"{name}_sum"], rel=1e-9)
        assert x.abs().mean().item() == pytest.approx(GOLDEN[f"{name}_abs_mean"], rel=1e-9)


# The mask is in single precision: losses and gradients agree to eight digits.
@pytest.mark.parametrize(("weigh_blocks", "suffix"), [(True, ""), (False, "_unweighted")])
def test_losses(build: Callable[..., BootMAE], weigh_blocks: bool, suffix: str) -> None:
    model = build(weigh_blocks)
    pixel_loss, feature_loss = model.forward_loss(IMAGES, IDS, *model.predict(IMAGES, IDS))
    assert pixel_loss.item() == pytest.approx(GOLDEN[f"pixel_loss{suffix}"], rel=1e-7)
    assert feature_loss.item() == pytest.approx(GOLDEN[f"feature_loss{suffix}"], rel=1e-7)


def test_gradient_norm(build: Callable[..., BootMAE]) -> None:
    model = build()
    pixel_loss, feature_loss = model.forward_loss(IMAGES, IDS, *model.predict(IMAGES, IDS))
    (pixel_loss + 0.5 * feature_loss).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert torch.nn.utils.get_total_norm(gradients).item() == pytest.approx(GOLDEN["gradient_norm"], rel=1e-7)

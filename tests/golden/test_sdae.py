"""SdAE against numbers of its official code on weights given by a formula; README.md beside has it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mimbench import arch
from pretrain.ema import cosine_between, follow
from pretrain.methods.sdae import METHOD, SdAE

GOLDEN = json.loads((Path(__file__).parent / "sdae_tiny.json").read_text(encoding="utf-8"))
K = torch.arange(12288, dtype=torch.float64)
IMAGES = torch.sin(0.01 * K).reshape(4, 3, 32, 32)
NOISE = (torch.sin(12.9898 * K[:256]) * 43758.5453).frac().abs().reshape(4, 64)


def official_name(name: str) -> str:
    """The official parameter's name for one of ours."""
    name = name.removeprefix("student.").removeprefix("teacher.").replace("decoder.mask_token", "mask_token")
    for part in ("embed", "pos_embed", "blocks", "norm", "pred"):
        name = name.replace(f"decoder.{part}", f"decoder_{part}")
    return name


def fill_with_waves(model: SdAE) -> None:
    """0.05 sin(0.37 i + phase) over a parameter's elements, the phase given by its official name."""
    for name, parameter in model.named_parameters():
        official = official_name(name)
        if official in ("pos_embed", "decoder_pos_embed"):
            continue
        phase = 2 * math.pi * (sum(map(ord, official)) % 97) / 97 + name.startswith("teacher.")
        wave = 0.05 * torch.sin(0.37 * K.new_tensor(range(parameter.numel())) + phase)
        shift = 1.0 if "norm" in official and official.endswith("weight") else 0.0
        parameter.data.copy_(wave.reshape(parameter.shape) + shift)
    model.teacher.pos_embed.data.copy_(model.student.pos_embed)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SdAE]:
    monkeypatch.setitem(arch.ARCHS, "vit_golden", arch.Size(32, 2, 2))

    def make(**changes: Any) -> SdAE:
        shape = {"img_size": 32, "patch_size": 4, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
        recipe = METHOD.recipes()["paper"].vary(
            "golden", arch="vit_golden", drop_path=0.0, num_teacher_tokens=48, **shape, **changes
        )
        model = SdAE(recipe).double()
        fill_with_waves(model)
        return model

    return make


def loss_of(model: SdAE) -> Tensor:
    """The loss of a step whose masks come from NOISE."""
    draws = iter([NOISE])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *size, **options: next(draws))
        return model(IMAGES, 0.0)["loss"]


def gradient_norm(model: SdAE) -> float:
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).item()


def test_masking_predictions_and_targets(build: Callable[..., SdAE]) -> None:
    model = build()
    pred, ids_masked = model.forward_student(IMAGES, NOISE)
    target = model.forward_teacher(IMAGES, ids_masked)
    assert ids_masked[0, :8].tolist() == GOLDEN["unkeep_first8_img0"]
    assert ids_masked[3, :8].tolist() == GOLDEN["unkeep_first8_img3"]
    assert pred.sum().item() == pytest.approx(GOLDEN["pred_sum"], rel=1e-9)
    assert pred.abs().mean().item() == pytest.approx(GOLDEN["pred_abs_mean"], rel=1e-9)
    assert target.sum().item() == pytest.approx(GOLDEN["teacher_raw_sum"], rel=1e-9)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, "loss_official_multifold_tokens_axis"),
        ({"cosine_axis": "channel"}, "loss_feature_axis"),
        ({"num_folds": 1}, "loss_single_fold147_tokens_axis"),
        ({"num_folds": 1, "cosine_axis": "channel"}, "loss_single_fold_feature_axis"),
        ({"teacher_input": "full", "cosine_axis": "channel"}, "loss_full_image_teacher_shrinkNone"),
    ],
)
def test_f07_losses_of_the_default_axis_and_of_the_other(
    build: Callable[..., SdAE], changes: dict[str, Any], key: str
) -> None:
    assert loss_of(build(**changes)).item() == pytest.approx(GOLDEN[key], abs=1e-10)


@pytest.mark.parametrize(
    ("axis", "key"), [("token", "gradnorm_official"), ("channel", "gradnorm_feature_axis")]
)
def test_gradient_norms(build: Callable[..., SdAE], axis: str, key: str) -> None:
    model = build(cosine_axis=axis)
    loss_of(model).backward()
    assert gradient_norm(model) == pytest.approx(GOLDEN[key], rel=1e-9)


def test_moving_average(build: Callable[..., SdAE]) -> None:
    model = build()
    momentum = cosine_between(*model.recipe.momentum, 10 / 300)
    weight = model.teacher.blocks[0].attn.qkv.weight
    assert momentum == pytest.approx(GOLDEN["ema_m_epoch10"], abs=1e-12)
    assert weight.sum().item() == pytest.approx(GOLDEN["ema_teacher_qkv0_sum_before"], abs=1e-12)
    student = model.student.blocks[0].attn.qkv.weight.sum().item()
    assert student == pytest.approx(GOLDEN["student_qkv0_sum"], abs=1e-12)
    follow(model.teacher, model.student, momentum)
    assert weight.sum().item() == pytest.approx(GOLDEN["ema_teacher_qkv0_sum_after"], abs=1e-12)


def test_momentum_schedule() -> None:
    for epoch, momentum in GOLDEN["sched"].items():
        assert cosine_between(0.96, 0.99, int(epoch[1:]) / 300) == pytest.approx(momentum, abs=1e-12)

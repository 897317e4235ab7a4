"""DTM against numbers of its official code on random weights (methods' specification, section g)."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from mimbench import arch
from pretrain.clip_vit import ClipVisual
from pretrain.feature_student import teacher_tokens, token_distance
from pretrain.methods.dtm import DTM, METHOD, Branch, branch_of, morph

HERE = Path(__file__).parent
CODE = {"split": "alternate", "merge": "group_mean", "protect_first": True}


@pytest.fixture(scope="module")
def morph_cases() -> dict[str, np.ndarray]:
    return dict(np.load(HERE / "dtm_morph.npz"))


@pytest.mark.parametrize("case", range(7))
def test_morphing_equals_the_official_groups_and_losses(morph_cases, case):
    pred, target = torch.tensor(morph_cases["pred"]), torch.tensor(morph_cases["target"])
    r, k = (int(value) for value in morph_cases["cases_r_k"][case])
    morphing = morph(target, Branch(r, k), **CODE)
    official = morph_cases[f"c{case}_group_of_token"]
    assert morphing.num_groups == int(morph_cases[f"c{case}_n_groups"])
    for ours, theirs in zip(morphing.group.tolist(), official.tolist(), strict=True):
        assert len(set(zip(ours, theirs, strict=True))) == morphing.num_groups, "the partitions differ"
    for name, x in (("target", target), ("pred", pred)):
        np.testing.assert_allclose(morphing(x), morph_cases[f"c{case}_morphed_{name}"], atol=2e-6)
    for name in ("smoothl1_beta2", "negcosine"):
        loss = token_distance(morphing(pred), morphing(target), name.removesuffix("_beta2"))
        assert loss.item() == pytest.approx(float(morph_cases[f"c{case}_{name}"]), abs=1e-6)


def official_student_name(name: str) -> str:
    """The official parameter's name for one of ours."""
    if name.startswith("encoder."):
        name = name.removeprefix("encoder.")
    name = name.replace("rel_pos_bias.table", "relative_position_bias_table")
    if name == "relative_position_bias_table":
        name = "rel_pos_bias.relative_position_bias_table"
    name = name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
    return "lm_head" + name.removeprefix("head") if name.startswith("head") else name


@pytest.fixture
def engine(monkeypatch):
    golden = dict(np.load(HERE / "dtm_tiny_engine.npz"))
    monkeypatch.setitem(arch.ARCHS, "vit_golden", arch.Size(24, 2, 2))
    recipe = METHOD.recipes()["paper"].vary(
        "golden",
        arch="vit_golden",
        num_masked=21,
        min_mask_block=3,
        img_size=48,
        patch_size=8,
        target_dim=16,
        max_merged=36,
        max_rounds=6,
    )
    teacher = ClipVisual(img_size=48, patch_size=8, width=64, depth=1, num_heads=1, output_dim=16)
    prefix = "clip_visual::"
    teacher.load_state_dict(
        {k[len(prefix) :]: torch.tensor(v) for k, v in golden.items() if k.startswith(prefix)}
    )
    method = DTM(recipe, teacher.eval().requires_grad_(False))
    state = {
        name: torch.tensor(golden[f"student::{official_student_name(name)}"])
        for name in method.student.state_dict()
    }
    method.student.load_state_dict(state)
    return method, golden


def test_student_and_teacher_outputs(engine):
    method, golden = engine
    images = torch.tensor(golden["x"])
    mask = torch.tensor(golden["mask"]).flatten(1).float()
    with torch.no_grad():
        np.testing.assert_allclose(method.student(images, mask), golden["output_all_tokens"], atol=1e-6)
        np.testing.assert_allclose(
            teacher_tokens(method.teacher, images, project=True), golden["target"], atol=2e-6
        )


@pytest.mark.parametrize("seed", [0, 3])
def test_schedule_loss_and_gradients(engine, seed, monkeypatch):
    method, golden = engine
    images = torch.tensor(golden["x"])
    mask = torch.tensor(golden["mask"]).flatten(1).float()
    limit = 36
    random.seed(seed)
    m = [random.randint(0, limit) for _ in range(2)]
    k = [random.randint(1, 6) for _ in range(2)]
    assert m == golden[f"s{seed}_n"].tolist()
    assert k == golden[f"s{seed}_k"].tolist()
    assert [branch_of(m[i], k[i], limit).num_merged for i in range(2)] == golden[f"s{seed}_r"].tolist()

    random.seed(seed)
    monkeypatch.setattr(method.student, "draw_masks", lambda images: mask)
    loss = method(images, 0.0)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(float(golden[f"s{seed}_loss"]), abs=1e-6)
    prefix = f"s{seed}_grad::"
    gradients = {official_student_name(name): p.grad for name, p in method.student.named_parameters()}
    checked = [name.removeprefix(prefix) for name in golden if name.startswith(prefix)]
    assert len(checked) == 5
    for name in checked:
        np.testing.assert_allclose(gradients[name], golden[prefix + name], atol=1e-6, err_msg=name)

"""iBOT's head, centres, losses and masks against numbers of its official code on random weights."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mimbench import arch
from pretrain.masking import block_mask
from pretrain.methods.ibot import IBOT, METHOD

EPOCHS = (0, 2, 7)  # of ten; the temperature rises over five


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(Path(__file__).parent / "ibot_tiny.npz"))


@pytest.fixture
def method(golden: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> IBOT:
    monkeypatch.setitem(arch.ARCHS, "vit_golden", arch.Size(16, 1, 1))
    recipe = METHOD.recipes()["paper"].vary(
        "golden",
        arch="vit_golden",
        img_size=32,
        patch_size=8,
        local_img_size=16,
        num_local_crops=3,
        out_dim=12,
        head_hidden_dim=24,
        bottleneck_dim=8,
        epochs=10.0,
        warmup_teacher_temp_epochs=5,
        freeze_last_layer=0.0,
    )
    method = IBOT(recipe)
    for name in ("student", "teacher"):
        head = getattr(method, name).head
        state = {ours: tensor(golden, f"{name}/{official(ours)}") for ours in head.state_dict()}
        head.load_state_dict(state)
        assert (golden[f"{name}/last_layer.weight_g"] == 1).all()
    return method


def tensor(golden: dict[str, np.ndarray], name: str) -> Tensor:
    return torch.from_numpy(golden[name].astype(np.float32))


def official(name: str) -> str:
    """The official parameter's name for one of our head's."""
    return name.replace("last_layer.weight", "last_layer.weight_v")


def test_logits_of_the_head(method: IBOT, golden: dict[str, np.ndarray]) -> None:
    with torch.no_grad():
        logits = method.student.head(tensor(golden, "student_tokens"))
    np.testing.assert_allclose(logits[:, 0], golden["student_cls_logits"], atol=1e-6)
    np.testing.assert_allclose(logits[:, 1:], golden["student_patch_logits"], atol=1e-6)


@pytest.mark.parametrize("epoch", EPOCHS)
def test_losses_gradients_and_centres(method: IBOT, golden: dict[str, np.ndarray], epoch: int) -> None:
    def equal(ours: Tensor, name: str, atol: float = 1e-6) -> None:
        np.testing.assert_allclose(ours.detach(), golden[f"e{epoch}/{name}"], atol=atol, err_msg=name)

    method.center.mean = tensor(golden, f"e{epoch}/center")
    method.patch_center.mean = tensor(golden, f"e{epoch}/patch_center")
    student = nn.Parameter(tensor(golden, "student_tokens"))
    local_cls = nn.Parameter(tensor(golden, "local_cls"))
    mask = tensor(golden, "mask")
    scalars = method.forward_loss(student, local_cls, tensor(golden, "teacher_tokens"), mask, epoch)
    scalars["loss"].backward()
    equal(scalars["loss"], "loss", 3e-6)
    equal(scalars["loss_cls"], "cls", 3e-6)
    equal(scalars["loss_patch"], "patch", 3e-6)
    equal(student.grad, "grad/student_tokens")
    equal(local_cls.grad, "grad/local_cls")
    for name, parameter in method.student.head.named_parameters():
        equal(parameter.grad, f"grad/{official(name)}", 5e-6)
    method.after_step(1)
    equal(method.center.mean, "center_after")
    equal(method.patch_center.mean, "patch_center_after")


def test_block_masks_of_one_seed(golden: dict[str, np.ndarray]) -> None:
    masks = np.unpackbits(golden["block/masks"], axis=1, count=196).astype(bool)
    for seed, (num_masked, mask) in enumerate(zip(golden["block/num_masked"], masks, strict=True)):
        random.seed(seed)
        assert np.array_equal(block_mask(14, float(num_masked), 16, exact=False), mask), seed

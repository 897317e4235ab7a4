"""Feature MIM, the baseline without morphing: what is compared with what, and how."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.contract import MethodCard
from pretrain.feature_student import to_clip_statistics
from pretrain.methods import dtm
from pretrain.methods.feature_mim import METHOD, FeatureMIM

SMOKE = METHOD.recipes()["smoke"]


class Teacher(nn.Module):
    """Keeps what it is given and answers with the same random tokens `[4, 1+16, 64]` each time."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(4, 17, 64) * 3, requires_grad=False)
        self.given: list[tuple[Tensor, bool, bool]] = []

    def forward(self, images: Tensor, *, project: bool) -> Tensor:
        self.given.append((images, project, torch.is_grad_enabled()))
        return self.tokens


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 32, 32)


def build(**changes: object) -> FeatureMIM:
    return FeatureMIM(SMOKE.vary("test", **changes), Teacher()).train()


def distance(pred: Tensor, target: Tensor, loss_type: str) -> Tensor:
    """Mean over all tokens `[B, N, C]`, by the formulas."""
    d = (pred - target).abs()
    if loss_type == "negcosine":
        return 1 - ((pred * target).sum(dim=2) / (pred.norm(dim=2) * target.norm(dim=2))).mean()
    return {"smoothl1": torch.where(d < 2, d**2 / 4, d - 1), "l1": d, "l2": d**2}[loss_type].mean()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("loss_type", ["smoothl1", "l1", "l2", "negcosine"])
def test_loss_is_the_named_distance_of_all_tokens(loss_type: str, normalize: bool) -> None:
    pred, raw = torch.randn(2, 4, 16, 64) * 3 + 0.5
    standard = (raw - raw.mean(dim=2, keepdim=True)) / (raw.var(dim=2, keepdim=True) + 1e-6).sqrt()
    target = standard if normalize else raw
    found = build(loss_type=loss_type, normalize_target=normalize).forward_loss(pred, raw)
    torch.testing.assert_close(found, distance(pred, target, loss_type), rtol=1e-5, atol=1e-6)
    if loss_type == "smoothl1":
        torch.testing.assert_close(found, F.smooth_l1_loss(pred, target, beta=2.0))


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("clip_normalisation", [False, True])
def test_teacher_gets_the_whole_images_in_the_statistics_asked_for(
    images: Tensor, clip_normalisation: bool, project: bool
) -> None:
    method = build(clip_normalisation=clip_normalisation, project_target=project)
    assert not method.teacher.training
    method(images, 0.0)
    [(given, projected, with_grad)] = method.teacher.given
    assert projected == project and not with_grad
    torch.testing.assert_close(given, to_clip_statistics(images) if clip_normalisation else images)
    assert not torch.equal(to_clip_statistics(images), images)


@pytest.mark.parametrize("card", [METHOD, dtm.METHOD], ids=lambda card: card.name)
def test_the_papers_teacher_gets_the_students_own_statistics(card: MethodCard) -> None:
    recipe = card.recipes()["paper"]
    assert recipe.clip_normalisation is False
    assert (recipe.project_target, recipe.target_dim) == (True, 512)
    assert (recipe.loss_type, recipe.normalize_target) == ("smoothl1", False)


def test_step_compares_every_patch_of_the_masked_image_with_the_teachers(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask hides patches from the student and is absent from the loss; class tokens are left out."""
    method = build()
    for parameter in (method.student.mask_token, method.student.head.weight):
        nn.init.normal_(parameter)
    mask = torch.zeros(4, 16)
    mask[:, [0, 1, 4, 5, 10, 11]] = 1
    asked: list[Tensor] = []
    monkeypatch.setattr(method.student, "draw_masks", lambda images: asked.append(images) or mask)
    loss = method(images, 0.0)["loss"]
    assert asked == [images]
    target = method.teacher.tokens[:, 1:]
    torch.testing.assert_close(loss, distance(method.student(images, mask), target, "smoothl1"))
    for other in (torch.zeros(4, 16), 1 - mask):
        assert abs(distance(method.student(images, other), target, "smoothl1") - loss) > 1e-3

"""SdAE's faithfulness, point by point. The official code's numbers: tests/golden/test_sdae.py."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from downstream.backbone import remove_final_norm
from downstream.classification import Classifier
from downstream.classification import recipes as classification_recipes
from mimbench.checkpoint.encoder import load_encoder, save_encoder
from mimbench.train.optimizer import param_groups
from mimbench.train.pretraining import initialise
from pretrain.ema import cosine_between
from pretrain.methods import sdae
from pretrain.methods.sdae import METHOD, SdAE, SdAERecipe, cosine_loss
from pretrain.target import patchify, standardise, unpatchify

PAPER = METHOD.recipes()["paper"]
# The smoke encoder on the paper's grid: 14 x 14 patches of 2 pixels, three folds of 49.
TINY = METHOD.recipes()["smoke"].vary(
    "test", img_size=28, patch_size=2, num_teacher_tokens=147, drop_path=0.0
)


@pytest.fixture
def model() -> SdAE:
    return SdAE(TINY).train()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 28, 28)


@pytest.fixture
def noise() -> Tensor:
    return torch.rand(2, 196)


@pytest.fixture(scope="module")
def paper_on_meta() -> SdAE:
    with torch.device("meta"):
        return SdAE(PAPER)


def repaint(images: Tensor, ids: Tensor) -> Tensor:
    """The images with other pixels in the patches ids `[B, K]`."""
    patches = patchify(images, 2)
    index = ids.unsqueeze(-1).expand(-1, -1, patches.shape[2])
    return unpatchify(patches.scatter(1, index, 5.0), 2)


def test_f01_three_disjoint_folds_of_49_are_the_masked_set(
    model: SdAE, images: Tensor, noise: Tensor
) -> None:
    seen: list[Tensor] = []
    model.student.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    ids_masked = model.forward_student(images, noise)[1]
    assert seen[0].shape[1] == 1 + 49 and ids_masked.shape == (2, 147)
    numbers = torch.arange(196.0).view(1, 196, 1).expand(2, -1, -1)
    folds = model.fold(numbers, ids_masked)
    assert folds.shape == (6, 49, 1)
    for b in range(2):
        members = folds[3 * b : 3 * b + 3].flatten().long().tolist()
        masked = set(noise[b].argsort()[49:].tolist())
        assert len(members) == len(set(members)) and set(members) == masked


def test_f02_visible_pixels_reach_predictions_only_and_a_folds_pixels_its_targets_only(
    model: SdAE, images: Tensor, noise: Tensor
) -> None:
    pred, ids_masked = model.forward_student(images, noise)
    target = model.forward_teacher(images, ids_masked)
    visible = noise.argsort(dim=1)[:, :49]
    other = repaint(images, visible)
    assert not torch.equal(model.forward_student(other, noise)[0], pred)
    assert torch.equal(model.forward_teacher(other, ids_masked), target)
    for fold in range(3):
        other = repaint(images, ids_masked[:, 49 * fold : 49 * fold + 49])
        assert torch.equal(model.forward_student(other, noise)[0], pred)
        same = (model.forward_teacher(other, ids_masked) == target).flatten(1).all(dim=1)
        assert same.tolist() == [row % 3 != fold for row in range(6)]


def test_f03_fold_rows_are_ordered_by_image_then_fold(model: SdAE, images: Tensor, noise: Tensor) -> None:
    ids_masked = model.forward_student(images, noise)[1]
    numbers = torch.arange(2 * 196.0).view(2, 196, 1)
    folds = model.fold(numbers, ids_masked)[..., 0]
    for b in range(2):
        for j in range(3):
            assert torch.equal(folds[3 * b + j], 196 * b + ids_masked[b, 49 * j : 49 * j + 49].float())


def test_f04_teacher_sequences_of_50_whose_class_token_is_no_target(
    model: SdAE, images: Tensor, noise: Tensor
) -> None:
    seen: list[Tensor] = []
    ids_masked = model.forward_student(images, noise)[1]
    model.teacher.norm.register_forward_hook(lambda _, args, output: seen.append(output))
    target = model.forward_teacher(images, ids_masked)
    assert seen[0].shape[:2] == (6, 50) and target.shape[:2] == (6, 49)
    assert torch.equal(target, seen[0][:, 1:])


def test_f05_targets_are_standardised_by_token_and_predictions_are_not(
    model: SdAE, images: Tensor, noise: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Tensor] = {}
    monkeypatch.setattr(sdae, "cosine_loss", lambda pred, target, axis: seen.update(pred=pred, target=target))
    pred, ids_masked = model.forward_student(images, noise)
    pred = model.fold(pred, ids_masked)
    model.forward_loss(pred, model.forward_teacher(images, ids_masked))
    assert seen["target"].mean(dim=2).abs().max() < 1e-5
    torch.testing.assert_close(seen["target"].var(dim=2, correction=1), torch.ones(6, 49), rtol=1e-4, atol=0)
    assert torch.equal(seen["pred"], pred)
    assert (seen["pred"].var(dim=2) - 1).abs().mean() > 0.05


@pytest.mark.parametrize("axis", ["token", "channel"])
def test_f05_a_step_compares_folded_predictions_with_standardised_targets(
    axis: str, images: Tensor, noise: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, draws = SdAE(TINY.vary("test", cosine_axis=axis)).train(), iter([noise])
    monkeypatch.setattr(torch, "rand", lambda *size, **options: next(draws))
    loss = model(images, 0.0)["loss"]
    pred, ids_masked = model.forward_student(images, noise)
    pred = torch.cat([pred[b, ids_masked[b]].reshape(3, 49, 32) for b in range(2)])
    target = model.forward_teacher(images, ids_masked)
    target = (target - target.mean(dim=2, keepdim=True)) / (target.var(dim=2, keepdim=True) + 1e-6).sqrt()
    dim = {"token": 1, "channel": 2}[axis]
    cosine = (pred * target).sum(dim=dim) / (pred.norm(dim=dim) * target.norm(dim=dim))
    torch.testing.assert_close(loss, 1 - cosine.mean())


@pytest.mark.parametrize("axis", ["token", "channel"])
def test_f06_range_zero_and_scale_invariance_of_the_loss(axis: str) -> None:
    pred, target = torch.randn(2, 6, 49, 32, dtype=torch.float64)
    assert 0 < cosine_loss(pred, target, axis) < 2
    assert cosine_loss(-3 * target, target, axis).item() == pytest.approx(2)
    assert cosine_loss(0.1 * target, target, axis).item() == pytest.approx(0, abs=1e-12)
    by_channel, by_token = torch.rand(32) + 0.5, torch.rand(6, 49, 1) + 0.5
    free, bound = (by_channel, by_token) if axis == "token" else (by_token, by_channel)
    loss = cosine_loss(pred, target, axis).item()
    assert cosine_loss(pred * free, target, axis).item() == pytest.approx(loss, abs=1e-12)
    assert abs(cosine_loss(pred * bound, target, axis).item() - loss) > 1e-5


def test_f07_the_token_axis_is_the_default_and_the_axes_differ() -> None:
    assert {recipe.cosine_axis for recipe in METHOD.recipes().values()} == {"token"}
    # One channel follows the target along the tokens, the other runs against it. The official losses of both
    # axes: tests/golden/test_sdae.py.
    target = torch.tensor([[[1.0, 1.0], [3.0, 3.0]]])
    pred = torch.tensor([[[1.0, -1.0], [3.0, -3.0]]])
    assert cosine_loss(pred, target, "token").item() == pytest.approx(1 - (1 - 1) / 2)
    pred = torch.tensor([[[1.0, 1.0], [-3.0, -3.0]]])
    assert cosine_loss(pred, target, "channel").item() == pytest.approx(1 - (1 - 1) / 2)
    assert cosine_loss(pred, target, "token").item() == pytest.approx(1 - (1 - 9) / 10)


def test_f08_gradients_reach_all_of_the_student_and_none_of_the_teacher(model: SdAE, images: Tensor) -> None:
    assert not any(p.requires_grad for p in model.teacher.parameters())
    model(images, 0.0)["loss"].backward()
    for name, parameter in model.named_parameters():
        if name.startswith("teacher.") or name.endswith("pos_embed"):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("steps", [600, 1001, 300])
def test_f09_teacher_moves_once_an_epoch_after_its_last_step(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SdAE(TINY.vary("test", epochs=300.0, momentum=PAPER.momentum))
    moves: list[tuple[int, float]] = []
    now = 0
    monkeypatch.setattr(sdae, "follow", lambda teacher, student, m: moves.append((now, m)))
    model.before_train(steps)
    for now in range(1, steps + 1):
        model.after_step(now)
    assert [step for step, _ in moves] == [math.ceil(e * steps / 300) for e in range(1, 301)]
    momentum = [m for _, m in moves]
    expected = {0: 0.96, 75: 0.9643934, 150: 0.975, 299: 0.9899992}
    for epoch, value in expected.items():
        assert momentum[epoch] == pytest.approx(value, abs=5e-8)


def test_f09_epochs_that_steps_do_not_fill_and_the_other_cadence(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[tuple[int, float]] = []
    now = 0
    monkeypatch.setattr(sdae, "follow", lambda teacher, student, m: moves.append((now, m)))
    for cadence, expected in (("per_epoch", [4, 8]), ("per_step", list(range(1, 11)))):
        model = SdAE(TINY.vary("test", epochs=2.5, cadence=cadence))
        model.before_train(10)
        moves.clear()
        for now in range(1, 11):
            model.after_step(now)
        assert [step for step, _ in moves] == expected
        epochs = [0, 1] if cadence == "per_epoch" else [0] * 4 + [1] * 4 + [2] * 2
        assert [m for _, m in moves] == [cosine_between(*TINY.momentum, e / 2.5) for e in epochs]


def test_f10_moving_average_covers_the_whole_teacher(model: SdAE) -> None:
    student = dict(model.student.named_parameters())
    before = {name: p.clone() for name, p in model.teacher.named_parameters()}
    assert set(before) == set(student)
    assert {"patch_embed.proj.weight", "cls_token", "pos_embed", "blocks.0.mlp.fc1.bias"} <= set(before)
    assert {"norm.weight", "norm.bias"} <= set(before)
    assert not any("decoder" in name or "mask_token" in name for name in before)
    model.before_train(20)
    model.after_step(10)  # the first of two epochs ends
    m = TINY.momentum[0]
    for name, p in model.teacher.named_parameters():
        torch.testing.assert_close(p, m * before[name] + (1 - m) * student[name], rtol=1e-5, atol=1e-7)
        if student[name].ndim > 1:
            assert not torch.equal(p, before[name]), name


def test_f11_teacher_starts_from_weights_of_its_own_given_by_the_seed() -> None:
    models = [initialise(METHOD, TINY, 3) for _ in range(2)]
    for (name, a), b in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    model = models[0]
    for (name, t), s in zip(model.teacher.named_parameters(), model.student.parameters(), strict=True):
        if t.ndim > 1:
            assert not torch.equal(t, s), name
    for table in (model.teacher.pos_embed, model.teacher.blocks[0].mlp.fc1.weight):
        assert table.std().item() == pytest.approx(0.02, rel=0.1)  # the student's are sin-cos and Xavier
    assert model.student.blocks[0].mlp.fc1.weight.std().item() > 0.05


def test_f12_decoder(paper_on_meta: SdAE) -> None:
    decoder = paper_on_meta.decoder
    assert decoder.pred.out_features == paper_on_meta.student.embed_dim == 768
    assert decoder.embed.out_features == decoder.pred.in_features == 512
    assert [block.attn.num_heads for block in decoder.blocks] == [16] * 8
    assert not any(isinstance(module, DropPath) for module in decoder.modules())


def test_f13_drop_path_rates(paper_on_meta: SdAE) -> None:
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in paper_on_meta.student.blocks]
    assert rates == pytest.approx([0.25 * i / 11 for i in range(12)])
    assert not any(isinstance(module, DropPath) for module in paper_on_meta.teacher.modules())


def test_f14_optimisation(paper_on_meta: SdAE) -> None:
    assert PAPER.global_batch_size == 768
    assert PAPER.peak_lr == pytest.approx(8e-4, abs=1e-6)
    steps = 300 * 1668
    lr = [PAPER.lr_at(step, steps) for step in (0, 30 * 1668, 60 * 1668, steps - 1)]
    assert lr == pytest.approx([0, 4e-4, 8e-4, 0], abs=1e-6)
    assert (PAPER.betas, PAPER.clip_grad) == ((0.9, 0.95), None)
    undecayed, decayed = param_groups(paper_on_meta, PAPER.weight_decay)
    assert (undecayed["weight_decay"], decayed["weight_decay"]) == (0.0, 0.04)
    ids = {id(p) for p in decayed["params"]}
    assert {id(paper_on_meta.student.cls_token), id(paper_on_meta.decoder.mask_token)} <= ids


@pytest.mark.parametrize("export", ["student", "teacher"])
def test_f15_student_is_exported_or_the_teacher_on_request(export: str, tmp_path: Path) -> None:
    assert PAPER.export == "student"
    model = SdAE(TINY.vary("test", export=export))
    with torch.no_grad():
        model.get_submodule(export).norm.weight.fill_(7.0)
    save_encoder(model.encoder, tmp_path / "e.safetensors", method="sdae")
    vit, _ = load_encoder(tmp_path / "e.safetensors")
    for name, tensor in model.get_submodule(export).state_dict().items():
        assert torch.equal(vit.state_dict()[name], tensor), name
    remove_final_norm(vit)
    classifier = Classifier(vit, 5, classification_recipes()["smoke"])
    assert isinstance(classifier.encoder.norm, nn.Identity)
    assert (classifier.fc_norm.weight == 1).all() and (classifier.fc_norm.bias == 0).all()


# -- the variants (section a.3) ------------------------------------------------------------------------------


def test_single_fold_and_truncated_folds(images: Tensor, noise: Tensor) -> None:
    for num_folds, tokens, rows, length in (
        (1, 147, 2, 147),
        (2, 147, 4, 73),
        (2, 98, 4, 49),
        (1, 49, 2, 49),
    ):
        model = SdAE(TINY.vary("test", num_folds=num_folds, num_teacher_tokens=tokens))
        pred, ids_masked = model.forward_student(images, noise)
        target = model.forward_teacher(images, ids_masked)
        assert target.shape == model.fold(pred, ids_masked).shape == (rows, length, 32)


def test_full_image_teacher_sees_all_patches_and_is_asked_for_the_masked_ones(
    images: Tensor, noise: Tensor
) -> None:
    model = SdAE(TINY.vary("test", teacher_input="full", cosine_axis="channel"))
    pred, ids_masked = model.forward_student(images, noise)
    target = model.forward_teacher(images, ids_masked)
    whole = model.teacher(images)[:, 1:]
    assert target.shape == (2, 147, 32)
    for b in range(2):
        assert torch.equal(target[b], whole[b, ids_masked[b]])
    loss = model.forward_loss(model.fold(pred, ids_masked), target)
    masked = torch.ones(2, 196, dtype=torch.bool).scatter(1, noise.argsort(dim=1)[:, :49], False)
    by_hand = 1 - nn.functional.cosine_similarity(standardise(whole[masked]), pred[masked]).mean()
    torch.testing.assert_close(loss, by_hand)


def test_without_standardisation_the_targets_are_the_teachers_features(model: SdAE) -> None:
    raw = SdAE(TINY.vary("test", normalize_target=False, cosine_axis="channel"))
    target = torch.randn(6, 49, 32) * 2 + 1
    assert raw.forward_loss(target, target).item() == pytest.approx(0, abs=1e-6)
    assert model.forward_loss(target, target).item() > 1e-2


def test_recipes_that_cannot_be_are_refused() -> None:
    from mimbench.errors import UserError

    for changes in ({"num_teacher_tokens": 148}, {"num_folds": 0}, {"momentum": (0.9, 1.1)}):
        with pytest.raises(UserError, match=next(iter(changes))):
            SdAERecipe.from_values({**TINY.values(), **changes})

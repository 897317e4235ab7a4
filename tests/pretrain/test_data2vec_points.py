"""data2vec's faithfulness (vision, ViT-B), point by point."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor

from downstream.classification import TASK as CLASSIFICATION
from downstream.classification import ClassificationRecipe
from mimbench.vit import Attention
from pretrain.methods import data2vec
from pretrain.methods.data2vec import METHOD, Data2vec
from pretrain.target import patchify, unpatchify

PAPER = METHOD.recipes()["paper"]


@pytest.fixture
def model() -> Data2vec:
    return Data2vec(METHOD.recipes()["smoke"]).train()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32)


def test_p01_at_most_120_masked_tokens_in_blocks_up_to_all_of_them() -> None:
    assert (PAPER.num_masked, PAPER.min_mask_block, PAPER.num_patches) == (120, 16, 196)
    recipe = METHOD.recipes()["smoke"].vary("t", img_size=112, num_masked=120, min_mask_block=16)
    counts = Data2vec(recipe).draw_masks(torch.zeros(200, 3, 112, 112)).sum(dim=1)
    assert counts.max() == 120 and counts.min() > 95 and 0.4 < (counts == 120).float().mean() < 1


def test_p01_a_block_may_be_as_large_as_what_is_left(
    model: Data2vec, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def spy(*arguments: object, **options: object) -> Tensor:
        asked.update(options)
        return torch.zeros(3, 16)

    monkeypatch.setattr("pretrain.methods.data2vec.block_masks", spy)
    model.draw_masks(torch.zeros(3, 3, 32, 32))
    assert asked.get("max_block") is None and asked["exact"] is False


def test_p02_teacher_sees_the_whole_image_and_gets_no_gradient(model: Data2vec, images: Tensor) -> None:
    patches, mask = patchify(images, 8), model.draw_masks(images)
    target = model.forward_target(images)
    assert not target.requires_grad
    patches[0, mask[0].argmax()] += 1  # a masked patch
    changed = model.forward_target(unpatchify(patches, 8))
    assert not torch.equal(changed[0], target[0]) and torch.equal(changed[1:], target[1:])
    model(images, 0.0)["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())


def test_p02_momentum_is_the_same_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Data2vec(METHOD.recipes()["smoke"].vary("test", momentum=PAPER.momentum))
    moves: list[tuple[object, object, float]] = []
    monkeypatch.setattr(data2vec, "follow", lambda *arguments: moves.append(arguments))
    steps = [*range(1, 1001), 250_000, 500_000]
    for step in steps:
        model.after_step(step)
    assert moves == [(model.teacher, model.encoder, 0.9998)] * len(steps)


def test_p02_teacher_starts_as_the_student(model: Data2vec) -> None:
    for name, parameter in model.encoder.named_parameters():
        assert torch.equal(parameter, model.teacher.get_parameter(name)), name
        assert parameter is not model.teacher.get_parameter(name)


def test_p03_target_is_the_normalised_mean_of_the_normalised_top_blocks(
    model: Data2vec, images: Tensor
) -> None:
    assert PAPER.num_target_layers == 6
    model.teacher.norm.weight.data.fill_(7)  # the final norm has no part in it
    outputs: list[Tensor] = []
    for block in model.teacher.blocks:
        block.register_forward_hook(lambda _, args, output: outputs.append(output[:, 1:]))
    target = model.forward_target(images)
    assert len(outputs) == 4

    def norm(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()

    torch.testing.assert_close(target, norm((norm(outputs[2]) + norm(outputs[3])) / 2))


def test_p03_six_of_twelve_blocks_at_paper_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model = Data2vec(PAPER)
        seen: list[int] = []
        encode = model.teacher.encode
        monkeypatch.setattr(
            model.teacher, "encode", lambda x, taps: seen.extend(taps) or encode(x, taps=taps)
        )
        assert model.forward_target(torch.zeros(2, 3, 224, 224)).shape == (2, 196, 768)
    assert seen == [6, 7, 8, 9, 10, 11]


def test_p04_smooth_l1_on_masked_positions_only(model: Data2vec) -> None:
    assert PAPER.smooth_l1_beta == 2
    mask = torch.zeros(3, 16)
    mask[0, :9], mask[1, 3] = 1, 1  # an image with more masked patches weighs more
    pred, target = torch.randn(2, 3, 16, 32) * 3
    pred.requires_grad_()
    loss = model.forward_loss(pred, target, mask)
    loss.backward()
    d = (pred - target)[mask == 1].abs()
    torch.testing.assert_close(loss, torch.where(d < 2, d**2 / 4, d - 1).mean())
    assert pred.grad[mask == 0].abs().max() == 0 and (pred.grad[mask == 1] != 0).any(dim=1).all()


def test_p04_a_steps_loss_is_that_of_the_patches_its_mask_hides(
    model: Data2vec, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = torch.zeros(3, 16)
    mask[0, :9], mask[1, 3], mask[2, 5:9] = 1, 1, 1
    draws = iter([mask])
    monkeypatch.setattr(model, "draw_masks", lambda images: next(draws))
    model.eval()
    loss = model(images, 0.0)["loss"]
    pred = model.head(model.student(images, mask)[:, 1:])
    d = (pred - model.forward_target(images))[mask == 1].abs()
    torch.testing.assert_close(loss, torch.where(d < 2, d**2 / 4, d - 1).mean())


def test_p05_target_rows_have_mean_0_and_variance_1(model: Data2vec, images: Tensor) -> None:
    target = model.forward_target(images * 5)
    torch.testing.assert_close(target.mean(dim=2), torch.zeros(3, 16), rtol=0, atol=1e-5)
    torch.testing.assert_close(target.var(dim=2, correction=0), torch.ones(3, 16), rtol=1e-3, atol=0)


def test_p06_teacher_moves_after_each_step_and_only_then(model: Data2vec, images: Tensor) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    before = copy.deepcopy(model.teacher.state_dict())
    model(images, 0.0)["loss"].backward()
    optimizer.step()
    assert all(torch.equal(model.teacher.state_dict()[name], value) for name, value in before.items())
    model.after_step(1)
    momentum = model.recipe.momentum
    for name, parameter in model.encoder.named_parameters():
        expected = momentum * before[name] + (1 - momentum) * parameter
        torch.testing.assert_close(model.teacher.get_parameter(name), expected, msg=name)
    assert any(not torch.equal(model.teacher.state_dict()[name], value) for name, value in before.items())


def test_p07_drop_path_layer_scale_and_no_absolute_positions() -> None:
    assert (PAPER.drop_path, PAPER.attention_dropout, PAPER.layer_scale_init) == (0.25, 0.05, 1e-4)
    with torch.device("meta"):
        encoder = Data2vec(PAPER).encoder
    drops = [block.drop_path2.drop_prob for block in encoder.blocks if isinstance(block.drop_path2, DropPath)]
    assert drops == pytest.approx([0.25 * i / 11 for i in range(1, 12)])
    assert encoder.pos_embed is None and encoder.rel_pos_bias.table.shape == (732, 12)
    model = Data2vec(METHOD.recipes()["smoke"].vary("t", layer_scale_init=1e-4))
    assert (model.encoder.blocks[1].ls2.gamma == 1e-4).all()


def test_p07_attention_drops_in_the_students_training_only(model: Data2vec, images: Tensor) -> None:
    attention: Attention = model.encoder.blocks[0].attn
    x = torch.randn(1, 17, 32)
    assert not torch.equal(attention(x), attention(x))
    assert torch.equal(model.teacher.blocks[0].attn(x), model.teacher.blocks[0].attn(x))
    model.eval()
    assert torch.equal(attention(x), model.teacher.blocks[0].attn(x))
    ones = torch.ones(1, 2, 64, 1)  # of values alike, attention without dropout gives the value back
    model.train()
    weights = model.attend(ones, ones, torch.eye(64).expand(1, 2, 64, 64))  # each row: the weights themselves
    assert (weights == 0).float().mean().item() == pytest.approx(0.05, abs=0.015)
    torch.testing.assert_close(weights[weights > 0], torch.full_like(weights[weights > 0], 1 / 64 / 0.95))
    assert not model.teacher.training


def test_p08_recipe() -> None:
    assert (PAPER.peak_lr, PAPER.global_batch_size) == (2e-3, 2048)
    assert (PAPER.clip_grad, PAPER.weight_decay, PAPER.warmup_epochs) == (3.0, 0.05, 10.0)
    steps = 800 * 625
    lr = [PAPER.lr_at(step, steps) for step in (0, 10 * 625, steps - 1)]
    assert lr == pytest.approx([0, 2e-3, 1e-5])


def test_p09_fine_tuning_recipe() -> None:
    changes = {k: v for part in METHOD.transfer()["classification"]["paper"] for k, v in part.values.items()}
    recipe = ClassificationRecipe.from_values({**CLASSIFICATION.recipes()["paper"].values(), **changes})
    assert (recipe.peak_lr, recipe.global_batch_size) == (4e-3, 1024)
    assert (recipe.weight_decay, recipe.layer_decay, recipe.drop_path) == (0.0, 0.65, 0.2)


def test_masked_pixels_never_influence_the_student(model: Data2vec, images: Tensor) -> None:
    model.eval()
    patches, mask = patchify(images, 8), model.draw_masks(images)
    garbled = unpatchify(torch.where(mask[..., None] == 1, torch.full_like(patches, 1e3), patches), 8)
    assert torch.equal(model.predict(garbled, mask), model.predict(images, mask))

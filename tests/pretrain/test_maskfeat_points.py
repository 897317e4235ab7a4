"""MaskFeat's faithfulness, point by point. The official HOG's numbers: tests/golden/test_hog.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mimbench.errors import UserError
from mimbench.train.optimizer import param_groups
from pretrain.hog import hog
from pretrain.methods.maskfeat import METHOD, MaskFeat
from pretrain.target import patchify, unpatchify

PAPER = METHOD.recipes()["paper"]


@pytest.fixture
def model() -> MaskFeat:
    """The smoke encoder on 8 x 8 patches of 8 pixels."""
    return MaskFeat(METHOD.recipes()["smoke"].vary("test", img_size=64, num_masked=26, min_mask_block=5))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 64, 64)


def ramp(degrees: float) -> Tensor:
    """An image `[1, 3, 32, 32]` that grows in one direction: 0 = to the left, 90 = upwards."""
    axis = torch.arange(32.0) / 32
    angle = math.radians(degrees)
    return -(math.cos(angle) * axis + math.sin(angle) * axis[:, None]).expand(1, 3, 32, 32)


def inner(image: Tensor) -> Tensor:
    """The histograms `[3, 9]` of a cell away from the border."""
    return hog(image, 8).reshape(4, 4, 3, 9)[1, 2]


def test_p01_a_flat_image_has_none_and_any_other_a_norm_of_sqrt_12() -> None:
    assert hog(torch.full((1, 3, 32, 32), 0.7), 16).abs().max() == 0
    norms = hog(torch.randn(2, 3, 224, 224), 16).norm(dim=2)
    torch.testing.assert_close(norms, torch.full((2, 196), math.sqrt(12)))


def test_p02_an_edge_falls_into_the_bin_of_its_direction() -> None:
    step = torch.zeros(1, 3, 32, 32)
    step[..., 12:] = 1  # columns 11 and 12 have a gradient: gx = -4, gy = 0
    cells = hog(step, 8).reshape(4, 4, 3, 9)
    expected = torch.eye(9)[4]  # 90 of 180 degrees from the vertical, in bins of 20
    assert torch.equal(cells[:, 1], expected.expand(4, 3, 9))
    assert cells[:, [0, 2, 3]].abs().max() == 0
    assert torch.equal(hog(step.transpose(2, 3), 8).reshape(4, 4, 3, 9)[1, 2], torch.eye(9)[[0, 0, 0]])


@pytest.mark.parametrize("degrees", range(5, 180, 10))
def test_p02_bins_are_20_degrees_wide(degrees: int) -> None:
    assert torch.equal(inner(ramp(degrees)).argmax(dim=1), torch.full((3,), (90 - degrees) % 180 // 20))


@pytest.mark.parametrize("degrees", [25, 75, 145])
def test_p03_a_gradient_turned_by_180_degrees_stays_in_its_bin(degrees: int) -> None:
    torch.testing.assert_close(inner(ramp(degrees)), inner(ramp(degrees + 180)), rtol=0, atol=1e-5)
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(hog(image, 8), hog(-image, 8), rtol=0, atol=1e-5)


def test_p04_reflected_border_and_28_by_28_cells() -> None:
    assert hog(torch.randn(1, 3, 224, 224), 8).shape == (1, 28 * 28, 27)
    edge = torch.zeros(1, 3, 32, 32)
    edge[..., 0] = 1  # reflection makes column 0 a ridge without gradient; column 1 has all of it
    assert torch.equal(hog(edge, 8).reshape(4, 4, 3, 9)[:, 0], torch.eye(9)[4].expand(4, 3, 9))
    lone = torch.zeros(1, 3, 32, 32)
    lone[..., 31, 31] = 1
    neighbours = hog(lone, 8).reshape(4, 4, 3, 9)[3, 3, 0]
    # (30, 31) has gy only, (31, 30) gx only, (30, 30) both: bins 0, 4 and 2; under zero padding (31, 31) too.
    expected = torch.zeros(9)
    expected[[0, 2, 4]] = torch.tensor([2.0, math.sqrt(2), 2.0])
    torch.testing.assert_close(neighbours, expected / expected.norm())


def test_p05_no_pixel_of_a_cell_weighs_more_than_another() -> None:
    histograms = []
    for row in (1, 4):  # the same dots at the cell's edge or in its middle
        image = torch.zeros(1, 3, 32, 32)
        image[..., 8 + row, 11], image[..., 8 + row, 13] = 1, 2
        histograms.append(hog(image, 8).reshape(4, 4, 3, 9)[1, 1])
    torch.testing.assert_close(histograms[0], histograms[1])


def test_p06_target_is_the_hog_of_the_normalised_view_that_the_encoder_sees(
    model: MaskFeat, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr("pretrain.methods.maskfeat.hog", lambda x, p: seen.append(x) or hog(x, p))
    embedded: list[Tensor] = []
    model.encoder.patch_embed.register_forward_pre_hook(lambda _, args: embedded.append(args[0]))
    model(images, 0.0)
    assert torch.equal(seen[0], images) and torch.equal(embedded[0], images)
    monkeypatch.setattr(model, "predict", lambda x, mask: hog(x, 8))
    assert model(images, 0.0)["loss"] == 0


def test_p07_loss_is_the_mean_over_masked_tokens(model: MaskFeat, images: Tensor) -> None:
    mask = torch.zeros(3, 64)
    mask[0, :30], mask[1, 5], mask[2, 40:50] = 1, 1, 1  # an image with more masked patches weighs more
    pred = torch.randn(3, 64, 27, requires_grad=True)
    loss = model.forward_loss(images, pred, mask)
    loss.backward()
    torch.testing.assert_close(loss, nn.functional.mse_loss(pred[mask == 1], hog(images, 8)[mask == 1]))
    assert pred.grad[mask == 0].abs().max() == 0
    assert (pred.grad[mask == 1].abs().sum(dim=1) > 0).all()


def test_p07_a_steps_loss_is_that_of_the_patches_its_mask_hides(
    model: MaskFeat, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = torch.zeros(3, 64)
    mask[0, :30], mask[1, 5], mask[2, 40:50] = 1, 1, 1
    draws = iter([mask])
    monkeypatch.setattr(model, "draw_masks", lambda images: next(draws))
    model.eval()
    loss = model(images, 0.0)["loss"]
    pred = model.head(model.student(images, mask)[:, 1:])
    torch.testing.assert_close(loss, nn.functional.mse_loss(pred[mask == 1], hog(images, 8)[mask == 1]))


def test_p07_blocks_hide_78_of_196_patches() -> None:
    model = MaskFeat(METHOD.recipes()["smoke"].vary("t", img_size=112, num_masked=78, min_mask_block=15))
    assert (PAPER.num_masked, PAPER.min_mask_block, PAPER.num_patches) == (78, 15, 196)
    counts = model.draw_masks(torch.zeros(200, 3, 112, 112)).sum(dim=1)
    assert counts.max() == 78 and counts.min() > 60 and 0.4 < (counts == 78).float().mean() < 1


def test_p08_learning_rate_clipping_and_warm_up() -> None:
    assert PAPER.peak_lr == pytest.approx(2e-4 * 2048 / 256)
    assert (PAPER.clip_grad, PAPER.warmup_epochs, PAPER.weight_decay) == (0.02, 30.0, 0.05)
    steps = 1600 * 625
    lr = [PAPER.lr_at(step, steps) for step in (0, 30 * 625 // 2, 30 * 625, steps - 1)]
    assert lr == pytest.approx([0, 0.8e-3, 1.6e-3, 1e-6 * 8], rel=1e-3)
    assert PAPER.min_crop_scale == 0.5 and PAPER.drop_path == PAPER.color_jitter == 0
    model = MaskFeat(METHOD.recipes()["smoke"])
    decayed = {id(p) for p in param_groups(model, 0.05)[1]["params"]}
    tokens = (model.encoder.cls_token, model.encoder.pos_embed, model.student.mask_token)
    assert {id(token) for token in tokens} <= decayed  # ZERO_DECAY_POS_CLS: False


def test_p09_masked_pixels_do_not_influence_the_prediction(model: MaskFeat, images: Tensor) -> None:
    mask = model.draw_masks(images)
    patches = patchify(images, 8)
    pred = model.predict(images, mask)
    garbled = torch.where(mask[..., None] == 1, torch.full_like(patches, 1e3), patches)
    assert torch.equal(model.predict(unpatchify(garbled, 8), mask), pred)
    visible = (mask[0] == 0).nonzero()[0]
    patches[0, visible] += 1
    assert not torch.equal(model.predict(unpatchify(patches, 8), mask)[0], pred[0])


def test_p10_order_within_a_patch_is_channel_and_bin_then_row_then_column() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[:, 2, 8:16, 28:] = 1  # channel 2, cell (1, 3): an edge between columns 27 and 28
    target = hog(image, 16)
    assert target.shape == (1, 4, 108)
    patch = target[0, 1].reshape(3, 9, 2, 2)  # row 0, column 1 of 2 x 2 patches
    assert patch[2, :, 1, 1].argmax() == 4 and patch[2, 4, 1, 1] > 0.8 and patch[:2].abs().max() == 0
    cells = hog(image, 8).reshape(4, 4, 27)
    for row in range(2):
        for column in range(2):
            for i in range(2):
                for j in range(2):
                    ours = target[0, 2 * row + column].reshape(27, 2, 2)[:, i, j]
                    assert torch.equal(ours, cells[2 * row + i, 2 * column + j])


def test_p10_a_patch_is_a_whole_number_of_cells() -> None:
    with pytest.raises(UserError, match="patch_size"):
        hog(torch.zeros(1, 3, 28, 28), 14)
    with pytest.raises(UserError, match="patch_size"):
        METHOD.recipes()["toy"].vary("t", patch_size=4)


def test_architecture_and_initial_weights() -> None:
    with torch.device("meta"):
        model = MaskFeat(PAPER)
    assert model.encoder.pos_embed.shape == (1, 197, 768) and model.encoder.pos_embed.requires_grad
    assert model.encoder.rel_pos_bias is None and model.head.out_features == 108
    assert not any("ls1" in name or "q_bias" in name for name, _ in model.named_parameters())
    model = MaskFeat(METHOD.recipes()["toy"])
    for block in model.encoder.blocks:
        assert (block.attn.qkv.bias == 0.02).all() and (block.norm1.bias == 0.02).all()
        assert block.mlp.fc2.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert (model.head.bias == 0).all() and (model.encoder.norm.bias == 0).all()

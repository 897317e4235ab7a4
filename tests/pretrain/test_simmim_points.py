"""SimMIM's faithfulness (ViT-B), point by point."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from downstream.backbone import remove_final_norm
from downstream.classification import TASK as CLASSIFICATION
from downstream.classification import ClassificationRecipe, Classifier
from mimbench.checkpoint.encoder import load_encoder, save_encoder
from mimbench.data.augment import crop_box
from mimbench.errors import UserError
from pretrain.methods.simmim import METHOD, SimMIM
from pretrain.target import patchify, unpatchify

PAPER = METHOD.recipes()["paper"]


@pytest.fixture
def model() -> SimMIM:
    """The smoke encoder on the paper's grid: 14 x 14 patches of 2 pixels, squares of 4."""
    return SimMIM(METHOD.recipes()["smoke"].vary("t", img_size=28, patch_size=2, mask_patch_size=4)).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 28, 28)


@pytest.fixture
def fine_tuning() -> ClassificationRecipe:
    changes = {k: v for part in METHOD.transfer()["classification"]["paper"] for k, v in part.values.items()}
    return ClassificationRecipe.from_values({**CLASSIFICATION.recipes()["paper"].values(), **changes})


@pytest.fixture(scope="module")
def paper_on_meta() -> SimMIM:
    with torch.device("meta"):
        return SimMIM(PAPER)


def test_p01_thirty_of_49_squares_of_two_by_two_tokens(model: SimMIM) -> None:
    assert (PAPER.mask_patch_size, PAPER.mask_ratio, PAPER.img_size // PAPER.mask_patch_size) == (32, 0.6, 7)
    mask = model.draw_masks(torch.zeros(50, 3, 28, 28))
    assert mask.shape == (50, 14, 14) and (mask.sum(dim=(1, 2)) == 120).all()
    squares = mask.reshape(50, 7, 2, 7, 2)
    assert torch.equal(squares.amin(dim=(2, 4)), squares.amax(dim=(2, 4)))
    assert len({tuple(row) for row in mask.flatten(1).tolist()}) == 50
    assert (mask.mean(dim=0) > 0.3).all(), "some square is hardly ever masked"


def test_p01_squares_must_fit() -> None:
    for size in (24, 12, 0):
        with pytest.raises(UserError, match="mask_patch_size"):
            METHOD.recipes()["toy"].vary("t", mask_patch_size=size)


def test_p02_loss_is_l1_on_the_masked_pixels(model: SimMIM, images: Tensor) -> None:
    mask = model.draw_masks(images)
    pred = torch.randn(3, 3, 28, 28, requires_grad=True)
    loss = model.forward_loss(images, pred, mask)
    loss.backward()
    m = nn.functional.interpolate(mask[:, None], scale_factor=2)  # [B, 1, H, W]
    by_hand = ((images - pred).abs() * m).sum() / (m.sum() + 1e-5) / 3
    torch.testing.assert_close(loss, by_hand)
    masked = m.expand(-1, 3, -1, -1) == 1
    torch.testing.assert_close(loss, (images - pred)[masked].abs().mean(), rtol=1e-5, atol=0)
    assert pred.grad[~masked].abs().max() == 0 and pred.grad[masked].abs().min() > 0
    with torch.no_grad():
        elsewhere = torch.where(masked, pred, 1e3)
        assert torch.equal(model.forward_loss(images, elsewhere, mask), loss)


def test_p02_a_steps_loss_is_that_of_the_pixels_its_mask_hides(
    model: SimMIM, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = model.draw_masks(images)
    draws = iter([mask])
    monkeypatch.setattr(model, "draw_masks", lambda images: next(draws))
    loss = model(images, 0.0)["loss"]
    x = model.student(images, mask.flatten(1))[:, 1:]
    pred = model.decoder(x.transpose(1, 2).reshape(3, -1, 14, 14))
    masked = mask.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2) == 1
    error = (images - pred).abs().mean(dim=1)
    torch.testing.assert_close(loss, error[masked].mean(), rtol=1e-5, atol=0)


def test_p03_target_is_the_normalised_image_itself(
    model: SimMIM, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "predict", lambda images, mask: images)
    assert model(images, 0.0)["loss"] == 0
    monkeypatch.setattr(model, "predict", lambda images, mask: images + 0.25)
    torch.testing.assert_close(model(images, 0.0)["loss"], torch.tensor(0.25))


def test_p04_masked_pixels_never_influence_the_prediction(model: SimMIM, images: Tensor) -> None:
    mask = model.draw_masks(images)
    patches, hidden = patchify(images, 2), mask.flatten(1)[..., None] == 1
    pred = model.predict(images, mask)
    garbled = unpatchify(torch.where(hidden, torch.full_like(patches, 1e3), patches), 2)
    assert torch.equal(model.predict(garbled, mask), pred)
    changed = unpatchify(torch.where(hidden, patches, patches + 1), 2)
    assert not torch.equal(model.predict(changed, mask), pred)


def test_p05_decoder_is_one_pointwise_convolution(paper_on_meta: SimMIM) -> None:
    conv, shuffle = paper_on_meta.decoder
    assert (conv.kernel_size, shuffle.upscale_factor) == ((1, 1), 16)
    assert sum(p.numel() for p in paper_on_meta.decoder.parameters()) == 768 * 768 + 768


def test_p05_a_token_predicts_its_own_patch_channel_first(model: SimMIM, images: Tensor) -> None:
    mask = model.draw_masks(images)
    token = model.student(images, mask.flatten(1))[:, 1:][:, 3 * 14 + 5]  # row 3, column 5
    values = nn.functional.linear(token, model.decoder[0].weight[:, :, 0, 0], model.decoder[0].bias)
    patch = model.predict(images, mask)[:, :, 6:8, 10:12]
    torch.testing.assert_close(patch.flatten(1), values, rtol=1e-5, atol=1e-6)


def test_p06_shared_relative_positions_layer_scale_and_drop_path(paper_on_meta: SimMIM) -> None:
    encoder = paper_on_meta.encoder
    assert encoder.pos_embed is None
    assert encoder.rel_pos_bias.table.shape == (732, 12)
    assert all(block.attn.rel_pos_bias is None for block in encoder.blocks)
    drops = [block.drop_path1.drop_prob for block in encoder.blocks if isinstance(block.drop_path1, DropPath)]
    assert drops == pytest.approx([0.1 * i / 11 for i in range(1, 12)])
    toy = SimMIM(METHOD.recipes()["toy"])
    assert (toy.encoder.rel_pos_bias.table == 0).all()
    assert PAPER.layer_scale_init == 0.1 and (toy.encoder.blocks[2].ls1.gamma == 0.1).all()


def test_p07_crops_of_at_least_two_thirds_of_the_image() -> None:
    assert (PAPER.min_crop_scale, PAPER.color_jitter) == (0.67, 0.0)
    shares = [h * w / 120_000 for _, _, h, w in (crop_box(400, 300, (0.67, 1.0)) for _ in range(300))]
    assert 0.66 < min(shares) < 0.7


def test_p08_learning_rate_falls_once() -> None:
    steps = 800 * 625
    lr = [PAPER.lr_at(epoch * 625, steps) for epoch in (0, 10, 400, 699)]
    assert lr == pytest.approx([2e-6, 4e-4, 4e-4, 4e-4])
    assert PAPER.lr_at(700 * 625 - 1, steps) == pytest.approx(4e-4)
    assert PAPER.lr_at(700 * 625, steps) == PAPER.lr_at(steps - 1, steps) == pytest.approx(4e-5)
    assert PAPER.peak_lr == pytest.approx(1e-4 * 2048 / 512) and PAPER.clip_grad == 5.0
    assert PAPER.lr_at(5 * 625, steps) == pytest.approx((2e-6 + 4e-4) / 2, rel=1e-3)


def test_p09_fine_tuning_has_a_table_in_every_block(model: SimMIM, images: Tensor, tmp_path: Path) -> None:
    nn.init.normal_(model.encoder.rel_pos_bias.table)
    save_encoder(model.encoder, tmp_path / "e.safetensors", method="simmim")
    vit, _ = load_encoder(tmp_path / "e.safetensors")
    assert vit.rel_pos_bias is None
    for block in vit.blocks:
        assert torch.equal(block.attn.rel_pos_bias.table, model.encoder.rel_pos_bias.table)
    with torch.no_grad():
        torch.testing.assert_close(vit.eval()(images), model.encoder(images), rtol=0, atol=1e-5)


def test_p09_fine_tuning_recipe(fine_tuning: ClassificationRecipe) -> None:
    assert fine_tuning.peak_lr == pytest.approx(1.25e-3 * fine_tuning.global_batch_size / 512)
    assert (fine_tuning.layer_decay, fine_tuning.drop_path, fine_tuning.warmup_epochs) == (0.65, 0.1, 20.0)


def test_p09_fine_tuning_pools_the_mean_of_the_patches(
    model: SimMIM, images: Tensor, fine_tuning: ClassificationRecipe
) -> None:
    remove_final_norm(model.encoder)
    classifier = Classifier(model.encoder, 5, fine_tuning).eval()
    nn.init.normal_(classifier.head.weight)
    with torch.no_grad():
        patches = model.encoder.encode(model.encoder.embed(images))[-1][:, 1:]
        expected = classifier.head(classifier.fc_norm(patches.mean(dim=1)))
        torch.testing.assert_close(classifier(images), expected)

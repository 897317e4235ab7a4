"""MAE-CLIP's faithfulness, point by point; the official code's numbers: tests/golden/test_deepmim.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from downstream import classification
from mimbench.data.augment import MEAN, STD
from pretrain.clip_vit import ClipVisual
from pretrain.feature_student import CLIP_MEAN, CLIP_STD, to_clip_statistics
from pretrain.methods.deepmim import DeepMIM
from pretrain.methods.mae import MAE
from pretrain.methods.mae import METHOD as MAE_METHOD
from pretrain.methods.mae_clip import METHOD
from pretrain.target import cosine_error

PAPER = METHOD.recipes()["paper"]
GRID = {"img_size": 28, "patch_size": 2, "mask_ratio": 0.75, "decoder_depth": 1}  # 14 x 14 patches


def build(**changes: object) -> DeepMIM:
    recipe = METHOD.recipes()["smoke"].vary("test", **{**GRID, "clip_normalisation": True, **changes})
    teacher = ClipVisual(img_size=28, patch_size=2, width=16, depth=1, num_heads=1, output_dim=24)
    return METHOD.build(recipe, teacher=teacher.eval().requires_grad_(False)).train()


@pytest.fixture
def method() -> DeepMIM:
    return build()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 28, 28)


def images_the_teacher_sees(method: DeepMIM, images: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    method.teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    method(images, 0.0)
    return seen


def statistics(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(3, 1, 1)


def test_p01_clip_normalisation_is_applied_once_to_a_frozen_teacher(method: DeepMIM) -> None:
    recipes = METHOD.recipes()
    assert method.recipe.clip_normalisation and recipes["paper"].clip_normalisation
    # The CLIP of the smaller scales is ours, which learns from images of ImageNet's statistics.
    assert not any(recipes[scale].clip_normalisation for scale in ("smoke", "toy", "small"))
    pixels = torch.rand(2, 3, 28, 28, dtype=torch.float64)
    images = ((pixels - statistics(MEAN)) / statistics(STD)).float()
    (seen,) = images_the_teacher_sees(method, images)
    back = seen.double() * statistics(CLIP_STD) + statistics(CLIP_MEAN)
    torch.testing.assert_close(back, pixels, rtol=0, atol=1e-6)
    assert method.training and not any(module.training for module in method.teacher.modules())
    assert not any(p.requires_grad for p in method.teacher.parameters())


@pytest.mark.parametrize(("project", "width"), [(True, 512), (False, 768)])
def test_p02_target_has_clips_width(project: bool, width: int) -> None:
    with torch.device("meta"):
        teacher = ClipVisual(img_size=224, patch_size=16, width=768, depth=1, num_heads=12, output_dim=512)
        method = DeepMIM(PAPER.vary("test", project_target=project), teacher)
        images = torch.empty(2, 3, 224, 224)
        assert method.forward_target(images).shape == (2, 196, width)
        assert method.decoders[0].pred.out_features == width
        assert method(images, 0.0)["loss"].shape == ()


def test_p03_loss_is_the_mean_over_masked_tokens_of_2_minus_2_cos(method: DeepMIM) -> None:
    pred, target = torch.randn(2, 3, 196, 24)
    mask = torch.zeros(3, 196)
    mask[0, :5] = mask[2, 7] = 1
    loss = method.forward_loss(pred, target, mask)
    tokens = [(pred[b, n], target[b, n]) for b, n in mask.nonzero().tolist()]
    cos = [u @ v / u.norm() / v.norm() for u, v in tokens]
    assert len(cos) == 6
    torch.testing.assert_close(loss, 2 - 2 * torch.stack(cos).mean())
    torch.testing.assert_close(method.forward_loss(7 * pred, target / 3, mask), loss)


def test_p04_zero_where_aligned_and_four_where_opposite() -> None:
    target = torch.randn(1, 50, 24)
    torch.testing.assert_close(cosine_error(5 * target, target), torch.zeros(1, 50), rtol=0, atol=1e-6)
    torch.testing.assert_close(cosine_error(-target, 5 * target), torch.full((1, 50), 4.0))
    between = cosine_error(torch.randn(1, 50, 24), target)
    assert (between > 1e-3).all() and (between < 4 - 1e-3).all()


def test_p05_one_decoder_of_four_blocks_as_wide_as_the_target_at_its_end(method: DeepMIM) -> None:
    assert PAPER.decoder_depth == 4 and PAPER.taps == ()
    assert len(method.decoders) == 1 and method.decoders[0].pred.out_features == 24
    deep = build(decoder_depth=4)
    assert len(deep.decoders[0].blocks) == 4


def test_p06_teacher_sees_the_whole_image(method: DeepMIM, images: Tensor) -> None:
    (seen,) = images_the_teacher_sees(method, images)
    assert torch.equal(seen, to_clip_statistics(images))


def test_p07_encoder_and_mask_are_maes(method: DeepMIM, images: Tensor) -> None:
    mae = MAE(MAE_METHOD.recipes()["smoke"].vary("test", **GRID))
    mae.encoder.load_state_dict(method.encoder.state_dict())
    results = []
    for model in (method, mae):
        torch.manual_seed(1)
        results.append(model.forward_encoder(images))
    (features, ids_restore, mask), (latent, mae_restore, mae_mask) = results
    assert len(features) == 1 and torch.equal(features[0], latent)
    assert torch.equal(ids_restore, mae_restore) and torch.equal(mask, mae_mask)
    assert (mask.sum(dim=1) == 147).all()
    theirs = MAE_METHOD.recipes()["paper"].values()
    differs = {name for name, value in theirs.items() if value != PAPER.values()[name]}
    assert differs == {"decoder_depth"}


def test_p08_with_pixels_it_is_mae(images: Tensor) -> None:
    ours, mae = build(target="pixels"), MAE(MAE_METHOD.recipes()["smoke"].vary("test", **GRID))
    ours.encoder.load_state_dict(mae.encoder.state_dict())
    ours.decoders[0].load_state_dict(mae.decoder.state_dict())
    losses = []
    for model in (ours, mae):
        torch.manual_seed(3)
        losses.append(model(images, 0.0)["loss"])
    assert torch.equal(*losses)


def test_p09_no_gradient_reaches_the_teacher(method: DeepMIM, images: Tensor) -> None:
    method.teacher.requires_grad_(True)
    method(images, 0.0)["loss"].backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    for part in (method.encoder.blocks, method.decoders[0].blocks):
        assert all(p.grad is not None for p in part.parameters())


def test_p10_fine_tuning_is_slower_than_maes() -> None:
    mae = classification.recipes()["paper"]
    ours = mae.vary(*METHOD.transfer()["classification"]["paper"])
    assert ours.global_batch_size == 1024
    assert ours.peak_lr == pytest.approx(4e-4) and mae.peak_lr == pytest.approx(2e-3)
    assert (ours.layer_decay, ours.drop_path, ours.epochs) == (0.6, 0.1, 100)

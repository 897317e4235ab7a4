"""DeepMIM's faithfulness, point by point; the official code's numbers: tests/golden/test_deepmim.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from downstream import classification
from downstream.backbone import remove_final_norm
from downstream.layer_decay import param_groups
from mimbench import arch
from mimbench.arch import ViTConfig
from mimbench.checkpoint.encoder import load_encoder, save_encoder
from mimbench.errors import UserError
from mimbench.schedule import warmup_cosine
from mimbench.store.folder import RunFolder
from mimbench.train import pretraining
from mimbench.vit import ViT
from pretrain.clip_vit import ClipVisual
from pretrain.feature_student import to_clip_statistics
from pretrain.hog import hog
from pretrain.methods.deepmim import METHOD, DeepMIM
from pretrain.methods.mae import MAE
from pretrain.methods.mae import METHOD as MAE_METHOD
from pretrain.target import patchify, standardise, unpatchify

PAPER = METHOD.recipes()["paper"]
BLOCKS = (6, 8, 10, 12)


@pytest.fixture(autouse=True)
def twelve_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setitem(arch.ARCHS, "vit_deep", arch.Size(16, 12, 2))


def build(mae: MAE | None = None, **changes: object) -> DeepMIM:
    """A narrow encoder of twelve blocks on the paper's grid, 14 x 14 patches of 2 pixels, with its taps."""
    narrow = {"arch": "vit_deep", "img_size": 28, "patch_size": 2, "mask_ratio": 0.75, "taps": (6, 8, 10)}
    narrow |= {"clip_normalisation": True}
    recipe = METHOD.recipes()["smoke"].vary("test", **{**narrow, **changes})
    teacher = None
    if recipe.target == "clip":
        teacher = ClipVisual(img_size=28, patch_size=2, width=16, depth=1, num_heads=1, output_dim=24)
        teacher = teacher.eval().requires_grad_(False)
    return DeepMIM(recipe, teacher, mae).train()


def build_mae(**changes: object) -> MAE:
    """An MAE of that size. It may stand in for a trained one: its reconstruction is not the image."""
    narrow = {"arch": "vit_deep", "img_size": 28, "patch_size": 2, "mask_ratio": 0.75}
    return MAE(MAE_METHOD.recipes()["smoke"].vary("test", **{**narrow, **changes}))


@pytest.fixture
def method() -> DeepMIM:
    return build()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 28, 28)


@pytest.fixture(scope="module")
def paper_on_meta() -> DeepMIM:
    with torch.device("meta"):
        teacher = ClipVisual(
            img_size=224, patch_size=16, width=768, depth=1, num_heads=12, output_dim=512
        ).requires_grad_(False)
        return DeepMIM(PAPER, teacher)


def branch_losses(method: DeepMIM, images: Tensor, seed: int = 1) -> list[Tensor]:
    torch.manual_seed(seed)
    scalars = method(images, 0.0)
    return [scalars[f"loss_block{block}"] for block in method.recipe.branches]


def with_target(method: DeepMIM, tokens: Tensor) -> DeepMIM:
    """The same model, whose teacher answers `tokens` `[B, 1+N, C]`."""
    method.teacher = _Answer(tokens)
    return method


class _Answer(nn.Module):
    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, images: Tensor, *, project: bool) -> Tensor:
        assert project
        return self.tokens


def test_f01_the_total_is_the_plain_sum_of_four_losses(method: DeepMIM, images: Tensor) -> None:
    torch.manual_seed(1)
    scalars = method(images, 0.0)
    torch.manual_seed(1)
    features, ids_restore, mask = method.forward_encoder(images)
    target = method.teacher(to_clip_statistics(images))[:, 1:]
    by_hand = []
    for decoder, x in zip(method.decoders, features, strict=True):
        cos = torch.cosine_similarity(decoder(x, ids_restore), target, dim=2)
        by_hand.append((2 - 2 * cos)[mask == 1].mean())
    assert len(by_hand) == 4
    torch.testing.assert_close(scalars["loss"], torch.stack(by_hand).sum())
    for block, loss in zip(BLOCKS, by_hand, strict=True):
        torch.testing.assert_close(scalars[f"loss_block{block}"], loss)


def test_f01_weights_of_the_branches_are_a_field(images: Tensor) -> None:
    method = build(loss_weights=(0.1, 0.2, 0.3, 2.0))
    torch.manual_seed(1)
    scalars = method(images, 0.0)
    parts = [scalars[f"loss_block{block}"] for block in BLOCKS]
    expected = 0.1 * parts[0] + 0.2 * parts[1] + 0.3 * parts[2] + 2 * parts[3]
    torch.testing.assert_close(scalars["loss"], expected)
    assert PAPER.loss_weights == ()
    with pytest.raises(UserError, match="loss_weights"):
        build(loss_weights=(1.0, 1.0))


def test_f02_taps_are_raw_and_the_last_feature_is_normed(method: DeepMIM, images: Tensor) -> None:
    nn.init.normal_(method.encoder.norm.bias)
    outputs: list[Tensor] = []
    for block in method.encoder.blocks:
        block.register_forward_hook(lambda _, __, output: outputs.append(output))
    features, _, _ = method.forward_encoder(images)
    assert PAPER.taps == (6, 8, 10) and len(outputs) == 12
    for feature, number in zip(features[:3], (6, 8, 10), strict=True):
        assert torch.equal(feature, outputs[number - 1])
    assert torch.equal(features[3], method.encoder.norm(outputs[11]))
    assert all(feature.shape == (3, 50, 16) for feature in features)


@pytest.mark.parametrize("taps", [(6, 6), (8, 6), (0,), (12,), (13,)])
def test_f02_a_tap_that_is_no_block_before_the_last_is_an_error(taps: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="taps"):
        build(taps=taps)


@pytest.mark.parametrize("branch", range(4))
def test_f03_a_loss_reaches_the_blocks_up_to_its_tap(method: DeepMIM, images: Tensor, branch: int) -> None:
    branch_losses(method, images)[branch].backward()

    def reached(module: nn.Module) -> bool:
        return any(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())

    for number, block in enumerate(method.encoder.blocks, start=1):
        assert reached(block) == (number <= BLOCKS[branch]), number
    assert reached(method.encoder.norm) == (branch == 3)
    assert [reached(decoder) for decoder in method.decoders] == [i == branch for i in range(4)]


def test_f04_only_the_target_at_masked_patches_counts(method: DeepMIM, images: Tensor) -> None:
    torch.manual_seed(1)
    mask = method.forward_encoder(images)[2]
    tokens = torch.randn(3, 197, 24)
    before = branch_losses(with_target(method, tokens), images)
    unseen = tokens.clone()
    unseen[:, 0] += 3
    unseen[:, 1:][mask == 0] += torch.randn(24)
    assert branch_losses(with_target(method, unseen), images) == before
    seen = tokens.clone()
    seen[0, 1 + mask[0].argmax()] += torch.randn(24)
    after = branch_losses(with_target(method, seen), images)
    assert all(new != old for new, old in zip(after, before, strict=True))


def test_f05_the_loss_is_the_squared_distance_of_directions(method: DeepMIM) -> None:
    pred, target = torch.randn(2, 3, 196, 24)
    mask = torch.ones(3, 196)
    loss = method.forward_loss(pred, target, mask)
    scale = torch.rand(3, 196, 1) * 9 + 0.1
    torch.testing.assert_close(method.forward_loss(pred * scale, target, mask), loss)
    torch.testing.assert_close(method.forward_loss(pred, target * scale, mask), loss)
    unit = pred / pred.norm(dim=2, keepdim=True) - target / target.norm(dim=2, keepdim=True)
    torch.testing.assert_close(loss, unit.square().sum(dim=2).mean())
    assert 0 < loss < 4
    assert method.forward_loss(scale * target, target, mask).abs() < 1e-6
    torch.testing.assert_close(method.forward_loss(-scale * target, target, mask), torch.tensor(4.0))


def test_f06_the_teacher_is_frozen_and_sees_the_whole_image(method: DeepMIM, images: Tensor) -> None:
    seen: list[Tensor] = []
    method.teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    method.teacher.train().requires_grad_(False)
    assert not any(module.training for module in method.train().teacher.modules())
    method.teacher.requires_grad_(True)  # so that a path to it would leave a gradient
    method(images, 0.0)["loss"].backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert len(seen) == 1 and torch.equal(seen[0], to_clip_statistics(images))
    assert method.forward_target(images).shape == (3, 196, 24)


def test_f07_the_teacher_gets_clips_statistics_of_the_same_crop(method: DeepMIM) -> None:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    clip_mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    clip_std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    seen: list[Tensor] = []
    method.teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pixels = torch.rand(2, 3, 28, 28)
    method((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1), 0.0)
    expected = (pixels - clip_mean.view(3, 1, 1)) / clip_std.view(3, 1, 1)
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=2e-6)


def test_f08_one_mask_of_147_patches_for_all_branches(method: DeepMIM, images: Tensor) -> None:
    shuffles: list[Tensor] = []
    for decoder in method.decoders:
        decoder.register_forward_pre_hook(lambda _, args: shuffles.append(args[1]))
    latents, ids_restore, mask = method.forward_encoder(images)
    assert (mask.sum(dim=1) == 147).all() and latents[0].shape[1] == 1 + 49
    assert len({tuple(row) for row in mask.tolist()}) == 3
    method(images, 0.0)
    assert len(shuffles) == 4 and all(torch.equal(ids, shuffles[0]) for ids in shuffles)
    for latent, decoder in zip(latents, method.decoders, strict=True):  # and the loss looks there
        pred = decoder(latent, ids_restore).detach().requires_grad_()
        method.forward_loss(pred, torch.randn_like(pred), mask).backward()
        assert torch.equal((pred.grad.abs().sum(dim=2) > 0).float(), mask)


def test_f09_decoders_share_the_positions_and_nothing_else(paper_on_meta: DeepMIM) -> None:
    decoders = paper_on_meta.decoders
    owned = [dict(decoder.named_parameters()) for decoder in decoders]
    for name in owned[0]:
        count = len({id(parameters[name]) for parameters in owned})
        assert count == (1 if name == "pos_embed" else 4), name
    for decoder in decoders:
        assert len(decoder.blocks) == 4
        assert (decoder.embed.in_features, decoder.embed.out_features) == (768, 512)
        assert all(block.attn.num_heads == 16 for block in decoder.blocks)
        assert decoder.pred.out_features == 512


def test_f10_positions_are_fixed_sines_and_cosines(method: DeepMIM, images: Tensor) -> None:
    for table, dim in ((method.encoder.pos_embed, 16), (method.decoders[2].pos_embed, 32)):
        assert table.shape == (1, 197, dim) and not table.requires_grad
        assert table[0, 0].abs().max() == 0
        row, column, k = 3, 11, 1
        angle = 10000 ** (-k / (dim // 4))
        expected = [f(side * angle) for side in (column, row) for f in (math.sin, math.cos)]
        assert table[0, 1 + row * 14 + column, k :: dim // 4].tolist() == pytest.approx(expected, abs=1e-6)
    frozen = {
        n.rsplit(".")[-1] for n, p in method.named_parameters() if "teacher" not in n and not p.requires_grad
    }
    assert frozen == {"pos_embed"}


def test_f11_size_of_vit_base(paper_on_meta: DeepMIM) -> None:
    def millions(module: nn.Module, *, trainable: bool) -> float:
        return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable) / 1e6

    model = paper_on_meta
    whole = millions(model, trainable=False) - millions(model.teacher, trainable=False)
    assert whole == pytest.approx(138.97, abs=0.01)
    assert millions(model.encoder, trainable=True) == pytest.approx(85.65, abs=5e-3)
    for decoder in model.decoders:
        assert millions(decoder, trainable=True) == pytest.approx(13.27, abs=5e-3)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_f12_without_taps_it_is_mae(images: Tensor, norm_pix_loss: bool) -> None:
    torch.manual_seed(3)
    ours = build(target="pixels", taps=(), norm_pix_loss=norm_pix_loss, decoder_depth=2)
    torch.manual_seed(3)
    mae = build_mae(norm_pix_loss=norm_pix_loss, decoder_depth=2)
    names = {name: name.replace("decoder.", "decoders.0.") for name in mae.state_dict()}
    assert set(names.values()) == set(ours.state_dict())
    for theirs, own in names.items():
        assert torch.equal(mae.state_dict()[theirs], ours.state_dict()[own]), own
    losses = []
    for model in (ours, mae):
        torch.manual_seed(4)
        losses.append(model(images, 0.0)["loss"])
        losses[-1].backward()
    assert torch.equal(*losses)
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    for name, p in mae.named_parameters():
        assert not p.requires_grad or torch.equal(p.grad, gradients[names[name]]), name


def test_f13_alpha_one_everywhere_is_not_hybrid(images: Tensor) -> None:
    losses = []
    for alphas in ((), (1.0, 1.0, 1.0)):
        torch.manual_seed(5)
        method = build(build_mae(), target="pixels", hybrid_alphas=alphas)
        losses.append(branch_losses(method, images))
    assert losses[0] == losses[1]


def test_f13_targets_move_from_the_reconstruction_to_the_pixels(images: Tensor) -> None:
    mae = build_mae().requires_grad_(False)
    method = build(mae, target="pixels", hybrid_alphas=(0.0, 1 / 3, 2 / 3))
    assert method.training and not mae.training
    mae.requires_grad_(True)  # so that a path to it would leave a gradient
    noise = torch.rand(3, 196)
    _, ids_restore, mask = method.forward_encoder(images, noise)
    targets = method.branch_targets(images, ids_restore)
    latent, same_restore, same_mask = mae.forward_encoder(images, noise)
    assert torch.equal(same_restore, ids_restore) and torch.equal(same_mask, mask)
    x_hat, x = mae.decoder(latent, ids_restore), standardise(patchify(images, 2))
    for target, alpha in zip(targets, (0, 1 / 3, 2 / 3, 1), strict=True):
        torch.testing.assert_close(target, alpha * x + (1 - alpha) * x_hat.detach())
        assert not target.requires_grad
    garbled = torch.where(mask[..., None] == 1, torch.full_like(x, 9.0), patchify(images, 2))
    again = method.branch_targets(unpatchify(garbled, 2), ids_restore)
    assert torch.equal(again[0], targets[0]), "x_hat comes from the visible patches alone"
    method(images, 0.0)["loss"].backward()
    assert all(p.grad is None for p in mae.parameters())


def test_f13_only_pixels_are_hybrid_and_of_the_maes_kind() -> None:
    with pytest.raises(UserError, match="hybrid_alphas"):
        build(hybrid_alphas=(0.0, 0.3, 0.6))
    with pytest.raises(UserError, match="norm_pix_loss"):
        build(build_mae(norm_pix_loss=False), target="pixels", hybrid_alphas=(0.0, 0.3, 0.6))
    needs: Callable[..., object] = METHOD.needed
    assert needs(PAPER) == {"teacher": "clip"}
    assert needs(PAPER.vary("test", target="dino")) == {"teacher": "dino"}
    assert needs(PAPER.vary("test", target="hog")) == needs(PAPER.vary("test", target="pixels")) == {}
    hybrid = PAPER.vary("test", target="pixels", hybrid_alphas=(0.0, 0.3, 0.6))
    assert needs(hybrid) == {"mae": "mae"}


def test_f14_learning_rates() -> None:
    steps = 1600 * 312
    by_epoch = {1: 6e-5, 20: 1.2e-3, 40: 2.4e-3, 820: 1.2e-3}
    assert PAPER.peak_lr == pytest.approx(2.4e-3)
    for epoch, lr in by_epoch.items():
        assert PAPER.lr_at(epoch * 312, steps) == pytest.approx(lr, rel=1e-3)
    assert PAPER.lr_at(steps - 1, steps) == pytest.approx(0, abs=1e-9)
    assert (PAPER.betas, PAPER.weight_decay, PAPER.epochs) == ((0.9, 0.95), 0.05, 1600)


def test_f14_fine_tuning_learning_rates(method: DeepMIM) -> None:
    recipe = classification.recipes()["paper"].vary(*METHOD.transfer()["classification"]["paper"])
    assert recipe.peak_lr == pytest.approx(4e-4)
    assert (recipe.epochs, recipe.warmup_epochs) == (100, 5)
    total, warmup = 100 * 1251, 5 * 1251
    for epoch, lr in {1: 8e-5, 5: 4e-4, 50: 2.17e-4}.items():
        found = warmup_cosine(
            epoch * 1251, peak=recipe.peak_lr, total=total, warmup=warmup, final=recipe.min_lr
        )
        assert found == pytest.approx(lr, rel=5e-3)
    model = classification.Classifier(method.encoder, 10, recipe)
    groups = param_groups(
        model, weight_decay=0.05, layer_decay=recipe.layer_decay, depth=12, prefix="encoder."
    )
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    for name, p in model.encoder.blocks.named_parameters():
        assert scales[id(p)] == pytest.approx(0.6 ** (12 - int(name.split(".")[0]))), name
    assert scales[id(model.encoder.patch_embed.proj.weight)] == pytest.approx(0.6**13)
    assert scales[id(model.head.weight)] == scales[id(model.fc_norm.weight)] == 1


def test_f15_fine_tuning_loads_the_encoder_alone(method: DeepMIM, tmp_path: Path) -> None:
    save_encoder(method.encoder, tmp_path / "encoder.safetensors", method="deepmim")
    encoder, report = load_encoder(tmp_path / "encoder.safetensors")
    dropped = report.dropped + remove_final_norm(encoder)
    assert sorted(dropped) == ["norm.bias", "norm.weight"] and report.new == []
    model = classification.Classifier(encoder, 10, classification.recipes()["smoke"])
    loaded = {f"encoder.{name}" for name in report.loaded} - {"encoder.norm.weight", "encoder.norm.bias"}
    new = set(model.state_dict()) - loaded
    assert new == {"head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias"}
    assert all(p.requires_grad for p in model.parameters()), "the fixed positions are trained now"
    assert torch.equal(model.encoder.pos_embed, method.encoder.pos_embed)


OTHER_TARGETS = {
    "pixels": {"target": "pixels"},
    "hog": {"target": "hog"},
    "dino": {"target": "dino"},
    "hybrid": {"target": "pixels", "hybrid_alphas": (0.0, 1 / 3, 2 / 3)},
}


@pytest.mark.parametrize("name", OTHER_TARGETS)
def test_other_targets_train_from_their_own_parents(
    name: str, pretraining_folder: Callable[..., RunFolder]
) -> None:
    folder = pretraining_folder(METHOD, steps=3, **OTHER_TARGETS[name])
    assert set(folder.parents) == {"dino": {"teacher"}, "hybrid": {"mae"}}.get(name, set())
    assert math.isfinite(pretraining.run(folder, METHOD)["loss"])
    parts = {role: pretraining.load_teacher(folder, role) for role in folder.parents}
    recipe = METHOD.recipes()["smoke"].vary("test", **OTHER_TARGETS[name])
    method = DeepMIM(recipe, **parts).train().to("meta")
    method(torch.randn(2, 3, 32, 32, device="meta"), 0.0)["loss"].backward()  # nothing waits for a value


def test_hog_and_dino_targets_and_their_losses() -> None:
    images = torch.randn(2, 3, 32, 32)
    recipe = METHOD.recipes()["smoke"]
    teacher = ViT(ViTConfig.named("vit_smoke", img_size=32, patch_size=8)).eval().requires_grad_(False)
    for target, expected in (("hog", hog(images, 8)), ("dino", teacher(images)[:, 1:])):
        method = DeepMIM(recipe.vary("test", target=target), teacher if target == "dino" else None)
        torch.manual_seed(1)
        scalars = method(images, 0.0)
        torch.manual_seed(1)
        features, ids_restore, mask = method.forward_encoder(images)
        pred = method.decoders[1](features[1], ids_restore)
        assert pred.shape == expected.shape
        squared = (pred - expected).square().mean(dim=2)
        by_hand = squared if target == "hog" else 2 - 2 * torch.cosine_similarity(pred, expected, dim=2)
        torch.testing.assert_close(scalars["loss_block2"], by_hand[mask == 1].mean())

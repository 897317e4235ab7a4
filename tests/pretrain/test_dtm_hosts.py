"""DTM's other hosts: with morphing off the host by itself, with it on the same loss on morphed tokens."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from pretrain.clip_vit import ClipVisual
from pretrain.feature_student import token_distance
from pretrain.methods import dtm_beit2, dtm_byol, dtm_mae
from pretrain.methods.dtm import Branch, morph
from pretrain.methods.dtm_beit2 import DTMBEiT2
from pretrain.methods.dtm_byol import DTMBYOL
from pretrain.methods.dtm_mae import DTMMAE
from pretrain.target import cosine_error
from pretrain.teachers import vqkd

CODE = {"split": "alternate", "merge": "group_mean", "protect_first": True}
HOSTS = (dtm_mae, dtm_beit2, dtm_byol)


def frozen(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)


def clip() -> nn.Module:
    return frozen(ClipVisual(img_size=32, patch_size=8, width=32, depth=1, num_heads=1, output_dim=64))


def tokenizer() -> nn.Module:
    return frozen(vqkd.Tokenizer(vqkd.METHOD.recipes()["smoke"]))


def build(host: ModuleType, **changes: Any) -> Any:
    torch.manual_seed(1)
    teachers = {dtm_mae: {"teacher": clip}, dtm_beit2: {"tokenizer": tokenizer}, dtm_byol: {}}[host]
    recipe = host.METHOD.recipes()["smoke"].vary("test", **changes)
    return host.METHOD.build(recipe, **{role: make() for role, make in teachers.items()}).train()


def one_branch(monkeypatch: pytest.MonkeyPatch, host: ModuleType, *branches: Branch) -> None:
    monkeypatch.setattr(host, "draw_branches", lambda recipe: list(branches))


# -- all hosts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
def test_morphing_nothing_is_the_host_by_itself(host: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    one_branch(monkeypatch, host, Branch(0, 3), Branch(0, 1))
    images = torch.randn(4, 3, 32, 32)
    batch = (images, images.flip(3)) if host is dtm_byol else images
    losses = []
    for morphing in (True, False):
        random.seed(2)
        method = build(host, morphing=morphing)
        torch.manual_seed(2)
        losses.append(method(batch, 0.0)["loss"])
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


@pytest.mark.parametrize("host", HOSTS)
def test_morphing_changes_the_loss(host: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    one_branch(monkeypatch, host, Branch(4, 2))
    images = torch.randn(4, 3, 32, 32)
    batch = (images, images.flip(3)) if host is dtm_byol else images
    losses = []
    for morphing in (True, False):
        random.seed(2)
        method = build(host, morphing=morphing)
        torch.manual_seed(2)
        losses.append(method(batch, 0.0)["loss"].item())
    assert abs(losses[0] - losses[1]) > 1e-4


@pytest.mark.parametrize("host", HOSTS)
def test_the_schedule_is_that_of_dtm(host: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two branches are drawn in every step, from Python's generator, up to all tokens in side rounds."""
    from pretrain.methods import dtm

    seen: list[Branch] = []

    def spy(recipe: Any, target: Tensor, branch: Branch) -> Any:
        assert not target.requires_grad
        seen.append(branch)
        return dtm.morph_by(recipe, target, branch)

    monkeypatch.setattr(host, "morph_by", spy)
    method = build(host)
    assert (method.recipe.max_merged, method.recipe.max_rounds, method.recipe.num_branches) == (16, 4, 2)
    paper = host.METHOD.recipes()["paper"]
    assert (paper.max_merged, paper.max_rounds, paper.num_branches) == (196, 14, 2)
    images = torch.randn(2, 3, 32, 32)
    for _ in range(2):
        method((images, images) if host is dtm_byol else images, 0.0)
    assert len(seen) == 4 and len(set(seen)) > 1


@pytest.mark.parametrize("host", HOSTS)
def test_it_says_that_it_is_a_reconstruction(host: ModuleType) -> None:
    assert host.METHOD.provenance == "reconstruction" and host.METHOD.code is None
    assert "RECONSTRUCTION" in (host.__doc__ or "")


# -- MAE -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> tuple[Tensor, Tensor, Tensor]:
    """Predictions and targets `[2, 16, 64]`, and a mask of nine patches."""
    pred, target = torch.randn(2, 2, 16, 64) * 2
    mask = torch.zeros(2, 16)
    for row in mask:
        row[torch.randperm(16)[:10]] = 1
    return pred, target, mask


def test_mae_compares_masked_positions_of_morphed_tokens(pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pred, target, mask = pair
    one_branch(monkeypatch, dtm_mae, Branch(4, 2))
    method: DTMMAE = build(dtm_mae)
    morphing = morph(target, Branch(4, 2), **CODE)
    u, v = (
        torch.stack([x[b, morphing.group[b] == morphing.group[b, n]].mean(dim=0) for b, n in mask.nonzero()])
        for x in (pred, target)
    )
    expected = F.smooth_l1_loss(u, v, beta=2.0)
    torch.testing.assert_close(method.forward_loss(target, pred, mask), expected, rtol=1e-5, atol=1e-6)
    everywhere = build(dtm_mae, loss_tokens="all").forward_loss(target, pred, mask)
    torch.testing.assert_close(
        everywhere, token_distance(morphing(pred), morphing(target), "smoothl1"), rtol=1e-5, atol=1e-6
    )


def test_mae_by_itself_learns_from_masked_patches_alone(pair) -> None:
    pred, target, mask = pair
    pred.requires_grad_()
    build(dtm_mae, morphing=False).forward_loss(target, pred, mask).backward()
    touched = pred.grad.abs().sum(dim=2) > 0
    assert torch.equal(touched, mask == 1)


def test_mae_morphing_reaches_visible_patches_that_share_a_group(
    pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pred, target, mask = pair
    one_branch(monkeypatch, dtm_mae, Branch(4, 2))
    pred.requires_grad_()
    build(dtm_mae).forward_loss(target, pred, mask).backward()
    touched = pred.grad.abs().sum(dim=2) > 0
    group = morph(target, Branch(4, 2), **CODE).group
    for b in range(2):
        with_masked = group[b][mask[b] == 1].unique()
        assert torch.equal(touched[b], torch.isin(group[b], with_masked))
    assert touched[mask == 0].any()


def test_mae_encoder_sees_visible_patches_alone() -> None:
    method: DTMMAE = build(dtm_mae, mask_ratio=0.75)
    latent, _, mask = method.forward_encoder(torch.randn(2, 3, 32, 32))
    assert latent.shape[1] == 1 + 4 and (mask.sum(dim=1) == 12).all()


@pytest.mark.parametrize("morphing", [True, False])
def test_mae_step_compares_where_the_encoder_saw_nothing(
    morphing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_branch(monkeypatch, dtm_mae, Branch(4, 2))
    method: DTMMAE = build(dtm_mae, morphing=morphing)
    nn.init.normal_(method.decoder.pred.weight)
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    latent, ids_restore, mask = method.forward_encoder(images, noise)
    assert torch.equal(mask.nonzero(), (noise >= noise.sort(dim=1).values[:, 6:7]).nonzero())
    monkeypatch.setattr(method, "forward_encoder", lambda _: (latent, ids_restore, mask))
    u, v = method.decoder(latent, ids_restore), method.teacher(images)[:, 1:]
    if morphing:
        merged = morph(v, Branch(4, 2), **CODE)
        u, v = merged(u), merged(v)
    expected = F.smooth_l1_loss(u[mask == 1], v[mask == 1], beta=2.0)
    assert abs(expected - F.smooth_l1_loss(u[mask == 0], v[mask == 0], beta=2.0)) > 1e-3
    torch.testing.assert_close(method(images, 0.0)["loss"], expected)


# -- BEiT v2 -------------------------------------------------------------------------------------------------


def test_beit2_loss_is_the_cross_entropy_of_mean_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    method: DTMBEiT2 = build(dtm_beit2)
    vectors, tokens, ids = torch.randn(2, 16, 16), torch.randn(2, 16, 32), torch.randint(64, (2, 16))
    mask = torch.zeros(2, 16)
    mask[:, [1, 3, 4, 9, 10, 15]] = 1
    nn.init.normal_(method.head.weight)
    nn.init.normal_(method.head.bias)
    morphing = morph(vectors, Branch(4, 2), **CODE)
    logits, codes = morphing(method.head(tokens)), morphing(F.one_hot(ids, 64).float())
    expected = F.cross_entropy(logits[mask == 1], codes[mask == 1])
    torch.testing.assert_close(
        method.forward_loss(tokens, ids, mask, [morphing]), expected, rtol=1e-4, atol=1e-5
    )


def test_beit2_by_itself_is_the_cross_entropy_of_masked_codes() -> None:
    method: DTMBEiT2 = build(dtm_beit2, morphing=False)
    tokens, ids = torch.randn(2, 16, 32), torch.randint(64, (2, 16))
    mask = torch.zeros(2, 16)
    mask[:, [1, 3, 4, 9, 10, 15]] = 1
    assert method.morphings(torch.randn(2, 16, 16)) == []
    expected = F.cross_entropy(method.head(tokens)[mask == 1], ids[mask == 1])
    torch.testing.assert_close(method.forward_loss(tokens, ids, mask, []), expected)


def test_beit2_class_token_carries_the_last_block_into_the_bottleneck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bottleneck knows of the last block by the class token only; what goes in is checked itself."""
    method: DTMBEiT2 = build(dtm_beit2)
    student, outputs = method.student, []
    for block in (*student.encoder.blocks, *student.class_blocks):
        block.register_forward_hook(lambda _, args, output: outputs.append((args[0], output)))
    student.both(torch.randn(2, 3, 32, 32), torch.zeros(2, 16))
    assert len(outputs) == 5 and student.early_layers == 3
    entered = outputs[4][0]
    assert torch.equal(entered[:, :1], outputs[3][1][:, :1])
    assert torch.equal(entered[:, 1:], outputs[2][1][:, 1:])


def test_beit2_both_predictions_share_head_and_morphings(monkeypatch: pytest.MonkeyPatch) -> None:
    method: DTMBEiT2 = build(dtm_beit2)
    given: list[Any] = []
    real = method.forward_loss

    def spy(tokens: Tensor, ids: Tensor, mask: Tensor, morphings: list[Any]) -> Tensor:
        given.append((ids, mask, morphings))
        return real(tokens, ids, mask, morphings)

    monkeypatch.setattr(method, "forward_loss", spy)
    scalars = method(torch.randn(2, 3, 32, 32), 0.0)
    assert len(given) == 2 and all(a is b for a, b in zip(*given, strict=True))
    torch.testing.assert_close(scalars["loss"].detach(), scalars["last_loss"] + scalars["class_loss"])


@pytest.mark.parametrize("morphing", [True, False])
def test_beit2_step_predicts_the_hidden_patches_codes_twice(
    morphing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_branch(monkeypatch, dtm_beit2, Branch(4, 2))
    method: DTMBEiT2 = build(dtm_beit2, morphing=morphing)
    nn.init.normal_(method.head.weight)
    images, mask, drawn = torch.randn(2, 3, 32, 32), torch.zeros(2, 16), []
    mask[0, [0, 1, 4, 5, 8, 9]] = mask[1, [2, 3, 6, 7, 14, 15]] = 1
    monkeypatch.setattr(dtm_beit2, "block_masks", lambda *args: drawn.append(args) or mask)
    scalars = method(images, 0.0)
    assert drawn == [(2, 4, 6, 2, images.device)]
    vectors, ids = method.tokenizer(images)
    merged = morph(vectors, Branch(4, 2), **CODE) if morphing else lambda x: x
    codes = merged(F.one_hot(ids, 64).float())
    losses = []
    for name, tokens in zip(("last_loss", "class_loss"), method.student.both(images, mask), strict=True):
        logits = merged(method.head(tokens))
        losses.append(F.cross_entropy(logits[mask == 1], codes[mask == 1]))
        assert abs(losses[-1] - F.cross_entropy(logits[mask == 0], codes[mask == 0])) > 1e-3
        torch.testing.assert_close(scalars[name], losses[-1].detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scalars["loss"], sum(losses), rtol=1e-4, atol=1e-5)


def test_beit2_student_and_recipe_are_beit2s() -> None:
    recipe = dtm_beit2.METHOD.recipes()["paper"]
    assert (recipe.early_layers, recipe.head_layers, recipe.num_masked) == (9, 2, 75)
    assert (recipe.peak_lr, recipe.global_batch_size, recipe.epochs) == (1.5e-3, 2048, 300)
    codes = vqkd.METHOD.recipes()["paper"]
    assert (codes.num_codes, codes.code_dim, codes.decoder_depth) == (8192, 32, 3)
    method: DTMBEiT2 = build(dtm_beit2)
    config = method.encoder.config
    assert (config.pos_embed, config.rel_pos, config.key_bias) == ("none", "shared", False)
    assert method.head.out_features == 64


# -- VQ-KD ---------------------------------------------------------------------------------------------------


@pytest.fixture
def quantising() -> vqkd.VQKD:
    recipes = vqkd.METHOD.recipes()
    assert recipes["paper"].clip_normalisation and not recipes["toy"].clip_normalisation  # our own CLIP
    return vqkd.VQKD(recipes["smoke"].vary("test", clip_normalisation=True), clip()).train()


def test_vqkd_codes_are_nearest_by_cosine(quantising: vqkd.VQKD) -> None:
    codec = quantising.tokenizer.eval()
    vectors, ids = codec(torch.randn(2, 3, 32, 32))
    assert vectors.shape == (2, 16, 16) and ids.shape == (2, 16)
    cosine = F.normalize(vectors, dim=-1) @ F.normalize(codec.quantizer.codebook, dim=1).T
    assert torch.equal(ids, cosine.argmax(dim=-1))


def test_vqkd_loss_is_one_minus_cosine_plus_commitment(quantising: vqkd.VQKD) -> None:
    from pretrain.feature_student import to_clip_statistics

    images = torch.randn(2, 3, 32, 32)
    target = quantising.teacher(to_clip_statistics(images))[:, 1:]
    vectors, ids = quantising.tokenizer(images)
    codes = quantising.tokenizer.quantizer.codebook[ids]
    distance = 1 - F.cosine_similarity(quantising.decoder(codes), target, dim=-1).mean()
    commitment = F.mse_loss(F.normalize(vectors, dim=-1), codes)
    torch.testing.assert_close(quantising(images, 0.0)["loss"], distance + commitment)


def test_vqkd_codes_move_after_the_step_alone(quantising: vqkd.VQKD) -> None:
    before = quantising.tokenizer.quantizer.codebook.clone()
    quantising(torch.randn(2, 3, 32, 32), 0.0)
    assert torch.equal(quantising.tokenizer.quantizer.codebook, before)
    quantising.after_step(1)
    assert not torch.equal(quantising.tokenizer.quantizer.codebook, before)


# -- BYOL ----------------------------------------------------------------------------------------------------


def test_byol_views_are_two_draws_of_one_image() -> None:
    recipe = dtm_byol.METHOD.recipes()["smoke"]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    one, two = dtm_byol.METHOD.augment(recipe)(image)
    assert one.shape == two.shape == (3, 32, 32) and not torch.equal(one, two)


def test_byol_class_tokens_are_compared_across_the_views() -> None:
    method: DTMBYOL = build(dtm_byol)
    pred, target = torch.randn(2, 6, 32)  # three images, first views, then second ones
    expected = torch.stack([cosine_error(pred[i], target[(i + 3) % 6]) for i in range(6)]).mean()
    torch.testing.assert_close(method.image_loss(pred, target), expected)


def test_byol_tokens_are_compared_within_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    one_branch(monkeypatch, dtm_byol, Branch(4, 2))
    method: DTMBYOL = build(dtm_byol)
    pred, target = torch.randn(2, 3, 16, 32)
    morphing = morph(target, Branch(4, 2), **CODE)
    torch.testing.assert_close(
        method.token_loss(pred, target), cosine_error(morphing(pred), morphing(target)).mean()
    )
    alone = build(dtm_byol, morphing=False).token_loss(pred, target)
    torch.testing.assert_close(alone, cosine_error(pred, target).mean())


def test_byol_only_the_online_network_is_masked_and_learns() -> None:
    method: DTMBYOL = build(dtm_byol)
    seen: dict[str, Tensor] = {}
    method.encoder.blocks[0].register_forward_hook(lambda _, args, out: seen.update(online=args[0].detach()))
    method.target_encoder.blocks[0].register_forward_hook(lambda _, args, out: seen.update(target=args[0]))
    images = torch.randn(2, 3, 32, 32)
    method((images, images.flip(3)), 0.0)["loss"].backward()
    differs = (seen["online"] != seen["target"]).any(dim=2)
    assert (differs.sum(dim=1) == method.recipe.num_masked).all()
    assert all(p.grad is None for p in method.target_encoder.parameters())
    assert all(p.grad is None for p in method.target_projector.parameters())
    assert not method.target_encoder.training and method.student.training


@pytest.mark.parametrize("morphing", [True, False])
def test_byol_step_predicts_the_target_network_across_and_within_the_views(
    morphing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_branch(monkeypatch, dtm_byol, Branch(4, 2))
    method: DTMBYOL = build(dtm_byol, morphing=morphing, token_weight=0.3)
    with torch.no_grad():  # a target network that is not the online one
        for p in (*method.target_encoder.parameters(), *method.target_projector.parameters()):
            p.add_(torch.randn_like(p) * 0.1)
    views, mask, drawn = torch.randn(2, 3, 3, 32, 32), torch.zeros(6, 16), []
    mask[:3, [0, 1, 4, 5, 8, 9]] = mask[3:, [2, 3, 6, 7, 14, 15]] = 1
    monkeypatch.setattr(dtm_byol, "block_masks", lambda *args: drawn.append(args) or mask)
    scalars = method((views[0], views[1]), 0.0)
    assert drawn == [(6, 4, 6, 2, views.device)]
    images = views.flatten(0, 1)
    seen, x = method.target_encoder(images), method.student(images, mask)
    class_target, v = (method.target_projector(part) for part in (seen[:, 0], seen[:, 1:]))
    class_pred, u = (method.predictor(method.projector(part)) for part in (x[:, 0], x[:, 1:]))
    other_view = torch.cat([class_target[3:], class_target[:3]])
    image = 2 - 2 * F.cosine_similarity(class_pred, other_view, dim=1).mean()
    merged = morph(v, Branch(4, 2), **CODE) if morphing else lambda x: x
    token = 2 - 2 * F.cosine_similarity(merged(u), merged(v), dim=2).mean()
    found = scalars["image_loss"], scalars["token_loss"], scalars["loss"].detach()
    torch.testing.assert_close(found, (image.detach(), token.detach(), (image + 0.3 * token).detach()))


def test_byol_class_targets_tell_images_apart() -> None:
    """Before normalisation the class tokens of a fresh encoder are all but equal, and would stay so."""
    method: DTMBYOL = build(dtm_byol).eval()
    with torch.no_grad():
        tokens = method.target_encoder(torch.randn(8, 3, 32, 32))
        raw, target = tokens[:, 0], method.target_projector(tokens[:, 0])
    spread = [F.normalize(x, dim=1).std(dim=0).mean() * x.shape[1] ** 0.5 for x in (raw, target)]
    assert spread[0] < 0.3 < 0.5 < spread[1]


def test_byol_target_follows_with_a_momentum_that_rises_to_one() -> None:
    method: DTMBYOL = build(dtm_byol)
    method.before_train(10)
    recipe = method.recipe
    assert recipe.momentum_at(0) == 0.996 and recipe.momentum_at(1) == 1
    assert recipe.momentum_at(0.5) == pytest.approx(0.998)
    pairs = ((method.target_encoder, method.encoder), (method.target_projector, method.projector))
    with torch.no_grad():
        for _, online in pairs:
            for parameter in online.parameters():
                parameter.add_(1)
    method.after_step(5)
    for target, online in pairs:
        for found, learned in zip(target.parameters(), online.parameters(), strict=True):
            torch.testing.assert_close(found, learned - 0.998, rtol=0, atol=1e-5)

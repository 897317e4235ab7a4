"""BootMAE's faithfulness, point by point, as read in its code; its numbers: tests/golden/test_bootmae.py."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor, nn

from mimbench import arch
from mimbench.train.optimizer import param_groups
from pretrain.masking import block_mask, block_masks
from pretrain.methods import bootmae
from pretrain.methods.bootmae import METHOD, BootMAE, block_weights, draw_ids
from pretrain.target import patchify, standardise_channels, unpatchify

PAPER = METHOD.recipes()["paper"]
# The smoke encoder on the paper's grid: 14 x 14 patches of 2 pixels.
BLOCKS = {"num_masked": 147, "num_block_masked": 120, "min_mask_block": 16, "max_mask_block": 60}
TINY = METHOD.recipes()["smoke"].vary("test", img_size=28, patch_size=2, **BLOCKS)


@pytest.fixture
def model() -> BootMAE:
    return BootMAE(TINY).train()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 28, 28)


@pytest.fixture(scope="module")
def paper_on_meta() -> BootMAE:
    with torch.device("meta"):
        return BootMAE(PAPER)


def repaint(images: Tensor, ids: Tensor) -> Tensor:
    """The images with other pixels in the patches ids `[B, K]`."""
    patches = patchify(images, 2)
    return unpatchify(patches.scatter(1, ids.unsqueeze(-1).expand(-1, -1, 12), 5.0), 2)


def test_p01_of_147_masked_patches_all_but_three_of_120_are_in_blocks() -> None:
    assert (PAPER.num_masked, PAPER.num_block_masked) == (147, 120)
    assert (PAPER.min_mask_block, PAPER.max_mask_block) == (16, 60)
    spared = set()
    for _ in range(40):
        blocks = block_masks(3, 14, 120, 16, torch.device("cpu"), max_block=60)
        assert (blocks.sum(dim=1) == 120).all()
        ids = draw_ids(blocks)
        assert torch.equal(ids.sort(dim=1).values, torch.arange(196).expand(3, -1))
        visible = blocks.gather(1, ids[:, :49]).sum(dim=1)
        assert len(visible.unique()) == 1, "the same number in the whole batch"
        spared.add(int(visible[0]))
        assert len({tuple(sorted(row)) for row in ids[:, :49].tolist()}) == 3
    assert spared == {0, 1, 2, 3}


@pytest.mark.parametrize(("max_block", "largest"), [(60, 60), (None, 120)])
def test_p01_no_block_is_larger_than_its_bound(
    max_block: int | None, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []
    uniform = random.uniform
    monkeypatch.setattr(random, "uniform", lambda low, high: drawn.append(high) or uniform(low, high))
    for _ in range(20):
        assert block_mask(14, 120, 16, max_block=max_block).sum() == 120
    assert max(drawn[::2]) == largest  # every other draw is an area, the rest are aspect ratios


def test_p02_masked_pixels_never_reach_a_prediction(model: BootMAE, images: Tensor) -> None:
    ids = model.draw_ids(images)
    pixels, features = model.predict(images, ids)
    same = model.predict(repaint(images, ids[:, 49:]), ids)
    assert torch.equal(same[0], pixels) and torch.equal(same[1], features)
    other = model.predict(repaint(images, ids[:, :1]), ids)
    assert not torch.equal(other[0], pixels) and not torch.equal(other[1], features)
    latent, first, last = model.forward_encoder(images, ids)
    assert latent.shape == first.shape == last.shape == (2, 50, 32)


def test_p03_teacher_sees_the_whole_image_and_its_target_is_not_normed(
    model: BootMAE, images: Tensor
) -> None:
    with torch.no_grad():
        model.teacher.norm.weight.fill_(7.0)
    seen: list[Tensor] = []
    model.teacher.blocks[-1].register_forward_hook(lambda _, args, output: seen.append(output))
    target = model.forward_teacher(images)
    assert seen[0].shape == (2, 197, 32) and torch.equal(target, seen[0][:, 1:])
    assert not target.requires_grad
    for patch in (0, 195):
        assert not torch.equal(model.forward_teacher(repaint(images, torch.full((2, 1), patch))), target)


def test_p04_weight_is_one_plus_the_masked_share_of_the_neighbourhood() -> None:
    mask = (torch.rand(3, 49) < 0.6).float()
    grid = mask.reshape(3, 7, 7)
    expected = torch.zeros(3, 7, 7)
    for b in range(3):
        for row in range(7):
            for column in range(7):
                if grid[b, row, column]:
                    around = grid[b, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
                    expected[b, row, column] = 1 + around.sum() / 9  # beyond the edge nothing is masked
    torch.testing.assert_close(block_weights(mask, 7), expected.flatten(1))
    assert block_weights(torch.ones(1, 49), 7)[0, 24] == 2


def test_p05_pixels_are_normalised_by_patch_and_channel(images: Tensor) -> None:
    pixels = images * torch.tensor([0.1, 1.0, 5.0]).view(3, 1, 1) + 2
    target = standardise_channels(patchify(pixels, 14)).unflatten(2, (-1, 3))  # [B, 4, 196, 3]
    torch.testing.assert_close(target.mean(dim=2), torch.zeros(2, 4, 3), rtol=0, atol=1e-4)
    var = patchify(pixels, 14).unflatten(2, (-1, 3)).var(dim=2, correction=0)
    torch.testing.assert_close(target.var(dim=2, correction=0), var / (var + 1e-5), rtol=1e-4, atol=0)


def test_p06_features_are_standardised_on_both_sides(model: BootMAE, images: Tensor) -> None:
    ids = model.draw_ids(images)
    pixels, features = model.predict(images, ids)
    loss = model.forward_loss(images, ids, pixels, features)[1]
    scaled = model.forward_loss(images, ids, pixels, 3 * features + 5)[1]
    torch.testing.assert_close(scaled, loss, rtol=1e-3, atol=0)
    perfect = model.forward_loss(images, ids, pixels, 2 * model.forward_teacher(images) - 1)[1]
    assert perfect < 1e-6 < loss


@pytest.mark.parametrize("weigh_blocks", [True, False])
def test_p07_loss_is_a_weighted_mean_over_masked_patches(
    model: BootMAE, images: Tensor, weigh_blocks: bool
) -> None:
    model.recipe = TINY.vary("test", weigh_blocks=weigh_blocks)
    ids = model.draw_ids(images)
    pixels = torch.randn(2, 196, 12, requires_grad=True)
    features = torch.randn(2, 196, 32, requires_grad=True)
    pixel_loss, feature_loss = model.forward_loss(images, ids, pixels, features)
    (pixel_loss + feature_loss).backward()
    masked = torch.ones(2, 196).scatter(1, ids[:, :49], 0.0)
    for x in (pixels, features):
        assert torch.equal((x.grad.abs().sum(dim=2) > 0).float(), masked)
    weight = block_weights(masked, 14) if weigh_blocks else masked
    error = ((pixels - standardise_channels(patchify(images, 2))) ** 2).mean(dim=2)
    torch.testing.assert_close(pixel_loss, (weight * error).sum() / (2 * 147))


def test_p07_a_steps_losses_are_those_of_the_patches_it_hides(
    model: BootMAE, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = model.draw_ids(images)
    draws = iter([ids])
    monkeypatch.setattr(model, "draw_ids", lambda images: next(draws))
    scalars = model(images, 0.0)
    masked = torch.ones(2, 196).scatter(1, ids[:, :49], 0.0)
    weight = block_weights(masked, 14) / masked.sum()
    pixels, features = model.predict(images, ids)
    pixel_error = (pixels - standardise_channels(patchify(images, 2))).square().mean(dim=2)
    norm = nn.LayerNorm(32, eps=1e-6, elementwise_affine=False)
    feature_error = (norm(features) - norm(model.forward_teacher(images))).square().mean(dim=2)
    pixel_loss, feature_loss = (weight * pixel_error).sum(), (weight * feature_error).sum()
    torch.testing.assert_close(scalars["pixel_loss"], pixel_loss)
    torch.testing.assert_close(scalars["feature_loss"], feature_loss)
    torch.testing.assert_close(scalars["loss"], pixel_loss + TINY.feature_weight_at(0.0) * feature_loss)


def test_p08_decoders_attend_to_the_first_and_the_last_block(model: BootMAE, images: Tensor) -> None:
    outputs: dict[str, Tensor] = {}
    contexts: dict[str, Tensor] = {}
    for name, block in (("first", model.encoder.blocks[0]), ("last", model.encoder.blocks[-1])):
        block.register_forward_hook(lambda _, args, out, name=name: outputs.__setitem__(name, out))
    for name in ("pixel_decoder", "feature_decoder"):
        for block in model.get_submodule(name).blocks:
            block.register_forward_pre_hook(lambda _, args, name=name: contexts.__setitem__(name, args[1]))
    model.predict(images, model.draw_ids(images))
    assert torch.equal(contexts["pixel_decoder"], outputs["first"])
    assert torch.equal(contexts["feature_decoder"], outputs["last"])


def test_p08_decoders_of_vit_base(paper_on_meta: BootMAE) -> None:
    for name, dim, width in (("pixel_decoder", 512, 504), ("feature_decoder", 768, 768)):
        decoder = paper_on_meta.get_submodule(name)
        assert len(decoder.blocks) == 2 and decoder.embed.out_features == dim
        for block in decoder.blocks:
            assert block.attn.num_heads == block.cross_attn.num_heads == 12
            assert block.attn.q.weight.shape == block.cross_attn.q.weight.shape == (width, dim)
            assert block.cross_attn.kv.weight.shape == (2 * width, 768)
    assert paper_on_meta.pixel_head.weight.shape == (512, 3, 16, 16)
    assert paper_on_meta.feature_head.weight.shape == (768, 768)


def test_p09_only_mask_tokens_get_positions(model: BootMAE, images: Tensor) -> None:
    seen: list[Tensor] = []
    decoder = model.feature_decoder
    decoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    ids = model.draw_ids(images)
    latent, _, last = model.forward_encoder(images, ids)
    decoder(latent, last, ids)
    assert seen[0].shape == (2, 197, 32)
    embedded = decoder.embed(latent)
    torch.testing.assert_close(seen[0][:, 0], embedded[:, 0])
    for b in range(2):
        torch.testing.assert_close(seen[0][b, 1 + ids[b, :49]], embedded[b, 1:])
        expected = decoder.mask_token[0] + decoder.pos_embed[0, ids[b, 49:]]
        torch.testing.assert_close(seen[0][b, 1 + ids[b, 49:]], expected)


def test_p10_momentum_rises_with_the_epochs_and_moves_the_encoder_every_step(
    model: BootMAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {0: 0.999, 50: 0.99945, 100: 0.9999, 250: 0.999945, 400: 0.99999, 799: 0.99999}
    for epoch, value in expected.items():
        assert PAPER.momentum_at(epoch) == pytest.approx(value, abs=1e-9)
    with torch.no_grad():
        model.encoder.blocks[0].mlp.fc1.weight.add_(1.0)
    before = model.teacher.blocks[0].mlp.fc1.weight.clone()
    model.before_train(10)
    model.after_step(1)
    moved = model.teacher.blocks[0].mlp.fc1.weight - before
    torch.testing.assert_close(moved, torch.full_like(moved, 1 - TINY.momentum[0]), rtol=1e-3, atol=0)
    used: list[float] = []
    monkeypatch.setattr(bootmae, "follow", lambda teacher, student, m: used.append(m))
    for step in range(1, 11):
        model.after_step(step)
    assert used == [TINY.momentum_at(0)] * 5 + [TINY.momentum_at(1)] * 5


def test_p10_teacher_starts_as_the_encoder(model: BootMAE) -> None:
    for (name, a), b in zip(
        model.teacher.state_dict().items(), model.encoder.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_p11_feature_weight_grows_over_a_quarter_of_the_epochs(model: BootMAE, images: Tensor) -> None:
    for epoch, weight in ((0, 1 / 200), (99, 0.5), (198, 199 / 200), (199, 1.0), (799, 1.0)):
        for part in (0.0, 0.99):
            assert PAPER.feature_weight_at((epoch + part) / 800) == pytest.approx(weight)
    model.recipe = TINY.vary("test", epochs=800.0)
    scalars = model(images, 99 / 800)
    torch.testing.assert_close(scalars["loss"], scalars["pixel_loss"] + 0.5 * scalars["feature_loss"])


def test_p12_initial_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(arch.ARCHS, "vit_base_shallow", arch.Size(768, 1, 12))
    model = BootMAE(PAPER.vary("test", arch="vit_base_shallow", decoder_depth=1))

    def check(weight: Tensor, bound: float) -> None:
        assert 0.99 * bound < weight.abs().max() <= bound

    check(model.encoder.blocks[0].attn.qkv.weight, math.sqrt(6 / (768 + 768)))  # not 3 x 768
    block = model.pixel_decoder.blocks[0]
    check(block.attn.kv.weight, math.sqrt(6 / (504 + 512)))
    check(block.cross_attn.kv.weight, math.sqrt(6 / (2 * 504 + 768)))
    check(model.encoder.patch_embed.proj.weight, math.sqrt(6 / (3 * 16**2 + 768)))
    assert model.encoder.patch_embed.proj.bias.abs().max() == 0
    assert model.encoder.cls_token.abs().max() < 1e-5
    for decoder in (model.pixel_decoder, model.feature_decoder):
        assert 0.005 < decoder.mask_token.std() < 0.02 and decoder.mask_token.abs().max() <= 0.02


def test_p13_optimisation(paper_on_meta: BootMAE) -> None:
    assert PAPER.peak_lr == pytest.approx(2.4e-3)
    steps = 800 * 312
    lr = [PAPER.lr_at(step, steps) for step in (0, 40 * 312, steps - 1)]
    assert lr == pytest.approx([0, 2.4e-3, 1e-4], rel=1e-4)
    assert (PAPER.betas, PAPER.clip_grad, PAPER.drop_path) == ((0.9, 0.95), None, 0.0)
    undecayed, decayed = param_groups(paper_on_meta, PAPER.weight_decay, paper_on_meta.no_weight_decay())
    assert (undecayed["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    ids = {id(p) for p in decayed["params"]}
    assert id(paper_on_meta.encoder.cls_token) not in ids
    assert {id(paper_on_meta.pixel_decoder.mask_token), id(paper_on_meta.feature_decoder.mask_token)} <= ids
    assert not any(id(p) in ids for p in paper_on_meta.teacher.parameters())

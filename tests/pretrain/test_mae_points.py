"""MAE's faithfulness, point by point. The official code's numbers are checked in tests/golden/test_mae.py."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import DropPath
from torch import Tensor, nn

from mimbench import arch
from mimbench.checkpoint.encoder import load_encoder, save_encoder
from mimbench.data.augment import MEAN, STD, PretrainAugment, crop_box, normalise
from mimbench.train.optimizer import param_groups
from pretrain.masking import random_masking
from pretrain.methods.mae import MAE, METHOD
from pretrain.target import patchify, standardise, unpatchify

PAPER = METHOD.recipes()["paper"]


@pytest.fixture
def model() -> MAE:
    """The smoke encoder on the paper's grid: 14 x 14 patches of 2 pixels."""
    return MAE(METHOD.recipes()["smoke"].vary("test", img_size=28, patch_size=2, mask_ratio=0.75))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 28, 28)


@pytest.fixture(scope="module")
def paper_on_meta() -> MAE:
    with torch.device("meta"):
        return MAE(PAPER)


def test_p01_each_image_loses_147_of_196_patches_of_its_own() -> None:
    ids_keep, ids_restore, mask = random_masking(8, 196, 0.75, torch.device("cpu"))
    assert (mask.sum(dim=1) == 147).all() and ids_keep.shape == (8, 49)
    assert len({tuple(sorted(row)) for row in ids_keep.tolist()}) == 8
    assert (mask.gather(1, ids_keep) == 0).all()
    ids_shuffle = ids_restore.argsort(dim=1)
    assert torch.equal(ids_shuffle[:, :49], ids_keep)
    raster = torch.arange(196).expand(8, -1)
    assert torch.equal(ids_shuffle.gather(1, ids_restore), raster)


def test_p01_kept_patches_come_in_the_order_of_the_noise() -> None:
    noise = torch.rand(2, 16)
    ids_keep, _, _ = random_masking(2, 16, 0.7, noise.device, noise)
    assert ids_keep.shape[1] == int(16 * (1 - 0.7)) == 4
    assert torch.equal(ids_keep, noise.argsort(dim=1)[:, :4])


def test_p02_masked_pixels_never_reach_the_encoder(model: MAE, images: Tensor) -> None:
    noise = torch.rand(3, 196)
    latent, _, mask = model.forward_encoder(images, noise)
    patches = patchify(images, 2)
    garbled = torch.where(mask[..., None] == 1, torch.full_like(patches, 1e3), patches)
    assert torch.equal(model.forward_encoder(unpatchify(garbled, 2), noise)[0], latent)
    patches[0, (mask[0] == 0).nonzero()[0]] += 1
    changed = model.forward_encoder(unpatchify(patches, 2), noise)[0]
    assert not torch.equal(changed[0], latent[0]) and torch.equal(changed[1:], latent[1:])


def test_p03_sequence_lengths_and_mask_tokens_in_raster_order(model: MAE, images: Tensor) -> None:
    seen: dict[str, Tensor] = {}
    for name, block in (("encoder", model.encoder.blocks[0]), ("decoder", model.decoder.blocks[0])):
        block.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
    nn.init.zeros_(model.decoder.pos_embed)  # so that mask tokens are recognisable
    latent, ids_restore, mask = model.forward_encoder(images)
    pred = model.decoder(latent, ids_restore)
    assert seen["encoder"].shape[:2] == latent.shape[:2] == (3, 50)
    assert seen["decoder"].shape[:2] == (3, 197) and pred.shape == (3, 196, 12)
    is_mask_token = (seen["decoder"] == model.decoder.mask_token).all(dim=2)
    assert torch.equal(is_mask_token[:, 1:].float(), mask) and (is_mask_token.sum(dim=1) == 147).all()
    assert not is_mask_token[:, 0].any()
    embedded = model.decoder.embed(latent)
    first = ids_restore.argsort(dim=1)[:, 0]  # where the first kept patch stands in the image
    for b in range(3):
        torch.testing.assert_close(seen["decoder"][b, 1 + first[b]], embedded[b, 1])


def test_p03_decoder_positions_follow_the_grid(model: MAE, images: Tensor) -> None:
    seen: list[Tensor] = []
    model.decoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    latent, ids_restore, mask = model.forward_encoder(images)
    model.decoder(latent, ids_restore)
    expected = model.decoder.mask_token[0] + model.decoder.pos_embed[0, 1:]
    torch.testing.assert_close(seen[0][:, 1:][mask == 1], expected.expand(3, -1, -1)[mask == 1])


def test_p04_target_is_standardised_with_the_unbiased_variance() -> None:
    patches = torch.randn(2, 5, 768) * torch.tensor([1e-3, 0.1, 1, 3, 10])[:, None] + 0.5
    patches[0, 0] = 0.25  # constant
    target = standardise(patches)
    var = patches.double().var(dim=2, correction=1)
    torch.testing.assert_close(target.mean(dim=2), torch.zeros(2, 5), rtol=0, atol=1e-4)
    squares = target.double().square().sum(dim=2)
    torch.testing.assert_close(squares, 767 * var / (var + 1e-6), rtol=1e-3, atol=1e-6)
    assert target[0, 0].abs().max() == 0


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_p05_loss_is_the_mean_over_masked_patches(model: MAE, images: Tensor, norm_pix_loss: bool) -> None:
    model.norm_pix_loss = norm_pix_loss
    mask = random_masking(3, 196, 0.75, images.device)[2]
    pred = torch.randn(3, 196, 12, requires_grad=True)
    loss = model.forward_loss(images, pred, mask)
    loss.backward()
    target = patchify(images, 2)
    if norm_pix_loss:
        target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
    per_patch = ((pred - target) ** 2).mean(dim=2)
    torch.testing.assert_close(loss, per_patch[mask == 1].mean())
    assert pred.grad[mask == 0].abs().max() == 0
    assert (pred.grad[mask == 1].abs().sum(dim=1) > 0).all()


def test_p06_fixed_sincos_positions_are_all_that_is_frozen(model: MAE) -> None:
    for table, dim in ((model.encoder.pos_embed, 32), (model.decoder.pos_embed, 32)):
        expected = np.zeros((197, dim))
        for row in range(14):
            for column in range(14):
                for k in range(dim // 4):
                    w = 10000 ** (-k / (dim // 4))
                    values = [
                        math.sin(column * w),
                        math.cos(column * w),
                        math.sin(row * w),
                        math.cos(row * w),
                    ]
                    expected[1 + row * 14 + column, k :: dim // 4] = values
        np.testing.assert_allclose(table[0].detach(), expected, atol=1e-6)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"encoder.pos_embed", "decoder.pos_embed"}


def test_p07_size_of_vit_base(paper_on_meta: MAE) -> None:
    model = paper_on_meta
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert total / 1e6 == pytest.approx(111.908, abs=5e-4)
    assert trainable / 1e6 == pytest.approx(111.656, abs=5e-4)
    encoder = sum(p.numel() for p in model.encoder.parameters())
    decoder = sum(p.numel() for p in model.decoder.parameters())
    assert (encoder / 1e6, decoder / 1e6) == pytest.approx((85.80, 26.11), abs=5e-3)
    assert len(model.decoder.blocks) == 8
    assert all(block.attn.num_heads == 16 for block in model.decoder.blocks)
    assert model.decoder.pred.in_features == 512
    assert not any(isinstance(module, DropPath) for module in model.modules())


def test_p08_initial_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(arch.ARCHS, "vit_base_shallow", arch.Size(768, 1, 12))
    model = MAE(PAPER.vary("test", arch="vit_base_shallow", decoder_depth=1))
    weight = model.encoder.patch_embed.proj.weight
    bound = math.sqrt(6 / (768 + 3 * 16**2))
    assert bound == pytest.approx(0.0625) and 0.99 * bound < weight.abs().max() <= bound
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert 0.99 * bound < module.weight.abs().max() <= bound, name
            assert module.bias.abs().max() == 0, name
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all() and module.eps == 1e-6, name
    tokens = torch.cat([model.encoder.cls_token.flatten(), model.decoder.mask_token.flatten()])
    assert tokens.std().item() == pytest.approx(0.02, rel=0.05)
    assert tokens.abs().max() > 0.05  # not truncated


def test_p09_learning_rate_and_weight_decay(paper_on_meta: MAE) -> None:
    assert PAPER.peak_lr == pytest.approx(1.5e-4 * 4096 / 256) == pytest.approx(2.4e-3)
    total, warmup = 1600 * 312, 40 * 312
    lr = [PAPER.lr_at(step, total) for step in (0, warmup - 1, warmup, total - 1)]
    assert lr == pytest.approx([0, 2.4e-3, 2.4e-3, 0], abs=1e-12)
    assert PAPER.betas == (0.9, 0.95)
    undecayed, decayed = param_groups(paper_on_meta, PAPER.weight_decay)
    assert (undecayed["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    assert (len(undecayed["params"]), len(decayed["params"])) == (167, 85)
    ids = {id(p) for p in decayed["params"]}
    assert id(paper_on_meta.encoder.cls_token) in ids and id(paper_on_meta.decoder.mask_token) in ids
    assert id(paper_on_meta.encoder.pos_embed) not in ids


def test_p10_crop_and_flip_are_the_only_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (PAPER.min_crop_scale, PAPER.color_jitter) == (0.2, 0.0)
    resamples = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, how: resamples.append(how) or resize(self, size, how)
    )
    augment = PretrainAugment(28, PAPER.min_crop_scale, PAPER.color_jitter)
    colours = {tuple(augment(Image.new("RGB", (40, 30), (9, 90, 200))).unique().tolist()) for _ in range(20)}
    assert colours == {(9, 90, 200)}
    assert set(resamples) == {Image.Resampling.BICUBIC}
    boxes = [crop_box(400, 300, (PAPER.min_crop_scale, 1.0)) for _ in range(500)]
    shares = [height * width / 120_000 for _, _, height, width in boxes]
    assert 0.195 < min(shares) < 0.25 and max(shares) > 0.9
    ramp = Image.fromarray(np.tile(np.arange(40, dtype=np.uint8)[None, :, None] * 6, (40, 1, 3)))
    flipped = [bool(x[0, 0, 0] > x[0, 0, -1]) for x in (augment(ramp) for _ in range(200))]
    assert 70 < sum(flipped) < 130


def test_p10_target_is_the_view_that_the_encoder_sees(model: MAE, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    images = normalise(pixels)
    expected = (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(model.decoder, "forward", lambda *args: standardise(patchify(images, 2)))
    assert model(images, 0.0)["loss"] == 0


def test_p11_patchify_round_trip_and_order(images: Tensor) -> None:
    patches = patchify(images, 4)
    assert patches.shape == (3, 49, 48)
    assert torch.equal(unpatchify(patches, 4), images)
    # Patch 9 is row 1, column 2 of 7 x 7; number 17 within it is row 1, column 1, channel 2.
    assert torch.equal(patches[:, 9, 17], images[:, 2, 1 * 4 + 1, 2 * 4 + 1])


def test_p12_encoder_file_has_no_decoder_and_keeps_the_positions(model: MAE, tmp_path: Path) -> None:
    save_encoder(model.encoder, tmp_path / "e.safetensors", method="mae")
    vit, report = load_encoder(tmp_path / "e.safetensors")
    assert set(vit.state_dict()) == set(model.encoder.state_dict()) == set(report.loaded)
    assert not any(name.startswith("decoder") for name in vit.state_dict())
    assert vit.pos_embed.shape == (1, 197, 32)
    assert torch.equal(vit.pos_embed, model.encoder.pos_embed)

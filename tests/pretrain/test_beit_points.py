"""BEiT's faithfulness, point by point. The official code's numbers: tests/golden/test_beit.py."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.layers import DropPath
from torch import Tensor, nn

from downstream import classification
from downstream.backbone import remove_final_norm
from mimbench.checkpoint.encoder import load_encoder, save_encoder
from mimbench.vit import LayerNorm
from pretrain.masking import block_masks
from pretrain.methods import beit, peco
from pretrain.methods.beit import METHOD, BEiT
from pretrain.teachers import dvae
from pretrain.two_views import TwoViews

PAPER = METHOD.recipes()["paper"]


class Patchwise(nn.Module):
    """A tokenizer whose code is the brightness of the patch, 0..63; it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def tokens(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        means = F.avg_pool2d(images.mean(dim=1, keepdim=True), 4).flatten(1)  # [B, N]
        return (means.sigmoid() * 63).round().long()


@pytest.fixture(params=["shared", "absolute"])
def method(request: pytest.FixtureRequest) -> BEiT:
    """Both named variants at scale smoke."""
    layer_scale = 0.1 if request.param == "shared" else None
    recipe = METHOD.recipes()["smoke"].vary("test", positions=request.param, layer_scale_init=layer_scale)
    return BEiT(recipe, Patchwise()).train()


@pytest.fixture
def views() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 3, 32, 32), torch.randn(8, 3, 16, 16)


def test_p01_block_masks_of_at_most_75_patches() -> None:
    masks = block_masks(2000, 14, 75, 16, torch.device("cpu"), exact=False)
    counts = masks.sum(dim=1)
    assert counts.max() == 75 and counts.min() >= 16
    assert 0.65 < (counts == 75).float().mean() < 0.75
    frequency = masks.mean(dim=0).reshape(14, 14)
    assert frequency[[0, 0, -1, -1], [0, -1, 0, -1]].max() < 0.1
    assert frequency[6:8, 6:8].min() > 0.6


def test_p01_the_recipe_asks_for_them(method: BEiT, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (PAPER.num_masked, PAPER.min_mask_block, PAPER.num_patches) == (75, 16, 196)
    seen = {}

    def spy(*args: object, **options: object) -> Tensor:
        seen.update(options, args=args[:4])
        return block_masks(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(beit, "block_masks", spy)
    method.draw_masks(torch.zeros(5, 3, 32, 32))
    assert seen == {"args": (5, 4, 6, 2), "exact": False}


def test_p02_tokenizer_sees_the_students_crop_and_flip() -> None:
    """Of an image whose colours say where they were, both views show the same corners."""
    ramp = np.linspace(0, 255, 300)
    image = np.stack(
        [np.tile(ramp, (300, 1)), np.tile(ramp[:, None], (1, 300)), np.zeros((300, 300))], axis=2
    )
    augment = METHOD.augment(PAPER.vary("test", color_jitter=0.0))  # type: ignore[misc]
    flipped = set()
    for _ in range(20):
        student, tokenizer = augment(Image.fromarray(image.astype(np.uint8)))
        assert (student.shape, tokenizer.shape) == ((3, 224, 224), (3, 112, 112))
        assert student.dtype == tokenizer.dtype == torch.uint8
        halved = F.avg_pool2d(student.float(), 2)
        assert (halved - tokenizer)[:, 2:-2, 2:-2].abs().max() <= 3
        flipped.add(bool(student[0, 0, 0] > student[0, 0, -1]))
    assert flipped == {True, False}


def test_p02_bicubic_for_the_student_and_lanczos_for_the_tokenizer() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    student, tokenizer = TwoViews(20, 10, 1.0, 0.0)(image)  # no crop other than the whole has its area
    for view, side, resampling in (
        (student, 20, Image.Resampling.BICUBIC),
        (tokenizer, 10, Image.Resampling.LANCZOS),
    ):
        expected = torch.tensor(np.array(image.resize((side, side), resampling))).permute(2, 0, 1).float()
        distances = [(view.float() - x).abs().max() for x in (expected, expected.flip(2))]
        assert min(distances) <= 1 < max(distances)


def test_p02_both_views_have_one_colour_jitter() -> None:
    image, colours = Image.new("RGB", (40, 40), (120, 90, 60)), set()
    for _ in range(5):
        views = METHOD.augment(PAPER)(image)  # type: ignore[misc]
        assert torch.equal(views[0][:, 0, 0], views[1][:, 0, 0])
        colours.add(tuple(views[0][:, 0, 0].tolist()))
    assert len(colours) == 5
    assert PAPER.color_jitter == 0.4 and PAPER.min_crop_scale == 0.08


def test_p02_tokenizer_gets_the_small_image(method: BEiT, views: tuple[Tensor, Tensor]) -> None:
    method(views, 0.0)
    assert len(method.tokenizer.seen) == 1 and method.tokenizer.seen[0] is views[1]


def test_p02_tokenizer_is_in_eval_mode_and_gets_no_gradient(views: tuple[Tensor, Tensor]) -> None:
    """Not even where its parameters ask for one: its logits are no part of the step's graph."""
    tokenizer = dvae.Encoder(dvae.METHOD.recipes()["smoke"]).requires_grad_(False)
    method = BEiT(METHOD.recipes()["smoke"], tokenizer).train()
    assert method.student.training and not any(module.training for module in tokenizer.modules())
    tokenizer.requires_grad_(True)
    logits: list[Tensor] = []
    tokenizer.register_forward_hook(lambda _, args, output: logits.append(output))
    method(views, 0.0)["loss"].backward()
    assert [x.shape for x in logits] == [(8, 64, 4, 4)] and not logits[0].requires_grad
    assert all(p.grad is None for p in tokenizer.parameters())


def test_p02_the_papers_tokenizer_gives_14_by_14_ids() -> None:
    with torch.device("meta"):
        tokenizer = dvae.Encoder(dvae.METHOD.recipes()["paper"])
        ids = tokenizer.tokens(torch.zeros(2, 3, PAPER.token_size, PAPER.token_size))
    assert (PAPER.token_size, PAPER.num_patches, PAPER.num_codes) == (112, 14 * 14, 8192)
    assert ids.shape == (2, 14 * 14) and ids.dtype == torch.int64
    assert tokenizer.head.out_channels == PAPER.num_codes


def test_p02_ids_are_0_to_8191_in_raster_order() -> None:
    """The paper's vocabulary and grid on a narrow network, whose logits give way to those of known ids."""
    tokenizer = dvae.Encoder(dvae.METHOD.recipes()["paper"].vary("test", width=4, num_blocks=1))
    ids = torch.linspace(0, PAPER.num_codes - 1, PAPER.num_patches).long()
    assert (ids[0], ids[-1]) == (0, 8191)
    logits = F.one_hot(ids, PAPER.num_codes).T.reshape(1, 8192, 14, 14).float()
    shapes: list[torch.Size] = []
    tokenizer.register_forward_hook(lambda _, args, output: shapes.append(output.shape) or logits)
    assert torch.equal(tokenizer.tokens(torch.randn(1, 3, 112, 112)), ids[None])
    assert shapes == [logits.shape]


def test_p03_loss_is_the_mean_cross_entropy_of_all_masked_patches(
    method: BEiT, views: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = torch.zeros(8, 16)
    mask[:, :6], mask[0, 2:6] = 1, 0  # image 0 has two masked patches
    monkeypatch.setattr(method, "draw_masks", lambda images: mask)
    method.eval()
    loss = method(views, 0.0)["loss"]
    logits = method.head(method.student(views[0], mask)[:, 1:])
    ids = method.tokenizer.tokens(views[1])
    expected = F.cross_entropy(logits[mask.bool()], ids[mask.bool()])
    torch.testing.assert_close(loss, expected)
    of_images = [F.cross_entropy(logits[i][mask[i].bool()], ids[i][mask[i].bool()]) for i in range(8)]
    assert abs(loss - torch.stack(of_images).mean()) > 1e-6, "images with more masked patches weigh more"


def test_p03_unmasked_rows_get_no_gradient(
    method: BEiT, views: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = torch.zeros(8, 16)
    mask[:, :6], mask[0, 2:6] = 1, 0
    monkeypatch.setattr(method, "draw_masks", lambda images: mask)
    normed: list[Tensor] = []
    method.student.register_forward_hook(lambda module, args, x: (x.retain_grad(), normed.append(x))[0])
    method(views, 0.0)["loss"].backward()
    touched = normed[0].grad[:, 1:].abs().sum(dim=2)
    assert (touched[mask == 1] > 0).all() and (touched[mask == 0] == 0).all()
    assert normed[0].grad[:, 0].abs().max() == 0, "the class token has no loss"


def test_p04_content_of_masked_patches_has_no_effect(method: BEiT) -> None:
    method.eval()
    images, mask = torch.randn(2, 3, 32, 32), method.draw_masks(torch.zeros(2, 3, 32, 32))
    hidden = mask.reshape(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    with torch.no_grad():
        x = method.student(images, mask)
        changed = method.student(images + hidden * torch.randn_like(images), mask)
        visible = method.student(images + (1 - hidden) * torch.randn_like(images), mask)
    assert torch.equal(x, changed)
    assert not torch.allclose(x, visible)


def test_p05_no_key_bias(method: BEiT) -> None:
    for block in method.encoder.blocks:
        assert block.attn.qkv.bias is None
        assert not block.attn.q_bias.any() and not block.attn.v_bias.any()
    names = [name for name, _ in method.encoder.blocks[0].attn.named_parameters()]
    assert sorted(names) == ["proj.bias", "proj.weight", "q_bias", "qkv.weight", "v_bias"]


def test_p06_two_named_variants(method: BEiT) -> None:
    encoder = method.encoder
    if method.recipe.positions == "absolute":
        assert encoder.pos_embed.shape == (1, 17, 32) and encoder.pos_embed.requires_grad
        assert encoder.rel_pos_bias is None
        assert not any("gamma" in name for name in encoder.state_dict())
    else:
        assert encoder.pos_embed is None
        assert all(block.ls1.gamma.eq(0.1).all() for block in encoder.blocks)
        tables = [name for name in encoder.state_dict() if name.endswith("table")]
        assert tables == ["rel_pos_bias.table"] and not encoder.rel_pos_bias.table.any()


def test_p06_the_papers_table_has_732_rows() -> None:
    with torch.device("meta"):
        method = BEiT(PAPER, nn.Identity())
    assert method.encoder.rel_pos_bias.table.shape == (732, 12)
    assert (PAPER.positions, PAPER.layer_scale_init) == ("shared", 0.1)
    assert method.head.weight.shape == (8192, 768)


def test_p06_fine_tuning_gives_every_block_a_copy(tmp_path: Path) -> None:
    encoder = BEiT(METHOD.recipes()["smoke"], Patchwise()).encoder
    nn.init.normal_(encoder.rel_pos_bias.table)
    save_encoder(encoder, tmp_path / "encoder.safetensors", method="beit")
    loaded, _ = load_encoder(tmp_path / "encoder.safetensors")
    assert loaded.rel_pos_bias is None
    tables = [block.attn.rel_pos_bias.table for block in loaded.blocks]
    assert all(torch.equal(table, encoder.rel_pos_bias.table) for table in tables)
    assert len({id(table) for table in tables}) == len(loaded.blocks)


def test_p07_residual_branches_are_rescaled_by_depth(method: BEiT) -> None:
    for layer, block in enumerate(method.encoder.blocks, start=1):
        bound = 0.02 / math.sqrt(2 * layer)
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert 0.95 * bound < weight.abs().max() <= bound + 1e-8
        assert 0.019 < block.mlp.fc1.weight.abs().max() <= 0.02
    assert method.student.mask_token.abs().max() <= 0.02 and method.student.mask_token.any()
    assert 0.019 < method.head.weight.abs().max() <= 0.02 and not method.head.bias.any()


def test_p08_optimisation_of_the_papers_recipe() -> None:
    assert (PAPER.peak_lr, PAPER.global_batch_size, PAPER.min_lr) == (1.5e-3, 2048, 1e-5)
    assert (PAPER.clip_grad, PAPER.weight_decay, PAPER.betas) == (3.0, 0.05, (0.9, 0.999))
    assert (PAPER.epochs, PAPER.warmup_epochs, PAPER.drop_path) == (800, 10, 0.1)
    assert PAPER.lr_at(100, 8000) == pytest.approx(1.5e-3)
    assert PAPER.lr_at(50, 8000) == pytest.approx(0.75e-3, rel=0.02)
    assert PAPER.lr_at(7999, 8000) == pytest.approx(1e-5, rel=1e-3)
    with torch.device("meta"):
        blocks = BEiT(PAPER, nn.Identity()).encoder.blocks
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])


def test_p09_drop_path_only_trains() -> None:
    method = BEiT(METHOD.recipes()["smoke"].vary("test", drop_path=0.5), Patchwise()).train()
    assert any(isinstance(module, DropPath) for module in method.modules())
    images, mask = torch.randn(4, 3, 32, 32), torch.zeros(4, 16)
    assert not torch.equal(method.student(images, mask), method.student(images, mask))
    method.eval()
    assert torch.equal(method.student(images, mask), method.student(images, mask))


@pytest.mark.parametrize("masked", [False, True])
def test_p09_mask_token_learns_only_where_something_is_masked(method: BEiT, masked: bool) -> None:
    mask = torch.zeros(2, 16)
    mask[:, 3] = float(masked)
    method.student(torch.randn(2, 3, 32, 32), mask).square().sum().backward()
    assert bool(method.student.mask_token.grad.any()) == masked


def test_p10_fine_tuning_pools_the_mean_and_starts_from_a_small_head() -> None:
    recipe = classification.TASK.recipes()["paper"]
    encoder = BEiT(METHOD.recipes()["smoke"], Patchwise()).encoder
    remove_final_norm(encoder)
    model = classification.Classifier(encoder, 1000, recipe).eval()
    assert isinstance(model.encoder.norm, nn.Identity) and isinstance(model.fc_norm, LayerNorm)
    assert 1e-5 < model.head.weight.std() < 3e-5, "0.02, times 0.001"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = encoder.encode(encoder.embed(images))[-1]
        expected = model.head(model.fc_norm(tokens[:, 1:].mean(dim=1)))
        torch.testing.assert_close(model(images), expected)


def test_p10_fine_tuning_recipe_of_the_paper() -> None:
    for card in (METHOD, peco.METHOD):
        changes = card.transfer()["classification"]["paper"]
        assert {name: value for group in changes for name, value in group.values.items()} == {
            "base_lr": 4e-3,
            "lr_rule": "absolute",
            "layer_decay": 0.65,
            "drop_path": 0.1,
            "epochs": 100.0,
            "warmup_epochs": 20.0,
        }
    ((_, ade),) = METHOD.transfer()["segmentation"]["paper"]
    assert (ade["base_lr"], ade["layer_decay"], ade["drop_path"]) == (7e-4, 0.65, 0.1)


def test_peco_is_beit_with_another_tokenizer() -> None:
    assert peco.METHOD.build is BEiT and peco.METHOD.needed(PAPER) == {"tokenizer": "peco-codebook"}
    assert METHOD.needed(PAPER) == {"tokenizer": "dvae"}
    for scale, recipe in peco.METHOD.recipes().items():
        differs = {k for k, v in recipe.values().items() if METHOD.recipes()[scale].values()[k] != v}
        assert differs == ({"token_size"} if scale == "paper" else set())

"""MixedAE's faithfulness, point by point. There is no official code to compare with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mimbench.checkpoint.encoder import load_encoder, save_encoder
from mimbench.errors import UserError
from mimbench.table import spec
from mimbench.vit import ViT
from pretrain.contrastive import homologous_contrast
from pretrain.methods import mae
from pretrain.methods.mixedae import METHOD, MixedAE, topk_attention
from pretrain.target import patchify, standardise, unpatchify

PAPER = METHOD.recipes()["paper"]
MIXINGS = pytest.mark.parametrize("mixing", ["compose", "full"])
NAIVE = {"attention": "standard", "segment_embed": "none", "contrastive_weight": 0.0}


def build(card: Any = METHOD, **changes: Any) -> Any:
    """The smoke encoder on the paper's grid: 14 x 14 patches of 2 pixels."""
    torch.manual_seed(0)
    recipe = card.recipes()["smoke"].vary("test", img_size=28, patch_size=2, **changes)
    return card.build(recipe).train()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 3, 28, 28)


def coded(model: MixedAE) -> MixedAE:
    """Every patch token says of itself which image (channel 0) and which place (channel 1) it is from."""

    def embed(images: Tensor) -> Tensor:
        tokens = torch.zeros(len(images), 196, 32)
        tokens[..., 0] = torch.arange(len(images))[:, None]
        tokens[..., 1] = torch.arange(196)
        return tokens

    model.encoder.embed = embed  # type: ignore[method-assign]
    return model


def losses(model: MixedAE, images: Tensor) -> Tensor:
    torch.manual_seed(1)
    return model(images, 0.0)["loss"]


@MIXINGS
def test_f01_every_source_owns_49_places_of_a_mixed_image_and_no_patch_moves(
    mixing: str, images: Tensor
) -> None:
    x, ids_restore = coded(build(mixing=mixing, segment_embed="none")).mix(images)
    views = {"compose": 1, "full": 4}[mixing]
    assert x.shape[:2] == ids_restore.shape == (2 * views, 196)
    for m, tokens in enumerate(x.gather(1, ids_restore[..., None].expand(-1, -1, 32))):
        assert torch.equal(tokens[:, 1], torch.arange(196.0)), "a patch moved"
        sources, counts = tokens[:, 0].unique(return_counts=True)
        first = m // views * 4
        assert sources.tolist() == [first, first + 1, first + 2, first + 3]
        assert counts.tolist() == [49] * 4
    masks = {tuple(places) for places in (x[..., 1] + 1000 * (x[..., 0] % 4)).sort(dim=1).values.tolist()}
    assert len(masks) == len(x), "every mixed image has a mask of its own"


def test_f01_places_are_random_not_blocks(images: Tensor) -> None:
    """Two neighbours have the same source in about one of four cases."""
    x, ids_restore = coded(build(segment_embed="none")).mix(images.repeat(8, 1, 1, 1))
    sources = x[..., 0].gather(1, ids_restore).reshape(-1, 14, 14)
    assert (sources[:, :, 1:] == sources[:, :, :-1]).float().mean() == pytest.approx(48 / 195, abs=0.02)


def test_f01_token_is_patch_place_and_segment(images: Tensor) -> None:
    model = build()
    x, ids_restore = model.mix(images)
    tokens = model.encoder.embed(images)
    for m, i, k in ((0, 0, 0), (0, 3, 48), (1, 2, 7)):
        place = ids_restore[m].argsort()[i * 49 + k]
        torch.testing.assert_close(x[m, i * 49 + k], tokens[m * 4 + i, place] + model.segment_embed[i])


@pytest.mark.parametrize(("mixing", "num_mixed"), [("compose", 2), ("full", 8)])
def test_f02_sequences_of_encoder_and_decoder(mixing: str, num_mixed: int, images: Tensor) -> None:
    model, seen = build(mixing=mixing), {}
    for name, block in (("encoder", model.encoder.blocks[0]), ("decoder", model.decoder.blocks[0])):
        block.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0].shape[:2]))
    model(images, 0.0)
    assert seen == {"encoder": (num_mixed, 197), "decoder": (8, 197)}


@MIXINGS
def test_f03_pixels_outside_its_places_never_reach_the_encoder(mixing: str, images: Tensor) -> None:
    """With full mixing an image's places are those it gives to any of the group's mixed images."""
    model, views = build(mixing=mixing), {"compose": 1, "full": 4}[mixing]
    noise = torch.rand(2 * views, 196)
    noise[:, :20] += 1  # the last source's in every view, so that the others have places they never give
    x, ids_restore = model.mix(images, noise)
    source = (ids_restore // 49).reshape(2, views, 196)
    given = torch.stack([(source == i).any(dim=1) for i in range(4)], dim=1).reshape(8, 196)
    assert not given.all(dim=1).any()
    patches = torch.where(given[..., None], patchify(images, 2), 1e3)
    assert torch.equal(model.mix(unpatchify(patches, 2), noise)[0], x)
    patches[0, given[0].nonzero()[0]] += 1
    assert not torch.equal(model.mix(unpatchify(patches, 2), noise)[0], x)


@MIXINGS
def test_f04_loss_covers_the_147_hidden_patches_of_each_image(mixing: str, images: Tensor) -> None:
    model = coded(build(mixing=mixing, segment_embed="none"))
    x, ids_restore = model.mix(images)
    x[..., 2] = torch.arange(len(x))[:, None]
    tokens, ids_restore, mask = model.unmix(F.pad(x, (0, 0, 1, 0)), ids_restore)
    assert tokens.shape[:2] == (8, 50) and (mask.sum(dim=1) == 147).all()
    assert torch.equal(tokens[:, 1:, 0], torch.arange(8.0)[:, None].expand(-1, 49)), "another source's token"
    mixed = torch.arange(8) // {"compose": 4, "full": 1}[mixing]  # full: each from the one made for it
    assert torch.equal(tokens[:, 1:, 2], mixed[:, None].expand(-1, 49).float())
    places = torch.cat([tokens[:, 1:, 1], torch.full((8, 147), -1.0)], dim=1).gather(1, ids_restore)
    assert torch.equal(places, torch.where(mask == 1, -1, torch.arange(196.0)))
    target = patchify(images, 2)
    target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
    pred = torch.where(mask[..., None] == 1, target, 99.0)  # the image's own; rubbish where it is visible
    assert model.forward_loss(images, pred, mask) < 1e-10
    assert model.forward_loss(images, pred.roll(1, 0), mask) > 1


@MIXINGS
def test_f04_decoder_puts_every_image_together_for_its_own_loss(
    mixing: str, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(mixing=mixing)
    monkeypatch.setattr(model.decoder, "forward", lambda *_: standardise(patchify(images, 2)))
    assert model(images, 0.0)["reconstruction"] == 0


def weights_of(q: Tensor, k: Tensor, num_kept: int, keep_cls: bool = False) -> Tensor:
    values = torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)
    return topk_attention(q, k, values, num_kept=num_kept, keep_cls=keep_cls)


def test_f05_every_row_has_49_weights_that_are_the_softmax_of_the_largest_logits() -> None:
    q, k = torch.randn(2, 2, 3, 197, 8)
    weights = weights_of(q, k, 49)
    assert ((weights > 0).sum(dim=-1) == 49).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 3, 197))
    logits = (q @ k.mT) / math.sqrt(8)
    least = logits.sort(dim=-1, descending=True).values[..., 48:49]
    torch.testing.assert_close(weights, logits.masked_fill(logits < least, -torch.inf).softmax(dim=-1))


def test_f05_vector() -> None:
    logits = torch.tensor([0.5, 2, -1, 1.5, 0])
    weights = weights_of(torch.ones(1, 1, 5, 1), logits.view(1, 1, 5, 1), 2)
    torch.testing.assert_close(weights[0, 0, 0], torch.tensor([0, 0.62246, 0, 0.37754, 0]), atol=1e-5, rtol=0)


def test_f05_ties_do_not_keep_more() -> None:
    assert ((weights_of(torch.ones(1, 1, 9, 4), torch.ones(1, 1, 9, 4), 4) > 0).sum(dim=-1) == 4).all()


def test_f05_class_token_kept_besides() -> None:
    q, k = torch.randn(2, 1, 2, 17, 8)
    plain, kept = weights_of(q, k, 4), weights_of(q, k, 4, keep_cls=True)
    assert (plain[..., 0] == 0).any() and (kept[..., 0] > 0).all()
    assert ((kept[..., 1:] > 0).sum(dim=-1) == 4).all()
    torch.testing.assert_close(kept.sum(dim=-1), torch.ones(1, 2, 17))
    best = (q @ k[:, :, 1:].mT).topk(4).indices.sort().values
    assert torch.equal(kept[..., 1:].topk(4).indices.sort().values, best)


@pytest.mark.parametrize(("num_kept", "keep_cls"), [(17, False), (16, True), (99, False)])
def test_f05_keeping_all_is_standard_attention_bit_for_bit(num_kept: int, keep_cls: bool) -> None:
    q, k, v = torch.randn(3, 1, 2, 17, 8)
    kept = topk_attention(q, k, v, num_kept=num_kept, keep_cls=keep_cls)
    assert torch.equal(kept, F.scaled_dot_product_attention(q, k, v))


def test_f05_cut_keys_get_no_gradient() -> None:
    q, v, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 9, 8), torch.randn(1, 1, 9, 8, requires_grad=True)
    topk_attention(q, k, v, num_kept=4, keep_cls=False).sum().backward()
    assert torch.equal(k.grad.abs().sum(dim=-1) > 0, weights_of(q, k.detach(), 4)[:, :, 0] > 0)


def test_f05_attention_keeps_r_times_l_and_has_no_parameters(images: Tensor) -> None:
    model, plain = build(), build(mae.METHOD)
    assert set(model.state_dict()) - set(plain.state_dict()) == {"segment_embed"}
    assert model.segment_embed.shape == (4, 32)
    seen = [block.attn.attend.keywords["num_kept"] for block in model.encoder.blocks]
    assert seen == [49] * 4
    assert all(block.attn.attend is F.scaled_dot_product_attention for block in model.decoder.blocks)


@pytest.mark.parametrize(("cls_attention", "keep_cls"), [("plain", False), ("always_keep", True)])
def test_f05_every_block_keeps_the_class_token_where_the_recipe_says_so(
    cls_attention: str, keep_cls: bool
) -> None:
    model = build(cls_attention=cls_attention)
    for _ in range(2):
        assert [b.attn.attend.keywords["keep_cls"] for b in model.encoder.blocks] == [keep_cls] * 4
        model.eval().train()


def test_f06_evaluation_and_transfer_know_nothing_of_mixing(images: Tensor, tmp_path: Path) -> None:
    model = build()
    save_encoder(model.encoder, tmp_path / "e.safetensors", method="mixedae")
    vit, report = load_encoder(tmp_path / "e.safetensors")
    assert set(report.loaded) == set(vit.state_dict()) and not report.new and not report.dropped
    with torch.no_grad():
        pretrained = model.encoder(images)
        transferred = model.eval().encoder(images)
        assert torch.equal(transferred, vit.eval()(images))
    plain = ViT(model.encoder.config)
    plain.load_state_dict(model.encoder.state_dict(), strict=True)
    assert torch.equal(plain.eval()(images), transferred)
    assert (pretrained - transferred).abs().max() > 1e-3, "homologous attention was never on"
    with torch.no_grad():
        assert torch.equal(model.train().encoder(images), pretrained)


def test_f07_vectors_of_the_contrastive_loss() -> None:
    z = torch.tensor([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1], [-0.6, 0.8], [-1, 0]]).reshape(1, 2, 3, 2)
    assert homologous_contrast(3 * z, 0.25).item() == pytest.approx(1.2894944780591877, rel=1e-6)
    assert homologous_contrast(z, 1.0).item() == pytest.approx(1.2903522428959249, rel=1e-6)


def test_f07_constant_features_and_alignment() -> None:
    constant = homologous_contrast(torch.ones(2, 4, 49, 8), 0.25)
    assert constant.item() == pytest.approx(math.log(195), rel=1e-5) == pytest.approx(5.2730, abs=1e-4)
    tokens, centre = torch.randn(2, 4, 49, 8), torch.randn(2, 4, 1, 8)
    aligned = [homologous_contrast(tokens + a * centre, 0.25).item() for a in (0, 1, 3, 9)]
    assert aligned == sorted(aligned, reverse=True) and aligned[0] > aligned[-1] + 1


def test_f08_positives_are_the_others_of_the_source_and_negatives_of_the_same_image() -> None:
    tokens = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    terms = []
    for image in tokens:
        z = image.reshape(12, 5)
        for i in range(12):
            other = [j for j in range(12) if j != i]
            cos = {j: math.exp(F.cosine_similarity(z[i], z[j], dim=0).item() / 0.25) for j in other}
            own = [j for j in other if j // 4 == i // 4]
            assert len(own) == 3
            terms.append(-sum(math.log(cos[j] / sum(cos.values())) for j in own) / len(own))
    assert homologous_contrast(tokens, 0.25).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_f08_the_step_contrasts_normed_patch_tokens_by_source(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = build(), []
    monkeypatch.setattr(
        "pretrain.methods.mixedae.homologous_contrast",
        lambda tokens, temperature: seen.append((tokens, temperature)) or tokens.sum() * 0 + 7,
    )
    normed: list[Tensor] = []
    model.encoder.norm.register_forward_hook(lambda *args: normed.append(args[2]))
    scalars = model(images, 0.0)
    (tokens, temperature), latent = seen[0], normed[0]
    assert tokens.shape == (2, 4, 49, 32) and temperature == 0.25
    assert torch.equal(tokens.flatten(1, 2), latent[:, 1:])
    torch.testing.assert_close(scalars["loss"], scalars["reconstruction"] + 0.1 * 7)


def test_f09_all_three_off_is_naive_mixing(images: Tensor) -> None:
    naive = build(**NAIVE)
    model = build(**{**NAIVE, "attention": "topk"})
    assert not torch.equal(losses(model, images), losses(naive, images))
    model.num_kept = 197
    assert torch.equal(losses(model.train(), images), losses(naive, images))


@pytest.mark.parametrize("mask_ratio", [0.75, 0.6])
def test_f09_without_mixing_it_is_mae(mask_ratio: float, images: Tensor) -> None:
    plain = build(mae.METHOD, mask_ratio=mask_ratio)
    model = build(mixing_ratio=1.0, mask_ratio=mask_ratio, **NAIVE)
    assert all(map(torch.equal, model.state_dict().values(), plain.state_dict().values()))
    results = [losses(module, images) for module in (model, plain)]
    assert torch.equal(*results)
    for loss in results:
        loss.backward()
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert not a.requires_grad or torch.equal(a.grad, b.grad), name


def test_f10_flops_of_compose_and_full_mixing_against_mae() -> None:
    def count(card: Any, **changes: Any) -> float:
        changes = {"mask_ratio": 0.75, **changes}
        recipe = card.recipes()["smoke"].vary(
            "test", arch="vit_base", img_size=224, patch_size=16, decoder_dim=512, decoder_depth=8, **changes
        )
        with torch.device("meta"):
            model = card.build(recipe)
            with FlopCounterMode(display=False) as counter:
                model(torch.empty(4, 3, 224, 224), 0.0)
        said = recipe.step_flops() / 3 * 4
        assert counter.get_total_flops() == pytest.approx(said, rel=0.03)
        return counter.get_total_flops()

    plain = count(mae.METHOD)
    assert 1 < count(METHOD) / plain < 1.04
    assert 1 < count(METHOD, **NAIVE) / plain < 1.02
    assert count(METHOD, mixing="full") / plain == pytest.approx(2.35, abs=0.02)


def test_f11_labels_of_a_groups_images_do_not_matter(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    order = torch.tensor([2, 0, 3, 1])
    ids = torch.stack([torch.randperm(196), torch.randperm(196)])
    relabelled = ids.unflatten(1, (4, 49))[:, order].flatten(1)
    results = []
    for permutation, batch in ((ids, images), (relabelled, images.unflatten(0, (2, 4))[:, order])):
        noise = permutation.argsort(dim=1).float()  # whose order is the permutation
        monkeypatch.setattr("torch.rand", lambda *args, noise=noise, **kwargs: noise)
        results.append(model(batch.reshape(images.shape), 0.0))
        model.segment_embed.data = model.segment_embed.data[order]
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(ids, relabelled)


def test_f12_everything_learns_and_nothing_is_averaged(images: Tensor) -> None:
    model = build()
    model(images, 0.0)["loss"].backward()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"encoder.pos_embed", "decoder.pos_embed"}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, name
    assert (model.segment_embed.grad.abs().sum(dim=1) > 0).all()
    assert not list(model.buffers())
    before = [tensor.clone() for tensor in model.state_dict().values()]
    model.after_step(1)
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert METHOD.needed(PAPER) == {}


def test_f13_recipe_is_maes_and_three_lengths_exist() -> None:
    model = mae.METHOD.recipes()["paper"]
    for name in (
        "betas", "weight_decay", "base_lr", "lr_rule", "global_batch_size", "warmup_epochs", "min_lr",
        "clip_grad", "drop_path", "min_crop_scale", "color_jitter", "mask_ratio", "norm_pix_loss",
        "precision",
    ):  # fmt: skip
        assert getattr(PAPER, name) == getattr(model, name), name
    assert (PAPER.arch, PAPER.group_size, PAPER.num_patches // PAPER.group_size) == ("vit_base", 4, 49)
    assert (PAPER.temperature, PAPER.contrastive_weight, PAPER.mixing) == (0.25, 0.1, "compose")
    rows = [row for row in spec.load("mixedae", "cost").rows if row.method == "mixedae"]
    lengths = [{**row.set, **row.at.get("paper", {})}.get("epochs", PAPER.epochs) for row in rows]
    assert lengths == [300, 800, 1600]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"mixing_ratio": 0.3}, "mixing_ratio"),
        ({"mixing_ratio": 0.0}, "mixing_ratio"),
        ({"mixing_ratio": 0.2, "mask_ratio": 0.8, "global_batch_size": 20}, "mixing_ratio"),  # 196 / 5
        ({"global_batch_size": 18}, "global_batch_size"),
        ({"mask_ratio": 0.5}, "mask_ratio"),
    ],
)
def test_what_cannot_be_mixed_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=field):
        PAPER.vary("test", **changes)

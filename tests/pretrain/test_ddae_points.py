"""DDAE's faithfulness, point by point. No official code: the oracles are closed forms, MAE and SciPy."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from mimbench import catalog
from mimbench.checkpoint.encoder import load_encoder, save_encoder
from mimbench.commands import reproduce
from mimbench.contract import MethodCard
from mimbench.errors import UserError
from mimbench.execute.pool import Report
from mimbench.plan.datasets import Data
from mimbench.plan.planner import Planner
from mimbench.plan.request import Request
from mimbench.store.folder import RunFolder
from mimbench.store.runs import RunStore
from mimbench.table.spec import list_tables, load
from mimbench.train import pretraining
from mimbench.train.optimizer import param_groups
from mimbench.vit import ViT
from pretrain.deep_dynamic import DeepDynamicSupervision, grid_distances, nearest_visible
from pretrain.masking import block_masks, random_masking
from pretrain.methods import beit_dds, ddae, mae, mae_dds
from pretrain.methods.beit_dds import BEiTDDS
from pretrain.methods.ddae import DDAE
from pretrain.methods.mae import MAE
from pretrain.methods.mae_dds import MAEDDS
from pretrain.target import patchify, standardise

SMOKE = ddae.METHOD.recipes()["smoke"]
PAPER = ddae.METHOD.recipes()["paper"]
ALONE = {"taps": (4,), "beta_mode": "fixed", "beta": 0.0}  # one supervised block, no dynamics
VISIBLE = [(0, 0), (0, 3), (2, 2), (3, 1)]  # the 4 x 4 example of the specification


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32)


@pytest.fixture
def example() -> Tensor:
    """Mask `[1, 16]` of the specification's example."""
    mask = torch.ones(4, 4)
    for cell_ in VISIBLE:
        mask[cell_] = 0
    return mask.reshape(1, 16)


def build(**changes: Any) -> DDAE:
    return DDAE(SMOKE.vary("test", **changes)).train()


def supervision(grid_size: int = 4, **changes: Any) -> DeepDynamicSupervision:
    return DeepDynamicSupervision(SMOKE.vary("test", **changes), grid_size)


def masks(kind: str, grid_size: int, batch: int = 6) -> Tensor:
    num_patches = grid_size**2
    if kind == "random":
        return random_masking(batch, num_patches, 0.75, torch.device("cpu"))[2]
    return block_masks(batch, grid_size, num_patches * 3 // 4, 2, torch.device("cpu"))


# -- the encoders --------------------------------------------------------------------------------------------


def test_f01_encoder_sees_visible_patches_and_the_momentum_encoder_all(monkeypatch: Any) -> None:
    model = DDAE(SMOKE.vary("test", img_size=28, patch_size=2, mask_ratio=0.75))  # 14 x 14 patches
    seen: dict[str, Tensor] = {}
    for name, vit in (("encoder", model.encoder), ("teacher", model.teacher)):
        vit.blocks[0].register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
    embedded: list[Tensor] = []
    for vit in (model.encoder, model.teacher):
        vit.patch_embed.register_forward_pre_hook(lambda _, args: embedded.append(args[0]))
    model(torch.randn(2, 3, 28, 28), 0.5)
    assert seen["encoder"].shape[:2] == (2, 50)
    assert seen["teacher"].shape[:2] == (2, 197)
    assert embedded[0] is embedded[1], "both get the same crop"
    assert PAPER.num_patches == 196 and PAPER.num_visible == 49


def test_f01_masked_pixels_reach_the_momentum_encoder_only(images: Tensor) -> None:
    model, noise = build(), torch.rand(3, 16)
    latent, _, mask = model.forward_encoder(images, noise)
    hidden = mask.reshape(3, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    garbled = images + 5 * hidden
    assert torch.equal(model.forward_encoder(garbled, noise)[0], latent)
    assert not torch.equal(model.feature_target(garbled), model.feature_target(images))


def test_f02_momentum_encoder_gets_no_gradient_and_follows_the_encoder(images: Tensor) -> None:
    model = build(momentum=0.9, final_momentum=0.8, momentum_epochs=1.0)
    assert all(map(torch.equal, model.teacher.state_dict().values(), model.encoder.state_dict().values()))
    model.before_train(6)  # of two epochs: three steps each
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step, m in enumerate((0.9, 0.9 - 0.1 / 3, 0.9 - 0.2 / 3, 0.8, 0.8)):
        model(images, step / 6)["loss"].backward()
        assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
        optimizer.step()
        optimizer.zero_grad()
        old = {name: p.clone() for name, p in model.teacher.named_parameters()}
        model.after_step(step + 1)  # it is told how many are done
        new = dict(model.encoder.named_parameters())
        for name, p in model.teacher.named_parameters():
            torch.testing.assert_close(p, m * old[name] + (1 - m) * new[name], rtol=1e-5, atol=1e-7)
    assert not any(module.training for module in model.teacher.modules())


def test_f02_momentum_at_paper_scale() -> None:
    momentum = [replace(PAPER, epochs=800.0).momentum_at(epoch) for epoch in (0, 50, 100, 800)]
    assert momentum == pytest.approx([0.999, 0.99945, 0.9999, 0.9999])


# -- distances and weights -----------------------------------------------------------------------------------


def test_f03_distances_of_the_example(example: Tensor) -> None:
    root = math.sqrt(2)
    expected = [[0, 1, 1, 0], [1, root, 1, 1], [root, 1, 0, 1], [1, 0, 1, root]]
    d = nearest_visible(example, grid_distances(4)).reshape(4, 4)
    torch.testing.assert_close(d, torch.tensor(expected))


@pytest.mark.parametrize("kind", ["random", "block"])
def test_f03_distances_are_scipys_and_do_not_depend_on_the_batch(kind: str) -> None:
    mask = masks(kind, 14)
    d = nearest_visible(mask, grid_distances(14))
    oracle = np.stack([distance_transform_edt(m).ravel() for m in mask.reshape(-1, 14, 14).numpy()])
    np.testing.assert_allclose(d, oracle, atol=1e-6)
    assert (d[mask == 0] == 0).all() and (d[mask == 1] >= 1).all()
    order = torch.randperm(len(mask))
    assert torch.equal(nearest_visible(mask[order], grid_distances(14)), d[order])
    assert torch.equal(nearest_visible(mask[2:3], grid_distances(14)), d[2:3])


@pytest.mark.parametrize(
    ("beta", "near", "far"),
    [(1.0, 0.906164, 1.281509), (0.5, 0.954835, 1.135496), (-0.5, 1.041424, 0.875729)],
)
def test_f03_weights_of_the_example(example: Tensor, beta: float, near: float, far: float) -> None:
    d = nearest_visible(example, grid_distances(4))
    weights = supervision(beta_mode="fixed", beta=beta).weights(example, 0.0)
    for w in weights:
        torch.testing.assert_close(w[d == 1], torch.full((9,), near), rtol=0, atol=1e-6)
        torch.testing.assert_close(w[d > 1], torch.full((3,), far), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["schedule", "learnable", "fixed"])
@pytest.mark.parametrize("kind", ["random", "block"])
def test_f04_weights_are_zero_on_visible_patches_and_sum_to_the_masked(mode: str, kind: str) -> None:
    dds, mask = supervision(14, beta_mode=mode), masks(kind, 14)
    for step_fraction in (0.0, 0.3, 0.999):
        w = dds.weights(mask, step_fraction)
        assert w.shape == (4, 6, 196) and torch.isfinite(w).all()
        assert (w[:, mask == 0] == 0).all() and (w[:, mask == 1] > 0).all()
        torch.testing.assert_close(w.sum(dim=-1), mask.sum(dim=-1).expand(4, -1))


def test_f04_raw_weights_are_powers_of_the_distance() -> None:
    mask = masks("block", 14)
    d = nearest_visible(mask, grid_distances(14))
    raw = supervision(14, beta_mode="fixed", beta=-0.7, normalize_weights=False).weights(mask, 0.0)
    torch.testing.assert_close(raw[0][mask == 1], d[mask == 1] ** -0.7)
    assert (raw[:, mask == 0] == 0).all()


# -- the loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("mode", ["schedule", "fixed"])
def test_f05_without_beta_it_is_plain_deep_supervision(images: Tensor, mode: str, gamma: float) -> None:
    """The schedule's beta is 0 in the first step."""
    model = build(beta_mode=mode, beta=1.0 if mode == "schedule" else 0.0, gamma=gamma)
    if gamma:  # a teacher that is not the student
        with torch.no_grad():
            for p in model.teacher.parameters():
                p.add_(torch.randn_like(p) * 0.05)
    torch.manual_seed(1)
    loss = model(images, 0.0)["loss"]
    torch.manual_seed(1)
    latent, ids_restore, mask = model.forward_encoder(images)
    pixel, *feature = model.decoder(latent, ids_restore)
    expected, chosen = 0.0, mask == 1
    pixels = standardise(patchify(images, 8))
    for tap in range(4):
        expected += F.mse_loss(pixel[tap][chosen], pixels[chosen]) / 4
        if gamma:
            hidden = model.teacher.encode(model.teacher.embed(images), taps=[tap])[0][:, 1:][chosen]
            pair = [  # LayerNorm by hand
                (x - x.mean(1, keepdim=True)) / x.std(1, False, keepdim=True)
                for x in (feature[0][tap][chosen], hidden)
            ]
            expected += gamma * F.mse_loss(*pair) / 4
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decoders", ["shared", "per_tap", "per_target"])
def test_f05_one_tap_without_features_is_mae(images: Tensor, decoders: str) -> None:
    model = build(**ALONE, gamma=0.0, decoders=decoders, decoder_depth=2, norm_pix_loss=True)
    fields = mae.METHOD.recipes()["smoke"].values()
    oracle = MAE(mae.MAERecipe.from_values({name: model.recipe.values()[name] for name in fields}))
    assert model.teacher is None
    renamed = {
        name.replace("decoder.trunks.0.", "decoder.")
        .replace("embed.0.", "embed.")
        .replace("pred.0.", "pred."): x
        for name, x in model.state_dict().items()
    }
    assert set(renamed) == set(oracle.state_dict())
    oracle.load_state_dict(renamed)
    results = []
    for method in (model, oracle):
        torch.manual_seed(7)
        loss = method(images, 0.4)["loss"]
        loss.backward()
        results.append((loss, [p.grad for p in method.encoder.parameters() if p.requires_grad]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-6)


def test_f06_beta_moves_the_loss_towards_far_or_near_patches() -> None:
    mask = masks("block", 14)
    d = nearest_visible(mask, grid_distances(14))
    farthest = d == d.amax(dim=1, keepdim=True)
    losses = torch.ones(4, 6, 196)
    shares = []
    for beta in (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0):
        dds = supervision(14, beta_mode="fixed", beta=beta)
        far = dds(losses * farthest, mask, 0.0)
        shares.append((far / dds(losses, mask, 0.0)).item())
    assert all(a < b for a, b in zip(shares, shares[1:], strict=False))
    assert shares[3] == pytest.approx((farthest.sum() / mask.sum()).item())


# -- beta ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_f07_schedule_goes_from_zero_to_each_taps_beta(sign: int) -> None:
    dds = supervision(beta=0.8, depth_sign=sign)
    assert (dds.betas(0.0) == 0).all()
    end = sign * 0.8 * torch.tensor([-1, -1 / 3, 1 / 3, 1])
    torch.testing.assert_close(dds.betas(1.0), end)
    torch.testing.assert_close(dds.betas(0.5), end / 2)
    deepest = [sign * dds.betas(t)[-1].item() for t in np.linspace(0, 1, 11)]
    assert all(a < b for a, b in zip(deepest, deepest[1:], strict=False))
    torch.testing.assert_close(supervision(taps=(4,)).betas(1.0), torch.ones(1))


def test_f07_betas_are_in_the_runs_log(pretraining_folder: Callable[..., RunFolder]) -> None:
    """In every step of two epochs."""
    folder = pretraining_folder(ddae.METHOD, steps=6)
    pretraining.run(folder, ddae.METHOD)
    lines = folder.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        grown = 0.5 * (1 - math.cos(math.pi * (line["step"] - 1) / 6))
        logged = [line[f"beta_{tap}"] for tap in (1, 2, 3, 4)]
        assert logged == pytest.approx([grown * x for x in (-1, -1 / 3, 1 / 3, 1)], abs=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_f08_learnable_beta_is_bounded_and_learns_without_decay(images: Tensor, normalize: bool) -> None:
    model = build(beta_mode="learnable", beta=0.6, normalize_weights=normalize, mask_ratio=0.8)
    dds = model.supervision
    torch.testing.assert_close(dds.betas(0.0), 0.6 * 0.5 * torch.tensor([-1, -1 / 3, 1 / 3, 1]))
    model(images, 0.0)["loss"].backward()
    assert (dds.free_beta.grad != 0).all()
    undecayed, decayed = param_groups(model, 0.05)
    assert undecayed["weight_decay"] == 0
    assert any(p is dds.free_beta for p in undecayed["params"])
    assert not any(p is dds.free_beta for p in decayed["params"])
    with torch.no_grad():
        dds.free_beta.copy_(torch.tensor([-1e3, -3.0, 3.0, 1e3]))
    assert (dds.betas(0.9).abs() <= 0.6).all()


def test_f08_normalised_weights_leave_no_way_to_shrink_the_loss() -> None:
    """With equal losses everywhere beta has nothing to gain, unless the weights are raw."""
    mask, losses = masks("block", 14), torch.ones(4, 6, 196)
    for normalize, gains in ((True, False), (False, True)):
        dds = supervision(14, beta_mode="learnable", normalize_weights=normalize)
        dds(losses, mask, 0.0).backward()
        assert bool((dds.free_beta.grad.abs() > 1e-4).all()) == gains


def test_f09_pixels_and_features_share_the_taps_weights(images: Tensor, monkeypatch: Any) -> None:
    model = build(gamma=0.5)
    weights = torch.rand(4, 3, 16)
    monkeypatch.setattr(model.supervision, "weights", lambda mask, step_fraction: weights * mask)
    errors: list[Tensor] = []
    forward = model.supervision.forward
    monkeypatch.setattr(
        model.supervision, "forward", lambda losses, *rest: errors.append(losses) or forward(losses, *rest)
    )
    torch.manual_seed(3)
    scalars = model(images, 0.7)
    torch.manual_seed(3)
    mask = model.forward_encoder(images)[2]
    (pixel_error, feature_error), count = errors[0], mask.sum()
    pixel, feature = ((error * weights * mask).sum() / count / 4 for error in (pixel_error, feature_error))
    torch.testing.assert_close(scalars["loss"], pixel + 0.5 * feature)
    torch.testing.assert_close((scalars["pixel_loss"], scalars["feature_loss"]), (pixel, feature))


@pytest.mark.parametrize("decoders", ["shared", "per_tap", "per_target"])
def test_f10_a_tap_reaches_no_deeper_block(images: Tensor, decoders: str) -> None:
    model = build(taps=(1, 3, 4), decoders=decoders)
    for position, tap in enumerate(model.recipe.taps):
        model.zero_grad()
        latent, ids_restore, _ = model.forward_encoder(images)
        pixel, feature = model.decoder(latent, ids_restore)
        assert pixel.shape == (3, 3, 16, 192) and feature.shape == (3, 3, 16, 32)
        (pixel[position].square().sum() + feature[position].square().sum()).backward()
        for number, block in enumerate(model.encoder.blocks, start=1):
            reached = any(p.grad is not None and p.grad.abs().max() > 0 for p in block.parameters())
            assert reached == (number <= tap), f"tap {tap}, block {number}"


@pytest.mark.parametrize("decoders", ["shared", "per_tap", "per_target"])
def test_f10_taps_in_one_batch_are_decoded_as_one_by_one(images: Tensor, decoders: str) -> None:
    model, noise = build(taps=(1, 3, 4), decoders=decoders), torch.rand(3, 16)
    for norm in model.norms:
        nn.init.normal_(norm.weight)
    latent, ids_restore, _ = model.forward_encoder(images, noise)
    together = torch.cat(list(model.decoder(latent, ids_restore)), dim=-1)  # [S, B, N, both]
    visible = noise.argsort(dim=1)[:, : model.recipe.num_visible]
    x = model.encoder.embed(images)[torch.arange(3)[:, None], visible]
    hidden = model.encoder.encode(x, taps=(0, 2, 3))[:3]
    for position, norm in enumerate([*model.norms, model.encoder.norm]):
        trunks = model.decoder.trunks
        alone = []
        for trunk in [trunks[position]] if decoders == "per_tap" else trunks:
            project = trunk.embed
            trunk.embed = project[0 if decoders == "per_tap" else position]
            alone.append(trunk(norm(hidden[position]), ids_restore))
            trunk.embed = project
        torch.testing.assert_close(together[position], torch.cat(alone, dim=-1), rtol=1e-4, atol=1e-5)


def test_f11_feature_targets_are_standardised_and_of_their_depth(images: Tensor) -> None:
    model = build()
    target = model.feature_target(images)
    assert target.shape == (4, 3, 16, 32) and not target.requires_grad
    torch.testing.assert_close(target.mean(dim=-1), torch.zeros(4, 3, 16), rtol=0, atol=1e-5)
    torch.testing.assert_close(target.var(dim=-1, correction=0), torch.ones(4, 3, 16), rtol=0, atol=1e-3)
    last = build(feature_target="last")
    last.teacher.load_state_dict(model.teacher.state_dict())
    from_last = last.feature_target(images)
    assert all(torch.equal(from_last[tap], target[3]) for tap in range(4))
    assert not any(torch.equal(target[tap], target[3]) for tap in range(3))
    hidden = model.teacher.taps(images, [0])[0].flatten(2).transpose(1, 2)  # [B, N, D] after the first block
    torch.testing.assert_close(target[0], F.layer_norm(hidden, (32,), eps=1e-6))


@pytest.mark.parametrize("method", [DDAE, MAEDDS, BEiTDDS])
def test_f12_what_is_exported_is_the_plain_encoder(method: type[nn.Module], tmp_path: Path) -> None:
    card = {DDAE: ddae, MAEDDS: mae_dds, BEiTDDS: beit_dds}[method].METHOD
    model = method(card.recipes()["smoke"])
    assert set(model.encoder.state_dict()) == set(ViT(model.encoder.config).state_dict())
    save_encoder(model.encoder, tmp_path / "e.safetensors", method=card.name)
    _, report = load_encoder(tmp_path / "e.safetensors")
    assert report.new == report.dropped == []


def test_f13_every_row_of_it_is_tagged_a_reconstruction(tmp_path: Path, smoke_data: Path) -> None:
    """In the plans of its tables, and in the tables that are made of these; rows of MAE are none."""
    request, store, seen = Request(scale="smoke"), RunStore(tmp_path / "runs"), set()
    cards, data = catalog.Catalog(tmp_path), Data(request, lambda: smoke_data)
    for spec in [load("ddae", name) for paper, name in list_tables() if paper == "ddae"]:
        where = f"tables/ddae/{spec.name}.toml"
        plan = Planner(cards, store, data, request).table(spec.rows, spec.columns, where)
        ours = {row.id for row in spec.rows if row.method in ("ddae", "mae-dds", "beit-dds")}
        seen |= {row.method for row in spec.rows if row.id in ours}
        rebuilt = {row for row, word in plan.provenance.items() if word == "reconstruction"}
        assert rebuilt >= ours
        assert not rebuilt & {row.id for row in spec.rows if row.method == "mae"}
        for row in reproduce.aggregate(spec, plan, Report(), request, store, where=where).rows:
            assert row.provenance == plan.provenance.get(row.spec.id, "")
    assert seen == {"ddae", "mae-dds", "beit-dds"}


# -- the variants, and the other hosts -----------------------------------------------------------------------


def test_taps_must_ascend_to_the_last_block() -> None:
    for taps in ((), (0, 4), (2, 2, 4), (4, 2), (1, 2), (2, 5)):
        with pytest.raises(UserError, match="taps"):
            SMOKE.vary("test", taps=taps)
    assert PAPER.taps == (6, 8, 10, 12)


def test_block_masks_hide_as_many_patches_as_random_ones(images: Tensor) -> None:
    model = build(masking="block", img_size=112, mask_ratio=0.75, min_mask_block=16)
    given = torch.randn(3, 3, 112, 112)
    mask = model.forward_encoder(given, model.draw_noise(given))[2]
    assert (mask.sum(dim=1) == 147).all()
    far = nearest_visible(mask, grid_distances(14)).max()
    scattered = nearest_visible(masks("random", 14, batch=3), grid_distances(14)).max()
    assert far > scattered, "blocks leave patches farther from visible ones"
    assert build().draw_noise(images) is None


@pytest.mark.parametrize(
    ("card", "changes"), [(ddae.METHOD, {}), (ddae.METHOD, {"gamma": 0.0}), (mae_dds.METHOD, {})]
)
@pytest.mark.parametrize("masking", ["random", "block"])
def test_a_step_hides_the_masks_of_the_kind_asked_for(
    card: MethodCard, changes: dict[str, Any], masking: str, images: Tensor, monkeypatch: Any
) -> None:
    recipe = card.recipes()["smoke"].vary("test", masking=masking, **changes)
    model, hidden = card.build(recipe), []
    forward_encoder = model.forward_encoder

    def spy(given: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        assert given is images
        assert (noise is None) == (masking == "random")
        latent, ids_restore, mask = forward_encoder(given, noise)
        hidden.append(mask)
        return latent, ids_restore, mask

    monkeypatch.setattr(model, "forward_encoder", spy)
    random.seed(2)
    model(images, 0.5)
    if masking == "block":
        random.seed(2)
        blocks = block_masks(3, 4, 10, recipe.min_mask_block, images.device)
        assert [mask.tolist() for mask in hidden] == [blocks.tolist()]


def test_size_at_paper_scale() -> None:
    """A shared trunk of four blocks costs a projection per tap; four trunks cost four times as much."""
    with torch.device("meta"):
        shared, per_tap = DDAE(PAPER), DDAE(PAPER.vary("test", decoders="per_tap"))
    block, ends = 12 * 512**2 + 13 * 512, 512 + 197 * 512 + 2 * 512  # mask token, positions, norm
    project, heads = 768 * 512 + 512, 2 * (512 * 768 + 768)
    trunk = 4 * block + ends + heads
    assert sum(p.numel() for p in shared.decoder.parameters()) == trunk + 4 * project
    assert sum(p.numel() for p in per_tap.decoder.parameters()) == 4 * (trunk + project)
    assert sum(p.numel() for p in shared.norms.parameters()) == 3 * 2 * 768
    assert all(len(trunk.blocks) == 4 for trunk in shared.decoder.trunks)


def test_without_features_it_is_mae_under_supervision(images: Tensor) -> None:
    one = build(gamma=0.0)
    fields = mae_dds.METHOD.recipes()["smoke"].values()
    two = MAEDDS(mae_dds.MAEDDSRecipe.from_values({name: one.recipe.values()[name] for name in fields}))
    two.load_state_dict(one.state_dict())
    losses = []
    for method in (one, two):
        torch.manual_seed(5)
        losses.append(method(images, 0.6)["loss"])
    assert torch.equal(*losses)


def test_a_host_with_mask_tokens_alone_is_pixel_regression(images: Tensor) -> None:
    recipe = beit_dds.METHOD.recipes()["smoke"].vary("test", **ALONE)
    model = BEiTDDS(recipe)
    random.seed(2)
    loss = model(images, 0.5)["loss"]
    random.seed(2)
    mask = block_masks(3, 4, recipe.num_masked, recipe.min_mask_block, images.device)
    tokens = model.student(images, mask)[:, 1:]
    pred, target = model.heads[0](tokens), standardise(patchify(images, 8))
    torch.testing.assert_close(loss, F.mse_loss(pred[mask == 1], target[mask == 1]))


def test_a_host_with_mask_tokens_is_weighted_too(images: Tensor) -> None:
    recipe = beit_dds.METHOD.recipes()["smoke"].vary("test", num_masked=11)
    model = BEiTDDS(recipe)
    for head in model.heads:
        nn.init.normal_(head.weight)
    random.seed(2)
    scalars = model(images, 0.99)
    random.seed(2)
    mask = block_masks(3, 4, recipe.num_masked, recipe.min_mask_block, images.device)
    errors = (model.predict(images, mask) - standardise(patchify(images, 8))).square().mean(dim=-1)
    d, expected = nearest_visible(mask, grid_distances(4)), 0.0
    for tap in range(4):
        for b in range(3):
            power = d[b][mask[b] == 1] ** scalars[f"beta_{tap + 1}"]
            expected += (power / power.mean() * errors[tap, b][mask[b] == 1]).mean() / 12
    torch.testing.assert_close(scalars["loss"], expected)
    assert scalars["beta_1"] < scalars["beta_2"] < 0 < scalars["beta_3"] < scalars["beta_4"]

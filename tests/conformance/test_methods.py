"""What every method and teacher must do. None is known here by name: discovery finds them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

from downstream.backbone import ViTBackbone
from mimbench import catalog, discovery
from mimbench.checkpoint.encoder import load_encoder, save_encoder
from mimbench.contract import PROVENANCES, MethodCard
from mimbench.data.captions import Tokenizer
from mimbench.recipe import SCALES
from mimbench.store.folder import RunFolder
from mimbench.train import pretraining
from mimbench.train.loader import LOADER_STREAM, MODEL_STREAM, seed_everything
from mimbench.train.optimizer import param_groups
from mimbench.vit import ViT

CARDS = [catalog.card(kind, name) for kind in ("method", "teacher") for name in discovery.names(kind)]
TOKENIZER = Tokenizer.build(["a red disc", "a striped cross on green ground"])
BATCH = 8
GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def over(cards: list[MethodCard]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("card", cards, ids=[card.name for card in cards])


every = over(CARDS)
every_trained = over([card for card in CARDS if card.trains])


@pytest.fixture
def build(pretraining_folder: Callable[..., RunFolder]) -> Callable[..., nn.Module]:
    """`build(card, seed)`: the module at scale smoke, in training mode, with trained teachers."""

    def make(card: MethodCard, seed: int = 0) -> nn.Module:
        folder = pretraining_folder(card)
        parts: dict[str, Any] = {role: pretraining.load_teacher(folder, role) for role in folder.parents}
        if card.inputs == "image+caption":
            parts["tokenizer"] = TOKENIZER
        return pretraining.initialise(card, card.recipes()["smoke"], seed, **parts).train()

    return make


def batch_of(card: MethodCard, size: int = BATCH) -> Any:
    recipe = card.recipes()["smoke"]
    side = recipe.img_size
    if card.augment is not None:
        seed_everything(0, 0, LOADER_STREAM)
        view = card.augment(recipe)
        noise = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), dtype=np.uint8)
        views = default_collate([view(Image.fromarray(pixels)) for pixels in noise])
        return pretraining.prepare(views, torch.device("cpu"))
    images = torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(0))
    if card.inputs == "image":
        return images
    tokens = [
        TOKENIZER.encode(f"a {TOKENIZER.words[3 + i % (TOKENIZER.size - 3)]} disc") for i in range(size)
    ]
    return images, torch.tensor(tokens)


def loss_of(method: nn.Module, batch: Any, *, step: int = 0) -> Tensor:
    seed_everything(0, step, MODEL_STREAM)
    return method(batch, 0.25)["loss"]


def teachers_of(card: MethodCard, method: nn.Module) -> list[nn.Module]:
    return [getattr(method, role) for role in card.needed(card.recipes()["smoke"])]


# -- what the card says --------------------------------------------------------------------------------------


@every
def test_card_is_complete(card: MethodCard) -> None:
    assert card.title and card.paper, "METHOD has no title, or no paper"
    assert card.name in discovery.names("teacher" if card.stage == "teacher" else "method")
    assert card.load is not None or card.stage == "pretrain"
    provenance = card.provenance_of(card.recipes()["paper"])
    assert provenance in PROVENANCES
    if provenance == "official":
        assert re.fullmatch(r"[\w.-]+/[\w.-]+(@[0-9a-f]{7,40})?", card.code or ""), "code: owner/name@commit"
    if provenance == "reconstruction":
        assert card.code is None, "a method with its authors' code is official; an idea of yours is own"
    missing = [name for name in card.golden if not (GOLDEN / name).is_file()]
    assert not missing, f"METHOD's golden files are not in {GOLDEN}: {missing}"
    for recipe in card.recipes().values():
        for name in card.needed(recipe).values():
            assert catalog.card(discovery.kind_of(name), name).load is not None, f"{name} cannot be loaded"


@every
def test_the_checklists_points_are_counted(card: MethodCard) -> None:
    module = discovery.module_of(discovery.kind_of(card.name), card.name).rpartition(".")[2]
    file = GOLDEN.parent / "pretrain" / f"test_{module}_points.py"
    tests = file.read_text(encoding="utf-8") if file.is_file() else ""
    points = {int(number) for number in re.findall(r"^def test_[fp](\d\d)_", tests, flags=re.MULTILINE)}
    said = f"METHOD has points={card.points}"
    assert points == set(range(1, card.points + 1)), f"{said}; {file} has test_f.._ of {sorted(points)}"


@every
def test_every_scale_has_a_recipe_and_every_value_a_source(card: MethodCard) -> None:
    recipes = card.recipes()
    assert tuple(sorted(recipes)) == tuple(sorted(SCALES))
    for scale, recipe in recipes.items():
        assert set(recipe.sources) == set(recipe.values()), scale
        assert all(source.strip() for source in recipe.sources.values()), scale
        again = type(recipe).from_values(json.loads(json.dumps(recipe.values())))
        assert again == recipe, "the recipe does not survive result.json"
        assert recipe.img_size % recipe.patch_size == 0
        assert recipe.warmup_epochs <= recipe.epochs
    assert len({type(recipe) for recipe in recipes.values()}) == 1


@every
def test_transfer_changes_only_what_exists(card: MethodCard) -> None:
    for task, scales in card.transfer().items():
        assert task in discovery.names("task")
        recipes = catalog.task(task).recipes()
        for scale, groups in scales.items():
            values = recipes[scale].values()
            given: list[str] = []
            for source, changes in groups:
                assert source.strip() and set(changes) <= set(values), (task, scale)
                type(recipes[scale]).from_values({**values, **changes})
                given += changes
            assert len(given) == len(set(given)), f"{task}, {scale}: a field is given twice"


# -- one step ------------------------------------------------------------------------------------------------


@every_trained
def test_loss_is_a_finite_scalar_and_so_is_all_it_logs(
    card: MethodCard, build: Callable[..., nn.Module]
) -> None:
    scalars = build(card)(batch_of(card), 0.0)
    assert "loss" in scalars and scalars["loss"].requires_grad
    for name, value in scalars.items():
        assert value.shape == () and torch.isfinite(value), name


@every_trained
def test_every_trainable_parameter_learns_and_no_target_does(
    card: MethodCard, build: Callable[..., nn.Module]
) -> None:
    method = build(card)
    teachers = teachers_of(card, method)
    before = [tensor.clone() for teacher in teachers for tensor in teacher.state_dict().values()]
    loss_of(method, batch_of(card)).backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, f"{name} learns nothing"
            assert torch.isfinite(parameter.grad).all(), name
        else:
            assert parameter.grad is None, name
    for teacher in teachers:
        assert not any(p.requires_grad for p in teacher.parameters())
        assert not any(module.training for module in teacher.modules()), "the teacher must stay in eval mode"
    after = [tensor for teacher in teachers for tensor in teacher.state_dict().values()]
    assert all(map(torch.equal, before, after))


@every_trained
def test_optimizer_gets_every_trainable_parameter_once(
    card: MethodCard, build: Callable[..., nn.Module]
) -> None:
    method = build(card)
    exempt = method.no_weight_decay()
    groups = param_groups(method, 0.05, exempt)
    given = [id(p) for group in groups for p in group["params"]]
    assert sorted(given) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    known = {name.rsplit(".", 1)[-1] for name, _ in method.named_parameters()}
    assert {name for name in exempt if name != "pos_embed"} <= known, "a name that is exempt does not exist"


@every_trained
def test_a_seed_decides_weights_and_loss(card: MethodCard, build: Callable[..., nn.Module]) -> None:
    batch = batch_of(card)
    one, same, other = build(card), build(card), build(card, seed=1)
    for (name, a), b in zip(one.state_dict().items(), same.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(loss_of(one, batch), loss_of(same, batch))
    assert not torch.equal(loss_of(one, batch), loss_of(other, batch))


@every_trained
def test_a_step_draws_from_seeded_generators_only(card: MethodCard, build: Callable[..., nn.Module]) -> None:
    method, batch = build(card), batch_of(card)
    losses = [loss_of(method, batch, step=step) for step in (0, 1, 0)]
    assert torch.equal(losses[0], losses[2])


@every_trained
def test_twenty_steps_on_one_batch_lower_the_loss(card: MethodCard, build: Callable[..., nn.Module]) -> None:
    method, batch = build(card), batch_of(card)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for step in range(20):
        loss = loss_of(method, batch, step=step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@every_trained
def test_a_step_fetches_nothing_from_the_device(card: MethodCard, build: Callable[..., nn.Module]) -> None:
    """On the meta device no tensor has a value: whatever reads one (`item`, `tolist`, `if tensor`) fails."""
    method, batch = build(card).to("meta"), pretraining.prepare(batch_of(card), torch.device("meta"))
    loss = loss_of(method, batch)
    assert loss.device.type == "meta"
    loss.backward()


@every_trained
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_never_waits_for_the_gpu(card: MethodCard, build: Callable[..., nn.Module]) -> None:
    method, batch = build(card).cuda(), pretraining.prepare(batch_of(card), torch.device("cuda"))
    loss_of(method, batch).backward()  # the first step may: kernels are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        seed_everything(0, 1, MODEL_STREAM)
        method(batch, 0.25)["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def no_fast_path() -> Iterator[None]:
    """PyTorch's fused attention for inference hides its FLOPs from the counter."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@every_trained
@pytest.mark.usefixtures("no_fast_path")
def test_flops_are_those_of_a_step(card: MethodCard, build: Callable[..., nn.Module]) -> None:
    recipe, method = card.recipes()["smoke"], build(card)
    with FlopCounterMode(display=False) as counter:
        loss_of(method, batch_of(card)).backward()
    counted = counter.get_total_flops() / BATCH
    said = catalog.step_flops(card, recipe, "smoke")
    assert 0.5 < said / counted < 2, f"{said:.3g} said, {counted:.3g} counted"
    scales = ("smoke", "toy", "small", "paper")
    by_scale = [catalog.step_flops(card, card.recipes()[scale], scale) for scale in scales]
    smoke, toy, small, paper = by_scale
    assert 0 < smoke <= min(toy, small) <= max(toy, small) <= paper


# -- the encoder, and the way to it --------------------------------------------------------------------------


@over([card for card in CARDS if card.stage == "pretrain"])
def test_encoder_is_the_plain_vit_and_survives_its_file(
    card: MethodCard, build: Callable[..., nn.Module], tmp_path: Path
) -> None:
    method, recipe = build(card).eval(), card.recipes()["smoke"]
    vit = method.encoder
    assert type(vit) is ViT
    assert (vit.config.img_size, vit.config.patch_size) == (recipe.img_size, recipe.patch_size)
    with torch.no_grad():
        for parameter in vit.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)  # zeros and ones would hide a mistake
    save_encoder(vit, tmp_path / "encoder.safetensors", method=card.name)
    loaded, report = load_encoder(tmp_path / "encoder.safetensors")
    assert report.new == report.dropped == report.interpolated == []
    assert sorted([*report.loaded, *report.folded]) == sorted(loaded.state_dict())
    images = torch.randn(2, 3, recipe.img_size, recipe.img_size)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(images), vit(images), rtol=0, atol=1e-5)
    larger, _ = load_encoder(tmp_path / "encoder.safetensors", img_size=2 * recipe.img_size)
    assert torch.isfinite(larger(torch.randn(1, 3, 2 * recipe.img_size, 2 * recipe.img_size))).all()
    maps = ViTBackbone(tmp_path / "encoder.safetensors", img_size=2 * recipe.img_size)  # of the dense tasks
    assert maps.load_report.new == [] and set(maps.load_report.dropped) <= {"norm.weight", "norm.bias"}
    assert {tuple(x.shape[2:]) for x in maps(torch.randn(1, 3, 64, 64))} == {(64 // recipe.patch_size,) * 2}


@every
def test_a_run_leaves_what_the_next_one_needs(
    card: MethodCard, pretraining_folder: Callable[..., RunFolder]
) -> None:
    folder = pretraining_folder(card, steps=3)
    metrics = pretraining.run(folder, card)
    assert folder.details["steps"] == (3 if card.trains else 0)
    assert all(np.isfinite(value) for value in metrics.values())
    if card.trains:
        assert "loss" in metrics and folder.metrics()[-1]["step"] == 3
    if card.stage == "pretrain":
        vit, _ = load_encoder(folder.encoder_path)
        assert all(torch.isfinite(tensor).all() for tensor in vit.state_dict().values())
        return
    assert card.load is not None
    network = card.load(folder)
    trained = load_file(folder.path / "teacher.safetensors")
    prefix = next(
        name.removesuffix(own)
        for own in network.state_dict()
        for name in trained
        if name.endswith(own) and torch.equal(trained[name], network.state_dict()[own])
    )
    for own, tensor in network.state_dict().items():
        assert torch.equal(tensor, trained[prefix + own]), f"{own} is not what was trained"

"""Recipes: every value has a source, plain values and back, overrides that fit."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mimbench import catalog, discovery
from mimbench.errors import UserError
from mimbench.override import override
from mimbench.recipe import SMALL, Cited, PretrainRecipe, Recipe, cite
from mimbench.vit import ViT


@dataclass(frozen=True, kw_only=True)
class Small(Recipe):
    arch: str
    lr: float
    steps: int
    betas: tuple[float, float]
    clip_grad: float | None
    flip: bool
    rule: Literal["linear", "sqrt"]


CODE = cite("code", clip_grad=None, flip=True)
GROUPS = (
    cite("paper, Table 1", arch="vit_base", lr=1e-3, rule="sqrt"),
    cite("paper, Table 1", steps=10, betas=(0.9, 0.95)),
    CODE,
)


@pytest.fixture
def recipe() -> Small:
    return Small.of(*GROUPS)


def test_a_recipe_keeps_each_fields_source(recipe: Small) -> None:
    assert recipe.sources["betas"] == "paper, Table 1" and recipe.sources["clip_grad"] == "code"
    assert set(recipe.sources) == set(recipe.values())


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((*GROUPS, cite("blog", lr=2e-3)), "lr is given twice: 'paper, Table 1' and 'blog'"),
        ((CODE,), "missing"),
        ((*GROUPS, cite("blog", momentum=0.9)), "momentum"),
    ],
)
def test_a_recipe_refuses_gaps_and_contradictions(groups: tuple[Cited, ...], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Small.of(*groups)


def test_vary_changes_a_copy_and_its_sources(recipe: Small) -> None:
    other = recipe.vary("ours", lr=0.1)
    assert (recipe.lr, other.lr, other.steps) == (1e-3, 0.1, 10)
    assert (recipe.sources["lr"], other.sources["lr"], other.sources["steps"]) == (
        "paper, Table 1",
        "ours",
        "paper, Table 1",
    )
    more = recipe.vary(cite("ours", lr=0.1, steps=2), cite("later", lr=0.2))
    assert (more.lr, more.steps, more.sources["lr"], more.sources["steps"]) == (0.2, 2, "later", "ours")
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.lr = 0.2  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class Taught(Recipe):
    lr: float
    betas: tuple[float, float]
    momentum: float


def test_a_recipe_that_stands_on_another_takes_what_it_has_too_with_its_source(recipe: Small) -> None:
    taught = Taught.based_on(
        recipe, cite("its paper", momentum=0.9, lr=2e-3), cite("ours", lr=3e-3), prefix="as A: "
    )
    assert taught.values() == {"lr": 3e-3, "betas": [0.9, 0.95], "momentum": 0.9}
    assert taught.sources == {"lr": "ours", "betas": "as A: paper, Table 1", "momentum": "its paper"}
    with pytest.raises(TypeError, match="momentum"):
        Taught.based_on(recipe)
    with pytest.raises(TypeError, match="tau"):
        Taught.based_on(recipe, cite("its paper", momentum=0.9, tau=1.0))


def test_a_scale_changes_what_differs_there_and_lets_the_rest_keep_its_source() -> None:
    paper = catalog.method("mae").recipes()["paper"]
    small = dataclasses.replace(paper, img_size=64, patch_size=8, warmup_epochs=1.0).at_small(epochs=3.0)
    assert (small.arch, small.global_batch_size, small.precision) == ("vit_toy", 32, "fp32")
    assert (
        small.sources["epochs"]
        == small.sources["arch"]
        == "ours: minutes on two CPU cores for a few thousand images"
    )
    assert small.sources["img_size"] == paper.sources["img_size"]
    assert small.at_toy(min_crop_scale=0.5).min_crop_scale == 0.5
    smoke = small.at_toy().at_smoke()
    assert (smoke.arch, smoke.img_size, smoke.min_crop_scale, smoke.sources["epochs"]) == (
        "vit_smoke", 32, 0.6, "ours: seconds",
    )  # fmt: skip


def test_a_scales_own_values_may_come_in_cited_groups() -> None:
    paper = catalog.method("mae").recipes()["paper"]
    groups = (
        cite(SMALL, decoder_dim=64, mask_ratio=paper.mask_ratio),
        cite("ours: few", base_lr=paper.base_lr),
    )
    small = paper.at_small(*groups, warmup_epochs=2.0, epochs=3.0)
    assert (small.decoder_dim, small.warmup_epochs, small.epochs) == (64, 2.0, 3.0)
    assert {small.sources[name] for name in ("decoder_dim", "warmup_epochs", "arch")} == {SMALL}
    assert small.sources["mask_ratio"] == paper.sources["mask_ratio"], "the same at both scales"
    assert small.sources["base_lr"] == "ours: few", "another source is meant, also for the same value"


def test_the_encoder_follows_from_the_recipe() -> None:
    recipe = catalog.method("mae").recipes()["paper"]
    config = recipe.vit_config(pos_embed="learned")
    assert (config.embed_dim, config.grid_size, config.pos_embed) == (768, 14, "learned")
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        vit = ViT(config)
        vit(torch.empty(1, 3, 224, 224))
        whole = counter.get_total_flops()
        vit.encode(vit.embed(torch.empty(1, 3, 224, 224))[:, :49])
    assert recipe.encoder_flops() == pytest.approx(whole, rel=1e-3)
    assert recipe.encoder_flops(49) == pytest.approx(counter.get_total_flops() - whole, rel=1e-3)


def test_values_survive_json(recipe: Small) -> None:
    values = json.loads(json.dumps(recipe.values()))
    assert "sources" not in values
    again = Small.from_values(values, recipe.sources)
    assert again == recipe and again.betas == (0.9, 0.95) and again.sources == recipe.sources


def test_override_fits_or_is_refused_with_its_place(recipe: Small) -> None:
    values = recipe.values()
    changed = override(Small, values, {"lr": 1, "clip_grad": 3.0, "betas": [0.9, 0.999]}, where="--set")
    assert changed["lr"] == 1.0 and isinstance(changed["lr"], float)
    assert (changed["clip_grad"], changed["betas"]) == (3.0, [0.9, 0.999])
    assert values == recipe.values(), "the original is untouched"
    for change, message in [
        ({"stepz": 3}, "--set: 'stepz' is not valid. Did you mean 'steps'"),
        ({"lr": "fast"}, "--set lr: 'fast'.*Give a number"),
        ({"steps": 1.5}, "--set steps: 1.5.*Give a whole number"),
        ({"steps": True}, "--set steps: True"),
        ({"flip": 1}, "--set flip: 1.*Give true or false"),
        ({"arch": 3}, "--set arch: 3.*Give a text"),
    ]:
        with pytest.raises(UserError, match=message):
            override(Small, values, change, where="--set")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "cosine"}, r"rule: 'cosine' is not valid\..*Allowed: linear, sqrt"),
        ({"lr": None}, "lr: None is not valid"),
        ({"rule": None}, "rule: None is not valid"),
        ({"clip_grad": "much"}, "clip_grad: 'much' is not valid. Give a number or none"),
        ({"clip_grad": True}, "clip_grad: True is not valid"),
        ({"betas": [0.9]}, "betas: .*Give a list of 2 numbers"),
        ({"betas": [0.9, "high"]}, "betas: .*Give a list of 2 numbers"),
        ({"betas": [0.9, True]}, "betas: .*Give a list of 2 numbers"),
    ],
)
def test_a_choice_or_a_needed_value_is_checked(recipe: Small, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Small.from_values(override(Small, recipe.values(), change, where="--set"))
    for word in (None, "none"):  # TOML has only the text
        assert (
            Small.from_values(override(Small, recipe.values(), {"clip_grad": word}, where="--set")) == recipe
        )
    whole = Small.from_values({**recipe.values(), "clip_grad": 3, "betas": [0, 1]}).values()
    assert json.dumps([whole["clip_grad"], whole["betas"]]) == "[3.0, [0.0, 1.0]]"


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("steps", 1.0, "Give a whole number."),
        ("steps", "3", "Give a whole number."),
        ("steps", True, "Give a whole number."),
        ("steps", None, "It needs a value."),
        ("lr", "0.1", "Give a number."),
        ("lr", True, "Give a number."),
        ("lr", math.nan, "Give a number."),
        ("clip_grad", math.inf, "Give a number or none."),
        ("betas", 0.9, "Give a list of 2 numbers."),
        ("flip", 1, "Give true or false."),
        ("arch", 3, "Give a text."),
        ("rule", 3, "Allowed: linear, sqrt."),
    ],
)
def test_a_value_is_of_the_fields_kind(recipe: Small, name: str, value: object, remedy: str) -> None:
    with pytest.raises(UserError) as error:
        Small.from_values({**recipe.values(), name: value})
    assert error.value.field == name and str(error.value).endswith(remedy)
    assert str(error.value).startswith(f"{name}: {value!r} is not valid.")


def test_a_prefix_stays_with_its_field_in_the_message(recipe: Small) -> None:
    with pytest.raises(UserError, match="--set: 'clip.lrr' is not valid. Did you mean 'clip.lr'"):
        override(Small, recipe.values(), {"lrr": 1}, where="--set clip.")
    with pytest.raises(UserError, match="--set clip.lr: 'high' is not valid"):
        override(Small, recipe.values(), {"lr": "high"}, where="--set clip.")


@pytest.mark.parametrize(("rule", "factor"), [("linear", 4.0), ("sqrt", math.sqrt(0.5)), ("absolute", 1.0)])
def test_peak_lr(rule: Any, factor: float) -> None:
    recipe = PretrainRecipe(
        arch="vit_base", img_size=224, patch_size=16, epochs=1.0, warmup_epochs=0.0, global_batch_size=1024,
        base_lr=2.0, lr_rule=rule, min_lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, clip_grad=None,
        drop_path=0.0, min_crop_scale=0.2, color_jitter=0.0, precision="fp32",
    )  # fmt: skip
    assert recipe.peak_lr == pytest.approx(2.0 * factor)
    assert recipe.num_patches == 196


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("mae", {"mask_ratio": 1.5}),
        ("mae", {"img_size": 60}),
        ("mae", {"global_batch_size": 0}),
        ("mae", {"drop_path": -0.1}),
        ("feature-mim", {"num_masked": 65}),
        ("dtm", {"max_merged": 65}),
        ("dtm", {"max_rounds": 0}),
        ("mae", {"base_lr": -1.0}),
        ("mae", {"betas": [0.9, 1.0]}),
        ("mae", {"clip_grad": 0.0}),
        ("mae", {"patch_size": -8}),
        ("classification", {"epochs": -3.0}),
        ("classification", {"crop_pct": 0.0}),
        ("segmentation", {"steps": 0}),
        ("segmentation", {"slide_stride": 0}),
        ("segmentation", {"resize_ratio": [2.0, 0.5]}),
        ("detection", {"epochs": 0.0}),
        ("detection", {"num_proposals": 0}),
        ("linear", {"min_lr": -1e-3}),
        ("knn", {"temperature": 0.0}),
        ("token-aggregation", {"epochs": 0.0}),
    ],
)
def test_a_number_out_of_range_names_the_field_and_the_bounds(method: str, change: dict[str, Any]) -> None:
    kind = "task" if method in discovery.names("task") else "method"
    recipe = catalog.card(kind, method).recipes()["toy"]
    with pytest.raises(UserError, match="[Mm]ust be") as error:
        type(recipe).from_values({**recipe.values(), **change})
    assert error.value.field in change

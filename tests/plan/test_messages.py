"""A message about a recipe's value names its method or task, and a value that works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mimbench.catalog import Catalog
from mimbench.commands.plan import refuse
from mimbench.errors import UserError
from mimbench.plan.datasets import Data
from mimbench.plan.graph import Plan
from mimbench.plan.planner import Planner
from mimbench.plan.proposals import proposing
from mimbench.plan.request import Request, parse_count, parse_paths, parse_setting, parse_weights
from mimbench.store.runs import RunStore
from mimbench.table.spec import Column, Row
from tests.world import METHOD, TASK, forget

COLUMNS = [Column(task="echo", metric="score", title="S")]


def plan(store: RunStore, row: Row, **changes: Any) -> Plan:
    request = Request(scale="smoke", changes=changes)
    planner = Planner(Catalog(None), store, Data(request, Path), request)
    found = planner.table([row], COLUMNS, "tables/x.toml")
    refuse([planner])
    return found


def message(store: RunStore, row: Row | None = None, **changes: Any) -> str:
    """What a table of one row, by default of the method `plain`, is refused with."""
    with pytest.raises(UserError) as caught:
        plan(store, row or Row(id="a", label="A", method="plain"), **changes)
    return str(caught.value)


def row(method: str = "plain", **set: Any) -> Row:
    return Row(id="a", label="A", method=method, set=set)


# -- fields that do not go together --------------------------------------------------------------------------


def test_a_warmup_longer_than_the_training_names_both_and_what_works(world: Path, store: RunStore) -> None:
    file = world / "pretrain/methods/plain.py"
    file.write_text(file.read_text().replace("warmup_epochs=0.0", "warmup_epochs=1.0"))
    forget()
    said = message(store, epochs=0.2)
    assert said.startswith("--set epochs (plain): 0.2 is not valid. plain's warmup_epochs=1.0 exceeds")
    fix = said.rpartition("Give both: ")[2]
    assert fix == "--set epochs=0.2 --set warmup_epochs=0.02"
    settings = dict(parse_setting(word) for word in fix.split() if word != "--set")
    assert plan(store, row(), **settings).todo(), "what is proposed works"
    assert "Give 2.0 at most" in message(store, **{"plain.warmup_epochs": 3.0})
    said = message(store, row(epochs=0.2))
    assert said.startswith("tables/x.toml: rows.a.set epochs (plain): 0.2")
    assert said.endswith("Give both: epochs=0.2, warmup_epochs=0.02")


@pytest.mark.parametrize("epochs", [-3, 0])
def test_a_training_that_ends_before_it_begins(world: Path, store: RunStore, epochs: int) -> None:
    assert message(store, epochs=epochs).endswith(f"{float(epochs)} is not valid. Give a number above 0.")


@pytest.mark.parametrize(
    ("changes", "field", "why", "fix"),
    [
        ({"patch_size": 5}, "--set patch_size (plain): 5", "img_size=32 and patch_size=5", "img_size=30"),
        ({"plain.img_size": 30}, "--set plain.img_size: 30", "img_size=30 and patch_size=8", "img_size=32"),
        ({"img_size": 4}, "--set img_size (plain): 4", "img_size=4 and patch_size=8", "img_size=8"),
        ({"echo.img_size": 30}, "--set echo.img_size: 30", "its encoder has patch_size=8", "img_size=32"),
        (
            {"patch_size": 5, "img_size": 40},
            "img_size (echo): 32",
            "its encoder has patch_size=5",
            "--set echo.img_size=30",
        ),
    ],
)
def test_images_that_are_no_whole_patches_name_both_sizes(
    world: Path, store: RunStore, changes: dict[str, Any], field: str, why: str, fix: str
) -> None:
    said = message(store, **changes)
    assert said.startswith(f"{field} is not valid.") and why in said
    assert "img_size must be a multiple of patch_size" in said and fix in said.partition("Give")[2]


def test_a_patch_size_that_goes_is_proposed(world: Path, store: RunStore) -> None:
    assert "--set patch_size=4 or --set patch_size=8; or --set img_size=30 too" in message(
        store, patch_size=5
    )
    assert plan(store, row(), patch_size=4, img_size=32).todo()


def proposals(store: RunStore, row: Row, **changes: Any) -> tuple[str, list[dict[str, Any]]]:
    """The message that a table of one row is refused with, and the settings of each of its proposals."""
    request = Request(scale="smoke", changes=changes)

    def build(request: Request) -> Plan:
        return plan(store, row, **request.changes)

    with pytest.raises(UserError) as caught:
        proposing(build, request)
    said = str(caught.value).partition("Give ")[2].removesuffix(" too")
    groups = re.split("; or | or ", said)
    return str(caught.value), [
        dict(map(parse_setting, re.findall(r"--set (\S+)", group))) for group in groups
    ]


def test_sizes_that_do_not_go_together_name_every_setting_that_is_needed(
    world: Path, store: RunStore
) -> None:
    said, found = proposals(store, row(), patch_size=5)
    assert said.endswith(
        "Give --set patch_size=4 or --set patch_size=8; or --set img_size=30 --set echo.img_size=30 too"
    )
    for settings in found:
        assert plan(store, row(), **{"patch_size": 5, **settings}).todo(), "what is proposed works"


def test_a_count_that_a_size_makes_impossible_names_sizes_that_work(world: Path, store: RunStore) -> None:
    file = world / "pretrain/methods/plain.py"
    check = """    def __post_init__(self):
        super().__post_init__()
        if self.num_patches < 9:
            raise UserError("share", self.num_patches, remedy="Too few patches.")

"""
    text = file.read_text().replace("    def step_flops(", f"{check}    def step_flops(")
    text = text.replace("mask_ratio", "share")
    file.write_text(
        text.replace("from mimbench.recipe", "from mimbench.errors import UserError\nfrom mimbench.recipe")
    )
    forget()
    said, found = proposals(store, row(), patch_size=16)
    assert said.startswith(
        "share (plain): 4 is not valid. Too few patches. Changed: --set patch_size. Give --set"
    )
    assert {"patch_size": 8} in found and {"img_size": 48} in found
    for settings in found:
        assert plan(store, row(), **{"patch_size": 16, **settings}).todo()


def test_no_size_is_proposed_that_another_run_refuses(world: Path, store: RunStore) -> None:
    file = world / "downstream/echo.py"
    file.write_text(
        file.read_text().replace(
            "def run(",
            "def _refuse(self):\n"
            "    if self.img_size != 32:\n"
            "        raise UserError('img_size', self.img_size)\n"
            "Recipe.__post_init__ = _refuse\n\ndef run(",
            1,
        )
    )
    forget()
    said, _ = proposals(store, row(), patch_size=5)
    assert said.endswith("Give --set patch_size=4 or --set patch_size=8")
    said, _ = proposals(store, row(), patch_size=5, **{"echo.img_size": 30})
    assert said.endswith("No size near it fits every run here.")


def test_a_task_that_pads_its_images_takes_any_size(world: Path, store: RunStore) -> None:
    source = TASK.format(name="echo", data="imagenet").replace(
        "    steps: int\n", "    steps: int\n    pads_images = True\n"
    )
    (world / "downstream/echo.py").write_text(source)
    forget()
    assert plan(store, row(), **{"echo.img_size": 30}).todo()


# -- values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_lr": "abc"}, "--set base_lr (plain): 'abc' is not valid. Give a number."),
        ({"global_batch_size": "abc"}, "--set global_batch_size (plain): 'abc' is not valid. Give a whole"),
        ({"plain.base_lr": True}, "--set plain.base_lr: True is not valid. Give a number"),
        ({"drop_path": 2.0}, "--set drop_path (plain): 2.0 is not valid. It must be between 0 and 1."),
        ({"echo.layer_decay": 2.0}, "--set echo.layer_decay: 2.0 is not valid. It must be between 0 and 1."),
        ({"precision": "fp8"}, "--set precision (plain): 'fp8' is not valid. Did you mean 'fp32'?"),
        ({"arch": "vit_tiny"}, "--set arch (plain): 'vit_tiny' is not valid. Did you mean 'vit_toy'?"),
        ({"betas": [0.9]}, "--set betas (plain): [0.9] is not valid. Give a list of 2 numbers."),
        ({"base_lr": float("inf")}, "--set base_lr (plain): inf is not valid. Give a finite number."),
    ],
)
def test_a_value_of_the_wrong_kind_or_size(
    world: Path, store: RunStore, changes: dict[str, Any], said: str
) -> None:
    assert message(store, **changes).startswith(said)


def test_a_field_that_was_not_changed_lists_what_was(world: Path, store: RunStore) -> None:
    """A check of the recipe's own that blames another field than the one that the user gave."""
    source = METHOD.replace(
        "    def step_flops(",
        "    def __post_init__(self):\n"
        "        if self.{extra} > self.min_crop_scale:\n"
        "            raise UserError('{extra}', self.{extra}, remedy='It is too large.')\n\n"
        "    def step_flops(",
    ).replace("from mimbench.recipe", "from mimbench.errors import UserError\nfrom mimbench.recipe")
    facts = {
        "needs": {},
        "data": "imagenet",
        "trains": True,
        "stage": "pretrain",
        "weights": "",
        "transfer": {},
        "epochs": 2.0,
    }
    file = world / "pretrain/methods/strict.py"
    file.write_text(source.format(name="strict", extra="share", **facts).replace("share=HALF", "share=0.1"))
    forget()
    said = message(store, row("strict"), min_crop_scale=0.05)
    assert said == ("share (strict): 0.1 is not valid. It is too large. Changed: --set min_crop_scale.")


# -- fields that another recipe has --------------------------------------------------------------------------


def test_a_field_of_another_method_is_said_to_be_its(world: Path, store: RunStore) -> None:
    assert message(store, tau=0.5) == "--set tau: No pretraining here takes it. It is a field of taught."
    assert message(store, **{"plain.tau": 0.5}).endswith("It is a field of taught.")
    assert message(store, row(tau=0.5)).endswith("It is a field of taught.")
    assert "It is a field" not in message(store, row(mask_ration=0.5)), "a misspelt field is not looked up"
    assert "It is a field" not in message(store, nowhere=0.5)


def test_a_field_that_is_there_but_trains_nothing(world: Path, store: RunStore) -> None:
    said = message(store, row("none-at-all"), epochs=3.0)
    assert said.startswith("--set epochs: No pretraining here takes it. none-at-all trains nothing.")
    assert "plain, taught" in said and "Did you mean" not in said


def test_a_field_of_the_rows_task_says_how_to_write_it(world: Path, store: RunStore) -> None:
    said = message(store, steps=3)
    assert said == "--set steps: No pretraining here takes it. Write --set echo.steps=VALUE."


# -- the command line's words --------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "count"), [("3", 3), (3, 3), (" 1 ", 1)])
def test_counts(value: str | int, count: int) -> None:
    assert parse_count("--seeds", value) == count


@pytest.mark.parametrize("value", ["abc", "0", "-1", "1.5", "", 0])
def test_what_is_no_count_is_refused_in_plain_words(value: str | int) -> None:
    with pytest.raises(UserError, match="--jobs: .* is not valid. Give a whole number from 1."):
        parse_count("--jobs", value)


def test_numbers_may_begin_with_their_point() -> None:
    assert parse_setting("a=.5") == ("a", 0.5) and parse_setting("a=-1.") == ("a", -1.0)
    assert parse_setting("a=1.2.3") == ("a", "1.2.3") and parse_setting("a=e5") == ("a", "e5")


def test_a_path_without_its_name_says_how_to_write_it() -> None:
    with pytest.raises(UserError, match="Write --data ROLE=PATH."):
        parse_paths("--data", ["/nowhere"])
    with pytest.raises(UserError, match="Write --weights NAME=PATH."):
        parse_weights(["/nowhere"])


def test_a_role_is_looked_at_before_its_path() -> None:
    with pytest.raises(UserError, match="--data: 'cocoo' is not valid. Did you mean 'coco'"):
        parse_paths("--data", ["cocoo=/nowhere"])

"""What makes a run stale, and what data is the same data."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from mimbench.atomic import file_digest
from mimbench.errors import UserError
from mimbench.plan.datasets import data_fingerprint
from mimbench.store import fingerprint
from mimbench.store.fingerprint import closure, run_fingerprint, source_fingerprint
from tests.world import forget


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    forget()


def test_closure_follows_imports_and_leaves_infrastructure_out(world: Path) -> None:
    (world / "pretrain" / "methods" / "deep.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "import mimbench.store.folder, mimbench.table.cell\n"
        "from . import relative\n"
        "if TYPE_CHECKING:\n    import pretrain.only_types\n"
        "def build():\n    from pretrain import inside\n"
    )
    for name in ("methods/relative", "inside", "only_types"):
        (world / "pretrain" / f"{name}.py").write_text("import os\n")
    forget()
    found = set(closure(["pretrain.methods.deep"]))
    assert found == {
        "pretrain", "pretrain.inside",
        "pretrain.methods", "pretrain.methods.deep", "pretrain.methods.relative",
    }  # fmt: skip


def test_real_closures_hold_what_computes_and_nothing_that_plans_or_shows() -> None:
    forget()
    methods = closure(["pretrain.methods.dtm", fingerprint.PRETRAINING])
    assert {"mimbench.vit", "mimbench.train.runner", "mimbench.recipe", "mimbench.data.augment"} <= set(
        methods
    )
    for found in (methods, closure(["downstream.segmentation"])):
        ours = {name.split(".")[1] for name in found if name.startswith("mimbench.")}
        assert ours <= set(fingerprint.NUMERICS)
    assert "pretrain.methods.mae" not in methods


def test_a_fingerprint_does_not_depend_on_the_version_of_python() -> None:
    """3.12 gave functions a field, 3.13 leaves out empty ones: the text is that of 3.10 and 3.11."""
    assert fingerprint._dump(ast.parse("def f(): pass")) == (
        "Module(body=[FunctionDef(name='f', args=arguments(posonlyargs=[], args=[], kwonlyargs=[], "
        "kw_defaults=[], defaults=[]), body=[Pass()], decorator_list=[])], type_ignores=[])"
    )


def test_an_edit_touches_the_runs_that_it_concerns_and_no_others(world: Path) -> None:
    runs = [("pretrain", "plain"), ("pretrain", "taught"), ("teacher", "wise"), ("downstream", "echo")]

    def prints() -> list[str]:
        forget()
        return [run_fingerprint(*run) for run in runs]

    def changed(before: list[str]) -> list[str]:
        return [name for (_, name), a, b in zip(runs, before, prints(), strict=True) if a != b]

    before = prints()
    edit(world / "pretrain/methods/plain.py", "return 100.0", "return 101.0")
    assert changed(before) == ["plain"]
    before = prints()
    edit(world / "pretrain/shared.py", "0.5", "0.25")
    assert changed(before) == ["plain", "taught", "wise"]
    before = prints()
    edit(
        world / "pretrain/methods/plain.py", '"ours, longer"', '"ours, much longer"'
    )  # a recipe is in the key
    edit(world / "pretrain/methods/plain.py", '"""A method."""', '"""A better docstring."""  # and a comment')
    assert changed(before) == []


def test_an_adopted_checkpoint_depends_on_the_conversion_and_on_no_training() -> None:
    forget()
    adopted = set(closure(["pretrain.methods.mae", fingerprint.ADOPTION]))
    assert {"mimbench.foreign", "mimbench.train.adopt"} <= adopted
    assert run_fingerprint("pretrain", "mae", adopted=True) != run_fingerprint("pretrain", "mae")


def test_a_recipe_counts_for_the_catalog(world: Path) -> None:
    before = source_fingerprint(("pretrain.methods.plain",))
    edit(world / "pretrain/methods/plain.py", "epochs=4.0", "epochs=5.0")
    assert source_fingerprint(("pretrain.methods.plain",)) != before


def test_data_fingerprint_follows_names_and_sizes(data: Path) -> None:
    root = data / "imagenet"
    before = data_fingerprint(root)
    assert data_fingerprint(root) == before
    (root / "train/a/0.jpg").rename(root / "train/a/9.jpg")
    renamed = data_fingerprint(root)
    (root / "train/a/9.jpg").write_bytes(b"longer than it was")
    assert len({before, renamed, data_fingerprint(root)}) == 3


def test_data_fingerprint_does_not_depend_on_where_the_data_lies(data: Path, tmp_path: Path) -> None:
    before = data_fingerprint(data / "imagenet")
    (data / "imagenet").rename(tmp_path / "moved")
    assert data_fingerprint(tmp_path / "moved") == before


def test_toy_data_says_its_fingerprint_itself(tmp_path: Path) -> None:
    (tmp_path / "toy.json").write_text(json.dumps({"fingerprint": "abc"}))
    assert data_fingerprint(tmp_path) == "abc"
    (tmp_path / "toy.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        data_fingerprint(tmp_path)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.touch()])
def test_missing_or_empty_data_is_the_users_mistake(tmp_path: Path, make) -> None:
    make(tmp_path / "d")
    with pytest.raises(UserError, match="--data coco"):
        data_fingerprint(tmp_path / "d", field="--data coco")


def test_a_link_to_nothing_is_named(data: Path) -> None:
    link = data / "imagenet/train/a/link.jpg"
    link.symlink_to(data / "gone.jpg")
    with pytest.raises(UserError, match=f"--data imagenet: '{link}'.*No such file.*remove it"):
        data_fingerprint(data / "imagenet", field="--data imagenet")


def test_file_digest(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"1")
    before = file_digest(tmp_path / "w", field="--weights clip")
    (tmp_path / "w").write_bytes(b"2")
    assert file_digest(tmp_path / "w", field="--weights clip") != before
    with pytest.raises(UserError, match="--weights clip"):
        file_digest(tmp_path / "none", field="--weights clip")

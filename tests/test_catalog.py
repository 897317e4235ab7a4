"""Discovery, overrides, and descriptions that need no import once they are cached."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mimbench import catalog, discovery
from mimbench.catalog import Catalog
from mimbench.errors import Unavailable, UserError
from mimbench.recipe import cite
from tests.world import forget


def test_discovery_reads_files_and_imports_none(world: Path) -> None:
    assert discovery.names("method") == ["none-at-all", "plain", "taught"]
    assert discovery.names("teacher") == ["wise"]
    assert discovery.names("task") == [
        "echo",
        "scenes",
    ]  # helper.py defines no task, and raises when imported
    assert discovery.module_of("method", "none-at-all") == "pretrain.methods.none_at_all"
    assert not [name for name in sys.modules if name.startswith("downstream.")]


def test_unknown_name_is_answered_with_the_nearest(world: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'plain'"):
        catalog.method("plane")


def test_the_real_methods_and_tasks_are_found() -> None:
    forget()
    assert {"scratch", "mae", "feature-mim", "dtm"} <= set(discovery.names("method"))
    assert "clip" in discovery.names("teacher")
    assert {"classification", "segmentation", "detection"} <= set(discovery.names("task"))


def test_resolve_applies_overrides_in_order_and_keeps_sources(world: Path) -> None:
    changes = [("row", {"mask_ratio": 0.4, "epochs": 3}), ("--set", {"mask_ratio": 0.6})]
    found = Catalog(None).resolve("method", "plain", "smoke", changes, data_size=10)
    assert (found.values["mask_ratio"], found.sources["mask_ratio"]) == (0.6, "--set")
    assert (found.values["epochs"], found.sources["epochs"]) == (3.0, "row")
    assert found.sources["img_size"] == "ours"
    assert (found.images, found.flops) == (30, 3000.0)


def test_a_method_that_does_not_train_sees_no_image(world: Path) -> None:
    found = Catalog(None).resolve("method", "none-at-all", "smoke", data_size=10)
    assert (found.images, found.flops) == (0, 0.0)


@pytest.mark.parametrize(
    ("file", "needs"),
    [
        ("teachers/wise.py", "needs=lambda recipe: {'teacher': 'wise'} if recipe.epochs > 2 else {}"),
        ("methods/plain.py", "needs={'teacher': 'plain'}"),
    ],
)
def test_a_step_costs_what_the_teachers_recipe_of_that_scale_says(
    world: Path, tmp_path: Path, file: str, needs: str
) -> None:
    def flops() -> float:
        for name in [name for name in sys.modules if name.startswith("pretrain.")]:
            del sys.modules[name]
        forget()
        return Catalog(tmp_path / "cache").resolve("method", "taught", "toy", data_size=1).flops

    taught, teacher = world / "pretrain/methods/taught.py", world / "pretrain" / file
    source = taught.read_text().replace("needs={'teacher': 'wise'}", needs)
    taught.write_text(source.replace("return 100.0", "return teachers['teacher'].epochs"))
    assert flops() == 4 * 4.0
    teacher.write_text(teacher.read_text().replace("epochs=4.0", "epochs=6.0"))
    assert flops() == 4 * 6.0, "the teacher's file is part of the cache's key"
    teacher.write_text(teacher.read_text().replace('"toy": longer, ', ""))
    with pytest.raises(Unavailable, match="has no recipe for the scale 'toy'"):
        flops()


def test_a_task_follows_the_method_before_the_row(world: Path) -> None:
    cited = [cite("their code", layer_decay=1.0, betas=(0.9, 0.98))]
    found = Catalog(None).resolve("task", "echo", "smoke", data_size=2, encoder=("vit_smoke", 8), cited=cited)
    assert (found.values["layer_decay"], found.sources["layer_decay"]) == (1.0, "their code")
    assert found.values["betas"] == [0.9, 0.98]
    assert (found.images, found.flops) == (12, 120.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"mask_ration": 0.1}, "mask_ration.*mask_ratio"), ({"epochs": "many"}, "Give a number")],
)
def test_a_wrong_override_names_field_and_place(world: Path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Catalog(None).resolve("method", "plain", "smoke", [("--set", change)], data_size=1)
    assert caught.value.field.startswith("--set")


def test_a_scale_without_recipe_is_unavailable(world: Path) -> None:
    with pytest.raises(Unavailable, match="small"):
        Catalog(None).resolve("method", "plain", "small", data_size=1)


def test_cache_spares_the_import_until_the_code_changes(world: Path, tmp_path: Path) -> None:
    missed: list[int] = []

    def resolve() -> float:
        for name in [name for name in sys.modules if name.startswith("pretrain.")]:
            del sys.modules[name]
        forget()
        cached = Catalog(tmp_path / "cache", on_miss=lambda: missed.append(1))
        return cached.resolve("method", "plain", "toy", [("--set", {"mask_ratio": 0.1})], data_size=4).values[
            "epochs"
        ]

    assert resolve() == 4.0 and len(missed) == 1
    assert resolve() == 4.0 and len(missed) == 1
    assert "pretrain.methods.plain" not in sys.modules
    file = world / "pretrain/methods/plain.py"
    file.write_text(file.read_text().replace("epochs=4.0", "epochs=6.0"))
    assert resolve() == 6.0 and len(missed) == 2


def test_a_cache_that_cannot_be_written_or_read_costs_time_only(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    whole = Catalog(cache).resolve("method", "plain", "toy", data_size=4)
    for file in list(cache.iterdir()):
        file.unlink()
        file.symlink_to(file)
    assert Catalog(cache).resolve("method", "plain", "toy", data_size=4) == whole
    (tmp_path / "file").touch()
    assert Catalog(tmp_path / "file").resolve("method", "plain", "toy", data_size=4) == whole


def test_a_new_entry_removes_what_killed_writers_left(world: Path, tmp_path: Path) -> None:
    old, fresh = tmp_path / ".a.json.0a_b1c2d", tmp_path / ".b.json.0a_b1c2d"
    old.touch()
    os.utime(old, (1e9, 1e9))
    fresh.touch()
    Catalog(tmp_path).describe("method", "plain")
    assert not old.exists() and fresh.exists()


def test_a_first_and_a_cached_call_give_the_same_in_the_same_order(world: Path, tmp_path: Path) -> None:
    first, cached = (
        Catalog(tmp_path / "cache").resolve("method", "plain", "smoke", data_size=4) for _ in range(2)
    )
    assert list(first.values.items()) == list(cached.values.items())
    assert list(first.sources.items()) == list(cached.sources.items())


def test_cached_descriptions_of_the_real_cards_need_no_torch(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from mimbench.catalog import Catalog
found = Catalog(Path({str(tmp_path)!r}))
scratch = found.resolve("method", "scratch", "toy", data_size=100)
found.resolve("task", "classification", "toy", data_size=100, encoder=(scratch.values["arch"], 8))
print("torch" in sys.modules)
"""
    root = Path(__file__).resolve().parents[1]
    answers = [
        subprocess.run(
            [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert answers == ["True\n", "False\n"]


def test_discovery_in_another_process_imports_nothing(python: Callable[[str], subprocess.Popen[str]]) -> None:
    script = (
        "import sys\nfrom mimbench import discovery\ndiscovery.names('method'), discovery.names('task')\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('pretrain', 'downstream', 'torch')])"
    )
    out, errors = python(script).communicate(timeout=60)
    assert out == "[]\n", errors

"""Fixtures that every area's tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.world import data, new_run, python, store, world

if TYPE_CHECKING:
    from mimbench.contract import MethodCard
    from mimbench.store.folder import RunFolder

__all__ = ["data", "new_run", "python", "store", "world"]  # fixtures of the small world

# One thread for torch, here and in every process a test starts: bitwise repeatable, fair to other workers.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, and no process that one starts, writes into the user's own cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIMBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Small real datasets beside the checkout; CONTRIBUTING.md says what is expected there."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}")
    return folder


@pytest.fixture(scope="session")
def smoke_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest toy data: `imagenet/`, `ade20k/` and `coco/` under one root. Read only."""
    from mimbench.data.toy.make import ensure

    return ensure(tmp_path_factory.mktemp("data") / "smoke", size="smoke")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace: this test's runs, data and reports go nowhere else."""
    monkeypatch.setenv("MIMBENCH_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def pretraining_folder(tmp_path: Path, smoke_data: Path) -> Callable[..., RunFolder]:
    """`pretraining_folder(card, ...)`: a run of any method or teacher at scale smoke, ready to start.

    The teachers it needs have trained for two steps. `root` keeps several stores apart; `steps` and further
    keywords change the recipe.
    """
    from mimbench import catalog, discovery
    from mimbench.store.folder import Inputs, Options
    from mimbench.store.runs import RunStore
    from mimbench.store.spec import RunSpec
    from mimbench.train import pretraining

    def make(
        card: MethodCard,
        *,
        root: str = "runs",
        seed: int = 0,
        steps: int | None = None,
        options: Options | None = None,
        **changes: Any,
    ) -> RunFolder:
        recipe = card.recipes()["smoke"].vary("test", **changes)
        if steps is not None:
            epochs = steps * recipe.global_batch_size / 48  # the smoke data's images
            recipe = recipe.vary("test", epochs=epochs, warmup_epochs=epochs / 4)
        store, parents = RunStore(tmp_path / root), {}
        for role, name in card.needed(recipe).items():
            parent = catalog.card(discovery.kind_of(name), name)
            teacher = make(parent, root=root, steps=2)
            if not (teacher.path / "teacher.safetensors").exists():
                pretraining.run(teacher, parent)
            parents[role] = teacher.spec.key
        spec = RunSpec(
            card.stage, card.name, recipe.arch, recipe.values(), {card.data: "smoke"}, seed, parents
        )
        inputs = Inputs(data={card.data: str(smoke_data / "imagenet")}, options=options or Options())
        return store.create(spec, inputs)

    return make

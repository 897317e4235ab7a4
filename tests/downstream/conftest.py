"""A tiny encoder file and run folders for the tasks' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mimbench.arch import ViTConfig
from mimbench.checkpoint.encoder import save_encoder
from mimbench.recipe import Recipe
from mimbench.store.folder import Inputs, RunFolder
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec
from mimbench.vit import ViT

torch.set_num_threads(1)

CONFIG = ViTConfig.named("vit_smoke", img_size=32, patch_size=8)


@pytest.fixture(scope="session")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_encoder(ViT(CONFIG), path, method="scratch")
    return path


@pytest.fixture
def task_folder(
    tmp_path: Path, smoke_data: Path, encoder_file: Path
) -> Callable[[str, str, Recipe], RunFolder]:
    """`task_folder(task, data role, recipe)`: a folder ready to run on the smoke data (or `root`)."""

    def make(
        task: str, role: str, recipe: Recipe, root: Path | None = None, skip_corrupt: bool = False
    ) -> RunFolder:
        store = RunStore(tmp_path / "runs")
        parent = RunSpec("pretrain", "scratch", "vit_smoke", {}, {}, 0)
        encoder = store.create(parent, Inputs()).encoder_path
        encoder.write_bytes(encoder_file.read_bytes())
        spec = RunSpec(
            stage="downstream",
            name=task,
            arch="vit_smoke",
            recipe=recipe.values(),
            data={role: "smoke"},
            seed=0,
            parents={"encoder": parent.key},
            skip_corrupt=skip_corrupt,
        )
        return store.create(spec, Inputs(data={role: str(root or smoke_data / role)}))

    return make

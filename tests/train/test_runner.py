"""What `fit` takes from the run and its recipe, and what mmengine's Runner leaves in the run's folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from mimbench.contract import TransferRecipe
from mimbench.store.folder import Inputs, RunFolder
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec
from mimbench.train.optimizer import param_groups
from mimbench.train.runner import fit

RECIPE = TransferRecipe(
    img_size=1, global_batch_size=3, base_lr=0.1, lr_rule="absolute", layer_decay=1.0, drop_path=0.0,
    weight_decay=0.05, betas=(0.9, 0.999), clip_grad=None, precision="fp32",
)  # fmt: skip


class Numbers:
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((2,), float(index))


class Layer(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.batches: list[list[float]] = []

    def forward(self, inputs: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        self.batches.append(inputs[:, 0].tolist())
        return {"loss": self.layer(inputs).square().mean()}


def in_dictionary(items: list[Tensor]) -> dict[str, Tensor]:
    """A batch as mmengine's `train_step` hands it on."""
    return {"inputs": torch.stack(items)}


def train(
    root: Path, recipe: TransferRecipe = RECIPE, *, seed: int = 0, **options: Any
) -> tuple[RunFolder, Layer]:
    folder = RunStore(root).create(RunSpec("pretrain", "tiny", "vit_smoke", {}, {}, seed), Inputs())
    model = Layer()
    options = {"steps": 4, "collate": in_dictionary, **options}
    fit(model, Numbers(), folder, recipe, param_groups=param_groups(model, recipe.weight_decay), **options)
    return folder, model


def test_the_run_has_no_folder_and_no_file_of_mmengines(tmp_path: Path) -> None:
    folder, _ = train(tmp_path)
    names = {"inputs.json", "metrics.jsonl", "spec.json", "status.json", "trainer.pt"}
    assert {path.name for path in folder.path.iterdir()} == names


def test_batch_size_and_seed_are_the_recipes_and_the_runs(tmp_path: Path) -> None:
    (_, one), (_, again), (_, other) = (
        train(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert [len(batch) for batch in one.batches] == [3] * 4
    assert sorted(sum(one.batches[:2], [])) == [0, 1, 2, 3, 4, 5], "an epoch"
    assert one.batches == again.batches != other.batches


def test_no_steps_leave_the_folder_as_it_is(tmp_path: Path) -> None:
    folder, model = train(tmp_path, steps=0)
    assert not model.batches and not folder.trainer_path.exists() and not folder.metrics()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device computes in half precision")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_gives_way_on_a_cpu_and_says_so(precision: Any, tmp_path: Path) -> None:
    folder, _ = train(tmp_path, dataclasses.replace(RECIPE, precision=precision))
    assert folder.details["precision"] == f"fp32 instead of {precision}: the run was on a CPU"


def test_about_a_hundred_lines_are_written(tmp_path: Path) -> None:
    folder, _ = train(tmp_path, steps=250)
    assert [line["step"] for line in folder.metrics()] == list(range(2, 251, 2))

"""Lines of metrics.jsonl, and what ends a run whose numbers are no longer finite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from mimbench import catalog
from mimbench.contract import TransferRecipe
from mimbench.errors import RunFailed
from mimbench.execute import worker
from mimbench.store.folder import Inputs, Options, RunFolder
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec
from mimbench.train.metrics import Metrics
from mimbench.train.optimizer import param_groups
from mimbench.train.runner import fit

KEPT = "The last sound checkpoint is kept."
RECIPE = TransferRecipe(
    img_size=1, global_batch_size=2, base_lr=1e-2, lr_rule="absolute", layer_decay=1.0, drop_path=0.0,
    weight_decay=0.0, betas=(0.9, 0.999), clip_grad=1.0, precision="fp32",
)  # fmt: skip


class Numbers:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((2,), float(index))


class Breaking(BaseModel):
    """At step `at` its loss, or only its gradient, is not a number."""

    def __init__(self, at: int | None, what: str = "loss") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 1)
        self.at, self.what, self.now = at, what, 0

    def before_step(self, step: int) -> None:
        self.now = step

    def train_step(self, data: Tensor, optim_wrapper: Any) -> dict[str, Tensor]:
        loss = self.layer(data).square().mean()
        if self.now == self.at:
            zero = (self.layer.weight * 0).sum()
            loss = loss + (zero.sqrt() if self.what == "gradient" else zero / zero)  # the slope of sqrt at 0
        optim_wrapper.update_params(loss)
        return {"loss": loss}

    def forward(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError


def train(folder: RunFolder, model: Breaking, log_every: int = 3) -> None:
    groups = param_groups(model, RECIPE.weight_decay)
    fit(model, Numbers(), folder, RECIPE, steps=8, param_groups=groups, log_every=log_every)


def make_folder(root: Path, checkpoint_seconds: float = 0.0) -> RunFolder:
    spec = RunSpec("pretrain", "tiny", "vit_smoke", {}, {}, 0)
    return RunStore(root).create(spec, Inputs(options=Options(checkpoint_seconds=checkpoint_seconds)))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_folder(tmp_path)


def test_a_line_holds_the_means_since_the_last_one(folder: RunFolder) -> None:
    metrics = Metrics(folder, steps=5, log_every=2)
    for done in range(1, 6):
        metrics.log(
            done, {"loss": torch.tensor(float(done)), "size": torch.tensor(10.0 * done)}, lr=0.1 * done
        )
    found = [(line["step"], line["lr"], line["loss"], line["size"]) for line in folder.metrics()]
    assert found == [(2, 0.2, 1.5, 15.0), (4, 0.4, 3.5, 35.0), (5, 0.5, 5.0, 50.0)]
    assert (folder.status.step, folder.status.total) == (5, 5)


def test_only_a_written_line_reads_a_scalar(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading waits for the device; a tensor without values cannot be read at all."""
    metrics = Metrics(folder, steps=9, log_every=3)
    for done in (1, 2):
        metrics.log(done, {"loss": torch.ones((), device="meta")}, lr=0.1)
    with pytest.raises((NotImplementedError, RuntimeError)):
        metrics.log(3, {"loss": torch.ones((), device="meta")}, lr=0.1)


@pytest.mark.parametrize(
    ("count", "log_every", "where"), [(3, 3, "in steps 1 to 3 of 7"), (1, 1, "in step 1 of 7")]
)
def test_the_message_says_which_scalars_and_which_steps(
    count: int, log_every: int, where: str, folder: RunFolder
) -> None:
    metrics = Metrics(folder, steps=7, log_every=log_every)
    scalars = {"loss": torch.tensor(float("nan")), "size": torch.ones(()), "peak": torch.tensor(float("inf"))}
    with pytest.raises(RunFailed) as caught:
        for done in range(1, count + 1):
            metrics.log(done, scalars, lr=0.1)
    assert str(caught.value) == (
        f"{folder.spec.folder}: non-finite loss, peak {where}. Lower base_lr, or set clip_grad."
    )


@pytest.mark.parametrize(
    ("what", "at", "where", "kept"),
    [
        ("loss", 4, "in steps 4 to 6 of 8", 4),
        ("loss", 0, "in steps 1 to 3 of 8", None),
        ("loss", 7, "in steps 7 to 8 of 8", 7),
        ("gradient", 3, "in steps 4 to 6 of 8", 3),  # the loss of step 3 is sound, its weights are not
        ("gradient", 7, "after step 8 of 8", 7),
    ],
)
def test_not_a_number_stops_the_run_and_keeps_the_last_sound_checkpoint(
    what: str, at: int, where: str, kept: int | None, folder: RunFolder
) -> None:
    with pytest.raises(RunFailed, match=rf"non-finite \w+ {where}") as caught:
        train(folder, Breaking(at, what))
    assert folder.trainer_path.exists() == (KEPT in str(caught.value)) == (kept is not None)
    assert kept is None or saved_step(folder) == kept
    train(folder, Breaking(None))  # the cause is gone: it goes on
    assert saved_step(folder) == 8


def saved_step(folder: RunFolder) -> int:
    """The checkpoint's step; every number in it is finite."""
    state = torch.load(folder.trainer_path, weights_only=True)
    moments = [value for slots in state["optimizer"]["state"].values() for value in slots.values()]
    assert all(value.isfinite().all() for value in (*state["model"].values(), *moments))
    return state["step"]


def test_no_checkpoint_is_promised_where_there_is_none(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, checkpoint_seconds=1e6)
    with pytest.raises(RunFailed) as caught:
        train(folder, Breaking(4))
    assert KEPT not in str(caught.value) and not folder.trainer_path.exists()


def test_a_sound_run_is_not_stopped(folder: RunFolder) -> None:
    train(folder, Breaking(None))
    assert [line["step"] for line in folder.metrics()] == [3, 6, 8]


def test_diverging_method_fails_with_a_remedy_and_leaves_no_encoder(
    pretraining_folder: Callable[..., RunFolder],
) -> None:
    folder = pretraining_folder(catalog.method("mae"), base_lr=1e30, warmup_epochs=0.0)
    reply = worker.handle(folder.path, rerun=False)
    assert reply["event"] == "failed" and not reply["user"]
    assert "non-finite loss" in reply["message"] and "Lower base_lr" in reply["message"]
    assert folder.outcome() == "failed" and folder.status.message == reply["message"]
    assert not folder.encoder_path.exists() and folder.result is None

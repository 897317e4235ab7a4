"""What stops a training leaves a store that the next command goes on from."""

from __future__ import annotations

import builtins
import errno
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from mimbench import catalog
from mimbench.errors import RunFailed
from mimbench.execute import worker
from mimbench.store.folder import Inputs, Options, RunFolder
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec
from mimbench.train.optimizer import optim_wrapper, param_groups
from mimbench.train.runner import fit

EVERY_STEP = Options(checkpoint_seconds=0.0)


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

    def train_step(self, data: Tensor, optim_wrapper: Any) -> dict[str, Tensor]:
        loss = self.layer(data).square().mean()
        if self.now == self.at:
            zero = (self.layer.weight * 0).sum()
            loss = loss + (zero.sqrt() if self.what == "gradient" else zero / zero)  # the slope of sqrt at 0
        optim_wrapper.update_params(loss)
        return {"loss": loss}

    def forward(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError


def train(folder: RunFolder, model: Breaking, **changes: Any) -> None:
    options: dict[str, Any] = {"seed": 0, "steps": 8, "batch_size": 2, "log_every": 3, "clip_grad": 1.0}
    fit(
        model,
        Numbers(),
        folder=folder,
        param_groups=param_groups(model, 0.0),
        lr_at=lambda step: 1e-2,
        before_step=lambda step: setattr(model, "now", step),
        **{**options, **changes},
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    spec = RunSpec("pretrain", "tiny", "vit_smoke", {}, {}, 0)
    return RunStore(tmp_path).create(spec, Inputs(options=EVERY_STEP))


def saved_step(folder: RunFolder) -> int:
    """The checkpoint's step; every number in it is finite."""
    state = torch.load(folder.trainer_path, weights_only=True)
    moments = [value for slots in state["optimizer"]["state"].values() for value in slots.values()]
    assert all(value.isfinite().all() for value in (*state["model"].values(), *moments))
    return state["step"]


@pytest.mark.parametrize(
    ("what", "at", "told", "kept"),
    [
        ("loss", 4, "step 6 of 8", 4),
        ("loss", 0, "step 3 of 8", None),
        ("loss", 7, "step 8 of 8", 7),
        ("gradient", 3, "step 6 of 8", 3),  # the loss of step 3 is sound, its weights are not
        ("gradient", 7, "step 8 of 8", 7),
    ],
)
def test_not_a_number_stops_the_run_and_keeps_the_last_sound_checkpoint(
    what: str, at: int, told: str, kept: int | None, folder: RunFolder
) -> None:
    with pytest.raises(RunFailed, match=rf"non-finite.*{told}"):
        train(folder, Breaking(at, what))
    assert folder.trainer_path.exists() == (kept is not None)
    assert kept is None or saved_step(folder) == kept
    train(folder, Breaking(None))  # the cause is gone: it goes on
    assert saved_step(folder) == 8


def test_a_sound_run_is_not_stopped(folder: RunFolder) -> None:
    train(folder, Breaking(None))
    assert [line["step"] for line in folder.metrics()] == [3, 6, 8]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device computes in half precision")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_gives_way_on_a_cpu_and_says_so(folder: RunFolder, precision: str) -> None:
    train(folder, Breaking(at=None), precision=precision)
    assert folder.details["precision"] == f"fp32, in the place of {precision}: the run was on a CPU"


def test_diverging_method_fails_with_a_remedy_and_leaves_no_encoder(
    pretraining_folder: Callable[..., RunFolder],
) -> None:
    folder = pretraining_folder(catalog.method("mae"), base_lr=1e30, warmup_epochs=0.0)
    reply = worker.handle(folder.path, rerun=False)
    assert reply["event"] == "failed" and not reply["user"]
    assert "non-finite loss" in reply["message"] and "Lower base_lr" in reply["message"]
    assert folder.outcome() == "failed" and folder.status.message == reply["message"]
    assert not folder.encoder_path.exists() and folder.result is None


def disk_with(room: int) -> Callable[..., Any]:
    """An `open` whose files written in binary hold `room` bytes."""

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            left = room - self.tell()
            if len(memoryview(data).cast("B")) > left:
                super().write(memoryview(data).cast("B")[: max(left, 0)])
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    def open_file(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return Full(path, "w") if mode == "wb" else builtins.open(path, mode, *args, **kwargs)

    return open_file


@pytest.mark.parametrize("room", [0, 1000, 60_000])
def test_full_disk_is_told_and_leaves_nothing_half_written(
    room: int, pretraining_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for nothing, for half a header, for half of the weights: the run says so, and goes on later."""
    card = catalog.method("mae")
    whole = pretraining_folder(card, root="whole")
    assert worker.handle(whole.path, rerun=False)["event"] == "done"
    folder = pretraining_folder(card, root="full", options=EVERY_STEP)
    with monkeypatch.context() as patch:
        patch.setattr("mimbench.train.runner.write_bytes", _filled(patch, room, after=2))
        reply = worker.handle(folder.path, rerun=False)
    assert reply["event"] == "failed" and "The disk is full" in reply["message"] and not reply["user"]
    assert saved_step(folder) == 2 and folder.store.leftovers() == []
    assert not folder.encoder_path.exists() and folder.result is None
    assert worker.handle(folder.path, rerun=False)["event"] == "done"
    assert folder.encoder_path.read_bytes() == whole.encoder_path.read_bytes()


def _filled(patch: pytest.MonkeyPatch, room: int, after: int) -> Callable[..., None]:
    """`write_bytes`; the disk is full from the call numbered `after` on."""
    from mimbench.atomic import write_bytes

    calls = 0

    def write(path: Path, content: Callable[[Any], object]) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            patch.setattr("mimbench.atomic.open", disk_with(room), raising=False)
        write_bytes(path, content)

    return write


def test_full_disk_at_the_very_end_leaves_no_encoder(
    pretraining_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = catalog.method("mae")
    folder = pretraining_folder(card)
    with monkeypatch.context() as patch:
        patch.setattr("mimbench.checkpoint.encoder.write_bytes", _filled(patch, 5000, after=0))
        reply = worker.handle(folder.path, rerun=False)
    assert reply["event"] == "failed" and "The disk is full" in reply["message"]
    assert not folder.encoder_path.exists() and folder.store.leftovers() == []
    assert saved_step(folder) == 6
    assert worker.handle(folder.path, rerun=False)["event"] == "done"
    assert len(folder.metrics()) == 6, "nothing was trained again"


def test_clipping_is_by_the_global_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = nn.Parameter(torch.zeros(4))
    wrapper = optim_wrapper(
        [{"params": [weight], "weight_decay": 0.0, "lr_scale": 1.0}],
        lr=0.0, betas=(0.9, 0.999), eps=1e-8, clip_grad=1.0, precision="fp32", device=torch.device("cpu"),
    )  # fmt: skip
    gradients: list[Tensor] = []
    step = wrapper.optimizer.step
    monkeypatch.setattr(wrapper.optimizer, "step", lambda: gradients.append(weight.grad.clone()) or step())
    wrapper.update_params((weight * torch.tensor([3.0, 0.0, 4.0, 0.0])).sum())
    torch.testing.assert_close(gradients[0], torch.tensor([0.6, 0.0, 0.8, 0.0]), rtol=1e-5, atol=0)

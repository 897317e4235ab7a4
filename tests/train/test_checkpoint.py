"""The trainer's checkpoint: when it is written, and what a full disk leaves of it."""

from __future__ import annotations

import builtins
import errno
import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from mimbench import atomic, catalog
from mimbench.checkpoint import encoder
from mimbench.errors import RunFailed
from mimbench.execute import worker
from mimbench.store import checkpoints
from mimbench.store.folder import Inputs, Options, RunFolder
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec
from mimbench.train.checkpoint import Checkpoint
from mimbench.train.metrics import Metrics
from mimbench.train.optimizer import optim_wrapper, param_groups

EVERY_STEP = Options(checkpoint_seconds=0.0)


class Layer(BaseModel):
    """One weight matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError


def make_checkpoint(root: Path, model: Layer, seconds: float) -> Checkpoint:
    spec = RunSpec("pretrain", "tiny", "vit_smoke", {}, {}, 0)
    folder = RunStore(root).create(spec, Inputs(options=Options(checkpoint_seconds=seconds)))
    wrapper = optim_wrapper(
        param_groups(model, 0.0), lr=0.0, betas=(0.9, 0.999), eps=1e-8, clip_grad=None, precision="fp32",
        device=torch.device("cpu"),
    )  # fmt: skip
    return Checkpoint(folder, model, wrapper, Metrics(folder, steps=9, log_every=3))


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_it_is_written_when_its_time_has_come_and_less_often_where_it_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, saved, durations = Clock(), [], iter([0.0, 2.0, 1000.0, 0.0])

    def save(self: Checkpoint, done: int) -> None:
        saved.append(clock.now)
        clock.now += next(durations)

    monkeypatch.setattr(Checkpoint, "save", save)
    monkeypatch.setattr("mimbench.train.checkpoint.time", clock)
    checkpoint = make_checkpoint(tmp_path, Layer(), seconds=10.0)
    for clock.now in (9.0, 10.0, 19.0, 20.0, 81.0, 82.0, 1481.0, 1482.0):
        checkpoint.save_if_due(1)
    # 2 s at 20: from 22 on it waits 60 s. 1000 s at 82: from 1082 on it waits 400 s, no longer.
    assert saved == [10.0, 20.0, 82.0, 1482.0]


def test_nothing_unsound_is_written(tmp_path: Path) -> None:
    model = Layer()
    checkpoint = make_checkpoint(tmp_path, model, seconds=0.0)
    checkpoint.save_if_due(1)
    sound = checkpoint.folder.trainer_path.read_bytes()
    model.layer.weight.data[0, 0] = float("nan")
    checkpoint.save_if_due(2)
    with pytest.raises(RunFailed, match="non-finite weights after step 9 of 9. The last sound checkpoint"):
        checkpoint.save_last(9)
    assert checkpoint.folder.trainer_path.read_bytes() == sound


def test_sums_that_are_not_finite_are_unsound(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, Layer(), seconds=0.0)
    checkpoint.metrics.log(1, {"loss": torch.tensor(float("inf"))}, lr=0.1)
    checkpoint.save_if_due(1)
    assert not checkpoint.folder.trainer_path.exists()


def saved_step(folder: RunFolder) -> int:
    """The checkpoint's step; every number in it is finite."""
    state = torch.load(folder.trainer_path, weights_only=True)
    moments = [value for slots in state["optimizer"]["state"].values() for value in slots.values()]
    assert all(value.isfinite().all() for value in (*state["model"].values(), *moments))
    return state["step"]


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
        patch.setattr(checkpoints, "save", _filled(patch, checkpoints, "save", room, after=2))
        reply = worker.handle(folder.path, rerun=False)
    assert reply["event"] == "failed" and "The disk is full" in reply["message"] and not reply["user"]
    assert saved_step(folder) == 2 and folder.store.leftovers() == []
    assert not folder.encoder_path.exists() and folder.result is None
    assert worker.handle(folder.path, rerun=False)["event"] == "done"
    assert folder.encoder_path.read_bytes() == whole.encoder_path.read_bytes()


def _filled(
    patch: pytest.MonkeyPatch, module: ModuleType, name: str, room: int, after: int
) -> Callable[..., None]:
    """The module's function of that name; the disk is full from the call numbered `after` on."""
    write, calls = getattr(module, name), 0

    def counted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            patch.setattr(module, "open", disk_with(room), raising=False)
        write(*arguments)

    return counted


def test_full_disk_at_the_very_end_leaves_no_encoder(
    pretraining_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = catalog.method("mae")
    folder = pretraining_folder(card)
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "write_bytes", _filled(patch, atomic, "write_bytes", 5000, after=0))
        reply = worker.handle(folder.path, rerun=False)
    assert reply["event"] == "failed" and "The disk is full" in reply["message"]
    assert not folder.encoder_path.exists() and folder.store.leftovers() == []
    assert saved_step(folder) == 6
    assert worker.handle(folder.path, rerun=False)["event"] == "done"
    assert len(folder.metrics()) == 6, "nothing was trained again"

"""A run that was interrupted anywhere ends, bit by bit, where an undisturbed one ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from mimbench import catalog, discovery
from mimbench.contract import MethodCard, TransferRecipe
from mimbench.execute import worker
from mimbench.store.folder import Inputs, Options, RunFolder
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec
from mimbench.train import pretraining
from mimbench.train.checkpoint import Checkpoint
from mimbench.train.optimizer import param_groups
from mimbench.train.runner import fit

ROOT = Path(__file__).resolve().parents[2]
EVERY_STEP = Options(checkpoint_seconds=0.0)
STEPS = 7
RECIPE = TransferRecipe(
    img_size=1, global_batch_size=3, base_lr=0.1, lr_rule="absolute", layer_decay=1.0, drop_path=0.0,
    weight_decay=0.05, betas=(0.9, 0.999), clip_grad=1.0, precision="fp32",
)  # fmt: skip


class Interrupted(BaseException):
    """Stands for whatever ends a process."""


class Noisy:
    """Images that are drawn when they are asked for."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Tensor:
        return torch.rand(4) + index


class Tiny(BaseModel):
    """A network with dropout and batch statistics, so that draws and buffers matter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 1))

    def train_step(self, data: Tensor, optim_wrapper: Any) -> dict[str, Tensor]:
        loss = self.layers(data).square().mean()
        optim_wrapper.update_params(loss)
        return {"loss": loss, "size": data.mean()}

    def forward(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError


def tiny_folder(root: Path, seed: int = 3) -> RunFolder:
    spec = RunSpec("pretrain", "tiny", "vit_smoke", {}, {}, seed)
    return RunStore(root).create(spec, Inputs(options=EVERY_STEP))


def fit_tiny(
    folder: RunFolder,
    model: Tiny | None = None,
    ema_momentum: float | None = None,
    **calls: Callable[[int], None],
) -> Tiny:
    """The trained network; `calls` become its `before_step` and `after_step`."""
    model = model or Tiny()
    for name, call in calls.items():
        setattr(model, name, call)
    fit(
        model,
        Noisy(),
        folder,
        RECIPE,
        steps=STEPS,
        param_groups=param_groups(model, RECIPE.weight_decay),
        ema_momentum=ema_momentum,
        log_every=3,
    )
    return model


def logged(folder: RunFolder) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "time"} for line in folder.metrics()]


def stop_at(step: int, asked: list[int]) -> Callable[[int], None]:
    def before_step(now: int) -> None:
        asked.append(now)
        if now == step:
            raise Interrupted

    return before_step


@pytest.mark.parametrize("step", range(STEPS))
def test_any_step_may_be_the_last_of_a_process(step: int, tmp_path: Path) -> None:
    whole, folder = tiny_folder(tmp_path / "whole"), tiny_folder(tmp_path / "cut")
    expected = fit_tiny(whole)
    asked: list[int] = []
    with pytest.raises(Interrupted):
        fit_tiny(folder, before_step=stop_at(step, asked))
    found = fit_tiny(folder, before_step=asked.append)
    assert asked == [*range(step + 1), *range(step, STEPS)], "no finished step is done again"
    for (name, a), b in zip(expected.state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert logged(folder) == logged(whole)
    assert [line["step"] for line in logged(whole)] == [3, 6, 7]


def test_steps_after_the_last_checkpoint_are_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics beyond the checkpoint are forgotten, and written again with the same numbers."""
    whole, folder = tiny_folder(tmp_path / "whole"), tiny_folder(tmp_path / "cut")
    expected = fit_tiny(whole)
    with monkeypatch.context() as patch:
        save = Checkpoint.save
        patch.setattr(Checkpoint, "save", lambda self, step: save(self, step) if step == 2 else None)
        with pytest.raises(Interrupted):
            fit_tiny(folder, before_step=stop_at(5, []))
    assert [line["step"] for line in logged(folder)] == [3]
    asked: list[int] = []
    found = fit_tiny(folder, before_step=asked.append)
    assert asked == [2, 3, 4, 5, 6]
    assert all(map(torch.equal, expected.state_dict().values(), found.state_dict().values()))
    assert logged(folder) == logged(whole)


@pytest.mark.parametrize("cut", [None, 0, 4, STEPS])
def test_the_weight_average_is_the_recursion_over_all_steps(cut: int | None, tmp_path: Path) -> None:
    """a <- m a + (1 - m) w after every step, from the initial weights on; also over an interruption."""
    seen: list[Tensor] = []
    plain = Tiny()
    weight = plain.layers[0].weight
    average = weight.detach().clone()
    folder = tiny_folder(tmp_path / "plain")
    fit_tiny(folder, plain, after_step=lambda _: seen.append(weight.detach().clone()))
    for value in seen:
        average = 0.7 * average + 0.3 * value

    folder = tiny_folder(tmp_path / "averaged")
    if cut == STEPS:
        fit_tiny(folder, ema_momentum=0.7)  # finished before: the next call only restores it
    elif cut is not None:
        with pytest.raises(Interrupted):
            fit_tiny(folder, ema_momentum=0.7, before_step=stop_at(cut, []))
    found = fit_tiny(folder, ema_momentum=0.7)
    torch.testing.assert_close(found.layers[0].weight.detach(), average)
    assert not torch.equal(average, seen[-1])


def test_a_finished_training_is_not_touched(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    expected, asked = fit_tiny(folder), []
    before = folder.trainer_path.read_bytes()
    found = fit_tiny(folder, before_step=asked.append)
    assert asked == [] and folder.trainer_path.read_bytes() == before
    assert all(map(torch.equal, expected.state_dict().values(), found.state_dict().values()))


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    one, other = fit_tiny(tiny_folder(tmp_path / "a")), fit_tiny(tiny_folder(tmp_path / "b", seed=4))
    assert not torch.equal(one.layers[0].weight, other.layers[0].weight)


def test_methods_are_told_how_far_they_are_also_after_a_resume(
    pretraining_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    initialise = pretraining.initialise

    def spied(*args: Any, **kwargs: Any) -> nn.Module:
        method = initialise(*args, **kwargs)
        method.register_forward_pre_hook(lambda _, inputs: told.append(inputs[1]))
        method.before_train = lambda steps: told.append(f"of {steps}")
        method.after_step = lambda step: told.append(f"did {step}")
        return method

    monkeypatch.setattr(pretraining, "initialise", spied)
    card = catalog.method("mae")
    folder = pretraining_folder(card, steps=4, options=EVERY_STEP)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "progress", stop_after(3))
        with pytest.raises(Interrupted):
            pretraining.run(folder, card)
    assert told == ["of 4", 0.0, "did 1", 0.25, "did 2", 0.5, "did 3"]
    told.clear()
    pretraining.run(folder, card)
    assert told == ["of 4", 0.5, "did 3", 0.75, "did 4"]


def stop_after(last: int) -> Callable[..., None]:
    """A `RunFolder.progress` that interrupts the run when it reports that step, before its checkpoint."""
    progress = RunFolder.progress

    def report(self: RunFolder, step: int, total: int, **scalars: float) -> None:
        progress(self, step, total, **scalars)
        if step == last:
            raise Interrupted

    return report


CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from mimbench.execute import worker
from mimbench.store.folder import RunFolder

path, when, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
calls = 0

def counted(original):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == count:
            if when == "write":  # half of the checkpoint is on the disk already
                state, file = args
                file.write(b"PK" * 500)
                file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    return call

if when == "write":
    torch.save = counted(torch.save)
else:
    RunFolder.progress = counted(RunFolder.progress)
print(worker.handle(Path(path), rerun=False))
"""


@pytest.mark.parametrize(
    ("name", "when", "count", "checkpoint"), [("mae", "write", 3, 2), ("dtm", "step", 4, 3)]
)
def test_killed_and_resumed_is_bit_for_bit_the_undisturbed_run(
    name: str,
    when: str,
    count: int,
    checkpoint: int,
    pretraining_folder: Callable[..., RunFolder],
) -> None:
    card = catalog.method(name)
    whole = pretraining_folder(card, root="whole")
    assert worker.handle(whole.path, rerun=False)["event"] == "done"
    folder = pretraining_folder(card, root="cut", options=EVERY_STEP)
    command = [sys.executable, "-c", CHILD, str(folder.path), when, str(count)]
    died = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert died.returncode == -signal.SIGKILL, died.stdout + died.stderr + folder.log_path.read_text()
    assert torch.load(folder.trainer_path, weights_only=True)["step"] == checkpoint
    leftovers = folder.store.leftovers()
    assert len(leftovers) == (when == "write") and not folder.is_locked()

    assert worker.handle(folder.path, rerun=False) == {"event": "done", "shared": False}
    assert folder.encoder_path.read_bytes() == whole.encoder_path.read_bytes()
    assert logged(folder) == logged(whole) and len(logged(whole)) == 6
    assert folder.result is not None and whole.result is not None
    assert folder.result.metrics == whole.result.metrics


CARDS = [catalog.card(kind, name) for kind in ("method", "teacher") for name in discovery.names(kind)]


@pytest.mark.parametrize("card", [pytest.param(c, id=c.name) for c in CARDS if c.trains])
def test_every_method_resumes_bit_for_bit(
    card: MethodCard, pretraining_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pretraining_folder(card, root="whole", steps=4)
    folder = pretraining_folder(card, root="cut", steps=4, options=EVERY_STEP)
    pretraining.run(whole, card)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "progress", stop_after(3))
        with pytest.raises(Interrupted):
            pretraining.run(folder, card)
    assert torch.load(folder.trainer_path, weights_only=True)["step"] == 2
    pretraining.run(folder, card)
    file = "teacher.safetensors" if card.stage == "teacher" else "encoder.safetensors"
    assert (folder.path / file).read_bytes() == (whole.path / file).read_bytes()
    assert logged(folder) == logged(whole)

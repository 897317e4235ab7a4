"""The one place that builds an mmengine Runner: pretraining, teachers and tasks all train through `fit`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.visualization import Visualizer
from torch import Tensor, nn

from mimbench.atomic import write_bytes
from mimbench.device import device as run_device
from mimbench.errors import RunFailed
from mimbench.train.loader import MODEL_STREAM, seed_everything, train_loader
from mimbench.train.optimizer import optim_wrapper

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder


def fit(
    model: BaseModel,
    dataset: Any,
    *,
    folder: RunFolder,
    seed: int,
    steps: int,
    batch_size: int,
    param_groups: list[dict[str, Any]],
    lr_at: Callable[[int], float],
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    clip_grad: float | None = None,
    clip_each: bool = False,
    weight_decay_at: Callable[[int], float] | None = None,
    precision: str = "fp32",
    ema_momentum: float | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    before_step: Callable[[int], None] | None = None,
    after_step: Callable[[int], None] | None = None,
    log_every: int | None = None,
) -> None:
    """Train `model` for `steps` steps, resuming from the folder's checkpoint where there is one.

    Pictures, augmentation, masks and dropout of a step derive from (seed, step) alone, so a run that was
    interrupted anywhere ends with the numbers of an undisturbed one.

    Args:
        model: has `train_step(data, optim_wrapper)`; it is moved to the run's device.
        dataset: map-style; items may draw from Python's, NumPy's and torch's global generators.
        batch_size: of a step, over all processes.
        param_groups: AdamW's groups, each with `lr_scale`.
        lr_at: step -> learning rate before `lr_scale`.
        clip_each: `clip_grad` bounds the norm of each tensor's gradient instead of the norm of all.
        weight_decay_at: step -> weight decay of the groups that are decayed at all; default: as they say.
        ema_momentum: where given, the model ends with the moving average of its weights over all steps.
        before_step: called with the step about to be done; after_step: with the number of steps done.
        log_every: steps between two lines of metrics.jsonl; default: about 100 lines a run.

    Raises:
        RunFailed: the loss became NaN or infinite; the folder keeps the last sound checkpoint.
    """
    if steps == 0:
        return
    target = run_device()
    model.to(target)
    model.data_preprocessor._non_blocking = (
        True  # batches are pinned; not every subclass takes it as argument
    )
    if precision != "fp32" and target.type == "cpu":
        folder.details["precision"] = f"fp32, in the place of {precision}: the run was on a CPU"
        precision = "fp32"
    wrapper = optim_wrapper(
        param_groups,
        lr=lr_at(0),
        betas=betas,
        eps=eps,
        clip_grad=clip_grad,
        clip_each=clip_each,
        precision=precision,
        device=target,
    )
    metrics = MetricsHook(folder, steps, log_every or max(steps // 100, 1))
    average = WeightAverage(model, ema_momentum) if ema_momentum is not None else None
    checkpoint = Checkpoint(folder, model, wrapper, metrics, average)
    first = checkpoint.load()
    if first >= steps:
        if average:
            average.apply()
        return
    rank, world_size = get_dist_info()
    loader = train_loader(
        dataset,
        batch_size=batch_size,
        seed=seed,
        first=first,
        last=steps,
        num_workers=folder.options.num_workers,
        collate=collate,
        rank=rank,
        world_size=world_size,
    )
    hooks: list[Hook] = [
        StepHook(seed, lr_at, weight_decay_at, param_groups, before_step, after_step),
        *([average] if average else []),
        metrics,
        CheckpointHook(checkpoint, folder.options.checkpoint_seconds),
    ]
    runner = QuietRunner(
        model,
        work_dir=str(folder.path),
        train_dataloader=loader,
        train_cfg={"type": ResumedLoop, "first": first, "max_iters": steps},
        optim_wrapper=wrapper,
        default_hooks=dict.fromkeys(
            ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
        ),
        custom_hooks=hooks,
        visualizer=Visualizer(name=folder.spec.folder),
        experiment_name=f"{folder.spec.folder}-{time.monotonic_ns()}",
        log_level=logging.WARNING,
        env_cfg={"mp_cfg": {}},
        randomness={"seed": seed},
    )
    runner.train()
    if not checkpoint.is_sound():
        raise RunFailed(
            f"{folder.spec.folder}: non-finite weights after step {steps} of {steps}; "
            "the last sound checkpoint was kept. Lower base_lr, or set clip_grad."
        )
    checkpoint.save(steps)
    if average:
        average.apply()


class QuietRunner(Runner):
    """mmengine's Runner without what costs seconds at every start or is kept by the run store already.

    No survey of compilers and GPUs (env.json has what matters), no dump of an empty configuration, no log
    folder of its own, no re-initialisation of weights that the caller has set.
    """

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        del env_cfg

    def dump_config(self) -> None:
        return

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any) -> Any:
        from mmengine.logging import MMLogger

        del log_file
        return MMLogger.get_instance(name=self._experiment_name, log_level=log_level, **kwargs)

    def _init_model_weights(self) -> None:
        return


class ResumedLoop(IterBasedTrainLoop):
    """The iteration loop from step `first` on; the loader starts there by itself, nothing is replayed."""

    def __init__(self, runner: Runner, dataloader: Any, max_iters: int, first: int) -> None:
        super().__init__(runner, dataloader, max_iters, val_begin=max_iters + 1)
        self._iter = first

    def run(self) -> Any:
        self.runner.call_hook("before_train")
        self.runner.model.train()
        for batch in self.dataloader:
            self.run_iter(batch)
        self.runner.call_hook("after_train")
        return self.runner.model


class StepHook(Hook):
    """Before a step: its seeds, learning rate and weight decay. Around it: the method's own updates (EMA)."""

    def __init__(
        self,
        seed: int,
        lr_at: Callable[[int], float],
        weight_decay_at: Callable[[int], float] | None,
        param_groups: list[dict[str, Any]],
        before_step: Callable[[int], None] | None,
        after_step: Callable[[int], None] | None,
    ) -> None:
        self.seed, self.lr_at, self.weight_decay_at = seed, lr_at, weight_decay_at
        self.decayed = [group["weight_decay"] > 0 for group in param_groups]  # a schedule may pass through 0
        self.before_step, self.after_step = before_step, after_step

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        seed_everything(self.seed, batch_idx, MODEL_STREAM + 2 * runner.rank)
        lr = self.lr_at(batch_idx)
        groups = runner.optim_wrapper.optimizer.param_groups
        for group, decayed in zip(groups, self.decayed, strict=True):
            group["lr"] = lr * group["lr_scale"]
            if self.weight_decay_at is not None and decayed:
                group["weight_decay"] = self.weight_decay_at(batch_idx)
        if self.before_step is not None:
            self.before_step(batch_idx)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Tensor] | None = None
    ) -> None:
        if self.after_step is not None:
            self.after_step(batch_idx + 1)


class WeightAverage(Hook):
    """Exponential moving average of a model's weights and buffers, updated after every step on the device."""

    def __init__(self, model: nn.Module, momentum: float) -> None:
        self.model, self.momentum = model, momentum
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Tensor] | None = None
    ) -> None:
        live = self.model.state_dict()
        averaged = [name for name, value in live.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self.state[name] for name in averaged], [live[name] for name in averaged], 1 - self.momentum
        )
        for name in live.keys() - set(averaged):
            self.state[name].copy_(live[name])

    def apply(self) -> None:
        """Give the model its averaged weights."""
        self.model.load_state_dict(self.state)


class MetricsHook(Hook):
    """Scalars to metrics.jsonl, progress to status.json; only a written line waits for the device.

    A line holds the means over the steps since the last one. A non-finite mean stops the run: `RunFailed`.
    """

    def __init__(self, folder: RunFolder, steps: int, log_every: int) -> None:
        self.folder, self.steps, self.log_every = folder, steps, log_every
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Tensor] | None = None
    ) -> None:
        for name, value in (outputs or {}).items():
            value = value.detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1
        step = batch_idx + 1
        if step % self.log_every and step != self.steps:
            self.folder.progress(step, self.steps)
            return
        means = dict(
            zip(self.sums, (torch.stack(list(self.sums.values())) / self.count).tolist(), strict=True)
        )
        self.sums, self.count = {}, 0
        bad = {name: value for name, value in means.items() if not math.isfinite(value)}
        if bad:
            raise RunFailed(
                f"{self.folder.spec.folder}: non-finite {', '.join(bad)} within the {self.log_every} steps "
                f"up to step {step} of {self.steps}; the last sound checkpoint was kept. "
                "Lower base_lr, or set clip_grad."
            )
        lr = runner.optim_wrapper.optimizer.param_groups[-1]["lr"]
        self.folder.progress(step, self.steps, lr=lr, **means)


class Checkpoint:
    """Everything a run needs to go on exactly; randomness derives from the step.

    Model, its average, optimizer, loss scaler, step, and the metrics since the last line.
    """

    def __init__(
        self,
        folder: RunFolder,
        model: BaseModel,
        wrapper: Any,
        metrics: MetricsHook,
        average: WeightAverage | None = None,
    ) -> None:
        self.folder, self.model, self.wrapper, self.metrics = folder, model, wrapper, metrics
        self.average = average

    def is_sound(self) -> bool:
        """Whether the weights and the metrics since the last line are finite; waits for the device."""
        parameters = [parameter.detach() for parameter in self.model.parameters()]
        values = [nn.utils.get_total_norm(parameters), *self.metrics.sums.values()]
        return all(math.isfinite(value) for value in values)

    def load(self) -> int:
        """Restore the checkpoint; the number of steps done, 0 where there is none."""
        path = self.folder.trainer_path
        if not path.is_file():
            self.folder.rewind(0)
            return 0
        state = torch.load(path, map_location=run_device(), weights_only=True)
        self.model.load_state_dict(state["model"])
        self.wrapper.load_state_dict(state["optimizer"])
        self.metrics.sums, self.metrics.count = state["sums"], state["count"]
        if self.average:
            self.average.state = state["average"]
        self.folder.rewind(state["step"])
        return int(state["step"])

    def save(self, step: int) -> None:
        """Write the checkpoint atomically; in a distributed run the first process does."""
        if get_dist_info()[0] != 0:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.wrapper.state_dict(),
            "average": self.average.state if self.average else None,
            "sums": self.metrics.sums,
            "count": self.metrics.count,
            "step": step,
        }
        write_bytes(self.folder.trainer_path, lambda file: torch.save(state, file))


class CheckpointHook(Hook):
    """Saves when `seconds` have passed since the last checkpoint; any moment is as good as another.

    Where saving takes long it is done more seldom, so that a thirtieth of the time goes into it.
    A checkpoint is written only while it is sound, so that a run that diverged can go on from before it did.
    """

    def __init__(self, checkpoint: Checkpoint, seconds: float) -> None:
        self.checkpoint, self.seconds = checkpoint, seconds
        self.last = time.monotonic()
        self.took = 0.0  # seconds, the last time

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Tensor] | None = None
    ) -> None:
        start = time.monotonic()
        if start - self.last < max(self.seconds, min(30 * self.took, 40 * self.seconds)):
            return
        if self.checkpoint.is_sound():
            self.checkpoint.save(batch_idx + 1)
        self.last = time.monotonic()
        self.took = self.last - start

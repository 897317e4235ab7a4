"""The one place that builds an mmengine Runner: pretraining, teachers and tasks all train through `fit`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from mmengine.dist import get_dist_info
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch.utils.data import DataLoader

from mimbench.contract import TransferRecipe
from mimbench.device import device as run_device
from mimbench.recipe import PretrainRecipe
from mimbench.train.average import WeightAverage
from mimbench.train.checkpoint import Checkpoint
from mimbench.train.loader import train_loader
from mimbench.train.loop import TrainLoop
from mimbench.train.metrics import Metrics
from mimbench.train.optimizer import optim_wrapper

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder


def fit(
    model: BaseModel,
    dataset: Any,
    folder: RunFolder,
    recipe: PretrainRecipe | TransferRecipe,
    *,
    steps: int,
    param_groups: list[dict[str, Any]],
    collate: Callable[[list[Any]], Any] | None = None,
    ema_momentum: float | None = None,
    log_every: int | None = None,
) -> None:
    """Train `model` for `steps` steps, resuming from the folder's checkpoint if there is one.

    Images, augmentation, masks and dropout of a step depend only on (seed, step). A run that was interrupted
    therefore ends with the same numbers as one that was not. `TrainLoop` shows a step.

    Args:
        model: is moved to the run's device. If it has these methods, `before_step(step)` is called with the
            step about to be done, and `after_step(done)` with the number of steps done.
        dataset: map-style; items may draw from Python's, NumPy's and torch's global generators.
        folder: gives the seed and keeps the metrics and the checkpoint.
        recipe: gives the batch size, the schedules, AdamW's betas, the clipping and the precision.
        param_groups: AdamW's groups, each with `lr_scale`, a factor on the recipe's learning rate.
        ema_momentum: if given, the model ends with the moving average of its weights over all steps.
        log_every: steps between two lines of metrics.jsonl; default: about 100 lines per run.

    Raises:
        RunFailed: the loss became NaN or infinite; the folder keeps the last sound checkpoint, if any.
    """
    if steps == 0:
        return
    target = run_device()
    model.to(target)
    # Batches are pinned. Not every preprocessor takes this as an argument.
    model.data_preprocessor._non_blocking = True
    wrapper = adamw(param_groups, recipe, target, folder)
    metrics = Metrics(folder, steps, log_every or max(steps // 100, 1))
    average = WeightAverage(model, ema_momentum) if ema_momentum is not None else None
    checkpoint = Checkpoint(folder, model, wrapper, metrics, average)
    first = checkpoint.load()
    if first < steps:
        rank, world_size = get_dist_info()
        loader = train_loader(
            dataset,
            batch_size=recipe.global_batch_size,
            seed=folder.spec.seed,
            first=first,
            last=steps,
            num_workers=folder.options.num_workers,
            collate=collate,
            rank=rank,
            world_size=world_size,
        )
        loop = partial(
            TrainLoop,
            model=model,
            recipe=recipe,
            first=first,
            steps=steps,
            epoch_steps=len(dataset) / recipe.global_batch_size,
            metrics=metrics,
            checkpoint=checkpoint,
            average=average,
        )
        QuietRunner(model, folder, wrapper, loader, loop).train()
    if average is not None:
        average.apply()


def adamw(
    groups: list[dict[str, Any]],
    recipe: PretrainRecipe | TransferRecipe,
    target: torch.device,
    folder: RunFolder,
) -> OptimWrapper:
    """The recipe's optimizer; on a CPU it computes in fp32, and the run's details say so."""
    precision = recipe.precision
    if precision != "fp32" and target.type == "cpu":
        folder.details["precision"] = f"fp32 instead of {precision}: the run was on a CPU"
        precision = "fp32"
    return optim_wrapper(
        groups,
        lr=0.0,  # the loop sets each step's
        betas=recipe.betas,
        eps=1e-8,
        clip_grad=recipe.clip_grad,
        clip_each=recipe.clip_each,
        precision=precision,
        device=target,
    )


class QuietRunner(Runner):
    """mmengine's Runner without what we do not need; `TrainLoop` runs the steps.

    What it still does: it wraps the model in DistributedDataParallel if several processes train. It sets how
    the loader's processes start, and turns off OpenCV's threads there. It initialises the optimizer wrapper's
    step count, which gradient accumulation uses. It creates the registry scope and the message hub that
    mm-series models look for. Autocast, loss scaling and clipping are in the optimizer wrapper.

    What it skips, because it costs seconds at every start or is already in the run store: the survey of
    compilers and GPUs (env.json has what matters), the dump of an empty configuration, the log file and its
    folder, weight initialisation (the model has its weights), and all hooks.
    """

    def __init__(
        self,
        model: BaseModel,
        folder: RunFolder,
        wrapper: OptimWrapper,
        loader: DataLoader[Any],
        loop: Callable[[Runner, DataLoader[Any]], TrainLoop],
    ) -> None:
        super().__init__(
            model,
            work_dir=str(folder.path),
            train_dataloader=loader,
            train_cfg=loop,
            optim_wrapper=wrapper,
            default_hooks=dict.fromkeys(
                ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
            ),
            visualizer=Visualizer(name=folder.spec.folder),
            experiment_name=f"{folder.spec.folder}-{time.monotonic_ns()}",
            log_level=logging.WARNING,
            env_cfg={"mp_cfg": {}},
            randomness={"seed": folder.spec.seed},
        )

    def build_train_loop(self, loop: Callable[[Runner, DataLoader[Any]], TrainLoop]) -> TrainLoop:
        return loop(self, self._train_dataloader)  # mmengine would deep-copy a dictionary

    @property
    def timestamp(self) -> str:
        """mmengine's name for its log folder; empty, so that it makes none inside the run's folder."""
        return ""

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any) -> Any:
        del log_file
        return MMLogger.get_instance(name=self._experiment_name, log_level=log_level, **kwargs)

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        del env_cfg

    def dump_config(self) -> None:
        return

    def _init_model_weights(self) -> None:
        return

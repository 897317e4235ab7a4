"""The training loop: what happens in a step, in order."""

from __future__ import annotations

from typing import Any

from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop
from torch import nn
from torch.utils.data import DataLoader

from mimbench.contract import TransferRecipe
from mimbench.recipe import PretrainRecipe
from mimbench.train.average import WeightAverage
from mimbench.train.checkpoint import Checkpoint
from mimbench.train.loader import MODEL_STREAM, seed_everything
from mimbench.train.metrics import Metrics
from mimbench.train.optimizer import set_rates


class TrainLoop(BaseLoop):
    """Runs the steps from `first` on. The loader also starts at `first`, so nothing is replayed.

    It waits for the device only to write a line of metrics.jsonl or a checkpoint.

    Args:
        model: without the wrapper that mmengine puts around it for several processes.
        epoch_steps: steps per epoch; a fraction if the batch size does not divide the number of images.
        average: the moving average of the weights, or None.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader[Any],
        *,
        model: BaseModel,
        recipe: PretrainRecipe | TransferRecipe,
        first: int,
        steps: int,
        epoch_steps: float,
        metrics: Metrics,
        checkpoint: Checkpoint,
        average: WeightAverage | None,
    ) -> None:
        super().__init__(runner, dataloader)
        self.iter, self.max_iters = first, steps  # mmengine's names for the first step and their number
        self.recipe, self.epoch_steps = recipe, epoch_steps
        self.metrics, self.checkpoint, self.average = metrics, checkpoint, average
        self.before_step = getattr(model, "before_step", _nothing)
        self.after_step = getattr(model, "after_step", _nothing)

    def run(self) -> nn.Module:
        """Train; returns the model."""
        self.runner.model.train()
        for step, batch in enumerate(self.dataloader, start=self.iter):
            self.run_iter(step, batch)
        self.checkpoint.save_last(self.max_iters)
        return self.runner.model

    def run_iter(self, step: int, batch: Any) -> None:
        """One step. Its tensors and its autograd graph are freed before the next batch is loaded."""
        runner, recipe, steps = self.runner, self.recipe, self.max_iters
        seed_everything(runner.seed, step, MODEL_STREAM + 2 * runner.rank)
        lr, optimizer = recipe.lr_at(step, steps, self.epoch_steps), runner.optim_wrapper.optimizer
        set_rates(optimizer, lr, recipe.weight_decay_at(step, steps))
        self.before_step(step)
        scalars = runner.model.train_step(batch, runner.optim_wrapper)  # loss, backward, clipping, AdamW
        self.after_step(step + 1)
        if self.average is not None:
            self.average.update()
        self.metrics.log(step + 1, scalars, optimizer.param_groups[-1]["lr"])
        self.checkpoint.save_if_due(step + 1)


def _nothing(step: int) -> None:
    """Used for a model without `before_step` or `after_step`."""

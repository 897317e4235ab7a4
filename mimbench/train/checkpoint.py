"""The training checkpoint: an interrupted run continues from it with exactly the same numbers."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch
from mmengine.dist import get_dist_info
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch import nn

from mimbench.device import device as run_device
from mimbench.store import checkpoints
from mimbench.train.average import WeightAverage
from mimbench.train.metrics import Metrics, diverged

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder


class Checkpoint:
    """trainer.pt: everything a run needs to continue exactly, except random states: the step seeds them.

    It holds the model, its average, the optimizer, the loss scaler, the step, the metrics since the last
    line, and the lines so far. It is written only while weights and metrics are finite, so a run that
    diverged keeps a checkpoint from before it diverged. The one before it is kept as well, in case the newest
    gets damaged.
    """

    def __init__(
        self,
        folder: RunFolder,
        model: BaseModel,
        wrapper: OptimWrapper,
        metrics: Metrics,
        average: WeightAverage | None = None,
    ) -> None:
        self.folder, self.model, self.wrapper, self.metrics = folder, model, wrapper, metrics
        self.average = average
        self.last = time.monotonic()  # when the last one was written
        self.took = 0.0  # seconds, the last time

    def load(self) -> int:
        """Restore the newest sound checkpoint. Damaged ones are set aside, and the run's log names them.

        Returns:
            The number of steps done; 0 if there is no sound checkpoint.
        """
        for path in checkpoints.sound(self.folder.path, keep=get_dist_info()[0] != 0):
            state = torch.load(path, map_location=run_device(), weights_only=True)
            self.model.load_state_dict(state["model"])
            self.wrapper.load_state_dict(state["optimizer"])
            self.metrics.sums, self.metrics.count = state["sums"], state["count"]
            if self.average:
                self.average.state = state["average"]
            self.folder.restore_metrics(state["lines"])
            return int(state["step"])
        self.folder.restore_metrics("")
        return 0

    def save(self, done: int) -> None:
        """Write the checkpoint atomically after `done` steps; of several processes only the first writes."""
        if get_dist_info()[0] != 0:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.wrapper.state_dict(),
            "average": self.average.state if self.average else None,
            "sums": self.metrics.sums,
            "count": self.metrics.count,
            "step": done,
            "lines": self.folder.metrics_text(),
        }
        self.folder.save_checkpoint(done, lambda file: torch.save(state, file))

    def save_if_due(self, done: int) -> None:
        """Save if `checkpoint_seconds` have passed since the last save; any step will do.

        Slow saves are made less often, so that they take about a thirtieth of the time: the wait grows to 30
        times the last save, but to 40 times `checkpoint_seconds` at most.
        """
        start, seconds = time.monotonic(), self.folder.options.checkpoint_seconds
        if start - self.last < max(seconds, min(30 * self.took, 40 * seconds)):
            return
        if self.is_sound():
            self.save(done)
        self.last = time.monotonic()
        self.took = self.last - start

    def save_last(self, steps: int) -> None:
        """Save after the last step. Raises RunFailed if weights or metrics are not finite."""
        if not self.is_sound():
            raise diverged(self.folder, f"weights after step {steps} of {steps}")
        self.save(steps)

    def is_sound(self) -> bool:
        """Whether the weights and the metrics since the last line are finite; waits for the device."""
        parameters = [parameter.detach() for parameter in self.model.parameters()]
        values = [nn.utils.get_total_norm(parameters), *self.metrics.sums.values()]
        return all(math.isfinite(value) for value in values)

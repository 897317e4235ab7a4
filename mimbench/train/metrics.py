"""Reports of a training run: means to metrics.jsonl, a heartbeat to status.json, an error if it diverges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mimbench.errors import RunFailed

if TYPE_CHECKING:
    from mimbench.store.folder import RunFolder


class Metrics:
    """Sums up the scalars of each step on the device; waits for the device only to write a line.

    A line of metrics.jsonl holds the means over the steps since the line before.
    """

    def __init__(self, folder: RunFolder, steps: int, log_every: int) -> None:
        self.folder, self.steps, self.log_every = folder, steps, log_every
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def log(self, done: int, scalars: Mapping[str, Tensor], lr: float) -> None:
        """Add a step's scalars; after every `log_every` steps, and after the last, write a line.

        Args:
            done: steps done, this one included.
            lr: of this step.

        Raises:
            RunFailed: a mean is NaN or infinite.
        """
        for name, value in scalars.items():
            value = value.detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1
        if done % self.log_every and done != self.steps:
            self.folder.progress(done, self.steps)
            return
        means = dict(
            zip(self.sums, (torch.stack(list(self.sums.values())) / self.count).tolist(), strict=True)
        )
        bad = ", ".join(name for name, mean in means.items() if not math.isfinite(mean))
        if bad:
            where = f"steps {done - self.count + 1} to {done}" if self.count > 1 else f"step {done}"
            raise diverged(self.folder, f"{bad} in {where} of {self.steps}")
        self.sums, self.count = {}, 0
        self.folder.progress(done, self.steps, lr=lr, **means)


def diverged(folder: RunFolder, what: str) -> RunFailed:
    """The error for a run whose numbers are no longer finite.

    Args:
        what: which number, and where (`loss in step 7 of 8`).
    """
    kept = " The last sound checkpoint is kept." if folder.trainer_path.is_file() else ""
    return RunFailed(f"{folder.spec.folder}: non-finite {what}.{kept} Lower base_lr, or set clip_grad.")

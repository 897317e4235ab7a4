"""The moving average of weights; over whole runs and interruptions: test_resume.py."""

from __future__ import annotations

import torch
from torch import nn

from mimbench.train.average import WeightAverage


def test_floats_move_and_counters_are_copied() -> None:
    """a <- m a + (1 - m) w, buffers included; a count of batches has no average."""
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, momentum=0.75)
    with torch.no_grad():
        model.weight.fill_(5.0)
        model.running_mean.fill_(8.0)
        model.num_batches_tracked.fill_(3)
    average.update()
    assert model.weight.tolist() == [5.0, 5.0], "the model trains on"
    average.apply()
    assert model.weight.tolist() == [2.0, 2.0] and model.bias.tolist() == [0.0, 0.0]
    assert model.running_mean.tolist() == [2.0, 2.0] and model.num_batches_tracked.item() == 3

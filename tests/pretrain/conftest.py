"""Every test here begins with the same random numbers."""

from __future__ import annotations

import random

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    random.seed(0)

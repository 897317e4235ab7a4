"""Batches depend on (seed, step) alone."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mimbench.errors import UserError
from mimbench.train.loader import StepSampler, isolated_randomness, seed_everything, train_loader


class Drawing:
    """Items that say who they are and draw from each of the three global generators."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        drawn = random.random(), float(np.random.rand()), float(torch.rand(()))
        return torch.tensor([index, *drawn], dtype=torch.float64)


def batches(size: int = 10, **options: Any) -> list[Tensor]:
    return list(train_loader(Drawing(size), **{"batch_size": 4, "seed": 3, "first": 0, "last": 6, **options}))


def indices(found: list[Tensor]) -> list[int]:
    return [int(index) for batch in found for index in batch[:, 0]]


@pytest.mark.parametrize(("size", "batch_size"), [(12, 4), (10, 4), (3, 8), (7, 7)])
def test_every_epoch_visits_every_image_once(size: int, batch_size: int) -> None:
    seen = indices(batches(size, batch_size=batch_size, last=3 * size))
    epochs = [seen[start : start + size] for start in range(0, len(seen), size)]
    assert len(epochs) >= 3 and all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert epochs[0] != epochs[1] or size < 4, "each epoch has an order of its own"


def test_workers_make_the_same_batches() -> None:
    alone, helped = batches(), batches(num_workers=2)
    assert len(alone) == 6
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize("first", [1, 3, 5, 6])
def test_resuming_gives_the_batches_that_are_left(first: int) -> None:
    rest = batches(first=first)
    assert len(rest) == 6 - first
    assert all(torch.equal(a, b) for a, b in zip(rest, batches()[first:], strict=True))


def test_the_seed_decides_order_and_augmentation() -> None:
    one, again, other = batches(), batches(), batches(seed=4)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert indices(one) != indices(other)
    drawn = torch.cat(one)[:, 1:]
    assert len(drawn.unique()) == drawn.numel(), "no draw is used twice"
    assert not set(drawn.flatten().tolist()) & set(torch.cat(other)[:, 1:].flatten().tolist())


def test_it_leaves_the_global_generators_alone() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(0, 0, 1)
    undisturbed = draw(), draw()
    seed_everything(0, 0, 1)
    first = draw()
    batches()
    assert (first, draw()) == undisturbed


def test_isolated_randomness_restores_after_an_error() -> None:
    random.seed(0)
    expected = random.random()
    random.seed(0)
    with pytest.raises(KeyError), isolated_randomness():
        random.seed(99)
        raise KeyError
    assert random.random() == expected


def test_seeding_reaches_every_generator_and_separates_streams() -> None:
    drawn = set()
    for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 2)):
        seed_everything(*key)
        drawn.add((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert all(len({draw[i] for draw in drawn}) == 5 for i in range(3))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_global_batch(world_size: int) -> None:
    whole = [[index for _, index in batch] for batch in StepSampler(10, 8, seed=3, first=1, last=6)]
    parts = [
        list(StepSampler(10, 8, seed=3, first=1, last=6, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for number, batch in enumerate(whole):
        shares = [part[number] for part in parts]
        assert {len(share) for share in shares} == {8 // world_size}
        assert [index for share in shares for _, index in share] == batch
        assert {step for share in shares for step, _ in share} == {number + 1}


def test_ranks_augment_differently() -> None:
    ranks = [batches(batch_size=4, rank=rank, world_size=2) for rank in range(2)]
    drawn = [set(torch.cat(found)[:, 1:].flatten().tolist()) for found in ranks]
    assert not drawn[0] & drawn[1]
    seen = Counter(indices(ranks[0]) + indices(ranks[1]))
    assert seen == Counter(indices(batches()))


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(UserError, match="global_batch_size: 6.*4 processes"):
        StepSampler(10, 6, seed=0, first=0, last=1, rank=0, world_size=4)

"""Batches that depend only on (seed, step), not on the number of workers or the step of a resume."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from mimbench.errors import UserError
from mimbench.train.worker_errors import Loader


def seed_everything(seed: int, step: int, stream: int) -> None:
    """Seed Python, NumPy and torch for one step; `stream` separates the loader's draws from the model's."""
    state = np.random.SeedSequence([seed, step, stream]).generate_state(2)
    random.seed(int(state[0]))
    np.random.seed(int(state[0]))
    seed_torch = int(state[0]) << 32 | int(state[1])
    torch.default_generator.manual_seed(seed_torch)  # torch.manual_seed asks every backend there could be
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed_torch)


@contextmanager
def isolated_randomness() -> Iterator[None]:
    """Restore the global generators afterwards (the loader may run in the training process)."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


LOADER_STREAM, MODEL_STREAM = 0, 1


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (step, index) for steps `first..last-1`, cut from one permutation of the images per epoch.

    Every epoch visits every image once. A batch may span two epochs, so no image is dropped. With several
    processes, each takes its own contiguous part of the global batch.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        first: int,
        last: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            remedy = f"{world_size} processes cannot share it evenly."
            raise UserError("global_batch_size", batch_size, remedy=remedy)
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.first, self.last, self.rank, self.world_size = first, last, rank, world_size

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.batch_size // self.world_size
        order: Any = None
        order_epoch = -1
        for step in range(self.first, self.last):
            start = step * self.batch_size + self.rank * share
            batch = []
            for position in range(start, start + share):
                epoch, offset = divmod(position, self.size)
                if epoch != order_epoch:
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
                    order_epoch = epoch
                batch.append((step, int(order[offset])))
            yield batch


class SeededBatches(Dataset[Any]):
    """Wraps a map-style dataset: seeds the global generators with the step before it fetches a batch."""

    def __init__(self, dataset: Any, *, seed: int, rank: int = 0) -> None:
        self.dataset, self.seed, self.rank = dataset, seed, rank

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int]) -> Any:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: list[tuple[int, int]]) -> list[Any]:
        with isolated_randomness():
            seed_everything(self.seed, items[0][0], LOADER_STREAM + 2 * self.rank)
            return [self.dataset[index] for _, index in items]


def train_loader(
    dataset: Any,
    *,
    batch_size: int,
    seed: int,
    first: int,
    last: int,
    num_workers: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """The loader of steps `first..last-1`; see `StepSampler`."""
    sampler = StepSampler(
        len(dataset), batch_size, seed=seed, first=first, last=last, rank=rank, world_size=world_size
    )
    return Loader(
        SeededBatches(dataset, seed=seed, rank=rank),
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        generator=torch.Generator(),  # without it, each start draws from the global one
    )

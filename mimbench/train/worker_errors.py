"""A DataLoader whose worker processes hand on our errors as they were raised.

torch makes a text of an exception in a worker process and builds a new one from it: a UserError would lose
its field, value and remedy. Here the error itself travels, as a value.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset, default_collate, default_convert

from mimbench.errors import RunFailed, UserError


@dataclass(frozen=True)
class Raised:
    """An error that a worker process met, and its traceback there."""

    error: UserError | RunFailed
    trace: str


class Loader(DataLoader[Any]):
    """torch's DataLoader; a UserError or RunFailed in a worker process is raised here with all its parts."""

    def __init__(
        self,
        dataset: Any,
        *,
        num_workers: int = 0,
        collate_fn: Callable[[Any], Any] | None = None,
        **rest: Any,
    ) -> None:
        if num_workers:
            batched = rest.get("batch_size", 1) is not None or rest.get("batch_sampler") is not None
            collate_fn = functools.partial(
                _collate, collate_fn or (default_collate if batched else default_convert)
            )
            dataset = _Watched(dataset)
        super().__init__(dataset, num_workers=num_workers, collate_fn=collate_fn, **rest)

    def __iter__(self) -> Any:
        batches = super().__iter__()
        return _raising(batches) if self.num_workers else batches


def _raising(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        if isinstance(batch, Raised):
            raise batch.error from RuntimeError(f"in a worker process:\n{batch.trace}")
        yield batch


class _Watched(Dataset[Any]):
    """A dataset that returns what it raises."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.metainfo: dict[str, Any] = getattr(dataset, "metainfo", {})  # mmengine's loop asks for it

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return _returned(self.dataset.__getitem__, index)

    def __getitems__(self, indices: list[Any]) -> Any:
        together = getattr(self.dataset, "__getitems__", None)
        return _returned(together or (lambda each: [self.dataset[index] for index in each]), indices)


def _returned(get: Callable[[Any], Any], index: Any) -> Any:
    try:
        return get(index)
    except (UserError, RunFailed) as error:
        return Raised(error, traceback.format_exc())


def _collate(collate: Callable[[Any], Any], items: Any) -> Any:
    return items if isinstance(items, Raised) else collate(items)

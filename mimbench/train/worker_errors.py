"""A DataLoader that raises our errors from worker processes unchanged.

torch turns an exception in a worker process into text and builds a new exception from it. A UserError would
lose its field, value and remedy. Here the worker returns the error itself instead of a batch.
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
    """An error raised in a worker process, and its traceback there."""

    error: UserError | RunFailed
    trace: str


class Loader(DataLoader[Any]):
    """torch's DataLoader; re-raises a UserError or RunFailed of a worker process with all its parts."""

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
    """A dataset that returns our errors instead of raising them."""

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

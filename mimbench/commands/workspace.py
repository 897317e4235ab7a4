"""What commands work with: the catalog, and the data of a request."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from mimbench import discovery, paths
from mimbench.catalog import Catalog
from mimbench.execute.pool import Pool
from mimbench.plan.datasets import Data
from mimbench.plan.graph import Node
from mimbench.plan.recipes import checkpoints
from mimbench.plan.request import Request, check_weights


def read_catalog(console: Console, pool: Pool | None = None) -> Catalog:
    """The catalog. Before it imports the first card, it prints a notice and starts the pool's workers."""

    def on_miss() -> None:
        console.print("Reading recipes (kept for the next command)", style="dim")
        if pool:
            pool.start()

    return Catalog(paths.cache(), on_miss)


def dataset(request: Request, catalog: Catalog) -> Data:
    """The datasets and checkpoints of a request. Nothing is made.

    Raises:
        UserError: unusable data, an unknown checkpoint name, or a file that is not a checkpoint.
    """
    known = set(discovery.names("method"))
    if request.weights.keys() - known:
        known = checkpoints(catalog)
    check_weights(request.weights, known)
    size = "smoke" if request.scale == "smoke" else "toy"
    reading = Reading(Console(stderr=True))
    return Data(request, lambda: paths.data() / size, cache=paths.cache(), progress=reading)


class Reading:
    """Tells how far the reading of data is: on a terminal in one line, elsewhere with a line now and then."""

    def __init__(self, console: Console) -> None:
        self.console, self.said = console, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.said >= (0.5 if self.console.is_terminal else 30.0):
            self.said = now
            end = "\r" if self.console.is_terminal and done < total else "\n"
            self.console.print(f"Reading data: {done:,} of {total:,} files", style="dim", end=end)


def prepare_data(todo: Iterable[Node], console: Console) -> None:
    """Make the project's own data if a run in `todo` reads it; check what would be found only at a run's end.

    Raises:
        UserError: the folder of its own data holds something else, or its content has changed; an image for
            an evaluation does not decode.
    """
    from mimbench.data.dataset import Dataset

    todo = list(todo)
    own = [paths.data() / size for size in ("smoke", "toy")]
    read = {
        (role, Path(path), node.spec.stage == "downstream", node.spec.skip_corrupt)
        for node in todo
        for role, path in node.inputs.data.items()
    }
    for root in own:
        here = {(role, path, labels) for role, path, labels, _ in read if path.is_relative_to(root)}
        _make_own(root, sorted(here), console)
    for role, path, labels, skips in sorted(read):
        if not any(path.is_relative_to(root) for root in own):
            found = Dataset(path, paths.cache(), skip_corrupt=skips)
            found.require(role, labels=labels, progress=Reading(console))


def _make_own(root: Path, read: list[tuple[str, Path, bool]], console: Console) -> None:
    """Make the project's own data in `root` unless it is there; then check what is read."""
    from mimbench.data import toy
    from mimbench.data.dataset import Dataset
    from mimbench.data.toy import manifest
    from mimbench.data.toy.make import ensure

    if not read:
        return
    size: Any = root.name
    if not (root / "toy.json").is_file():
        with console.status(f"Making the {size} data in {root}"):
            ensure(root, size=size)
        return
    ensure(root, size=size)  # an older version may have made it
    for role, path, labels in read:
        manifest.check(Dataset(path, paths.cache()), role, toy.fingerprint(0, size), labels=labels)

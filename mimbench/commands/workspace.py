"""What every command works with: the catalog of what there is, and the datasets of a request."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.console import Console

from mimbench import paths
from mimbench.catalog import Catalog
from mimbench.execute.pool import Pool
from mimbench.plan.datasets import Data
from mimbench.plan.request import Request


def read_catalog(console: Console, pool: Pool | None = None) -> Catalog:
    """The catalog; where it must import the cards first, that is said, and the pool's workers start."""

    def on_miss() -> None:
        console.print("Reading methods and tasks (once after a change of their code)", style="dim")
        if pool:
            pool.start()

    return Catalog(paths.cache(), on_miss)


def dataset(request: Request, console: Console) -> Data:
    def toy() -> Path:
        from mimbench.data.toy import ensure

        size: Literal["smoke", "toy"] = "smoke" if request.scale == "smoke" else "toy"
        root = paths.data() / size
        if (root / "toy.json").is_file():
            return ensure(root, size=size)
        with console.status(f"Making the {size} data in {root}"):
            return ensure(root, size=size)

    return Data(request, toy)

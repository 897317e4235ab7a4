"""What commands work with: the catalog, and the data of a request."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from mimbench import discovery, paths
from mimbench.catalog import Catalog
from mimbench.errors import UserError
from mimbench.execute.pool import Pool
from mimbench.plan.datasets import Data, count_images, data_fingerprint, toy_images
from mimbench.plan.graph import Node
from mimbench.plan.recipes import checkpoints
from mimbench.plan.request import Request, check_weights


def read_catalog(console: Console, pool: Pool | None = None) -> Catalog:
    """The catalog. Before it imports the first card, it prints a notice and starts the pool's workers."""

    def on_miss() -> None:
        console.print("Reading recipes (first time with these settings)", style="dim")
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
    return Data(request, lambda: paths.data() / size)


def make_toy_data(todo: Iterable[Node], console: Console) -> None:
    """Make the project's own data if a run in `todo` reads it; if it exists, check it.

    Raises:
        UserError: the folder holds something else, or is damaged.
    """
    from mimbench.data import toy

    read = [(role, Path(path)) for node in todo for role, path in node.inputs.data.items()]
    for size in ("smoke", "toy"):
        root = paths.data() / size
        roles = {role: path for role, path in read if path.is_relative_to(root)}
        if not roles:
            continue
        if not (root / "toy.json").is_file():
            with console.status(f"Making the {size} data in {root}"):
                toy.ensure(root, size=size)
            continue
        toy.ensure(root, size=size)  # an older version may have made it
        for role, path in roles.items():
            if not _is_sound(size, role, path):
                raise UserError(
                    "toy data", str(path), remedy=f"It is damaged. Delete {root}; mimbench makes it again."
                )


def _is_sound(size: str, role: str, path: Path) -> bool:
    """Whether a role's folder of toy data has the right fingerprint and all its training images."""
    from mimbench.data import toy

    try:
        if data_fingerprint(path) != toy.fingerprint(0, size):
            return False
        return all(
            count_images(path, role, labelled=labelled) == toy_images(size, role, labelled=labelled)
            for labelled in (False, True)
        )
    except (OSError, UserError):
        return False

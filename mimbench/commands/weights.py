"""Refuses checkpoints that do not load, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable

from mimbench.plan.graph import Node
from mimbench.store.folder import RunFolder
from mimbench.store.runs import RunStore


def require_loadable(todo: Iterable[Node], store: RunStore) -> None:
    """Load each checkpoint given with --weights as its run will; nothing is written.

    Raises:
        UserError: it is damaged, or a tensor is missing, has no place, another shape, or is not finite.
    """
    given = [node for node in todo if node.inputs.weights]
    if not given:
        return
    try:
        from mimbench import catalog
        from mimbench.checkpoint import adopt
    except ImportError:  # the run reports which module is missing
        return
    for node in given:
        folder = RunFolder(store, store.root / node.spec.folder)
        folder.spec, folder.inputs = node.spec, node.inputs
        if node.spec.stage == "pretrain":
            adopt.load(folder, catalog.method(node.spec.name))
        else:
            card = catalog.teacher(node.spec.name)
            assert card.load is not None, f"{node.spec.name} is given weights but has no `load`"
            card.load(folder)

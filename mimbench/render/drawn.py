"""A table's plots, drawn once: if table and code are the same, they come from the user's cache folder."""

from __future__ import annotations

import contextlib
import importlib.metadata
from pathlib import Path

from mimbench import paths
from mimbench.atomic import digest, read_json, write_json
from mimbench.table.cell import Table

DRAWERS = ("plot.py", "text.py", "escape.py")  # the code that a plot depends on


def plots(table: Table, name: str) -> dict[str, str]:
    """Metric, and `<metric>-cost` if the table has a cost, to its SVG.

    Args:
        name: the name of the table's files; the ids in its plots are derived from it.
    """
    cache = paths.cache()
    place = cache / "plots" / f"{_key(table, name)}.json" if cache else None
    with contextlib.suppress(OSError):  # if it cannot be read, draw it again
        known = read_json(place) if place else None
        if isinstance(known, dict) and known.get("digest") == digest(repr(known.get("plots"))):
            return dict(known["plots"])
    drawn = _draw(table, name)
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        if place:
            pairs = [list(pair) for pair in drawn.items()]
            write_json(place, {"plots": pairs, "digest": digest(repr(pairs))})
    return drawn


def _draw(table: Table, name: str) -> dict[str, str]:
    from mimbench.render import plot  # matplotlib takes half a second

    columns = list(enumerate(table.spec.columns))
    found = {c.metric: plot.render(table, i, salt=f"{name}-{c.metric}") for i, c in columns}
    if table.spec.cost:
        costs = {f"{c.metric}-cost": (i, f"{name}-{c.metric}-cost") for i, c in columns}
        found |= {key: plot.render_cost(table, i, salt=salt) for key, (i, salt) in costs.items()}
    return found


def _key(table: Table, name: str) -> str:
    code = [(Path(__file__).parent / file).read_text(encoding="utf-8") for file in DRAWERS]
    return digest(repr((table, name, code, importlib.metadata.version("matplotlib"))))

"""The page that leads to the pages of several tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimbench.atomic import write_text
from mimbench.render import text
from mimbench.render.html import template
from mimbench.table.cell import Table
from mimbench.table.verdict import MEANINGS


def write(tables: Mapping[str, Table], out_dir: Path, command: str) -> Path:
    """Write `index.html` into `out_dir`; the tables by their pages' paths from there."""
    page = out_dir / "index.html"
    items = [_item(table, href) for href, table in tables.items()]
    write_text(page, template("index.html.j2").render(tables=items, command=command))
    return page


def _item(table: Table, href: str) -> dict[str, Any]:
    cells = [cell for row in table.rows if row.spec.method for cell in row.cells]
    verdicts = [cell.verdict for cell in cells] + [claim.verdict for claim in table.claims]
    words = Counter(verdict.word for verdict in verdicts if verdict)
    return {
        "paper": table.spec.paper,
        "title": table.spec.title,
        "href": href,
        "scale": table.scale,
        "seeds": text.seeds(table),
        "cells": f"{sum(cell.complete for cell in cells)} of {len(cells)}",
        "verdicts": [(words[word], word) for word in MEANINGS if words[word]],
    }

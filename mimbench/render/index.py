"""The index page that links to every table in the workspace's reports, and the tables' leaderboard links.

It is made from the files in the folder: the pages, and the JSON beside each page with the table's title,
scale and counts. So it lists the tables of all commands and scales, also old ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import unescape
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from mimbench import paths
from mimbench.atomic import write_text
from mimbench.recipe import SCALES
from mimbench.render.html import address, template
from mimbench.render.json import SCHEMA

FORMATS = {"CSV": ".csv", "JSON": ".json", "LaTeX": ".tex", "Markdown": ".md"}
_TITLE = re.compile("<title>(.*) · mimbench</title>")
_LINK = re.compile("(<!-- leaderboard -->).*?(<!-- /leaderboard -->)")


class Cells(BaseModel):
    complete: int
    of: int
    stale: int


class Summary(BaseModel):
    cells: Cells
    verdicts: dict[str, int]


class Document(BaseModel):
    """The part of a table's JSON that the index needs."""

    version: int = Field(alias="schema", le=SCHEMA)
    kind: Literal["mimbench table"]
    table: str
    paper: str
    title: str
    scale: str
    seeds: list[int]
    summary: Summary
    command: str


@dataclass(frozen=True)
class Page:
    """A table's page.

    Attributes:
        method: name of the page's folder; empty for a leaderboard.
        document: None if the page has no readable JSON, for example from an older version.
    """

    path: Path
    method: str
    title: str
    document: Document | None

    @property
    def scale(self) -> str:
        """The scale alone, without the word that marks changed recipes."""
        return self.document.scale.rpartition(" ")[2] if self.document else ""

    @property
    def order(self) -> tuple[str, bool, str, int, str]:
        """Sort key: by method, the main table first, the largest scale first."""
        table = self.document.table if self.document else self.path.stem
        size = SCALES.index(self.scale) if self.scale in SCALES else -1
        return self.method, table != "main", table, -size, self.path.stem


def write(out_dir: Path) -> Path:
    """Write `index.html` into `out_dir`, and link every page there to the leaderboard of its scale."""
    pages = sorted(_pages(out_dir), key=lambda page: page.order)
    boards = [page for page in pages if not page.method]
    groups = [
        {"paper": _paper(group), "tables": [_item(page, out_dir) for page in group]}
        for group in (list(group) for _, group in groupby(pages, key=lambda page: page.method))
    ]
    index, runs = out_dir / "index.html", paths.runs()
    content = template("index.html.j2").render(
        groups=groups,
        commands=[page.document.command for page in pages if page.document and page.document.command],
        runs=address(f"{os.path.relpath(runs, out_dir)}/") if runs.is_dir() else "",
    )
    write_text(index, content)
    for page in pages:
        _link(page, boards)
    return index


def _pages(out_dir: Path) -> list[Page]:
    files = [file for file in out_dir.glob("*.html") if file.name != "index.html"]
    found = []
    for file in [*files, *out_dir.glob("*/*.html")]:
        method = "" if file.parent == out_dir else file.parent.name
        document = _document(file.with_suffix(".json"))
        if document:
            found.append(Page(file, method, document.title, document))
        elif title := _TITLE.search(file.read_text(encoding="utf-8", errors="replace")):
            found.append(Page(file, method, unescape(title[1]), None))
    return found


def _document(file: Path) -> Document | None:
    try:
        return Document.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _paper(pages: Sequence[Page]) -> str:
    """The citation; without any JSON, the folder's name or the page's title."""
    return next((page.document.paper for page in pages if page.document), pages[0].method or pages[0].title)


def _item(page: Page, out_dir: Path) -> dict[str, Any]:
    document = page.document
    file = {name: page.path.with_suffix(suffix) for name, suffix in FORMATS.items()}
    cells = document.summary.cells if document else None
    return {
        "title": page.title,
        "href": address(os.path.relpath(page.path, out_dir)),
        "scale": document.scale if document else "",
        "seeds": ", ".join(map(str, document.seeds)) or "none" if document else "",
        "cells": f"{cells.complete} of {cells.of}" if cells else "",
        "stale": cells.stale if cells else 0,
        "verdicts": [(count, word) for word, count in document.summary.verdicts.items()] if document else [],
        "files": {
            name: address(os.path.relpath(path, out_dir)) for name, path in file.items() if path.is_file()
        },
    }


def _link(page: Page, boards: Sequence[Page]) -> None:
    """Put a link to the leaderboard of the page's scale into the page; write it only if it changes."""
    board = next((board for board in boards if board.scale == page.scale), None)
    link = ""
    if board == page:
        link = '<span aria-current="page">Leaderboard</span>'
    elif board:
        href = address(os.path.relpath(board.path, page.path.parent))
        link = f'<a href="{href}">Leaderboard</a>'
    before = page.path.read_text(encoding="utf-8", errors="replace")
    after = _LINK.sub(lambda match: f"{match[1]}{link}{match[2]}", before, count=1)
    if after != before:
        write_text(page.path, after)

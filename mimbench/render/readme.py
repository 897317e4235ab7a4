"""Writes the results section of a document: tables in Markdown, between two marks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mimbench.atomic import write_text
from mimbench.errors import UserError

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def update(document: Path, tables: Iterable[str]) -> None:
    """Put tables in Markdown between the marks of `document`, with headings two levels lower.

    Raises:
        UserError: the document is missing or does not have exactly one pair of marks; or there is no table.
    """
    before, after = around(document)
    tables = list(tables)
    if not tables:
        raise UserError(
            "results", remedy="Nothing is computed yet. Make a table: mimbench reproduce-table METHOD."
        )
    lower = [re.sub(r"^#", "###", table, flags=re.MULTILINE).strip() for table in tables]
    write_text(document, before + "\n\n".join([BEGIN, *lower, END]) + after)


def around(document: Path) -> tuple[str, str]:
    """The text before and after the marks. Raises UserError like `update`."""
    if not document.is_file():
        raise UserError("document", str(document), remedy="There is no such file.")
    text = document.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise UserError("document", str(document), remedy=f"It needs one {BEGIN} and, after it, one {END}.")
    return text[: text.index(BEGIN)], text[text.index(END) + len(END) :]

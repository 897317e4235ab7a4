"""The results section of a document: the finished tables' own Markdown, between two marks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mimbench.atomic import write_text
from mimbench.errors import UserError

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def update(document: Path, tables: Iterable[str]) -> None:
    """Put tables in Markdown between the marks of `document`, their headings two levels lower.

    Raises:
        UserError: the document is missing or has not exactly one pair of marks; there is no table.
    """
    tables = list(tables)
    if not tables:
        raise UserError("results", "none", remedy="Make a table first: mimbench reproduce-table METHOD.")
    if not document.is_file():
        raise UserError("document", str(document), remedy="There is no such file.")
    text = document.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise UserError("document", str(document), remedy=f"It needs one {BEGIN} and, after it, one {END}.")
    lower = [re.sub(r"^#", "###", table, flags=re.MULTILINE).strip() for table in tables]
    section = "\n\n".join([BEGIN, *lower, END])
    write_text(document, text[: text.index(BEGIN)] + section + text[text.index(END) + len(END) :])

"""The results section of a document: the finished tables' own Markdown, between two marks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mimbench.atomic import write_text
from mimbench.errors import UserError

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def update(document: Path, pages: Iterable[Path]) -> None:
    """Put the rendered Markdown tables between the marks of `document`, their headings two levels lower.

    Raises:
        UserError: the document is missing or has not exactly one pair of marks; there is no page.
    """
    pages = list(pages)
    if not pages:
        raise UserError("results", "none", remedy="Make a table first: mimbench reproduce-table METHOD.")
    if not document.is_file():
        raise UserError("document", str(document), remedy="There is no such file.")
    text = document.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise UserError("document", str(document), remedy=f"It needs one {BEGIN} and, after it, one {END}.")
    tables = [re.sub(r"^#", "###", page.read_text(encoding="utf-8"), flags=re.MULTILINE) for page in pages]
    section = "\n\n".join([BEGIN, *(table.strip() for table in tables), END])
    write_text(document, text[: text.index(BEGIN)] + section + text[text.index(END) + len(END) :])

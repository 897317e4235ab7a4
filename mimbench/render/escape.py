"""Escapes that every format shares, for text from outside (labels, notes, file names, messages).

Each renderer also escapes the characters that are special in its format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mimbench import errors

_ARXIV = r"(?P<arxiv>\d{4}\.\d{4,5}(?:v\d+)?)(?!\d)"
_ARXIV_PAGE = r"(?:https?://)?(?:www\.)?(?:ar5iv\.labs\.arxiv|ar5iv|arxiv)\.org/(?:abs|html|pdf)/"
_LINK = re.compile(
    rf"(?:\barXiv[ :]\s?|\b{_ARXIV_PAGE}){_ARXIV}(?:\.pdf\b)?"
    r"|(?:\bdoi:\s?|(?:\bhttps?://)?\b(?:dx\.)?doi\.org/)(?P<doi>10\.\d{4,9}/[\w.()/:-]*[\w/])"
    r"|(?P<url>\bhttps?://[^\s<>\"'`|\\^{}\[\]]*[\w/])",
    re.IGNORECASE,
)


def visible(value: str) -> str:
    r"""The text with control characters written out, lines kept: a terminal's ESC becomes `\x1b`."""
    return errors.visible(value.replace("\r\n", "\n"), lines=True)


def one_line(value: str) -> str:
    """The visible text on one line: each run of white space becomes one space."""
    return " ".join(visible(value).split())


def slug(value: str) -> str:
    """Letters, digits, `.`, `_` and `-` of the text, for ids and LaTeX labels."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", value)


def slugs(values: Iterable[str]) -> list[str]:
    """A slug for each text, all different."""
    found: list[str] = []
    for value in values:
        first = name = slug(value)
        count = 1
        while name in found:
            count += 1
            name = f"{first}-{count}"
        found.append(name)
    return found


def segments(value: str) -> list[tuple[str, str]]:
    """Split the text into pieces, each with the address to link it to, or "".

    An arXiv id links to the paper's page at arXiv, if it follows the word arXiv or is in an address at arXiv
    or ar5iv. A DOI links to doi.org, any other http address to itself. A bare id is not linked.
    """
    pieces, end = [], 0
    for match in _LINK.finditer(value):
        if match.start() > end:
            pieces.append((value[end : match.start()], ""))
        pieces.append((match[0], _address(match)))
        end = match.end()
    return pieces + ([(value[end:], "")] if value[end:] else [])


def _address(match: re.Match[str]) -> str:
    if match["arxiv"]:
        return f"https://arxiv.org/abs/{match['arxiv']}"
    return f"https://doi.org/{match['doi']}" if match["doi"] else match["url"]

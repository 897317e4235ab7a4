"""The console of every command. It prints every text as plain text, never as markup."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

from mimbench.errors import visible


class TextConsole(Console):
    """Ignores markup and emoji codes, and escapes control characters.

    Labels, names, paths and messages come from users: their text must not colour or clear a terminal, and
    printing it must not fail.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)

    def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else segment._replace(text=as_text(segment.text))


def as_text(text: str) -> str:
    """`visible`, with line feeds and tabs kept."""
    return visible(text, lines=True)

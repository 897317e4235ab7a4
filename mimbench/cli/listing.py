"""Lists of rows: styled on a terminal, plain in a pipe."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

from mimbench.cli.console import TextConsole, as_text
from mimbench.errors import visible

EMPTY = "-"  # keeps the columns of a plain row countable
GAP = "  "
WIDE = 110  # columns of a terminal


class ListConsole(TextConsole):
    """Prints tables styled, or plain: one line per row, aligned columns, no wrapping."""

    def __init__(self, *, plain: bool) -> None:
        super().__init__(color_system=None if plain else "auto")
        self.plain = plain

    def print(self, *objects: Any, **options: Any) -> None:
        for thing in objects:
            if isinstance(thing, Table) and self.plain:
                lines = Text("\n".join(plain_lines(thing)))
                super().print(lines, highlight=False, soft_wrap=True)
            elif isinstance(thing, Table):
                super().print(in_our_look(thing), **options)
            else:
                super().print(thing, **{**options, "soft_wrap": self.plain})


def list_console(plain: bool = False) -> ListConsole:
    """A console for lists: plain if `plain` is set, or if the output is not a terminal."""
    return ListConsole(plain=plain or not TextConsole().is_terminal)


def in_our_look(table: Table) -> Table:
    """Style a table: one line under the head, no other lines."""
    table.box, table.show_edge, table.pad_edge, table.padding = SIMPLE_HEAD, False, False, (0, 1, 0, 0)
    return table


def is_roomy(console: ListConsole) -> bool:
    """Whether every value gets its own column. If not, some values go below a row's main cell."""
    return console.plain or console.width >= WIDE


def cell(*lines: object, style: str = "") -> Text:
    """A cell of plain text, one line per argument; control characters are escaped."""
    return Text("\n".join(visible(str(line)) for line in lines), style)


def stack(first: object, *below: object) -> Text:
    """A main cell with further lines below it; empty ones are left out."""
    lines = [visible(str(line)) for line in below if line]
    return Text("\n").join([cell(first), *(Text(line, "dim") for line in lines)])


def plain_lines(table: Table) -> list[str]:
    """A table's head and rows as aligned columns. Commas join the lines of a cell."""
    columns = [[_flat(column.header), *map(_flat, column.cells)] for column in table.columns]
    widths = [max(map(cell_len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return [GAP.join(map(set_cell_size, row, widths)).rstrip() for row in rows]


def _flat(thing: Any) -> str:
    text = as_text(thing.plain if isinstance(thing, Text) else str(thing))
    return ", ".join(line.strip() for line in text.splitlines() if line.strip()) or EMPTY

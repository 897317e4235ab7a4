"""Lists of rows: styled on a terminal, plain in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
                self.print_lines(plain_lines(thing))
            elif isinstance(thing, Table):
                super().print(in_our_look(thing), **options)
            else:
                super().print(thing, **{**options, "soft_wrap": self.plain})

    def print_lines(self, lines: Iterable[str]) -> None:
        """Print lines without style, as they are: many of them in a moment."""
        self.file.write("".join(f"{line}\n" for line in lines))


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
    columns = ([column.header, *column.cells] for column in table.columns)
    return aligned(flat(map(_lines, column)) for column in columns)


def aligned(columns: Iterable[Sequence[str]]) -> list[str]:
    """The rows of columns of text, with each column as wide as its widest cell."""
    padded = []
    for column in columns:
        is_ascii = "".join(column).isascii()
        width = max(map(len if is_ascii else cell_len, column))
        padded.append([set_cell_size(text, width) if not is_ascii else text.ljust(width) for text in column])
    return [GAP.join(row).rstrip() for row in zip(*padded, strict=True)]


def flat(column: Iterable[Sequence[str]]) -> list[str]:
    """A column's cells, given by their lines, with one line each."""
    cells = [", ".join(filter(None, map(str.strip, lines))) or EMPTY for lines in column]
    return cells if "".join(cells).isprintable() else [visible(text) for text in cells]


def _lines(thing: Any) -> list[str]:
    return as_text(thing.plain if isinstance(thing, Text) else str(thing)).splitlines()

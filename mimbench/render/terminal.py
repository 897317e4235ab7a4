"""Prints the table in the terminal with rich: as many columns side by side as fit, the others below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimbench.render import text
from mimbench.render.escape import visible
from mimbench.table.cell import Cell, Table, TableRow

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

_STYLES = {
    "reproduced": "green",
    "within noise": "green",
    "below": "red",
    "above": "cyan",
    "same direction": "green",
    "opposite direction": "red",
    "inconclusive": "yellow",
}
# In characters; the longest usual line of a cell is `ours† 41.2 ± 1.1 (n=3)`.
_LABEL_WIDTH, _CELL_WIDTH, _GAP = 16, 23, 2
_WIDEST_LABEL = 44  # where there is room


def show(table: Table, console: Console) -> None:
    """Print the table, its claims and the meaning of its marks; markup in its texts is printed as text."""
    from rich.text import Text

    console.print(_text(table.spec.title, "bold"))
    where = f"{table.spec.section} · scale {table.scale} · seeds {text.seeds(table)}"
    console.print(_text(where, "dim"))
    per_grid = max(1, (console.width - _LABEL_WIDTH - _GAP) // (_CELL_WIDTH + _GAP))
    count = len(table.spec.columns)
    grids = -(-count // per_grid)
    per_grid = -(-count // grids)  # evenly: 4 columns as 2 + 2 rather than 3 + 1
    width = min((console.width - _LABEL_WIDTH - _GAP) // per_grid - _GAP, 32)
    free = console.width - per_grid * (width + _GAP) - _GAP
    label_width = min(max(free, _LABEL_WIDTH), _WIDEST_LABEL)
    for start in range(0, count, per_grid):
        columns = range(start, min(start + per_grid, count))
        console.print(_grid(table, columns, width, label_width))
    for claim in table.claims:
        decimals = text.digits(table, table.spec.column_index(claim.spec.column))
        found = text.difference(claim.delta, decimals) if claim.delta else "–"
        mark = "" if table.comparable else text.NOT_COMPARABLE
        pair = f"{text.claim_pair(table, claim)}: paper {text.claim_paper(claim)} | ours{mark} {found}"
        line = [_text(f"Claim: {claim.spec.label}. ", "bold"), _text(pair)]
        if claim.verdict:
            line += [_text(" | "), _text(text.verdict(claim), _STYLES.get(claim.verdict.word, "dim"))]
        console.print(Text.assemble(*line))
    for finding in text.findings(table):
        console.print(_text(finding))
    for note in (text.scale_note(table), " ".join(f"{note}." for note in text.number_notes(table))):
        console.print(_text(note, "dim"))


def _text(value: str, style: str = "") -> Text:
    """Text from outside on one line, without markup or control characters."""
    from rich.text import Text

    return Text(visible(value).replace("\n", " ").replace("\t", " "), style)


def _grid(table: Table, columns: range, width: int, label_width: int) -> Grid:
    from rich import box
    from rich.table import Table as Grid

    grid = Grid(box=box.SIMPLE_HEAD, show_lines=False, pad_edge=False, padding=(0, 1, 0, 0))
    grid.add_column("Method", width=label_width)
    for index in columns:
        grid.add_column(_text(table.spec.columns[index].title), width=width, overflow="fold")
    for row in table.rows:
        cells = [_cell(table, row.cells[index], text.digits(table, index)) for index in columns]
        grid.add_row(_label(table, row), *cells)
        if row is not table.rows[-1] and any(cell.status != "reported_only" for cell in row.cells):
            grid.add_row()
    return grid


def _label(table: Table, row: TableRow) -> Text:
    label = _text(row.spec.label, "bold" if row.spec.method else "")
    notes = text.row_notes(table, row) + (["baseline"] if text.is_baseline(table, row) else [])
    for note in notes:
        label.append("\n").append(_text(note, "not bold dim"))
    return label


def _cell(table: Table, cell: Cell, decimals: int) -> Text:
    from rich.text import Text

    if cell.reported is None and cell.status == "reported_only":
        return _text("–", "dim")
    # An incomparable number stays in the terminal's own colour, in italics.
    lines = [(text.paper(cell), "" if cell.reported else "dim")]
    lines += [(text.ours(table, cell, decimals), "bold" if table.comparable else "italic")]
    lines += [(text.delta(cell, decimals), "dim")]
    if cell.verdict:
        lines += [(text.verdict(cell), _STYLES.get(cell.verdict.word, "dim"))]
    if cell.stale:
        lines += [(text.STALE, "magenta")]
    return Text("\n").join(_text(words, style) for words, style in lines if words)

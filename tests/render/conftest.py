"""Fixtures of the renderers' tests."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from mimbench.render import html, latex, markdown, plot, terminal
from mimbench.table.cell import Table
from tests.render.sample import CONTEXT


@pytest.fixture
def page() -> Callable[..., str]:
    """`page(table)`: its HTML page."""

    def render(table: Table, places: html.Places | None = None) -> str:
        plots = {}
        for index, column in enumerate(table.spec.columns):
            plots[column.metric] = plot.render(table, index, salt=column.metric)
            if table.spec.cost:
                plots[f"{column.metric}-cost"] = plot.render_cost(table, index, salt=f"{column.metric}-cost")
        return html.render(table, CONTEXT, plots, places)

    return render


@pytest.fixture
def shown() -> Callable[..., str]:
    """`shown(table, width)`: what the terminal shows."""

    def render(table: Table, width: int = 120) -> str:
        console = Console(width=width, file=io.StringIO())
        terminal.show(table, console)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    return render


@pytest.fixture
def read_by_people(page: Callable[..., str], shown: Callable[..., str]) -> Callable[[Table], dict[str, str]]:
    """`read_by_people(table)`: the table in every format that people read, by the format's name."""
    return lambda table: {
        "markdown": markdown.render(table, CONTEXT),
        "terminal": shown(table),
        "page": page(table),
        "latex": latex.render(table, "x"),
    }

"""Plots are drawn once, and again where the table or the code that draws differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mimbench.render import drawn, plot
from tests.render import sample


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path))
    found: list[str] = []

    def render(table: object, index: int, *, salt: str) -> str:
        found.append(salt)
        return f"<svg>{salt}</svg>"

    monkeypatch.setattr(plot, "render", render)
    monkeypatch.setattr(plot, "render_cost", render)
    return found


def test_the_same_table_is_drawn_once(calls: list[str], tmp_path: Path) -> None:
    table = sample.make_table()
    first = drawn.plots(table, "main")
    count = len(calls)
    again = drawn.plots(table, "main")
    assert count and list(again.items()) == list(first.items()) and len(calls) == count
    assert drawn.plots(table, "other") != first and len(calls) == 2 * count
    drawn.plots(replace(table, scale="small"), "main")
    assert len(calls) == 3 * count
    for file in (tmp_path / "plots").iterdir():
        file.write_text(file.read_text().replace("<svg>", "<!-- damaged -->"))
    assert drawn.plots(table, "main") == first and len(calls) == 4 * count


def test_other_code_draws_again(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn.plots(sample.make_table(), "main")
    monkeypatch.setattr(drawn, "DRAWERS", ("plot.py",))
    count = len(calls)
    drawn.plots(sample.make_table(), "main")
    assert len(calls) == 2 * count

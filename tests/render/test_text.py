"""The wording that the formats share."""

from __future__ import annotations

import pytest

from mimbench.render import text
from mimbench.table.cell import Table
from mimbench.table.stats import estimate
from tests.render.sample import make_table


def test_numbers() -> None:
    assert text.number(-0.04, 1) == "0.0"
    assert text.number(-1.25, 1) == "−1.2"
    assert text.number(1.0, 1, signed=True) == "+1.0"
    assert text.number(0.0, 1, signed=True) == "0.0"


@pytest.mark.parametrize(
    ("values", "shown"),
    [([4.0], "+4.0"), ([4.0, 4.0], "+4.0 (no spread)"), ([3.0, 5.0], "+4.0 [−8.7, +16.7]")],
)
def test_differences(values: list[float], shown: str) -> None:
    assert text.difference(estimate(values), 1) == shown


def test_findings_follow_the_paired_intervals() -> None:
    """Every row is above scratch by more than the seeds scatter; one seed says nothing."""
    table = make_table()
    assert text.findings(make_table(seeds=1)) == []
    found = text.findings(table)
    assert len(found) == len(table.spec.columns)
    for index, line in enumerate(found):
        deltas = {row.spec.label: row.cells[index].delta for row in table.rows}
        above = [name for name, delta in deltas.items() if delta and delta.low is not None and delta.low > 0]
        assert line.startswith(table.spec.columns[index].title) and len(above) == 3
        assert f"{', '.join(above)} above the baseline" in line


def test_where_rows_have_baselines_of_their_own_no_one_baseline_is_named() -> None:
    table = make_table(against="host")
    assert text.findings(table) and all("their baselines" in line for line in text.findings(table))
    assert notes(table)["ours"] == ["Δ against Host", "own"]
    assert not any("Δ against" in note for lines in notes(make_table()).values() for note in lines)


def test_a_row_says_what_was_loaded() -> None:
    assert (
        "pretraining loaded from mae.pth, not done here"
        in notes(make_table(loaded={"mae": "mae.pth"}))["mae"]
    )


def notes(table: Table) -> dict[str, list[str]]:
    return {row.spec.id: text.row_notes(table, row) for row in table.rows}


def test_costs_stand_beside_the_labels() -> None:
    table = make_table(cost=True)
    found = {row.spec.id: text.cost(table, row) for row in table.rows}
    assert found["ours"] == "pretraining: paper 20.0 GPU-days, ours 5.46e12 FLOPs"
    assert found["host"] == found["quoted"] == "", "neither is known"
    assert not any(text.cost(make_table(), row) for row in make_table().rows), "a table that asks for none"


def test_lines_of_one_source_are_listed_once() -> None:
    numbers = text.sources(make_table())
    listed = [line.source for _, line in text.source_list(numbers)]
    assert len(listed) == len(set(listed)) < len(numbers)
    assert {listed[number - 1] for number in numbers.values()} == set(listed)
    assert all(listed[number - 1] == line.source for line, number in numbers.items())

from __future__ import annotations

import csv
import io

import pytest

from mimbench.render import csv as csv_file
from mimbench.table.cell import Table
from tests.render.sample import make_table


def records(table: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_file.render(table))))


def test_a_line_per_cell_and_claim_with_every_seed() -> None:
    table = make_table(broken=True)
    lines = records(table)
    assert len(lines) == len(table.rows) * len(table.spec.columns) + len(table.claims)
    line = next(line for line in lines if (line["row"], line["metric"]) == ("ours", "top1"))
    values = dict(item.split("=") for item in line["values"].split(";"))
    assert [float(values[seed]) for seed in "012"] == pytest.approx(
        list(table.row("ours").cells[0].values.values())
    )
    expected = ("85.4", "secondary", "same direction")
    assert (line["reported"], line["reported_kind"], line["verdict"]) == expected
    failed = next(line for line in lines if (line["row"], line["metric"]) == ("ours", "box_ap"))
    assert (failed["status"], failed["verdict"]) == ("failed", "not run")
    assert failed["notes"] == "1=loss is NaN | at <step> 8"
    claim = lines[-len(table.claims)]
    assert claim["kind"] == "claim" and claim["reported_delta"] == "1.8"


def test_costs() -> None:
    by_row = {line["row"]: line for line in records(make_table(cost=True)) if line["metric"] == "miou"}
    assert by_row["ours"]["pretraining_flops"] == "5.46e+12" and by_row["ours"]["reported_cost"] == "20.0"
    assert by_row["host"]["pretraining_flops"] == by_row["host"]["reported_cost"] == ""


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\n"])
def test_no_cell_begins_like_a_formula(sign: str) -> None:
    texts = {"label": f"{sign}1+cmd|'/c calc'!A0", "claim": f"{sign}SUM(A1)"}
    lines = records(make_table(texts=texts))
    assert [line["label"] for line in lines if line["row"] == "ours"][0] == f"'{texts['label']}"
    assert lines[-2]["label"] == f"'{texts['claim']}"
    cells = [cell for line in lines for cell in line.values()]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t", "\n"))]
    for cell in cells:
        if cell.startswith("-"):
            assert float(cell) < 0, "a negative number stays a number"

from __future__ import annotations

import re

import pytest

from mimbench.render import markdown, text
from mimbench.render.text import Context
from tests.render.sample import CONTEXT, make_table


def test_cell() -> None:
    lines = markdown.render(make_table(), CONTEXT).splitlines()
    row = next(line for line in lines if line.startswith("| **Ours**"))
    first = row.split(" | ")[1]
    assert first.startswith("paper 85.4 [4]<br>ours† 38.7 ± ")
    assert first.endswith("<br>✓ same direction")


def test_every_line_of_a_table_has_the_same_number_of_cells() -> None:
    lines = markdown.render(make_table(broken=True), CONTEXT).splitlines()
    cells = [re.sub(r"\\.", "", line).count("|") for line in lines if line.startswith("| ")]
    assert set(cells) == {6}, "five columns, in the table and in the claims"


def test_escapes() -> None:
    assert markdown.escape("a|b_c*d[e]<f>`g`\nh $i$ &amp; j & k") == (
        r"a\|b\_c\*d\[e\]\<f\>\`g\` h \$i\$ \&amp; j & k"
    )
    rendered = markdown.render(make_table(broken=True), CONTEXT)
    assert r"loss is NaN \| at \<step\> 8" in rendered
    assert r"invented & \<tested\>" in rendered


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("- a", r"\- a"),
        ("1. a", r"1\. a"),
        ("=cmd", r"\=cmd"),
        ("1.5 % more", "1.5 % more"),
        ("a - b", "a - b"),
    ],
)
def test_a_paragraph_never_begins_a_list_or_a_heading(words: str, shown: str) -> None:
    assert markdown.paragraph(words) == shown


def test_the_brief_form_has_the_cells_and_no_sources() -> None:
    table = make_table()
    brief, whole = markdown.brief(table), markdown.render(table, Context())
    for row in table.rows:
        assert markdown.escape(row.spec.label) in brief
    assert "Reported values" in whole and "Reported values" not in brief and " [1]" not in brief


def test_findings_are_told() -> None:
    table = make_table()
    for line in text.findings(table):
        assert line in markdown.render(table, CONTEXT)

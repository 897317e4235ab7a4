"""What every format shows, and the files that are written."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mimbench.render import write_all
from mimbench.table.cell import SeedOutcome, Table
from tests.render.sample import CONTEXT, make_table

Readable = Callable[[Table], dict[str, str]]


@pytest.mark.parametrize(("scale", "word"), [("toy", "same direction"), ("paper", "below")])
def test_every_format_shows_paper_and_ours_and_verdict(
    scale: str, word: str, read_by_people: Readable
) -> None:
    for name, rendered in read_by_people(make_table(scale=scale)).items():
        plain = " ".join(re.sub(r"<[^>]+>", "", rendered).replace(r"$\pm$", "±").split())
        assert "85.4" in plain and word in plain, name
        assert re.search(r"38\.(?:7|67) ± 1\.\d+ \(n=3\)", plain), name
        assert "reconstruction" in plain and re.search(r"\bown\b", plain), name
        assert ("not comparable" in plain) == (scale != "paper"), name


def test_stale_failed_and_not_runnable_are_shown(read_by_people: Readable) -> None:
    for name, rendered in read_by_people(make_table(broken=True)).items():
        for word in ("stale", "not run", "not runnable", "(n=2"):
            assert word in rendered, name


def test_seeds_that_all_gave_the_same_have_no_interval(read_by_people: Readable) -> None:
    for name, rendered in read_by_people(make_table(seeds=2, outcomes=same(2))).items():
        assert "+4.0 (no spread)" in " ".join(re.sub(r"<[^>]+>", "", rendered).split()), name
        assert "there is no interval and no direction" in " ".join(rendered.split()), name
        assert "[+4.0, +4.0]" not in rendered.replace("\\", ""), name
    assert "no spread" not in read_by_people(make_table(seeds=1))["markdown"]


def same(seeds: int) -> dict[tuple[str, int], dict[int, SeedOutcome]]:
    values = {("scratch", 0): 30.0, ("mae", 0): 34.0}
    return {cell: {seed: SeedOutcome("ok", value) for seed in range(seeds)} for cell, value in values.items()}


@pytest.mark.parametrize(
    "table",
    [
        make_table(seeds=1),
        make_table(metrics=2, seeds=0),
        make_table(broken=True),
        make_table(metrics=2, cost=True),
    ],
    ids=["one", "none", "broken", "cost"],
)
def test_write_all_gives_the_same_bytes_twice(table: Table, workspace: Path) -> None:
    first = write_all(table, workspace / "a" / "ours", "main", CONTEXT)
    second = write_all(table, workspace / "b" / "ours", "main", CONTEXT)
    metrics = [column.metric for column in table.spec.columns]
    costs = [f"main-{metric}-cost.svg" for metric in metrics if table.spec.cost]
    plots = [*(f"main-{metric}.svg" for metric in metrics), *costs]
    assert [path.name for path in first] == [
        "main.html",
        "main.md",
        "main.csv",
        "main.json",
        "main.tex",
        *plots,
    ]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_no_heavy_import() -> None:
    """A table aggregates and renders without torch, mmengine or pandas; matplotlib is for the plots only."""
    code = (
        "import sys\n"
        "from tests.render.sample import CONTEXT, make_table\n"
        "from mimbench.render import csv, json, latex, markdown, terminal\n"
        "table = make_table()\n"
        "markdown.render(table, CONTEXT), json.render(table, CONTEXT)\n"
        "csv.render(table), latex.render(table, 'x')\n"
        "print([m for m in ('torch', 'mmengine', 'pandas', 'matplotlib', 'jinja2') if m in sys.modules])\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""The page of all tables lists what there is, and the pages lead to the leaderboard."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from mimbench.render import index, write_all
from tests.render.sample import CONTEXT, make_table


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports with two tables, one of them at two scales."""
    folder = tmp_path_factory.mktemp("index")
    write_all(make_table(metrics=1), folder / "ours", "main", CONTEXT)
    write_all(make_table(metrics=1, scale="smoke"), folder / "ours", "main-smoke", CONTEXT)
    others = make_table(metrics=3, broken=True, texts={"title": "Others"})
    write_all(others, folder / "others", "main", CONTEXT)
    return folder


@pytest.fixture
def out(written: Path, workspace: Path) -> Path:
    return Path(shutil.copytree(written, workspace / "reports" / "out"))


def test_it_leads_to_every_table_with_its_scale_and_counts(out: Path) -> None:
    page = index.write(out).read_text()
    for href in ("ours/main.html", "ours/main-smoke.html", "others/main.html"):
        assert f'href="{href}"' in page
    for href in ("ours/main.csv", "ours/main-smoke.json", "others/main.tex"):
        assert f'href="{href}"' in page
    assert (
        "4 of 4" in page and "10 of 12" in page and "1 stale" in page and re.search("1 × not run[,<]", page)
    )
    assert page.index("ours/main.html") < page.index("ours/main-smoke.html"), "the larger scale first"
    assert CONTEXT.command in page and "https://arxiv.org/abs/2401.00254" in page


def test_a_table_made_later_is_added(out: Path) -> None:
    index.write(out)
    write_all(make_table(metrics=1, texts={"title": "A third table"}), out / "third", "main", CONTEXT)
    page = index.write(out).read_text()
    assert "A third table" in page and 'href="ours/main.html"' in page


def test_it_does_not_change_where_nothing_did(out: Path) -> None:
    write_all(make_table(metrics=1), out, "leaderboard", CONTEXT)
    index.write(out)
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.rglob("main*.html")}
    first = index.write(out).read_bytes()
    assert index.write(out).read_bytes() == first
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.rglob("main*.html")} == before


def test_pages_lead_to_the_leaderboard_of_their_scale(out: Path) -> None:
    write_all(
        make_table(metrics=1, scale="smoke", texts={"title": "Best first"}), out, "leaderboard-smoke", CONTEXT
    )
    listed = index.write(out).read_text()
    assert listed.index("Best first") < listed.index("Others"), "it stands above the tables"
    smoke, toy = (out / "ours" / f"{name}.html" for name in ("main-smoke", "main"))
    assert '<a href="../leaderboard-smoke.html">Leaderboard</a>' in smoke.read_text()
    assert "leaderboard" not in toy.read_text().replace("<!-- leaderboard --><!-- /leaderboard -->", "")
    own = (out / "leaderboard-smoke.html").read_text()
    assert '<span aria-current="page">Leaderboard</span>' in own and 'href="index.html"' in own
    (out / "leaderboard-smoke.html").unlink()
    index.write(out)
    assert "leaderboard-smoke" not in smoke.read_text(), "the link goes with the page"


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", '{"schema": 1}', '{"schema": 99, "kind": "mimbench table"}', "\x00\xff"],
)
def test_a_page_without_readable_json_is_listed_by_its_title(damage: str, out: Path) -> None:
    (out / "others" / "main.json").write_text(damage)
    page = index.write(out).read_text()
    assert '<a href="others/main.html">Others</a>' in page


def test_what_is_no_table_is_not_listed(out: Path) -> None:
    (out / "ours" / "notes.html").write_text("<title>My notes</title>")
    (out / "ours" / "data.json").write_text(json.dumps({"schema": 1}))
    page = index.write(out).read_text()
    assert "notes" not in page and "data.json" not in page


def test_odd_names_are_quoted(out: Path) -> None:
    write_all(make_table(metrics=1), out / 'a "b" #c', "main", CONTEXT)
    page = index.write(out).read_text()
    assert 'href="a%20%22b%22%20%23c/main.html"' in page


def test_an_empty_workspace_says_how_to_begin(workspace: Path) -> None:
    page = index.write(workspace / "reports" / "out").read_text()
    assert "mimbench reproduce-table" in page and "<table" not in page

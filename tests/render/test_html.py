"""The page's structure and links; what a browser makes of it is in test_browser.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from mimbench.render import html, index, text, write_all
from tests.render.sample import CONTEXT, make_table

Page = Callable[..., str]


class Elements(HTMLParser):
    """Every element's name and attributes, and the text of each link."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.links: dict[str, str] = {}
        self._href = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.found.append((tag, attributes))
        if tag == "a":
            self._href = attributes["href"]
            self.links.setdefault(self._href, "")

    def handle_data(self, data: str) -> None:
        if self._href:
            self.links[self._href] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._href = ""

    def values(self, name: str) -> Iterator[str]:
        return (attributes[name] for _, attributes in self.found if name in attributes)


def test_it_is_escaped_and_complete(page: Page) -> None:
    rendered = page(make_table(metrics=3, broken=True))
    for words in ("&lt;step&gt;", "invented &amp; &lt;tested&gt;", "official &lt;code&gt;", CONTEXT.command):
        assert words in rendered
    assert "run-ours-0-2" in rendered
    for line in text.findings(make_table(metrics=2)):
        assert line in page(make_table(metrics=2))


def test_it_asks_for_nothing_and_runs_nothing(page: Page) -> None:
    rendered = page(make_table(metrics=3, broken=True, cost=True))
    elements = Elements(rendered)
    assert not {tag for tag, _ in elements.found} & {"script", "link", "img", "iframe", "object", "base"}
    assert not list(elements.values("src"))
    assert not re.search(r"@import|url\((?!#)", rendered)
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]


def test_ids_are_unique_and_every_link_within_the_page_leads_somewhere(page: Page) -> None:
    elements = Elements(page(make_table(metrics=3, broken=True)))
    ids = list(elements.values("id"))
    assert len(ids) == len(set(ids))
    inside = [
        href for name in ("href", "xlink:href") for href in elements.values(name) if href.startswith("#")
    ]
    assert inside and {unquote(href[1:]) for href in inside} <= set(ids)
    for name in ("aria-labelledby", "aria-describedby"):
        assert set(" ".join(elements.values(name)).split()) <= set(ids)


def test_every_row_has_an_anchor(page: Page) -> None:
    ids = set(Elements(page(make_table(metrics=2))).values("id"))
    assert {f"row-{row}" for row in ("scratch", "mae", "quoted", "host", "ours")} <= ids


def test_it_leads_to_all_tables_its_files_its_runs_and_the_papers(workspace: Path) -> None:
    out = workspace / "reports" / "out"
    for run in ("run-ours-0-0", "run-failed"):
        (workspace / "runs" / run).mkdir(parents=True)
    page, *files = write_all(make_table(metrics=3, broken=True), out / "ours", "main", CONTEXT)
    index.write(out)
    links = Elements(page.read_text()).links
    for words, target in {"All tables": "../index.html", "CSV": "main.csv", "JSON": "main.json"}.items():
        assert links[target].strip() == words and (page.parent / target).is_file()
    for target in ("../../../runs/run-ours-0-0/", "../../../runs/run-failed/"):
        assert links[target] == Path(target).name and (page.parent / target).is_dir()
    assert links["https://arxiv.org/abs/2401.00254"] == "arXiv 2401.00254"
    assert "https://arxiv.org/abs/2111.06377" in links and "https://arxiv.org/abs/2301.01296" in links
    assert {file.name for file in files if file.suffix in (".md", ".tex")} <= set(links)
    assert not [target for target in links if "leaderboard" in target], "there is none"


def test_a_run_that_was_never_made_is_no_link(page: Page) -> None:
    places = html.Places(runs="../runs")
    links = Elements(page(make_table(metrics=3, broken=True), places)).links
    assert "../runs/run-ours-0-0/" in links and "../runs/pretrain-ours-0/" in links
    assert not [target for target in links if target.startswith("../runs/run-mae-2")]


def test_wide_tables_scroll_in_regions_that_have_a_name_and_take_the_focus(page: Page) -> None:
    elements = Elements(page(make_table(metrics=2)))
    regions = [
        attributes for _, attributes in elements.found if "scroll" in attributes.get("class", "").split()
    ]
    assert len(regions) == 1 + 2 + 2, "the results, two plots, seeds, one recipe"
    for region in regions:
        assert region["role"] == "region" and region["tabindex"] == "0"
        assert region.get("aria-label") or region.get("aria-labelledby")


def test_the_results_stay_a_table_whatever_their_layout(page: Page) -> None:
    """Where a style sheet makes blocks of a table, only its roles tell a screen reader that it is one."""
    rendered = page(make_table(metrics=2))
    table = rendered[rendered.index('<table class="results') : rendered.index("</table>")]
    for tag, roles in {
        "table": {"table"},
        "thead": {"rowgroup"},
        "tbody": {"rowgroup"},
        "tr": {"row"},
        "th": {"columnheader", "rowheader"},
        "td": {"cell"},
    }.items():
        found = [attributes.get("role") for name, attributes in Elements(table).found if name == tag]
        assert found and set(found) == roles, tag


def test_plots_name_themselves(page: Page) -> None:
    rendered = page(make_table(metrics=2))
    for svg in re.findall(r"<svg.*?</svg>", rendered, re.DOTALL):
        opening = Elements(svg).found[0][1]
        assert opening["role"] == "img"
        title, told = opening["aria-labelledby"], opening["aria-describedby"]
        assert re.search(rf'<title id="{title}">[^<]+</title>', svg)
        assert re.search(
            rf'<desc id="{told}">[^<]*Scratch 30\.[^<]*</desc>|<desc id="{told}">[^<]+</desc>', svg
        )


def test_small_scale_numbers_are_never_styled_as_comparable(page: Page) -> None:
    assert 'class="results far"' in page(make_table(metrics=1, scale="toy"))
    assert 'class="results"' in page(make_table(metrics=1, scale="paper"))


def test_the_dashed_line_is_named_where_there_is_one(page: Page) -> None:
    assert "dashed line" not in page(make_table(metrics=1, against="host")) and "dashed line" in page(
        make_table(metrics=2)
    )


def test_facts_of_the_same_value_stand_together(page: Page) -> None:
    assert "<dt>data: imagenet, coco</dt><dd>invented &amp; &lt;tested&gt;</dd>" in page(
        make_table(metrics=2)
    )


@pytest.mark.parametrize(("first", "second"), [("a b", "a/b"), ("ä", "ö")])
def test_anchors_of_odd_ids_are_different(first: str, second: str) -> None:
    from mimbench.render.escape import slugs

    one, two = slugs([first, second])
    assert one != two and re.fullmatch(r"[\w.-]+", one + two, re.ASCII)

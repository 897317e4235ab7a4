from __future__ import annotations

import re
import xml.etree.ElementTree
from pathlib import Path

import pytest

from mimbench.render import plot, write_all
from mimbench.table.cell import SeedOutcome
from tests.render.sample import CONTEXT, make_table

SVG = "{http://www.w3.org/2000/svg}"


def words(svg: str) -> list[str]:
    return ["".join(item.itertext()) for item in xml.etree.ElementTree.fromstring(svg).iter(f"{SVG}text")]


def first(**values: list[float]) -> str:
    """The plot of the first metric with these values of ours, by row and seed."""
    outcomes = {
        (row, 0): {seed: SeedOutcome("ok", value) for seed, value in enumerate(by_seed)}
        for row, by_seed in values.items()
    }
    seeds = max(map(len, values.values()))
    return plot.render(make_table(seeds=seeds, outcomes=outcomes), 0, salt="s")


def limits(svg: str) -> tuple[float, float]:
    """The least and the greatest number on our axis."""
    ours = svg[: svg.index('<g id="axes_2">')]
    ticks = re.findall(r"text-anchor: middle[^>]*>(−?[\d.]+)<", ours)
    found = [float(tick.replace("−", "-")) for tick in ticks]
    return min(found), max(found)


def test_it_is_svg_with_text_as_text() -> None:
    svg = plot.render(make_table(), 0, salt="x")
    shown = words(svg)
    assert "Host" in shown and "+3.1" in shown and "<dc:date>" not in svg


def test_it_says_in_words_what_it_shows() -> None:
    root = xml.etree.ElementTree.fromstring(plot.render(make_table(broken=True), 2, salt="x"))
    title, told = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert title is not None and title.text == "COCO box AP"
    assert told is not None and told.text
    assert "Scratch 10.7 ± 1.7 (n=3)" in told.text and "(n=2 of 3)" in told.text
    assert "minus its baseline's: MAE" in told.text and told.text.endswith("Ours +1.10.")
    assert root.get("role") == "img"
    assert (root.get("aria-labelledby"), root.get("aria-describedby")) == (title.get("id"), told.get("id"))


def test_on_a_page_its_colours_and_ids_are_the_page_s() -> None:
    inline = plot.inline(plot.render(make_table(), 0, salt="x"), "top1")
    assert inline.startswith("<svg") and "var(--ours)" in inline
    assert not [colour for colour in plot.THEME if colour in inline]
    assert all(name.startswith("top1-") for name in re.findall(r'\bid="([^"]+)"', inline))


def test_on_a_page_its_words_stay_what_they_are() -> None:
    label = f'id="x" url(#y) {plot.OURS}'
    inline = plot.inline(plot.render(make_table(texts={"label": label}), 0, salt="x"), "top1")
    shown = "".join(item for item in words(inline.replace("<svg", '<svg xmlns:xlink="x"', 0)))
    assert 'id="x" url(#y)' in shown and plot.OURS in shown


def test_a_small_difference_is_not_magnified() -> None:
    low, high = limits(first(scratch=[7.5], mae=[7.5], host=[7.5], ours=[7.55]))
    assert high - low >= 1.0, "two points from end to end"


def test_an_interval_below_zero_is_cut_with_a_mark() -> None:
    whole = first(scratch=[20.0, 21.0], mae=[20.0, 21.0], host=[20.0, 21.0], ours=[20.0, 21.0])
    cut = first(scratch=[5.0, 25.0], mae=[20.0, 21.0], host=[20.0, 21.0], ours=[20.0, 21.0])
    low, high = limits(cut)
    assert low == 0 and high > 25, "no accuracy is below zero"
    assert len(markers(cut)) == 1 and not markers(whole)


def markers(svg: str) -> list[str]:
    """The triangles: each is one use of a shape that only they have."""
    shapes = re.findall(r'<path id="(m\w+)" d="M 4.5 -3\s+L 0 0[^"]*"', svg)
    return [use for shape in set(shapes) for use in re.findall(rf'xlink:href="#{shape}"', svg)]


def test_costs_are_curves_with_names_that_do_not_overlap(tmp_path: Path, workspace: Path) -> None:
    files = {
        path.name: path.read_text() for path in write_all(make_table(cost=True), tmp_path, "cost", CONTEXT)
    }
    curves = files["cost-top1-cost.svg"]
    shown = words(curves)
    assert shown.count("Ours") == 2 and "GPU-days" in shown and "10¹² FLOPs" in shown
    assert "Host" not in shown, "its cost is not known"
    assert "ImageNet-1K top-1 against the cost of pretraining" in files["cost.html"]
    assert "GPU-days: Scratch 82.3 at 10" in curves


@pytest.mark.parametrize("close", [0.0, 0.05])
def test_names_at_the_same_place_are_moved_apart(close: float) -> None:
    outcomes = {
        (row, 0): {0: SeedOutcome("ok", 30.0 + close * place)} for place, row in enumerate(("mae", "ours"))
    }
    svg = plot.render_cost(make_table(seeds=1, cost=True, outcomes=outcomes), 0, salt="x")
    places = {
        name: float(y)
        for y, name in re.findall(r'text-anchor: (?:start|end)[^>]* y="([\d.]+)"[^>]*>(MAE|Ours)<', svg)[:2]
    }
    assert abs(places["MAE"] - places["Ours"]) > 8

import csv
import io
import re
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import matplotlib.axes
import pytest
from rich.console import Console

from mimbench.render import (
    Context,
    UsedRecipe,
    delimited,
    html,
    latex,
    markdown,
    plot,
    terminal,
    text,
    write_all,
)
from mimbench.render import index as index_page
from mimbench.table import reported
from mimbench.table.aggregate import aggregate
from mimbench.table.cell import SeedOutcome
from mimbench.table.spec import load

SPEC = load("dtm", "main")
METRICS = [column.metric for column in SPEC.columns]
CONTEXT = Context(
    command="make reproduce-table METHOD=dtm",
    facts={"Data": "invented & <tested>"},
    recipes=[UsedRecipe("DTM", ("DTM",), {"mask_ratio": (0.383, "official <code>")})],
)


def sample(scale="toy", seeds=3, broken=False):
    """A table from invented numbers."""
    means = {"scratch": 30, "mae": 35, "feature-mim": 36, "dtm": 38}
    outcomes = {
        (row, index): {
            seed: SeedOutcome(
                "ok",
                mean / (index + 1) + seed + 0.1 * ((seed * 7 + mean) % 5),
                run=f"run-{row}-{index}-{seed}",
            )
            for seed in range(seeds)
        }
        for row, mean in means.items()
        for index in range(len(METRICS))
    }
    if broken:
        outcomes["dtm", 2][1] = SeedOutcome("failed", note="loss is NaN | at <step> 8")
        outcomes["mae", 3] = {seed: SeedOutcome("not_runnable", note="needs 24 GB") for seed in range(seeds)}
        outcomes["mae", 1] = {
            seed: SeedOutcome("stale", item.value) for seed, item in outcomes["mae", 1].items()
        }
    return aggregate(SPEC, outcomes, reported.read(), scale, {"feature-mim": "reconstruction"})


def page(table):
    plots = {metric: plot.render(table, index, salt=metric) for index, metric in enumerate(METRICS)}
    return html.render(table, CONTEXT, plots)


def shown(table, width):
    console = Console(width=width, file=io.StringIO())
    terminal.show(table, console)
    return console.file.getvalue()


@pytest.mark.parametrize("scale", ["toy", "paper"])
def test_every_format_shows_paper_and_ours_and_verdict(scale):
    table = sample(scale)
    word = "same direction" if scale == "toy" else "below"
    for rendered in (
        markdown.render(table, CONTEXT),
        shown(table, 120),
        page(table),
        latex.render(table, "x"),
    ):
        plain = " ".join(re.sub(r"<[^>]+>", "", rendered).replace(r"$\pm$", "±").split())
        assert "85.4" in plain and word in plain
        assert re.search(r"39\.(?:2|17) ± 2\.\d+ \(n=3\)", plain)
        assert "reconstruction" in plain
        assert ("not comparable" in plain) == (scale != "paper")


def test_markdown_cell():
    lines = markdown.render(sample(), CONTEXT).splitlines()
    row = next(line for line in lines if line.startswith("| **DTM**"))
    assert row.split(" | ")[1].startswith("paper 85.4 [8]<br>ours† 39.2 ± ")
    assert row.split(" | ")[1].endswith("<br>✓ same direction")
    assert (
        len(
            {
                line.replace(r"\|", "").count("|")
                for line in lines
                if line.startswith("| ") and "Claim" not in line
            }
        )
        <= 2
    )


def test_stale_failed_and_not_runnable_are_shown():
    table = sample(broken=True)
    for rendered in (
        markdown.render(table, CONTEXT),
        shown(table, 120),
        page(table),
        latex.render(table, "x"),
    ):
        for word in ("stale", "not run", "not runnable", "(n=2"):
            assert word in rendered


def test_markdown_escapes():
    assert markdown.escape("a|b_c*d[e]<f>`g`\nh") == r"a\|b\_c\*d\[e\]\<f\>\`g\` h"
    rendered = markdown.render(sample(broken=True), CONTEXT)
    assert r"loss is NaN \| at \<step\> 8" in rendered
    assert r"invented & \<tested\>" in rendered


def test_latex_escapes():
    assert latex.escape(r"50% & $x_1$ #2 {a} ~ ^ \ [b]") == (
        r"50\% \& \$x\_1\$ \#2 \{a\} \textasciitilde{} \textasciicircum{} \textbackslash{} {[}b{]}"
    )
    rendered = latex.render(sample(broken=True), "dtm-main")
    assert rendered.isascii()
    body = rendered.split(r"\midrule")[1].split(r"\bottomrule")[0]
    for line in body.strip().splitlines():
        spans = line.count(r"\multicolumn{2}")
        assert line.count(" & ") + spans == 2 * len(METRICS), line


def test_html_is_self_contained_and_escaped():
    rendered = page(sample(broken=True))
    assert (
        "&lt;step&gt;" in rendered
        and "invented &amp; &lt;tested&gt;" in rendered
        and "official &lt;code&gt;" in rendered
    )
    assert not re.search(r'(?:src|href)="(?!#)', rendered.replace('xlink:href="#', ""))
    assert not re.search(r"@import|url\((?!#)", rendered)
    ids = re.findall(r'\bid="([^"]+)"', rendered)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'href="#([^"]+)"', rendered):
        assert target in ids
    assert "run-dtm-0-2" in rendered and CONTEXT.command in rendered


def test_small_scale_numbers_are_never_styled_as_comparable():
    assert 'class="results far"' in page(sample("toy"))
    assert 'class="results"' in page(sample("paper"))
    assert "ours†" in shown(sample("toy"), 120) and "ours†" not in shown(sample("paper"), 120)


def test_csv_has_a_line_per_cell_and_claim_with_every_seed():
    table = sample(broken=True)
    records = list(csv.DictReader(io.StringIO(delimited.render(table))))
    assert len(records) == len(SPEC.rows) * len(METRICS) + len(SPEC.claims)
    record = next(r for r in records if (r["row"], r["metric"]) == ("dtm", "top1"))
    values = dict(item.split("=") for item in record["values"].split(";"))
    assert [float(values[seed]) for seed in "012"] == pytest.approx(
        list(table.row("dtm").cells[0].values.values())
    )
    assert (record["reported"], record["reported_kind"], record["verdict"]) == (
        "85.4",
        "secondary",
        "same direction",
    )
    failed = next(r for r in records if (r["row"], r["metric"]) == ("dtm", "box_ap"))
    assert (failed["status"], failed["verdict"]) == ("failed", "not run")
    assert failed["notes"] == "1=loss is NaN | at <step> 8"
    claim = records[-len(SPEC.claims)]
    assert claim["kind"] == "claim" and claim["reported_delta"] == "1.1"


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("broken", [False, True])
def test_terminal_fits(width, broken):
    lines = shown(sample(broken=broken), width).splitlines()
    assert max(map(len, lines)) <= width
    header = [line for line in lines if line.lstrip().startswith("Method")]
    assert len(header) == {60: 4, 80: 2, 120: 1}[width]


def test_plot_is_svg_with_text_as_text():
    svg = plot.render(sample(), 0, salt="x")
    xml.etree.ElementTree.fromstring(svg)
    assert ">Feature MIM<" in svg and ">+3.1<" in svg and "<dc:date>" not in svg
    inline = plot.inline(svg, "top1")
    assert inline.startswith("<svg") and "var(--ours)" in inline
    assert not [colour for colour in plot.THEME if colour in inline]


@pytest.mark.parametrize(
    "table", [sample(seeds=1), sample(seeds=0), sample(broken=True)], ids=["one", "none", "broken"]
)
def test_write_all_gives_the_same_bytes_twice(table, tmp_path):
    first = write_all(table, tmp_path / "a" / "dtm", "main", CONTEXT)
    second = write_all(table, tmp_path / "b" / "dtm", "main", CONTEXT)
    names = ["main.html", "main.md", "main.csv", "main.tex", *(f"main-{metric}.svg" for metric in METRICS)]
    assert [path.name for path in first] == names
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_a_table_of_costs_shows_them_beside_the_labels_and_as_curves(tmp_path):
    spec = load("mixedae", "cost")
    means = {"mae-short": 30.0, "mae": 40.0, "mixedae": 45.0, "ibot": 16.0}
    outcomes = {(row, 0): {0: SeedOutcome("ok", mean)} for row, mean in means.items()}
    table = aggregate(spec, outcomes, reported.read(), "toy", (), {"mae": 5.3e12, "mixedae": 5.46e12})
    notes = {row.spec.id: text.row_note(table, row) for row in table.rows}
    assert notes["mixedae"] == "pretraining: paper 90.1 GPU-days, ours 5.46e12 FLOPs"
    assert notes["dino"] == "pretraining: paper 120.5 GPU-days"
    assert sum(line.metric == "pretrain_gpu_days" for line in text.sources(table)) == len(table.rows)
    lines = csv.DictReader(io.StringIO(delimited.render(table)))
    by_row = {line["row"]: line for line in lines if line["kind"] == "cell"}
    assert by_row["mixedae"]["pretraining_flops"] == "5.46e+12"
    assert by_row["ibot"]["pretraining_flops"] == "" and by_row["ibot"]["reported_cost"] == "172"
    written = {path.name: path.read_text() for path in write_all(table, tmp_path, "cost", CONTEXT)}
    curves = written["cost-top1-cost.svg"]
    xml.etree.ElementTree.fromstring(curves)
    assert curves.count(">MixedAE<") == 2 and curves.count(">iBOT<") == 1 and ">GPU-days<" in curves
    assert "against the cost of pretraining" in written["cost.html"]
    assert text.cost(sample(), sample().rows[0]) == ""


def test_numbers():
    assert text.number(-0.04, 1) == "0.0"
    assert text.number(-1.25, 1) == "−1.2"
    assert text.number(1.0, 1, signed=True) == "+1.0"
    assert text.number(0.0, 1, signed=True) == "0.0"


def test_no_heavy_import():
    """A table aggregates and renders without torch, mmengine or pandas; matplotlib is for the plots only."""
    code = (
        "import sys\n"
        "from mimbench.render import Context, markdown, delimited, latex, terminal\n"
        "from mimbench.table import aggregate, cell, reported, spec\n"
        "outcomes = {('dtm', 0): {0: cell.SeedOutcome('ok', 1.0)}}\n"
        "table = aggregate.aggregate(spec.load('dtm'), outcomes, reported.read(), 'toy')\n"
        "markdown.render(table, Context()), delimited.render(table), latex.render(table, 'x')\n"
        "print([m for m in ('torch', 'mmengine', 'pandas', 'matplotlib', 'jinja2') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_findings_follow_the_paired_intervals():
    """MAE is 5 above scratch on every seed's own scale, up to small differences; one seed says nothing."""
    table = sample()
    assert text.findings(sample(seeds=1)) == []
    for index, line in enumerate(text.findings(table)):
        deltas = {row.spec.label: row.cells[index].delta for row in table.rows if row.cells[index].delta}
        above = [label for label, delta in deltas.items() if delta.interval and delta.interval[0] > 0]
        assert line.startswith(table.spec.columns[index].title)
        assert ", ".join(above) + " above the baseline" in line
        assert line in markdown.render(table, CONTEXT).replace("\\", "") and line in page(table)


def test_where_rows_have_baselines_of_their_own_no_one_baseline_is_named() -> None:
    spec = load("deepmim", "layers")
    assert len({spec.baseline_of(row) for row in spec.rows}) > 1
    values = {row.id: {seed: SeedOutcome("ok", value=50.0 + seed) for seed in range(2)} for row in spec.rows}
    outcomes = {(row.id, index): values[row.id] for row in spec.rows for index in range(len(spec.columns))}
    table = aggregate(spec, outcomes, reported.read(), "toy")
    assert text.findings(table) and all("their baselines" in line for line in text.findings(table))
    plots = {column.metric: plot.render(table, i, salt="s") for i, column in enumerate(spec.columns)}
    assert "dashed line" not in html.render(table, CONTEXT, plots) and "dashed line" in page(sample())


def test_a_row_says_what_it_is_compared_with_and_what_was_loaded() -> None:
    spec = load("deepmim", "layers")
    table = aggregate(spec, {}, reported.read(), "toy", loaded={"mae-1": "mae.pth"})
    notes = {row.spec.id: text.row_notes(table, row) for row in table.rows}
    assert "Δ against MAE, first quarter" in notes["deepmim-1"]
    assert "pretraining loaded from mae.pth, not done here" in notes["mae-1"]
    assert not any("Δ against" in note for row in sample().rows for note in text.row_notes(sample(), row))


def test_lines_of_one_source_are_listed_once() -> None:
    spec = load("mixedae", "cost")
    table = aggregate(spec, {}, reported.read(), "toy")
    numbers = text.sources(table)
    listed = [line.source for _, line in text.source_list(numbers)]
    assert len(listed) == len(set(listed)) < len(numbers)
    assert {listed[number - 1] for number in numbers.values()} == set(listed)
    assert all(listed[number - 1] == line.source for line, number in numbers.items())


def test_a_plot_does_not_magnify_a_small_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    axes = matplotlib.axes.Axes
    set_xlim = axes.set_xlim
    monkeypatch.setattr(axes, "set_xlim", lambda self, *a, **k: seen.append(a) or set_xlim(self, *a, **k))
    ids = [row.id for row in SPEC.rows if row.method]
    close = {(row, 0): {0: SeedOutcome("ok", 7.5 + 0.05 * (row == ids[0]))} for row in ids}
    plot.render(aggregate(SPEC, close, reported.read(), "toy"), 0, salt="s")
    low, high = [limits for limits in seen if len(limits) == 2][-1]  # ours is drawn last
    assert high - low == pytest.approx(2.0)
    wide = {(row, 0): {0: SeedOutcome("ok", 5.0), 1: SeedOutcome("ok", 25.0)} for row in ids}
    seen.clear()
    plot.render(aggregate(SPEC, wide, reported.read(), "toy"), 0, salt="s")
    low, high = [limits for limits in seen if len(limits) == 2][-1]  # ours is drawn last
    assert -0.05 * high < low <= 0 and high > 25  # the interval reaches below zero, an accuracy does not


def test_the_brief_form_has_the_cells_and_no_sources() -> None:
    table = sample("toy")
    brief, whole = markdown.brief(table), markdown.render(table, Context())
    for row in table.rows:
        assert markdown.escape(row.spec.label) in brief
    assert "Reported values" in whole and "Reported values" not in brief and " [1]" not in brief


def test_the_index_leads_to_every_table(tmp_path: Path) -> None:
    tables = {"dtm/main.html": sample("toy"), "dtm/loss.html": sample("paper")}
    page = index_page.write(tables, tmp_path, "make it").read_text()
    assert 'href="dtm/main.html"' in page and 'href="dtm/loss.html"' in page and "make it" in page
    assert "--page" in page

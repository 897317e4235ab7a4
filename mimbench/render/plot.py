"""One plot per metric: our seeds, means, intervals, and the paper's differences on a scale of their own."""

from __future__ import annotations

import io
import math
import re
import textwrap
from typing import TYPE_CHECKING, Any

from mimbench.render import text
from mimbench.table.cell import Table, TableRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CARD, INK, MUTED, GRID, OURS, PAPER = "#fefefe", "#1c2430", "#66707f", "#dfe3e9", "#2458c5", "#b4561f"
PATCH = "#fdfdfd"  # behind a word that a line would cross
# The page replaces the colours by its own, so that the plots follow its light and dark themes.
THEME = {
    CARD: "none",
    PATCH: "var(--card)",
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    OURS: "var(--ours)",
    PAPER: "var(--paper)",
}
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
LABEL_WIDTH, CHARACTER = 22, 0.072  # of a row's label: characters a line, inches a character
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "figure.facecolor": CARD,
    "axes.facecolor": CARD,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.unicode_minus": True,
}


def render(table: Table, index: int, *, salt: str) -> str:
    """The plot of one column as SVG with its text as text; the same table gives the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = [row for row in table.rows if row.spec.method or row.cells[index].reported_delta is not None]
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        labels = [textwrap.fill(row.spec.label, LABEL_WIDTH) for row in rows]
        lines = max((label.count("\n") + 1 for label in labels), default=1)
        figure = Figure(figsize=(6.6, 1.1 + max(0.36, 0.15 * lines + 0.08) * max(len(rows), 2)))
        if any(row.cells[index].reported_delta is not None for row in rows):
            left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.75, 1))
            _paper(right, table, rows, index)
        else:
            left = figure.subplots()
        _ours(left, table, rows, index)
        left.set_ylim(len(rows) - 0.5, -0.5)
        left.set_yticks(range(len(rows)), labels)
        longest = max((len(line) for label in labels for line in label.splitlines()), default=0)
        margin = max(0.165, (0.25 + CHARACTER * longest) / figure.get_figwidth())
        figure.subplots_adjust(left=margin, right=0.985, wspace=0.08)
        figure.subplots_adjust(top=1 - 0.42 / figure.get_figheight(), bottom=0.5 / figure.get_figheight())
        return _svg(figure)


def render_cost(table: Table, index: int, *, salt: str) -> str:
    """One column against what the pretraining costs, ours and the paper's; as SVG like `render`.

    Rows whose labels agree up to a comma (`MAE, half of the length`) are one curve; the longest one but for
    the baseline's has the colour. What has no cost is left out.
    """
    import matplotlib
    from matplotlib.figure import Figure

    assert table.spec.cost
    ours: dict[str, list[tuple[float, float]]] = {}
    paper: dict[str, list[tuple[float, float]]] = {}
    for row in table.rows:
        name, cell = row.spec.label.partition(",")[0], row.cells[index]
        if row.cost and row.cost.flops and cell.mean is not None:
            ours.setdefault(name, []).append((row.cost.flops, cell.mean))
        if row.cost and row.cost.reported and cell.reported:
            paper.setdefault(name, []).append((row.cost.reported.value, cell.reported.value))
    muted = table.row(table.spec.baseline).spec.label.partition(",")[0]
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=(6.6, 3.0))
        left, right = figure.subplots(1, 2)
        _curves(left, ours, muted, OURS, f"ours, {table.scale} scale", "FLOPs")
        _curves(right, paper, muted, PAPER, "paper", table.spec.cost.unit)
        figure.subplots_adjust(left=0.07, right=0.985, wspace=0.16, top=0.89, bottom=0.17)
        return _svg(figure)


def _curves(
    axes: Axes, curves: dict[str, list[tuple[float, float]]], muted: str, colour: str, title: str, unit: str
) -> None:
    axes.set_title(title, loc="left", fontsize=9, color=colour)
    _frame(axes, both=True)
    greatest = max((x for points in curves.values() for x, _ in points), default=1.0)
    power = math.floor(math.log10(greatest)) if greatest >= 1e6 else 0
    axes.set_xlabel(f"10{str(power).translate(_SUPERSCRIPT)} {unit}" if power else unit)
    longest = max((len(points) for name, points in curves.items() if name != muted), default=0)
    for name, points in curves.items():
        x, y = zip(*sorted((cost / 10**power, value) for cost, value in points), strict=True)
        shade = colour if len(points) == longest > 1 and name != muted else MUTED
        axes.plot(x, y, color=shade, linewidth=1.4, marker="o", markersize=4.5, markeredgewidth=0)
        axes.annotate(name, (x[-1], y[-1]), (6, 0), textcoords="offset points", fontsize=8, va="center")
    axes.margins(x=0.28, y=0.12)
    axes.set_xlim(left=0)
    if not curves:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "nothing to show yet", transform=axes.transAxes, ha="center", color=MUTED)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def inline(svg: str, prefix: str) -> str:
    """The SVG element for an HTML page: themed colours, ids that are unique on the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for colour, variable in THEME.items():
        svg = svg.replace(colour, variable)
    return svg


def _ours(axes: Axes, table: Table, rows: list[TableRow], index: int) -> None:
    axes.set_title(f"ours, {table.scale} scale", loc="left", fontsize=9, color=OURS)
    axes.set_xlabel(table.spec.columns[index].title)
    _frame(axes)
    baseline = table.row(table.spec.baseline).cells[index].ours
    if baseline and text.one_baseline(table):
        axes.axvline(baseline.mean, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
    for y, row in enumerate(rows):
        ours = row.cells[index].ours
        if ours is None:
            _say(axes, y, _absent(row, index))
            continue
        if ours.interval:
            axes.plot(ours.interval, (y, y), color=OURS, linewidth=1.6, solid_capstyle="round", zorder=2)
        if ours.n > 1:
            axes.scatter(
                ours.values, [y + 0.27] * ours.n, s=11, color=OURS, alpha=0.55, linewidths=0, zorder=3
            )
        axes.scatter([ours.mean], [y], s=38, color=OURS, linewidths=0, zorder=4)
    axes.margins(x=0.06)
    shown = [row.cells[index].ours for row in rows]
    means = [ours.mean for ours in shown if ours]
    if not means:
        axes.set_xticks([])
        return
    low, high = axes.get_xlim()
    least = 2.0 if max(map(abs, means)) > 1.5 else 0.1  # points, or a cosine: less is noise, not a picture
    missing = max(least - (high - low), 0.0) / 2
    low, high = low - missing, high + missing
    axes.set_xlim(max(low, -0.03 * high) if min(means) >= 0 else low, high)  # no accuracy is below zero


def _absent(row: TableRow, index: int) -> str:
    """Why there is no number of ours."""
    verdict = row.cells[index].verdict
    return verdict.word if verdict else "not run" if row.spec.method else "reported only"


def _say(axes: Axes, y: float, word: str) -> None:
    """A word at the right end of a row, over whatever line runs there."""
    box = {"facecolor": PATCH, "edgecolor": "none", "pad": 1.5}
    where = axes.get_yaxis_transform()
    axes.text(0.99, y, word, transform=where, va="center", ha="right", color=MUTED, fontsize=8, bbox=box)


def _paper(axes: Axes, table: Table, rows: list[TableRow], index: int) -> None:
    axes.set_title("paper, minus baseline", loc="left", fontsize=9, color=PAPER)
    _frame(axes)
    axes.tick_params(axis="y", left=False, labelleft=False)
    known = {y: row.cells[index].reported_delta for y, row in enumerate(rows)}
    points = {y: delta for y, delta in known.items() if delta is not None}
    axes.axvline(0, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
    decimals = 1 if max(map(abs, points.values())) >= 0.1 else 2
    for y, delta in points.items():
        axes.plot((0, delta), (y, y), color=PAPER, linewidth=1.2, alpha=0.5, zorder=2)
        axes.scatter([delta], [y], s=34, marker="D", color=PAPER, linewidths=0, zorder=3)
        label, side = text.number(delta, decimals, signed=True), 1 if delta >= 0 else -1
        note = axes.annotate(
            label, (delta, y), (7 * side, 0), textcoords="offset points", fontsize=8, color=INK
        )
        note.set(ha="left" if side > 0 else "right", va="center")
    axes.set_xlabel("points" if decimals == 1 else "")  # a cosine has no unit
    span = max(abs(delta) for delta in points.values()) or 1.0
    low, high = min(0.0, *points.values()), max(0.0, *points.values())
    axes.set_xlim(low - span * (0.35 if low < 0 else 0.08), high + span * (0.35 if high > 0 else 0.08))


def _frame(axes: Axes, *, both: bool = False) -> None:
    axes.tick_params(length=0, pad=5)
    axes.grid(axis="both" if both else "x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)

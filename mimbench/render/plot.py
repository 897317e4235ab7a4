"""One plot per metric: our seeds, means and intervals; on a separate axis the paper's differences."""

from __future__ import annotations

import contextlib
import io
import math
import re
import textwrap
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from mimbench.render import text
from mimbench.render.escape import one_line, visible
from mimbench.table.cell import Table, TableRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CARD, INK, MUTED, GRID, OURS, PAPER = "#fefefe", "#1c2430", "#66707f", "#dfe3e9", "#2458c5", "#b4561f"
PATCH = "#fdfdfd"  # behind a word that a line would cross
# The HTML page replaces these colours by its own, so that the plots follow its light and dark themes.
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
LABEL_WIDTH, CHARACTER = 22, 0.072  # of a row's label: characters per line, inches per character
POINTS = 72  # per inch
NUMBER, EDGE = 38, 6  # points of room beside a difference: with its number, without
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a $ in a label is a $
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
    from matplotlib.figure import Figure

    rows = [row for row in table.rows if row.spec.method or row.cells[index].reported_delta is not None]
    with _drawing(salt):
        labels = [textwrap.fill(one_line(row.spec.label), LABEL_WIDTH) for row in rows]
        lines = max((label.count("\n") + 1 for label in labels), default=1)
        figure = Figure(figsize=(6.6, 1.1 + max(0.36, 0.15 * lines + 0.08) * max(len(rows), 2)))
        paper = any(row.cells[index].reported_delta is not None for row in rows)
        if paper:
            left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.75, 1))
            _paper(right, rows, index)
        else:
            left = figure.subplots()
        _ours(left, table, rows, index)
        left.set_ylim(len(rows) - 0.5, -0.5)
        left.set_yticks(range(len(rows)), labels)
        longest = max((len(line) for label in labels for line in label.splitlines()), default=0)
        margin = max(0.165, (0.25 + CHARACTER * longest) / figure.get_figwidth())
        figure.subplots_adjust(left=margin, right=0.985, wspace=0.08)
        figure.subplots_adjust(top=1 - 0.42 / figure.get_figheight(), bottom=0.5 / figure.get_figheight())
        if paper:
            _room(right, rows, index)
        return _svg(figure, table.spec.columns[index].title, _told(table, rows, index))


def _told(table: Table, rows: list[TableRow], index: int) -> str:
    """A description of the plot of a column, in words and numbers."""
    decimals = text.digits(table, index)
    ours = [
        f"{row.spec.label} {text.plus_minus(cell.ours, decimals)} ({text.count(cell)})"
        if (cell := row.cells[index]).ours
        else f"{row.spec.label} {_absent(row, index)}"
        for row in rows
    ]
    told = f"Our mean of every row at {table.scale} scale, with its 95 % interval: {'; '.join(ours)}."
    deltas = {row.spec.label: row.cells[index].reported_delta for row in rows}
    paper = [f"{name} {text.number(d, 2, signed=True)}" for name, d in deltas.items() if d is not None]
    return told + (f" The paper's value minus its baseline's: {'; '.join(paper)}." if paper else "")


def render_cost(table: Table, index: int, *, salt: str) -> str:
    """One column against the cost of pretraining, ours and the paper's; as SVG like `render`.

    Rows whose labels agree up to the first comma (`MAE, half of the length`) form one curve. The longest
    curve other than the baseline's is in colour, the others are grey. Rows without a cost are left out.
    """
    from matplotlib.figure import Figure

    assert table.spec.cost
    ours: dict[str, list[tuple[float, float]]] = {}
    paper: dict[str, list[tuple[float, float]]] = {}
    for row in table.rows:
        name, cell = one_line(row.spec.label).partition(",")[0], row.cells[index]
        if row.cost and row.cost.flops and cell.mean is not None:
            ours.setdefault(name, []).append((row.cost.flops, cell.mean))
        if row.cost and row.cost.reported and cell.reported:
            paper.setdefault(name, []).append((row.cost.reported.value, cell.reported.value))
    muted = one_line(table.row(table.spec.baseline).spec.label).partition(",")[0]
    with _drawing(salt):
        figure = Figure(figsize=(6.6, 3.0))
        left, right = figure.subplots(1, 2)
        _curves(left, ours, muted, OURS, f"ours, {table.scale} scale", "FLOPs")
        _curves(right, paper, muted, PAPER, "paper", table.spec.cost.unit)
        figure.subplots_adjust(left=0.07, right=0.985, wspace=0.16, top=0.89, bottom=0.17)
        _names(left, ours)
        _names(right, paper)
        told = [_costs(ours, f"Ours at {table.scale} scale, against FLOPs")]
        told += [_costs(paper, f"The paper's, against {table.spec.cost.unit}")]
        title = f"{table.spec.columns[index].title} against the cost of pretraining"
        return _svg(figure, title, " ".join(filter(None, told)))


def _costs(curves: dict[str, list[tuple[float, float]]], what: str) -> str:
    """The points of the curves in words and numbers; empty if there are none."""
    points = [f"{name} {value:.4g} at {cost:.4g}" for name, line in curves.items() for cost, value in line]
    return f"{what}: {'; '.join(points)}." if points else ""


def _curves(
    axes: Axes, curves: dict[str, list[tuple[float, float]]], muted: str, colour: str, title: str, unit: str
) -> None:
    axes.set_title(visible(title), loc="left", fontsize=9, color=colour)
    _frame(axes, both=True)
    power = _power(curves)
    axes.set_xlabel(f"10{str(power).translate(_SUPERSCRIPT)} {unit}" if power else visible(unit))
    longest = max((len(points) for name, points in curves.items() if name != muted), default=0)
    for name, points in curves.items():
        x, y = zip(*sorted((cost / 10**power, value) for cost, value in points), strict=True)
        shade = colour if len(points) == longest > 1 and name != muted else MUTED
        axes.plot(x, y, color=shade, linewidth=1.4, marker="o", markersize=4.5, markeredgewidth=0)
    axes.margins(x=0.28, y=0.12)
    axes.set_xlim(left=0)
    if not curves:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "nothing to show yet", transform=axes.transAxes, ha="center", color=MUTED)


def _power(curves: dict[str, list[tuple[float, float]]]) -> int:
    """The power of ten by which the costs are divided for the axis."""
    greatest = max((x for points in curves.values() for x, _ in points), default=1.0)
    return math.floor(math.log10(greatest)) if greatest >= 1e6 else 0


def _names(axes: Axes, curves: dict[str, list[tuple[float, float]]]) -> None:
    """Write each curve's name at its last point: on the right if there is room, and not over other names."""
    size, line, gap = 8, 10.5, 6  # in points: letter size, line height, distance from the marker
    figure = axes.get_figure(root=True)
    assert figure
    scale = POINTS / figure.dpi  # points per pixel
    box = {"facecolor": PATCH, "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
    placed: list[tuple[float, float, float, float]] = []  # left, right, bottom, top
    power = _power(curves)
    ends = {name: max(points) for name, points in curves.items()}
    for name, (cost, value) in sorted(ends.items(), key=lambda item: item[1][1]):
        words = textwrap.fill(name, LABEL_WIDTH)
        x, y = axes.transData.transform((cost / 10**power, value)) * scale
        width = max(map(len, words.splitlines())) * CHARACTER * POINTS * size / 9
        height = line * (words.count("\n") + 1)
        right = x + gap + width < axes.bbox.x1 * scale
        low, high = (x + gap, x + gap + width) if right else (x - gap - width, x - gap)
        bottom = y - height / 2
        for left, end, under, over in placed:
            if low < end and left < high and bottom < over and under < bottom + height:
                bottom = over
        placed.append((low, high, bottom, bottom + height))
        note = axes.annotate(
            words,
            (cost / 10**power, value),
            (gap if right else -gap, bottom + height / 2 - y),
            textcoords="offset points",
            fontsize=size,
            va="center",
            bbox=box,
        )
        note.set(ha="left" if right else "right", zorder=3)


@contextlib.contextmanager
def _drawing(salt: str) -> Iterator[None]:
    """Our style. No warnings about glyphs that the font lacks: the SVG keeps labels as text."""
    import matplotlib

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing")
        yield


def _svg(figure: Figure, title: str, told: str) -> str:
    """The figure as SVG, with its title and a description in words for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
    words = f'<title id="title">{_xml(title)}</title>\n <desc id="desc">{_xml(told)}</desc>'
    opened = re.sub(
        r"<svg\b", '<svg role="img" aria-labelledby="title" aria-describedby="desc"', svg, count=1
    )
    return re.sub(r"(<svg\b[^>]*>)", lambda match: f"{match[1]}\n {words}", opened, count=1)


def _xml(value: str) -> str:
    return escape(one_line(value))


def inline(svg: str, prefix: str) -> str:
    """The SVG element for an HTML page: themed colours, ids that are unique on the page.

    Only tags change; a label that looks like an id or a colour stays as it is.
    """

    def tag(match: re.Match[str]) -> str:
        words = re.sub(r'\b(id|aria-labelledby|aria-describedby)="', rf'\g<1>="{prefix}-', match[0])
        words = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", words)
        for colour, variable in THEME.items():
            words = words.replace(colour, variable)
        return words

    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return re.sub(r"<[^>]+>", tag, svg)


def _ours(axes: Axes, table: Table, rows: list[TableRow], index: int) -> None:
    from matplotlib.markers import CARETLEFT

    axes.set_title(f"ours, {table.scale} scale", loc="left", fontsize=9, color=OURS)
    axes.set_xlabel(textwrap.fill(one_line(table.spec.columns[index].title), 60))
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
    least = 2.0 if max(map(abs, means)) > 1.5 else 0.1  # points, or a cosine: less is noise
    missing = max(least - (high - low), 0.0) / 2
    low, high = low - missing, high + missing
    if min(means) >= 0:
        low = max(low, -0.03 * high)  # no accuracy is below zero
    axes.set_xlim(low, high)
    cut = [y for y, ours in enumerate(shown) if ours and ours.interval and ours.interval[0] < low]
    axes.plot([low] * len(cut), cut, linestyle="", marker=CARETLEFT, color=OURS, markersize=6, clip_on=False)


def _absent(row: TableRow, index: int) -> str:
    """Why our number is missing."""
    verdict = row.cells[index].verdict
    return verdict.word if verdict else "not run" if row.spec.method else "reported only"


def _say(axes: Axes, y: float, word: str) -> None:
    """Write a word at the right end of a row, on top of any line there."""
    box = {"facecolor": PATCH, "edgecolor": "none", "pad": 1.5}
    where = axes.get_yaxis_transform()
    axes.text(0.99, y, word, transform=where, va="center", ha="right", color=MUTED, fontsize=8, bbox=box)


def _paper(axes: Axes, rows: list[TableRow], index: int) -> None:
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


def _room(axes: Axes, rows: list[TableRow], index: int) -> None:
    """Set limits for the paper's differences that leave room for the numbers beside them."""
    known = [delta for row in rows if (delta := row.cells[index].reported_delta) is not None]
    low, high = min(0.0, *known), max(0.0, *known)
    before, after = (
        (NUMBER if any(d < 0 for d in known) else EDGE),
        (NUMBER if any(d >= 0 for d in known) else EDGE),
    )
    width = axes.bbox.width * POINTS / axes.figure.dpi
    unit = ((high - low) or 1.0) / max(width - before - after, width / 3)
    axes.set_xlim(low - before * unit, high + after * unit)


def _frame(axes: Axes, *, both: bool = False) -> None:
    axes.tick_params(length=0, pad=5)
    axes.grid(axis="both" if both else "x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)

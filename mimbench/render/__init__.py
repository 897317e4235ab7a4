"""A table's files: Markdown, CSV, LaTeX, one SVG plot per metric, and the HTML page that holds everything."""

from __future__ import annotations

from pathlib import Path

from mimbench.atomic import write_text
from mimbench.render.text import Context, UsedRecipe
from mimbench.table.cell import Table

__all__ = ["Context", "UsedRecipe", "write_all"]


def write_all(table: Table, out_dir: Path, name: str, context: Context | None = None) -> list[Path]:
    """Write `<name>.{html,md,csv,tex}` and the plots `<name>-<metric>.svg` into `out_dir`; the page first.

    A table that asks for it has `<name>-<metric>-cost.svg` as well.
    """
    from mimbench.render import delimited, html, latex, markdown, plot

    context = context or Context()
    plots = {
        column.metric: plot.render(table, index, salt=f"{name}-{column.metric}")
        for index, column in enumerate(table.spec.columns)
    }
    if table.spec.cost:
        plots |= {
            f"{column.metric}-cost": plot.render_cost(table, index, salt=f"{name}-{column.metric}-cost")
            for index, column in enumerate(table.spec.columns)
        }
    files = {
        f"{name}.html": html.render(table, context, plots),
        f"{name}.md": markdown.render(table, context),
        f"{name}.csv": delimited.render(table),
        f"{name}.tex": latex.render(table, f"{out_dir.name}-{name}"),
        **{f"{name}-{metric}.svg": svg for metric, svg in plots.items()},
    }
    for file, content in files.items():
        write_text(out_dir / file, content)
    return [out_dir / file for file in files]

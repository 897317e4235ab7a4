"""A table's files: Markdown, CSV, JSON, LaTeX, one SVG plot per metric, and the HTML page with everything."""

from __future__ import annotations

import os
from pathlib import Path

from mimbench import paths
from mimbench.atomic import write_text
from mimbench.render.escape import slug
from mimbench.render.text import Context, UsedRecipe
from mimbench.table.cell import Table

__all__ = ["Context", "UsedRecipe", "write_all"]


def write_all(table: Table, out_dir: Path, name: str, context: Context | None = None) -> list[Path]:
    """Write `<name>.{html,md,csv,json,tex}` and plots `<name>-<metric>.svg` into `out_dir`, the page first.

    A table with a cost also gets `<name>-<metric>-cost.svg`. The page links to the files beside it, the
    workspace's index and its runs.
    """
    from mimbench.render import csv, drawn, html, json, latex, markdown

    context = context or Context()
    plots = drawn.plots(table, name)
    formats = {"CSV": f"{name}.csv", "JSON": f"{name}.json", "LaTeX": f"{name}.tex", "Markdown": f"{name}.md"}
    index = os.path.relpath(paths.reports_out() / "index.html", out_dir)
    places = html.Places(formats, index, runs=os.path.relpath(paths.runs(), out_dir))
    files = {
        f"{name}.html": html.render(table, context, plots, places),
        formats["Markdown"]: markdown.render(table, context),
        formats["CSV"]: csv.render(table),
        formats["JSON"]: json.render(table, context),
        formats["LaTeX"]: latex.render(table, f"{out_dir.name}-{name}"),
        **{f"{name}-{slug(metric)}.svg": svg for metric, svg in plots.items()},
    }
    for file, content in files.items():
        write_text(out_dir / file, content)
    return [out_dir / file for file in files]

"""Writes finished tables into documents."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mimbench.atomic import write_text
from mimbench.commands.stored import Stored, stored_tables
from mimbench.errors import UserError
from mimbench.plan.request import Request
from mimbench.render import markdown, readme


def results(document: Path, request: Request, console: Console, *, excerpt: str = "") -> int:
    """Write the finished main tables: short ones between a document's marks, whole ones into RESULTS.md.

    Args:
        excerpt: a paper; the document shows only its finished rows.

    Raises:
        UserError: no table is computed, or not the one of `excerpt`; or the document lacks its marks.
    """
    readme.around(document)
    known = stored_tables(request, console)
    found = [stored for stored in known if any(cell.complete for cell in stored.cells)]
    if excerpt:
        names = [stored.method for stored in found]
        if excerpt not in names:
            raise UserError("--table", excerpt, allowed=names, remedy="Make its main table first.")
        readme.update(document, [markdown.excerpt(found[names.index(excerpt)].table)])
    else:
        readme.update(document, [markdown.brief(stored.table) for stored in found])
    whole = _write(document.parent / "RESULTS.md", "Results", found, request)
    console.print(f"{document} and {whole.name} brought up to date", markup=False, highlight=False)
    return 0


def ablations(document: Path, request: Request, console: Console) -> int:
    """Write the ablation tables without open cells into ABLATIONS.md beside a document.

    Raises:
        UserError: there is none.
    """
    known = stored_tables(request, console, ablations=True)
    found = [stored for stored in known if not any(cell.open for cell in stored.cells)]
    if not found:
        remedy = "No ablation table is complete. Make one: mimbench reproduce-table METHOD --table TABLE."
        raise UserError("--ablations", remedy=remedy)
    whole = _write(document.parent / "ABLATIONS.md", "Ablations", found, request)
    console.print(f"{whole} brought up to date", markup=False, highlight=False)
    return 0


def _write(path: Path, title: str, found: Sequence[Stored], request: Request) -> Path:
    whole = [markdown.render(stored.table, stored.told(request)) for stored in found]
    lower = [re.sub(r"^#", "##", table, flags=re.MULTILINE) for table in whole]
    write_text(path, "\n\n".join([f"# {title}", *lower]) + "\n")
    return path

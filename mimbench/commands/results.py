"""Writes finished tables into documents."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mimbench import paths
from mimbench.atomic import read_json, write_text
from mimbench.commands.stored import Stored, stored_tables
from mimbench.errors import UserError
from mimbench.plan.request import Request
from mimbench.render import markdown, readme
from mimbench.store.runs import RunStore


def results(document: Path, request: Request, console: Console, *, excerpt: str = "") -> int:
    """Write the finished main tables: short ones between a document's marks, whole ones into RESULTS.md.

    Args:
        excerpt: a paper; the document shows only its finished rows.

    Raises:
        UserError: no table is computed, or not the one of `excerpt`; or the document lacks its marks; or a
            result is stale or damaged.
    """
    readme.around(document)
    known = list(stored_tables(request, console))
    refuse_damaged(known)
    found = [stored for stored in known if any(cell.complete for cell in stored.cells)]
    refuse_mixture(found)
    if excerpt:
        names = [stored.method for stored in found]
        if excerpt not in names:
            raise UserError("--table", excerpt, allowed=names, remedy="Make its main table first.")
        chosen = found[names.index(excerpt)]
        readme.update(document, [f"{markdown.excerpt(chosen.table)}\n{computed_by([chosen])}\n"])
    else:
        readme.update(document, [*(markdown.brief(stored.table) for stored in found), computed_by(found)])
    whole = _write(document.parent / "RESULTS.md", "Results", found, request)
    console.print(f"{document} and {whole.name} brought up to date", markup=False, highlight=False)
    return 0


def ablations(document: Path, request: Request, console: Console) -> int:
    """Write the ablation tables without open cells into ABLATIONS.md beside a document.

    Raises:
        UserError: there is none; or a result is stale or damaged.
    """
    known = list(stored_tables(request, console, ablations=True))
    refuse_damaged(known)
    found = [stored for stored in known if not any(cell.open for cell in stored.cells)]
    if not found:
        remedy = "No ablation table is complete. Make one: mimbench reproduce-table METHOD --table TABLE."
        raise UserError("--ablations", remedy=remedy)
    refuse_mixture(found)
    whole = _write(document.parent / "ABLATIONS.md", "Ablations", found, request)
    console.print(f"{whole} brought up to date", markup=False, highlight=False)
    return 0


def refuse_mixture(found: Sequence[Stored]) -> None:
    """Raises UserError if a cell was computed by code that has changed since."""
    for stored in found:
        for row in stored.table.rows:
            if any(cell.stale for cell in row.cells):
                table = f"{stored.method}/{stored.spec.name}, {row.spec.label}"
                remedy = "It was computed by older code: compute it again with --rerun-stale."
                raise UserError("stale result", table, remedy=remedy)


def refuse_damaged(known: Sequence[Stored]) -> None:
    """Raises UserError if a cell has a damaged result: its row would look as if it was never run."""
    for stored in known:
        for row in stored.table.rows:
            if any(each.status == "damaged" for cell in row.cells for each in cell.outcomes.values()):
                table = f"{stored.method}/{stored.spec.name}, {row.spec.label}"
                remedy = (
                    "`mimbench runs verify` names the files, `mimbench runs verify --repair` deletes what "
                    "can be computed again."
                )
                raise UserError("damaged result", table, remedy=remedy)


def computed_by(found: Sequence[Stored]) -> str:
    """The line that says which commits computed the runs behind tables."""
    folders = (RunStore(paths.runs()).root / name for stored in found for name in _folders(stored))
    environments = [read_json(folder / "env.json") for folder in folders]
    commits = {str(values.get("commit") or "") for values in environments if isinstance(values, dict)}
    known = sorted(commit[:7] for commit in commits if commit)
    return f"*Computed by {', '.join(known) if known else 'an installed version, without a commit'}.*"


def _folders(stored: Stored) -> set[str]:
    """The folders of the runs behind a table's cells, and of those they start from."""
    done = [each for cell in stored.outcomes.values() for each in cell.values() if each.value is not None]
    return {name for outcome in done for name in (outcome.run, outcome.start) if name}


def _write(path: Path, title: str, found: Sequence[Stored], request: Request) -> Path:
    whole = [markdown.render(stored.table, stored.told(request)) for stored in found]
    lower = [re.sub(r"^#", "##", table, flags=re.MULTILINE) for table in whole]
    write_text(path, "\n\n".join([f"# {title}", computed_by(found), *lower]) + "\n")
    return path

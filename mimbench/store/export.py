"""The run store as a pandas DataFrame, a CSV file or a JSON file: one row per run."""

from __future__ import annotations

import csv
import functools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mimbench.atomic import atomic_path, naming
from mimbench.errors import RunFailed, UserError, spreadsheet
from mimbench.store.folder import RunFolder
from mimbench.store.records import Damaged
from mimbench.store.spec import PerRecipe

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("csv", "json")
STATES = ("done", "stale", "running", "interrupted", "failed", "missing", "damaged", "edited", "orphaned")
"""The values of `state`."""

Line = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
"""A run's columns: before its recipe's, its recipe's, after them. Runs share a recipe's."""

Extra = Mapping[str, Mapping[str, Any]]
"""Further columns: run name to {column: value}."""


def frame(runs: Iterable[RunFolder], extra: Extra | None = None) -> pd.DataFrame:
    """One row per run, indexed by the name of the run's folder. Damaged and edited runs are left out.

    Columns: what the run is (`stage`, `name`, `method`, `arch`, `seed`), then those of `extra`, its outcome
    (`state` as in `mimbench runs list`, `step`, `seconds`), the folders of the runs it starts from
    (`parent.<role>`), its data's fingerprints (`data.<role>`), its recipe (`recipe.<field>`), its numbers
    (`metric.<name>`, in percent except the pilot study's cosine), and why it counts as computed by newer code
    (`restamped`). `method` is the one whose encoder the run trains or evaluates. A value that a run does not
    have, or a parent that was removed, is missing.
    """
    import pandas as pd

    lines = pd.DataFrame(head | recipe | tail for head, recipe, tail in _lines(runs, extra or {}))
    if lines.empty:
        return pd.DataFrame(index=pd.Index([], name="run"))
    return lines.convert_dtypes().set_index("run")


def export(
    runs: Iterable[RunFolder], file: Path | None, *, form: str = "", extra: Extra | None = None
) -> int:
    """Write `frame` as CSV or as JSON records.

    Args:
        file: where to; None for standard output.
        form: csv or json; if empty, the end of the file's name decides, and standard output gets CSV.

    Returns:
        The number of runs.

    Raises:
        UserError: an unknown format, or a folder that does not exist.
    """
    if form and form not in FORMATS:
        raise UserError("--format", form, allowed=FORMATS)
    if file is not None:
        form = form or file.suffix.lstrip(".")
        if form not in FORMATS:
            raise UserError("FILE", str(file), remedy="Its name must end in .csv or .json.")
        if not file.parent.is_dir():
            raise UserError("FILE", str(file), remedy=f"There is no folder {file.parent}.")
    lines = list(_lines(runs, extra or {}))
    write = _write_json if form == "json" else _write_csv
    if file is None:
        with naming(Path("standard output")):
            write(lines, sys.stdout)
    else:
        with atomic_path(file) as place, open(place, "w", encoding="utf-8", newline="") as target:
            write(lines, target)
    return len(lines)


def _columns(lines: Iterable[Line]) -> list[str]:
    """The columns of all lines, each once, in the order in which they come up."""
    kinds = {(tuple(head), id(recipe), tuple(tail)): (*head, *recipe, *tail) for head, recipe, tail in lines}
    return list(dict.fromkeys(name for columns in kinds.values() for name in columns)) or ["run"]


def _write_csv(lines: list[Line], target: TextIO) -> None:
    columns, text = _columns(lines), functools.cache(spreadsheet)
    places = {name: index for index, name in enumerate(columns)}
    rows: dict[int, list[Any]] = {}  # by the identity of a recipe's columns

    def fill(row: list[Any], values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            row[places[name]] = text(value) if type(value) is str else value

    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(map(text, columns))
    for head, recipe, tail in lines:
        if id(recipe) not in rows:
            fill(rows.setdefault(id(recipe), [None] * len(columns)), recipe)
        row = rows[id(recipe)].copy()
        fill(row, head)
        fill(row, tail)
        writer.writerow(row)


def _write_json(lines: list[Line], target: TextIO) -> None:
    """One run a line; a value that a run does not have is null."""
    missing = dict.fromkeys(_columns(lines))
    records = (json.dumps({**missing, **head, **recipe, **tail}) for head, recipe, tail in lines)
    target.write("[\n" + ",\n".join(records) + "\n]\n" if lines else "[]\n")


def state(folder: RunFolder) -> str:
    """One of STATES: the outcome, or `orphaned` if the run's method or task is gone."""
    try:
        outcome = str(folder.outcome())
    except UserError:
        return "orphaned"
    return "interrupted" if outcome == "missing" and folder.status.state == "running" else outcome


def subject(folder: RunFolder) -> str:
    """A run in words: `dtm`, `clip`, or for a task with the method it evaluates, `detection of dtm`."""
    try:
        spec = folder.spec
    except Damaged:
        return folder.path.name
    parents = [folder.store.get(key) for key in spec.parents.values()] if spec.stage == "downstream" else []
    return " of ".join([spec.name, *(subject(parent) for parent in parents if parent)])


def method_of(folder: RunFolder) -> str | None:
    """The method or teacher whose encoder a run trains or evaluates; None if it is unknown."""
    try:
        if folder.spec.stage != "downstream":
            return folder.spec.name
        parents = [folder.store.get(key) for key in folder.spec.parents.values()]
        return next((parent.spec.name for parent in parents if parent), None)
    except RunFailed:  # damaged
        return None


def _lines(runs: Iterable[RunFolder], extra: Extra) -> Iterator[Line]:
    recipe_columns = PerRecipe(lambda recipe: {f"recipe.{field}": value for field, value in recipe.items()})
    for folder in runs:
        try:
            spec, result = folder.spec, folder.result
        except Damaged:
            continue  # nobody knows what it was, or what it gave
        status = folder.status
        parents = {role: folder.store.get(key) for role, key in spec.parents.items()}
        head = {
            "run": folder.name,
            "stage": spec.stage,
            "name": spec.name,
            "method": method_of(folder),
            "arch": spec.arch,
            "seed": spec.seed,
            **extra.get(folder.name, {}),
            "state": state(folder),
            "step": status.step if status.state else None,
            "seconds": status.seconds if status.state else None,
            **{f"parent.{role}": parent.name for role, parent in parents.items() if parent},
            **{f"data.{role}": fingerprint for role, fingerprint in spec.data.items()},
        }
        tail: dict[str, Any] = {
            f"metric.{name}": value for name, value in (result.metrics if result else {}).items()
        }
        if result and result.restamped:
            tail["restamped"] = "; ".join(f"{one.date[:10]}: {one.because}" for one in result.restamped)
        yield head, recipe_columns(spec.recipe), tail

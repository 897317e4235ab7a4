"""The run store as a pandas table, for one's own analysis: one line per run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimbench.atomic import naming
from mimbench.errors import UserError
from mimbench.store.folder import RunFolder
from mimbench.store.records import Damaged
from mimbench.store.runs import RunStore

if TYPE_CHECKING:
    import pandas as pd

FORMATS = (".csv", ".json")


def frame(store: RunStore) -> pd.DataFrame:
    """Every readable run of a store, indexed by its folder's name.

    Columns: what the run is (`stage`, `name`, `arch`, `seed`), what became of it (`state` as in `mimbench
    runs list`, `step`, `seconds`), the runs it starts from (`parent.<role>`, a folder's name), its data's
    fingerprints (`data.<role>`), its recipe (`recipe.<field>`), its numbers (`metric.<name>`, in percent
    but for the pilot study's cosine) and why it counts for newer code (`restamped`). A value that a run has
    not, or a parent that was removed, is missing.
    """
    import pandas as pd

    lines = pd.DataFrame(_lines(store))
    if lines.empty:
        return pd.DataFrame(index=pd.Index([], name="run"))
    return lines.convert_dtypes().set_index("run")


def export(store: RunStore, file: Path) -> int:
    """Write `frame` as CSV or as JSON records, by the file's suffix; returns the number of runs.

    Raises:
        UserError: another suffix, or no such folder.
    """
    if file.suffix not in FORMATS:
        raise UserError("FILE", str(file), remedy=f"Its name must end in {' or '.join(FORMATS)}.")
    if not file.parent.is_dir():
        raise UserError("FILE", str(file), remedy=f"There is no folder {file.parent}.")
    runs = frame(store)
    with naming(file):
        if file.suffix == ".csv":
            runs.to_csv(file)
        else:
            runs.reset_index().to_json(file, orient="records", indent=2)
    return len(runs)


def state(folder: RunFolder) -> str:
    """The outcome; a run whose method is gone cannot be judged, but can be listed."""
    try:
        outcome = str(folder.outcome())
    except UserError:
        return "orphaned"
    return "interrupted" if outcome == "missing" and folder.status.state == "running" else outcome


def subject(folder: RunFolder) -> str:
    """What a run is in words: `dtm`, `clip`, or of a task also what it starts from, `detection of dtm`."""
    try:
        spec = folder.spec
    except Damaged:
        return folder.path.name
    parents = [folder.store.get(key) for key in spec.parents.values()] if spec.stage == "downstream" else []
    return " of ".join([spec.name, *(subject(parent) for parent in parents if parent)])


def _lines(store: RunStore) -> Iterator[dict[str, Any]]:
    for folder in store:
        try:
            spec, result = folder.spec, folder.result
        except Damaged:
            continue  # what it was, or gave, cannot be told
        status = folder.status
        parents = {role: store.get(key) for role, key in spec.parents.items()}
        line = {
            "run": folder.path.name,
            "stage": spec.stage,
            "name": spec.name,
            "arch": spec.arch,
            "seed": spec.seed,
            "state": state(folder),
            "step": status.step if status.state else None,
            "seconds": status.seconds if status.state else None,
            **{f"parent.{role}": parent.path.name for role, parent in parents.items() if parent},
            **{f"data.{role}": fingerprint for role, fingerprint in spec.data.items()},
            **{f"recipe.{field}": value for field, value in spec.recipe.items()},
            **{f"metric.{name}": value for name, value in (result.metrics if result else {}).items()},
        }
        if result and result.restamped:
            line["restamped"] = "; ".join(f"{one.date[:10]}: {one.because}" for one in result.restamped)
        yield line

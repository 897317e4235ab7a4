"""Table files (tables/<method>/<table>.toml): a table's rows, columns and comparisons."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mimbench import discovery, paths, plugin
from mimbench.errors import UserError
from mimbench.recipe import Scale
from mimbench.table.reported import Reference

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(_Strict):
    """One metric of one task; `metric` also names the column, so it is unique in a table."""

    task: str
    metric: str
    title: str


class Row(_Strict):
    """One row; without `method` it is only reported, never run.

    Attributes:
        set: overrides of the recipe; `field` for the pretraining recipe, `task.field` for a task's.
        at: scale to overrides for this scale only; they win over `set`.
        not_at: scale to the reason why the row is not run at this scale.
        reported: column's metric to the paper's figure.
        other_protocol: column's metric to the protocol of the paper's figure, if it is not our task's. Such a
            figure is not compared with ours at paper scale. It is compared only with figures of the same
            protocol.
        baseline: id of the row to compare with, if it is not the table's baseline.
    """

    id: str
    label: str
    method: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    at: dict[Scale, dict[str, Any]] = Field(default_factory=dict)
    not_at: dict[Scale, str] = Field(default_factory=dict)
    reported: dict[str, Reference] = Field(default_factory=dict)
    other_protocol: dict[str, str] = Field(default_factory=dict)
    baseline: str | None = None
    note: str = ""

    @field_validator("set", mode="before")
    @classmethod
    def _flat_set(cls, value: object) -> object:
        """`segmentation.steps = 10` and `"segmentation.steps" = 10` mean the same."""
        return _flat(value)

    @field_validator("at", mode="before")
    @classmethod
    def _flat_at(cls, value: object) -> object:
        return {k: _flat(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _flat(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= {f"{name}.{key}": v for key, v in item.items()} if isinstance(item, Mapping) else {name: item}
    return flat


class Claim(_Strict):
    """A statement of the paper about two rows: `row` is above `against` in one column."""

    label: str
    row: str
    against: str
    column: str
    reported_delta: Reference | None = None


class Cost(_Strict):
    """The cost of pretraining in the paper. Rows name its line of reported.csv as they do for a column.

    Attributes:
        metric: the metric of these lines.
        unit: of their values, as shown to people.
    """

    metric: str
    unit: str


class TableSpec(_Strict):
    """One table of a paper, rows in the file's order.

    Attributes:
        paper: the citation that people see.
        section: the place of the table in the paper.
        baseline: id of the row that every other row is compared with, unless the row names another.
        cost: if given, the columns are also plotted against the cost of pretraining.
    """

    paper: str
    name: str
    title: str
    section: str
    note: str = ""
    baseline: str
    columns: tuple[Column, ...] = Field(min_length=1)
    rows: tuple[Row, ...] = Field(min_length=1)
    claims: tuple[Claim, ...] = ()
    cost: Cost | None = None

    def row(self, row_id: str) -> Row:
        return next(row for row in self.rows if row.id == row_id)

    def baseline_of(self, row: Row) -> str:
        return row.baseline or self.baseline

    def column_index(self, metric: str) -> int:
        return next(i for i, column in enumerate(self.columns) if column.metric == metric)


def list_tables(folder: Path | None = None) -> list[tuple[str, str]]:
    """Every table as (method, table), sorted, `main` first within a method.

    Args:
        folder: where to look; default: the project's tables and those of plug-ins.
    """
    return sorted(_files(folder), key=lambda pair: (pair[0], pair[1] != "main", pair[1]))


def _files(folder: Path | None) -> dict[tuple[str, str], Path]:
    """(method, table) to its file.

    Raises:
        UserError: an included plug-in has a table whose name is already taken.
    """
    found = _files_in(folder or paths.share("tables"))
    for each in discovery.sound_plugins() if folder is None else ():
        own = _files_in(each.tables)
        try:
            for name in sorted(own.keys() & found.keys()):
                remedy = f"{found[name]} has that name. Give {own[name]} another one."
                raise UserError("TABLE", "/".join(name), remedy=remedy)
        except UserError as error:
            plugin.leave_out(each, error)
        else:
            found |= own
    return found


def _files_in(folder: Path) -> dict[tuple[str, str], Path]:
    return {(file.parent.name, file.stem): file for file in folder.glob("*/*.toml")}


def load(method: str, table: str = "main", folder: Path | None = None) -> TableSpec:
    """Read and check tables/<method>/<table>.toml.

    Raises:
        UserError: no such table, or a mistake in the file; the message names the key and the nearest valid.
    """
    files = _files(folder)
    methods = list(dict.fromkeys(name for name, _ in sorted(files)))
    remedy = "`mimbench tables` lists every table; --include PATH adds your own."
    if method not in methods:
        raise UserError("METHOD", method, allowed=methods, remedy=remedy)
    tables = [name for owner, name in list_tables(folder) if owner == method]
    if table not in tables:
        raise UserError("TABLE", table, allowed=tables, remedy=remedy)
    where = f"tables/{method}/{table}.toml"
    try:
        values = tomllib.loads(files[method, table].read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(where, str(error), remedy="Write valid TOML.") from None
    except OSError as error:
        remedy = f"It cannot be read ({error.strerror}): restore it."
        raise UserError(where, str(files[method, table]), remedy=remedy) from error
    return parse(values, where=where, name=table)


def parse(values: Mapping[str, Any], *, where: str, name: str) -> TableSpec:
    """Check a table's plain values; `where` is the file in error messages, `name` its stem."""
    try:
        spec = TableSpec.model_validate(values)
    except ValidationError as error:
        raise _user_error(error, where) from None
    _check_names(spec, where, name)
    return spec


def _check_names(spec: TableSpec, where: str, name: str) -> None:
    """Every name must be defined once and every name used must be defined."""
    rows, metrics = [row.id for row in spec.rows], [column.metric for column in spec.columns]
    _one_of(spec.name, [name], f"{where}: name")
    _unique(rows, f"{where}: rows.id")
    _unique(metrics, f"{where}: columns.metric")
    _one_of(spec.baseline, rows, f"{where}: baseline")
    figures = [*metrics, spec.cost.metric] if spec.cost else metrics
    _unique(figures, f"{where}: cost.metric")
    for row in spec.rows:
        here = f"{where}: rows[{row.id}]"
        if row.baseline is not None:
            _one_of(row.baseline, rows, f"{here}.baseline")
        for metric in row.reported:
            _one_of(metric, figures, f"{here}.reported")
        for metric in row.other_protocol:
            _one_of(metric, list(row.reported), f"{here}.other_protocol")
        if row.method is None and (row.set or row.at or row.not_at):
            raise UserError(
                f"{here}.set",
                row.set or row.at or row.not_at,
                remedy="A row without a method is not run: nothing to override.",
            )
        if row.method is None and not row.reported:
            raise UserError(f"{here}.method", None, remedy="Give a method, a reported value, or both.")
    for claim in spec.claims:
        here = f"{where}: claims[{claim.label}]"
        _one_of(claim.row, rows, f"{here}.row")
        _one_of(claim.against, rows, f"{here}.against")
        _one_of(claim.column, metrics, f"{here}.column")


def _one_of(value: str, allowed: Sequence[str], where: str) -> None:
    if value not in allowed:
        raise UserError(where, value, allowed=allowed)


def _unique(values: Iterable[str], where: str) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise UserError(where, value, remedy="It is given twice; each must be unique.")
        seen.add(value)


# The model behind each nesting key, for the did-you-mean of an unknown key.
_NESTED: Mapping[str, type[BaseModel]] = {
    "columns": Column,
    "rows": Row,
    "claims": Claim,
    "cost": Cost,
    "reported": Reference,
    "reported_delta": Reference,
}


def _user_error(error: ValidationError, where: str) -> UserError:
    """The first of pydantic's errors as a UserError."""
    first = error.errors()[0]
    *parents, key = first["loc"] or ("",)
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parents).lstrip(".")
    prefix = f"{where}: {path}." if path else f"{where}: "
    if first["type"] == "extra_forbidden":
        model = next((_NESTED[str(part)] for part in reversed(parents) if part in _NESTED), TableSpec)
        return UserError(f"{prefix}key", key, allowed=model.model_fields)
    if first["type"] == "missing":
        return UserError(f"{prefix}{key}", None, remedy="This key is required: add it.")
    return UserError(f"{prefix}{key}", first["input"], remedy=f"{first['msg']}.")

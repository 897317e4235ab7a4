"""The files of a run's folder as types. One function reads and checks each of them.

A file that is missing or not JSON counts as never written: writes are atomic, so only a bad disk or a person
can break a file. A file with JSON of another shape is damaged, and so is one that cannot be read. The message
names the file and says what to do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AllowInfNan, Field, Strict, TypeAdapter, ValidationError

from mimbench.atomic import read_json, write_json
from mimbench.errors import RunFailed, visible
from mimbench.store.spec import RunSpec

RESULT_SCHEMA = 2  # 1: `parents` holds the parents' own sources, not their lineages
STATUS_SCHEMA = 1  # older files without a number have the same shape
NAME = re.compile(r"[\w.+-]+")  # of a method, task or size

Number = Annotated[float, Strict(), AllowInfNan(False)]
Count = Annotated[int, Strict()]
Lineages = Mapping[str, str | None]  # by role; schema 1 wrote null for a parent without a result
State = Literal["", "running", "failed", "done"]
Record = TypeVar("Record")


class Damaged(RunFailed):
    """A run's file cannot be read, or has content that this version does not understand."""


@dataclass(frozen=True)
class Stamp:
    """The code behind a result: the fingerprint of its own source, and its parents' lineages by role."""

    source: str
    parents: Lineages


@dataclass(frozen=True)
class Restamp:
    """The record that a result got the stamp of newer code, because that code gave its numbers again.

    Attributes:
        because: the user's reason. date: ISO 8601, UTC. checked: what was computed again, in words.
    """

    before: Annotated[Stamp, Field(alias="from")]
    after: Annotated[Stamp, Field(alias="to")]
    because: str
    date: str
    checked: str


@dataclass(frozen=True)
class Result:
    """result.json: the numbers of a finished run, and the code behind them.

    Attributes:
        metrics: by the field's names, finite. details: what the stage records besides them.
        source: the fingerprint of the run's code. parents: their lineages by role.
        restamped: every change of the stamp since the run was computed, oldest first.
    """

    metrics: Mapping[str, Number]
    source: str
    parents: Lineages
    details: Mapping[str, Any] = field(default_factory=dict)
    schema: Count = RESULT_SCHEMA
    restamped: tuple[Restamp, ...] = ()


@dataclass(frozen=True)
class Status:
    """status.json: a run's last heartbeat.

    Attributes:
        seconds: of work, over all resumptions. time: of the heartbeat, in seconds since 1970.
        source, parents: the code, as in Result, that started or last resumed the run.
    """

    state: State = ""
    step: Count = 0
    total: Count = 0
    message: str = ""
    seconds: Number = 0.0
    time: Number = 0.0
    pid: Count = 0
    host: str = ""
    source: str = ""
    parents: Lineages | None = None
    schema: Count = STATUS_SCHEMA


@dataclass(frozen=True)
class Options:
    """How a run is computed without changing what it computes."""

    num_workers: Count = 0  # of the data loader
    checkpoint_seconds: Number = 15.0  # between two checkpoints


@dataclass(frozen=True)
class Inputs:
    """The paths, on this machine, of what the run reads. They are not a part of the run's key.

    Attributes:
        data: role to the dataset's root. weights: name to a foreign checkpoint.
    """

    data: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    options: Options = Options()


RESULT, STATUS = TypeAdapter(Result), TypeAdapter(Status)
INPUTS, SPEC = TypeAdapter(Inputs), TypeAdapter(RunSpec)


def read_result(folder: Path) -> Result | None:
    """A run's result; None until it is done. Raises Damaged."""
    return _read(RESULT, folder / "result.json", RESULT_SCHEMA)


def write_result(folder: Path, result: Result) -> None:
    values = RESULT.dump_python(result, mode="json", by_alias=True)
    write_json(folder / "result.json", values)


def read_status(folder: Path) -> Status | None:
    """A run's last heartbeat; None before the first. Raises Damaged."""
    status = _read(STATUS, folder / "status.json", STATUS_SCHEMA)
    return status and replace(status, message=visible(status.message, lines=True))


def write_status(folder: Path, status: Status) -> None:
    write_json(folder / "status.json", STATUS.dump_python(status, mode="json"))


def read_inputs(folder: Path) -> Inputs | None:
    """A run's inputs, as the last command wrote them; None if there are none. Raises Damaged."""
    return _read(INPUTS, folder / "inputs.json", None)


def read_spec(folder: Path) -> RunSpec | None:
    """What a run is; None if it has no spec. Raises Damaged."""
    path = folder / "spec.json"
    spec = _read(SPEC, path, None)
    if spec is None:
        return None
    unknown = read_json(path).keys() - {each.name for each in fields(RunSpec)} - {"key"}
    if unknown:  # from a newer version: without these fields it would be another run
        raise _damaged(path, f"{', '.join(sorted(unknown))}: unknown")
    for name in (spec.name, spec.arch):
        if not NAME.fullmatch(name):
            raise _damaged(path, f"{name!r} is no name")
    return spec


def _read(kind: TypeAdapter[Record], path: Path, schema: int | None) -> Record | None:
    """A file as its type; None if it is missing or not JSON.

    Args:
        schema: the newest that this version can read; None for files without a number.
    """
    try:
        values = read_json(path)
    except OSError as error:
        raise _damaged(path, f"it cannot be read: {error.strerror}") from error
    if values is None:
        return None
    newer = values.get("schema") if isinstance(values, dict) else None
    if schema is not None and type(newer) is int and newer > schema:
        raise Damaged(
            f"{path} is of a newer version of mimbench (schema {newer}; this one reads up to {schema}): "
            f"use that version, or remove the run with `mimbench runs rm {path.parent.name}`."
        )
    try:
        found = kind.validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise _damaged(path, f"{where}: {first['msg']}" if where else first["msg"]) from None
    return found


def _damaged(path: Path, why: str) -> Damaged:
    message = f"{path} is damaged ({why}): `mimbench runs rm {path.parent.name}` removes the run."
    return Damaged(visible(message, lines=True))

"""The files of a run's folder as types. One function reads and checks each of them.

A file that is missing counts as never written, and so does one that is not JSON, unless it is a result, which
may have taken days: writes are atomic, so only a bad disk or a person can break a file. A file with JSON of
another shape is damaged, and so is one that cannot be read. A spec whose content does not give its key is
damaged. A result whose content does not give its seal was edited. The message names the file and says what to
do.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AllowInfNan, Field, Strict, TypeAdapter, ValidationError

from mimbench.atomic import opened, read_json, write_json
from mimbench.errors import RunFailed, visible
from mimbench.store.spec import RunSpec, canonical_json

RESULT_SCHEMA = 3  # 1: `parents` holds the parents' own sources, not their lineages; 1 and 2: no seal
SEALED = 3  # the first schema with a seal
ARTEFACTS = ("encoder.safetensors", "teacher.safetensors")  # the files of a run that other runs read
STATUS_SCHEMA = 1  # older files without a number have the same shape
NAME = re.compile(r"[\w.+-]+")  # of a method, task or size

Number = Annotated[float, Strict(), AllowInfNan(False)]
Count = Annotated[int, Strict()]
Natural = Annotated[int, Strict(), Field(ge=0)]
Duration = Annotated[float, Strict(), AllowInfNan(False), Field(ge=0, le=1e12)]  # seconds
Moment = Annotated[float, Strict(), AllowInfNan(False), Field(ge=0, le=253_402_300_000)]
"""Seconds since 1970, up to the year 9999."""
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Lineages = Mapping[str, str | None]  # by role; schema 1 wrote null for a parent without a result
State = Literal["", "running", "failed", "done"]
Record = TypeVar("Record")


class Damaged(RunFailed):
    """A run's file cannot be read, or has content that this version does not understand."""


class Newer(Damaged):
    """A file of a newer version of mimbench; it may be sound."""


class Misnamed(Damaged):
    """A sound run in a folder with the name of another: a copy, or renamed."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(
            f"{folder} is the run {name} under another name: give it that name, or remove it with "
            f"`mimbench runs rm {folder.name}`."
        )


class Edited(Damaged):
    """A result has changed since the run wrote it."""


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
        artefacts: the SHA-256 of each of the run's files that other runs read, by the file's name.
        percent: the names of metrics that are percentages: they lie between 0 and 100.
    """

    metrics: Mapping[str, Number]
    source: str
    parents: Lineages
    details: Mapping[str, Any] = field(default_factory=dict)
    schema: Count = RESULT_SCHEMA
    restamped: tuple[Restamp, ...] = ()
    artefacts: Mapping[str, Sha256] = field(default_factory=dict)
    percent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Status:
    """status.json: a run's last heartbeat.

    Attributes:
        seconds: of work, over all resumptions. time: of the heartbeat, in seconds since 1970.
        source, parents: the code, as in Result, that started or last resumed the run.
    """

    state: State = ""
    step: Natural = 0
    total: Natural = 0
    message: str = ""
    seconds: Duration = 0.0
    time: Moment = 0.0
    pid: Natural = 0
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


ROUNDING = 1e-6  # percent

RESULT, STATUS = TypeAdapter(Result), TypeAdapter(Status)
INPUTS, SPEC = TypeAdapter(Inputs), TypeAdapter(RunSpec)
RESTAMPS = TypeAdapter(tuple[Restamp, ...])


def read_result(folder: Path) -> Result | None:
    """A run's result; None until it is done.

    Raises:
        Edited: its content does not give its seal. Damaged: it has another shape, or an impossible number.
    """
    path = folder / "result.json"
    values = _json(path, RESULT_SCHEMA)
    if values is None:
        if path.exists():
            raise _damaged(path, "it is empty or not JSON")
        return None
    result = _typed(RESULT, path, values)
    if result.schema < 1:
        raise _damaged(path, f"schema: there is no {result.schema}")
    if result.schema >= SEALED or any(name in values for name in ("seal", "artefacts", "percent")):
        stated = values.pop("seal", None)
        if stated != _seal(folder, values):
            raise Edited(
                f"{path} was edited or damaged after the run wrote it (its seal does not fit), so its "
                f"numbers are not shown: {remedy(folder)}"
            )
    if wrong := impossible(result.metrics, result.percent):
        raise _damaged(path, wrong)
    return result


def write_result(folder: Path, result: Result) -> None:
    """Write a result with its seal."""
    values = json.loads(json.dumps(RESULT.dump_python(result, mode="json", by_alias=True)))
    write_json(folder / "result.json", {**values, "seal": _seal(folder, values)})


def _seal(folder: Path, values: Mapping[str, Any]) -> str:
    """The SHA-256 of a result's content and of the run that it belongs to, by its folder's name."""
    told = canonical_json({"run": folder.name, "result": values}, allow_nan=True)
    return hashlib.sha256(told.encode()).hexdigest()


def impossible(metrics: Mapping[str, float], percent: Iterable[str]) -> str:
    """What is wrong with a metric that is no percentage but should be one; empty if nothing is."""
    for name in percent:
        if not -ROUNDING <= metrics.get(name, 0.0) <= 100 + ROUNDING:
            return f"{name} is {metrics[name]:g}, but a percentage lies between 0 and 100"
    return ""


def remedy(folder: Path) -> str:
    """What to do about a damaged run."""
    repair, rm = (f"`mimbench runs {words} {folder.name}`" for words in ("verify --repair", "rm"))
    return f"{repair} repairs the run, {rm} removes it."


def read_status(folder: Path) -> Status | None:
    """A run's last heartbeat; None before the first. Raises Damaged."""
    path = folder / "status.json"
    values = _json(path, STATUS_SCHEMA)
    if values is None:
        return None
    status = _typed(STATUS, path, values)
    return replace(status, message=visible(status.message, lines=True))


def write_status(folder: Path, status: Status) -> None:
    write_json(folder / "status.json", STATUS.dump_python(status, mode="json"))


def read_inputs(folder: Path) -> Inputs | None:
    """A run's inputs, as the last command wrote them; None if there are none. Raises Damaged."""
    path = folder / "inputs.json"
    values = _json(path, None)
    return None if values is None else _typed(INPUTS, path, values)


def metrics_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of metrics.jsonl with their values. Broken lines, of a kill or a bad disk, are left out."""
    with opened(path) as file:
        text = file.read().decode("utf-8", errors="replace")
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            yield line, values


def read_spec(folder: Path) -> RunSpec | None:
    """What a run is; None if it has no spec. Raises Damaged."""
    path = folder / "spec.json"
    values = _json(path, None)
    if values is None:
        return None
    spec = _typed(SPEC, path, values)
    unknown = values.keys() - {each.name for each in fields(RunSpec)} - {"key"}
    if unknown:  # without these fields it would be another run
        raise Newer(
            visible(
                f"{path} has fields that this version of mimbench does not know ({', '.join(sorted(unknown))}"
                f"): use a newer version, or remove the run with `mimbench runs rm {folder.name}`."
            )
        )
    for name in (spec.name, spec.arch):
        if not NAME.fullmatch(name):
            raise _damaged(path, f"{name!r} is no name")
    try:
        key, recorded = spec.key, values.get("key")
    except (ValueError, RecursionError) as error:  # NaN, or too deep
        raise _damaged(path, f"it gives no key: {error}") from None
    if key != recorded:
        raise _damaged(path, f"it was edited: its content gives the key {key}, but it says {recorded}")
    return spec


def _json(path: Path, schema: int | None) -> Any:
    """A file's value; None if it is missing or not JSON.

    Args:
        schema: the newest that this version can read; None for files without a number.
    """
    try:
        values = read_json(path)
    except OSError as error:
        raise _damaged(path, f"it cannot be read: {error.strerror}") from error
    newer = values.get("schema") if isinstance(values, dict) else None
    if schema is not None and type(newer) is int and newer > schema:
        raise Newer(
            f"{path} is of a newer version of mimbench (schema {newer}; this one reads up to {schema}): "
            f"use that version, or remove the run with `mimbench runs rm {path.parent.name}`."
        )
    return values


def _typed(kind: TypeAdapter[Record], path: Path, values: Any) -> Record:
    """A file's value as its type. Raises Damaged."""
    try:
        return kind.validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise _damaged(path, f"{where}: {first['msg']}" if where else first["msg"]) from None


def _damaged(path: Path, why: str) -> Damaged:
    return Damaged(visible(f"{path} is damaged ({why}): {remedy(path.parent)}", lines=True))

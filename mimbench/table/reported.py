"""The papers' figures (tables/reported.csv), and references that must match exactly one of them."""

from __future__ import annotations

import csv
import difflib
import functools
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from mimbench import discovery, paths, plugin
from mimbench.errors import UserError

COLUMNS = (
    "paper", "table_id", "table_title", "row", "arch", "pretrain_epochs",
    "target", "dataset", "metric", "value", "source_kind", "provenance",
)  # fmt: skip


PERCENTAGES = frozenset({
    "top1", "top5", "top1_linear", "top1_knn", "top1_attentive",
    "miou", "macc", "aacc", "box_ap", "box_ap50", "mask_ap", "mask_ap50",
})  # fmt: skip
"""Metrics whose figures lie between 0 and 100."""


@dataclass(frozen=True)
class Reported:
    """One line of reported.csv: `text` is the value as printed, `kind` the kind of source it was read in."""

    paper: str
    table_id: str
    table_title: str
    row: str
    arch: str
    pretrain_epochs: str
    target: str
    dataset: str
    metric: str
    text: str
    kind: str
    provenance: str

    @property
    def value(self) -> float:
        return float(self.text)

    @property
    def reference(self) -> tuple[str, ...]:
        """The fields by which a table names the line, without `pretrain_epochs`."""
        return (self.paper, self.table_id, self.row, self.arch, self.dataset, self.metric)

    @property
    def first_hand(self) -> bool:
        """Whether it was read in the authors' own paper, repository or log, neither quoted nor recalled."""
        return self.kind == "paper-text" or self.kind.startswith("official")

    @property
    def source(self) -> str:
        """A footnote: the number's place in the paper, and where it was read."""
        schedule = f", {self.pretrain_epochs} epochs" if self.pretrain_epochs.isdigit() else ""
        arch = f", {self.arch}" if self.arch else ""
        read = self.provenance.removeprefix(self.kind).removeprefix("(").removesuffix(")")
        return f"{self.paper}, {self.table_id}, “{self.row}”{arch}{schedule}; {self.kind}: {read}"


class Reference(BaseModel):
    """Names one line of reported.csv by exact text; `pretrain_epochs` only if lines differ in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    paper: str
    table_id: str
    row: str
    arch: str = ""
    dataset: str
    metric: str
    pretrain_epochs: Annotated[str, BeforeValidator(lambda value: str(value))] | None = None


def read(path: Path | None = None) -> list[Reported]:
    """Every line of `path` (default: the project's tables/reported.csv, and those of plug-ins).

    Raises:
        UserError: wrong columns, or a value that is not a number (the message names the line); or an included
            plug-in reports a figure that another file reports.
    """
    if path is not None:
        return _read(path, path.name)
    shipped = paths.share("tables") / "reported.csv"
    lines = [*_kept(shipped, *_stamp(shipped))]
    for each in discovery.sound_plugins():
        file = each.tables / "reported.csv"
        if not file.is_file():
            continue
        try:
            own = _read(file, str(file))
            for twice in sorted({line.reference for line in own} & {line.reference for line in lines}):
                remedy = "Another reported.csv has this figure: refer to that one, and leave it out here."
                raise UserError(str(file), ", ".join(twice), remedy=remedy)
        except UserError as error:
            plugin.leave_out(each, error)
        else:
            lines += own
    return lines


def _stamp(path: Path) -> tuple[int, ...]:
    """A file's size, and its times of modification and change; empty if it cannot be found."""
    try:
        stat = path.stat()
    except OSError:
        return ()  # reading it says what is wrong
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@functools.lru_cache(1)
def _kept(path: Path, *stamp: int) -> tuple[Reported, ...]:
    """The project's lines, read once a command."""
    del stamp  # a change of the file is another call
    return tuple(_read(path, "reported.csv"))


def _read(path: Path, where: str) -> list[Reported]:
    lines = []
    reader = csv.DictReader(io.StringIO(_text(path, where), newline=""))
    try:
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f"{where}: header", reader.fieldnames, remedy=f"Use {','.join(COLUMNS)}.")
        for record in reader:
            here = f"{where}: line {reader.line_num}"
            if None in record or None in record.values():
                raise UserError(here, len(record), remedy=f"Give {len(COLUMNS)} fields.")
            line = Reported(*(record[name] for name in COLUMNS))
            _check(line, here)
            lines.append(line)
    except csv.Error as error:
        remedy = f"It is no CSV there: {error}."
        raise UserError(f"{where}: line {reader.line_num + 1}", remedy=remedy) from error
    return lines


def _text(path: Path, where: str) -> str:
    """A file's text. Raises UserError if it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        remedy = f"It cannot be read ({error.strerror}): restore it."
        raise UserError(where, str(path), remedy=remedy) from error
    except UnicodeDecodeError as error:
        raise UserError(where, str(path), remedy=f"It is not UTF-8: {error}.") from error


def _check(line: Reported, here: str) -> None:
    """Raises UserError if a line's value is not a number, or a percentage that cannot be."""
    try:
        value = line.value
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{here}: value", line.text, remedy="Give a number.")
    if line.metric in PERCENTAGES and not 0 <= value <= 100:
        raise UserError(f"{here}: value", line.text, remedy=f"{line.metric} lies between 0 and 100.")


def find(lines: Sequence[Reported], reference: Reference, *, where: str) -> Reported:
    """The one line that `reference` names; `where` is the place of the reference in error messages.

    Raises:
        UserError: no line or more than one matches.
    """
    wanted = reference.model_dump(exclude_none=True)
    found = [line for line in lines if all(getattr(line, name) == text for name, text in wanted.items())]
    if len(found) == 1:
        return found[0]
    asked = ", ".join(wanted.values())
    if found:
        epochs = sorted({line.pretrain_epochs for line in found})
        raise UserError(
            where,
            asked,
            remedy=f"{len(found)} lines of reported.csv match. Set pretrain_epochs to one of {epochs}.",
        )
    nearest = max(lines, key=lambda line: _likeness(line, wanted), default=None)
    differs = [
        f"{name}={getattr(nearest, name)!r}"
        for name, text in wanted.items()
        if getattr(nearest, name, text) != text
    ]
    remedy = f" The nearest line has {', '.join(differs)}." if differs else ""
    raise UserError(where, asked, remedy=f"No line of reported.csv matches.{remedy}")


def _likeness(line: Reported, wanted: Mapping[str, str]) -> float:
    pairs = ((getattr(line, name), text) for name, text in wanted.items())
    return sum(
        1.0 if one == text else 0.9 * difflib.SequenceMatcher(None, one, text).ratio() for one, text in pairs
    )

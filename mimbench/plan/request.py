"""What the user asks for, except which table, and how to parse it and write it as options."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimbench import plugin
from mimbench.errors import UserError
from mimbench.recipe import SCALES, Scale
from mimbench.store.folder import Options

NUMBER = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+)([eE][+-]?\d+)?")
"""A number as people write it; JSON wants a digit before the point."""

ROLES = ("imagenet", "ade20k", "coco", "captions")


@dataclass(frozen=True)
class Request:
    """What the user asked for, except which table.

    Attributes:
        data: role to the path given with --data. weights: name to the checkpoint given with --weights.
            A method's checkpoint replaces the pretraining of its rows, not of runs that other rows need.
        changes: --set, as the user named them: `field` of the rows' own pretrainings, `task.field`,
            `method.field` or `teacher.field`.
        skip_corrupt: leave out images that do not decode.
        trust_stat: identify data by the sizes and times of its files, without hashing their contents.
    """

    scale: Scale = "toy"
    seeds: int = 1
    data: Mapping[str, Path] = field(default_factory=dict)
    weights: Mapping[str, Path] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    skip_corrupt: bool = False
    trust_stat: bool = False
    options: Options = Options()


def check(request: Request) -> None:
    """Raises UserError for an unknown scale, or less than one seed."""
    if request.scale not in SCALES:
        raise UserError("--scale", request.scale, allowed=SCALES)
    parse_count("--seeds", request.seeds)


def check_weights(weights: Mapping[str, Path], known: Iterable[str]) -> None:
    """Raises UserError for an unknown name, and for a file that is not a checkpoint, by its start or header.

    Args:
        weights: name to file, as given with --weights.
        known: the names of the checkpoints that runs can load.
    """
    from mimbench.checkpoint.outside import problem

    known = sorted(known)
    for name in weights:
        if name not in known:
            remedy = (
                "No run here takes it: NAME is a method, or the checkpoint that a teacher's recipe names."
            )
            raise UserError("--weights", name, allowed=known, remedy=remedy)
    for name, path in weights.items():
        if wrong := problem(path):
            raise UserError(f"--weights {name}", str(path), remedy=wrong)


def parse_count(option: str, value: str | int, least: int = 1) -> int:
    """A whole number of things. Raises UserError, which names the option, for anything else."""
    try:
        count = int(value)
    except ValueError:
        count = least - 1
    if count < least:
        raise UserError(option, value, remedy=f"Give a whole number from {least}.")
    return count


def parse_setting(text: str) -> tuple[str, Any]:
    """`field=value` from the command line; the value as JSON (true, null, [1, 2]), a number, or else text."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UserError("--set", text, remedy="Write --set field=value, or --set task.field=value.")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), float(value) if NUMBER.fullmatch(value) else value


def parse_paths(option: str, texts: Iterable[str]) -> dict[str, Path]:
    """`name=path` arguments of --data.

    Raises:
        UserError: a wrong form, an unknown role, or a path that does not exist.
    """
    found = _named_paths(option, texts, "ROLE")
    for name, path in found.items():
        if name not in ROLES:
            raise UserError(option, name, allowed=ROLES, remedy=f"Write {option} ROLE=PATH.")
        if not path.exists():
            raise UserError(f"{option} {name}", str(path), remedy="There is no such file or folder.")
    return found


def parse_weights(texts: Iterable[str]) -> dict[str, Path]:
    """`name=path` arguments of --weights. `check_weights` looks at names and files."""
    return _named_paths("--weights", texts, "NAME")


def _named_paths(option: str, texts: Iterable[str], word: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise UserError(option, text, remedy=f"Write {option} {word}=PATH.")
        found[name] = Path(value).expanduser()
    return found


def report_name(table: str, request: Request) -> str:
    """The stem of a table's files: with the scale if it is not toy, and `changed` if --set was given."""
    scale = [] if request.scale == "toy" else [request.scale]
    return "-".join([table, *scale, *(["changed"] if request.changes else [])])


def settings(request: Request) -> list[str]:
    """The request's changes in the form of `--set`."""
    return [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in request.changes.items()
    ]


def command_of(method: str, table: str, request: Request) -> str:
    """The command that makes this table again."""
    words = ["mimbench", *plugin.words(), "reproduce-table", method, "--table", table]
    words += ["--scale", request.scale, "--seeds", str(request.seeds)]
    for option, given in (("--data", request.data), ("--weights", request.weights)):
        words += [word for name, path in given.items() for word in (option, f"{name}={path}")]
    words += [word for setting in settings(request) for word in ("--set", setting)]
    return shlex.join([*words, *flags(request)])


def flags(request: Request) -> list[str]:
    """The request's options about data that have no value."""
    given = {"--skip-corrupt": request.skip_corrupt, "--trust-stat": request.trust_stat}
    return [name for name, is_given in given.items() if is_given]

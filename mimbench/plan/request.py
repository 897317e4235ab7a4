"""What the user asks for, beside the table itself, and how the command line writes it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimbench import plugin
from mimbench.errors import UserError
from mimbench.recipe import SCALES, Scale
from mimbench.store.folder import Options


@dataclass(frozen=True)
class Request:
    """What the user asked for, beside the table itself.

    Attributes:
        data: role to the path given with --data. weights: name to the checkpoint given with --weights.
            A method's takes the place of its rows' pretraining, not of a parent's that others learn from.
        changes: --set, as the user named them: `field` of rows' own pretrainings, `task.field`,
            `method.field` or `teacher.field`.
    """

    scale: Scale = "toy"
    seeds: int = 1
    data: Mapping[str, Path] = field(default_factory=dict)
    weights: Mapping[str, Path] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    skip_corrupt: bool = False
    options: Options = Options()


def check(request: Request) -> None:
    """Raises UserError for what no plan is needed to refuse."""
    if request.scale not in SCALES:
        raise UserError("--scale", request.scale, allowed=SCALES)
    if request.seeds < 1:
        raise UserError("--seeds", request.seeds, remedy="Give a whole number from 1.")


def parse_setting(text: str) -> tuple[str, Any]:
    """`field=value` from the command line; the value as JSON (0.5, true, null, [1, 2]) or else as text."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UserError("--set", text, remedy="Write --set field=value, or --set task.field=value.")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value


def parse_paths(option: str, texts: Iterable[str]) -> dict[str, Path]:
    """`name=path` arguments. Raises UserError on another form or a path that is not there."""
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise UserError(option, text, remedy=f"Write {option} NAME=PATH.")
        found[name] = Path(value).expanduser()
        if not found[name].exists():
            raise UserError(f"{option} {name}", value, remedy="There is no such file or folder.")
    return found


def parse_weights(texts: Iterable[str]) -> dict[str, Path]:
    """`--weights` arguments. Raises UserError also on a file that does not begin like a checkpoint."""
    found = parse_paths("--weights", texts)
    for name, path in found.items():
        if path.is_dir():
            raise UserError(
                f"--weights {name}", str(path), remedy="It is a folder; name the checkpoint's file."
            )
        with open(path, "rb") as file:
            start = file.read(9)
        torch_file = start.startswith((b"PK\x03\x04", b"\x80"))  # a zip archive; a pickle of before torch 1.6
        if not torch_file and start[8:] != b"{":
            remedy = "It is neither a safetensors file nor one that torch.save wrote."
            raise UserError(f"--weights {name}", str(path), remedy=remedy)
    return found


def report_name(table: str, request: Request) -> str:
    """The stem of a table's files: with the scale where it is not the default, and `changed` under --set."""
    scale = [] if request.scale == "toy" else [request.scale]
    return "-".join([table, *scale, *(["changed"] if request.changes else [])])


def settings(request: Request) -> list[str]:
    """The request's changes as `--set` has them."""
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
    return shlex.join([*words, *(["--skip-corrupt"] if request.skip_corrupt else [])])

"""Random damage of one file, as disks, copies and careless editors do it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.damage import as_folder, as_loop, flipped, remove

Change = Callable[[bytes, Random], "tuple[bytes, str]"]
"""A file's bytes to other bytes, and what was done in words."""

SECTORS = (512, 4096)


def truncated(content: bytes, draw: Random) -> tuple[bytes, str]:
    length = draw.randrange(len(content)) if content else 0
    return content[:length], f"cut after {length} of {len(content)} bytes"


def flip(content: bytes, draw: Random) -> tuple[bytes, str]:
    bit = draw.randrange(8 * len(content)) if content else 0
    return flipped(content, bit), f"bit {bit} turned"


def flips(content: bytes, draw: Random) -> tuple[bytes, str]:
    bits = sorted({draw.randrange(8 * len(content)) for _ in range(draw.randint(2, 16))}) if content else []
    for bit in bits:
        content = flipped(content, bit)
    return content, f"bits {', '.join(map(str, bits))} turned"


def sector(fill: str) -> Change:
    def change(content: bytes, draw: Random) -> tuple[bytes, str]:
        size = min(draw.choice(SECTORS), len(content))
        start = draw.randrange(len(content) - size + 1)
        block = bytes(size) if fill == "zeros" else draw.randbytes(size)
        return content[:start] + block + content[start + size :], f"{size} bytes of {fill} at {start}"

    return change


def more(content: bytes, draw: Random) -> tuple[bytes, str]:
    count = draw.randint(1, 64)
    return content + draw.randbytes(count), f"{count} bytes more"


def twice(content: bytes, draw: Random) -> tuple[bytes, str]:
    del draw
    return content + content, "its content twice"


def empty(content: bytes, draw: Random) -> tuple[bytes, str]:
    del content, draw
    return b"", "empty"


BYTES: dict[str, Change] = {
    "truncated": truncated,
    "one bit": flip,
    "bits": flips,
    "zeros": sector("zeros"),
    "garbage": sector("garbage"),
    "appended": more,
    "twice": twice,
    "empty": empty,
}
"""Damage of bytes; fits every file."""

PLACES: dict[str, Callable[[Path], None]] = {"removed": remove, "a folder": as_folder, "a loop": as_loop}


def _leaves(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value that is no object or list."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in _leaves(value[key], (*at, key))]
    if isinstance(value, list):
        return [leaf for index, item in enumerate(value) for leaf in _leaves(item, (*at, index))]
    return [at]


def _holder(value: Any, at: Sequence[Any]) -> Any:
    for key in at[:-1]:
        value = value[key]
    return value


def other_number(value: float, draw: Random) -> Any:
    """A number that a person could take for the right one."""
    choices = [value + 1, value * 10, value / 2 or 1, round(value * 1.07 + 0.1, 3), -value or 2, 88.33, 0]
    new = draw.choice(choices)
    return int(new) if isinstance(value, int) and not isinstance(value, bool) else new


def _json_edit(name: str) -> Change:
    def change(content: bytes, draw: Random) -> tuple[bytes, str]:
        value = json.loads(content)
        leaves = _leaves(value)
        numbers = [at for at in leaves if type(_get(value, at)) in (int, float)]
        at = draw.choice(numbers if name == "number" and numbers else leaves or [()])
        if not at:
            return b"[0]", "another value"
        holder, key, place = _holder(value, at), at[-1], ".".join(map(str, at))
        old = holder[key]
        if name == "number" and numbers:
            holder[key] = other_number(old, draw)
            told = f"{place}: {old} is now {holder[key]}"
        elif name == "type" or isinstance(holder, list):
            holder[key] = draw.choice([None, True, [], {}, "x", [old], str(old), -1, 1e308])
            told = f"{place}: {old!r} is now {holder[key]!r}"
        elif name == "key":
            letters = draw.choice([str(key).upper(), f"{key}s", f" {key}"])
            holder[letters] = holder.pop(key)
            told = f"{place} is now called {letters!r}"
        elif name == "removed key":
            del holder[key]
            told = f"without {place}"
        else:
            pair = f"{json.dumps(key)}: "
            text = content.decode()
            spot = text.find(pair)
            again = f"{pair}{json.dumps(other_number(old, draw) if type(old) in (int, float) else 'x')}, "
            return (text[:spot] + again + text[spot:]).encode(), f"{place} twice"
        return json.dumps(value, indent=draw.choice([None, 2])).encode(), told

    return change


def _get(value: Any, at: Sequence[Any]) -> Any:
    for key in at:
        value = value[key]
    return value


JSON: dict[str, Change] = {
    f"JSON: {name}": _json_edit(name) for name in ("number", "type", "key", "removed key", "doubled key")
}
"""Edits of JSON that stays JSON."""


def without_line(content: bytes, draw: Random) -> tuple[bytes, str]:
    lines = content.splitlines(keepends=True)
    index = draw.randrange(len(lines))
    return b"".join(lines[:index] + lines[index + 1 :]), f"without line {index + 1}"


def doubled_line(content: bytes, draw: Random) -> tuple[bytes, str]:
    lines = content.splitlines(keepends=True)
    index = draw.randrange(len(lines))
    return b"".join(lines[: index + 1] + lines[index:]), f"line {index + 1} twice"


def exchanged_lines(content: bytes, draw: Random) -> tuple[bytes, str]:
    lines = content.splitlines(keepends=True)
    first, second = sorted(draw.sample(range(len(lines)), 2)) if len(lines) > 1 else (0, 0)
    lines[first], lines[second] = lines[second], lines[first]
    return b"".join(lines), f"lines {first + 1} and {second + 1} exchanged"


def changed_number(content: bytes, draw: Random) -> tuple[bytes, str]:
    """Another number somewhere in a text."""
    found = list(re.finditer(rb"(?<![\w.])\d+(\.\d+)?(?![\w.])", content))
    if not found:
        return more(content, draw)
    match = draw.choice(found)
    old = float(match[0])
    new = other_number(int(old) if old == int(old) else old, draw)
    return content[: match.start()] + str(new).encode() + content[
        match.end() :
    ], f"{match[0].decode()} is now {new}"


LINES: dict[str, Change] = {
    "a line less": without_line,
    "a line twice": doubled_line,
    "lines exchanged": exchanged_lines,
    "a number": changed_number,
}
"""Edits of texts."""


def _csv_edit(name: str) -> Change:
    def change(content: bytes, draw: Random) -> tuple[bytes, str]:
        rows = list(csv.reader(io.StringIO(content.decode())))
        line, column = draw.randrange(1, len(rows)), draw.randrange(len(rows[0]))
        told = f"line {line + 1}"
        if name == "cell":
            rows[line][column] = draw.choice(["", "x", "88.33", "-", "NaN"])
            told += f", {rows[0][column]} is now {rows[line][column]!r}"
        elif name == "header":
            rows[0][column] += "s"
            told = f"column {column + 1} is now called {rows[0][column]!r}"
        else:
            index = rows[0].index("value")
            rows[line][index] = str(draw.choice([88.33, 250, -5, "nan", "1e308", "82,3"]))
            told += f", value is now {rows[line][index]!r}"
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(rows)
        return out.getvalue().encode(), told

    return change


CSV: dict[str, Change] = {f"CSV: {name}": _csv_edit(name) for name in ("cell", "header", "value")}


def kinds_for(name: str) -> list[str]:
    """The kinds of damage that fit a file of this name."""
    found = [*BYTES, *PLACES]
    if name.endswith(".json"):
        found += JSON
    if name.endswith((".csv", ".toml", ".txt", ".jsonl", "log", ".json")):
        found += LINES
    if name.endswith(".csv"):
        found += CSV
    return found


def apply(kind: str, path: Path, draw: Random) -> str:
    """Damage a file; says what was done. A file that is too odd for the kind gets bytes appended."""
    if kind in PLACES:
        PLACES[kind](path)
        return kind
    change = {**BYTES, **JSON, **LINES, **CSV}[kind]
    content = path.read_bytes()
    try:
        changed, told = change(content, draw)
    except (ValueError, IndexError):
        changed, told = more(content, draw)
    if changed == content:
        changed, told = more(content, draw)
    path.write_bytes(changed)
    return f"{kind}: {told}"


def swap(path: Path, other: Path) -> str:
    """Another run's file in its stead."""
    path.write_bytes(other.read_bytes())
    return f"the file of {other.parent.name}"

"""Damage in the files of finished runs, of the cache and of the tables: nothing is computed, only shown."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.campaign import damages
from tests.faults.campaign.reference import TABLE, own, table_file, tomllib
from tests.faults.campaign.verdict import NAMED, OK, TRACEBACK, UNCLEAR, WRONG, Bench, Case, Verdict, judge

FINISHED = {
    "spec.json": 22,
    "result.json": 34,
    "status.json": 14,
    "inputs.json": 14,
    "env.json": 8,
    "metrics.jsonl": 10,
    "log": 5,
    ".lock": 4,
    "encoder.safetensors": 8,
    "teacher.safetensors": 5,
}
"""How many cases a file of a finished run gets."""

CACHE = {"*.json": 24, "sources/*": 13, "files/*": 13, "coco/*": 6, "plots/*": 8}
TABLES = {"dtm/main.toml": 24, "reported.csv": 24}
LOOK = (
    ("runs", "list"),
    ("runs", "export", "-"),
    ("runs", "list", "--json"),
    ("runs", "verify"),
    (*TABLE, "--dry-run"),
    ("runs", "export", "-"),
    ("runs", "verify", "--repair", "--yes"),
    ("runs", "list", "--json"),
    ("leaderboard", "--scale", "smoke"),
    ("runs", "list"),
    ("runs", "export", "-"),
    ("runs", "verify"),
    ("runs", "gc", "--dry-run"),
)
"""Further commands; each case runs one of them."""


def cases() -> Iterator[Case]:
    for file, count in FINISHED.items():
        for index in range(count):
            yield Case(f"finished {file} {index}", f"{file}, finished", _finished(file, index))
    for pattern, count in CACHE.items():
        group = f"cache: {pattern.removesuffix('/*')}"
        for index in range(count):
            yield Case(f"cache {pattern} {index}", group, _cached(pattern, index))
    for file, count in TABLES.items():
        for index in range(count):
            yield Case(f"tables {file} {index}", f"tables/{file}", _tables(file, index))


def kind_of(name: str, index: int, draw: Random, extra: tuple[str, ...] = ()) -> str:
    """The kind of damage of a file's index-th case: each kind in turn, in an order drawn for the seed."""
    kinds = [*damages.kinds_for(name), *extra]
    draw.shuffle(kinds)
    return kinds[index % len(kinds)]


def stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file is written; empty if there is none."""
    if not os.path.lexists(path):
        return ()
    found = path.lstat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _finished(file: str, index: int) -> Any:
    def run(bench: Bench, draw: Random) -> Verdict:
        order = Random(f"{draw.random()}")
        kind = kind_of(file, index, Random(bench.expected.seed), ("another run's",) * 2)
        holders = sorted(path for path in bench.runs.glob(f"*/{file}") if path.is_file())
        in_table = [path for path in holders if path.parent.name in bench.expected.table]
        path = order.choice(in_table)
        if kind == "another run's":
            done = damages.swap(path, order.choice([each for each in holders if each != path]))
        else:
            done = damages.apply(kind, path, order)
        where = f"{path.parent.name}/{path.name}: {done}"
        table_file(bench.home).unlink()
        result = path.parent / "result.json"
        damaged = stamp(result)
        commands = [
            bench.workspace.call(*TABLE),
            bench.workspace.call("runs", "show", path.parent.name, "--json"),
            bench.workspace.call(*LOOK[index % len(LOOK)]),
        ]
        rewritten = stamp(result) not in (damaged, ())  # `verify --repair` may have deleted it
        return judge(bench, where, commands, files=[path], recomputed=[path.parent.name] if rewritten else [])

    return run


def _cached(pattern: str, index: int) -> Any:
    def run(bench: Bench, draw: Random) -> Verdict:
        files = sorted(path for path in bench.workspace.cache.glob(pattern) if path.is_file())
        path = draw.choice(files)
        kind = kind_of(path.name, index, Random(bench.expected.seed), ("another entry",) * 2)
        if kind == "another entry" and len(files) > 1:
            path.write_bytes(draw.choice([each for each in files if each != path]).read_bytes())
            done = kind
        else:
            done = damages.apply(kind if kind in damages.kinds_for(path.name) else "one bit", path, draw)
        table_file(bench.home).unlink()
        commands = [
            bench.workspace.call(*TABLE, forget=True),
            bench.workspace.call(*TABLE, "--dry-run", forget=True),
        ]
        for role in ("coco", "imagenet"):
            commands.append(bench.workspace.call(*own(role, bench.home)))
        return judge(bench, f"{path.name}: {done}", commands, files=[path])

    return run


def _tables(file: str, index: int) -> Any:
    """A table is a source, as code is: the page shows what the file says, or the file is refused."""

    def run(bench: Bench, draw: Random) -> Verdict:
        path = bench.workspace.tables / file
        kind = kind_of(path.name, index, Random(bench.expected.seed))
        done = f"{file}: {damages.apply(kind, path, draw)}"
        table_file(bench.home).unlink()
        shown = bench.workspace.call(*TABLE, compute=False)
        if shown.crash:
            return Verdict(TRACEBACK, done, shown.crash)
        if not table_file(bench.home).is_file():
            named = path.name in shown.output or (kind == "removed" and "--table" in shown.output)
            return Verdict(NAMED if named else UNCLEAR, done, shown.output)
        wrong = _differs(bench)
        return Verdict(WRONG, done, wrong) if wrong else Verdict(OK, done)

    return run


def _differs(bench: Bench) -> str:
    """What a rendered table says that the damaged files do not."""
    spec = tomllib.loads((bench.workspace.tables / "dtm" / "main.toml").read_text())
    lines = list(csv.DictReader((bench.workspace.tables / "reported.csv").open(encoding="utf-8", newline="")))
    shown = list(csv.DictReader(table_file(bench.home).open(encoding="utf-8", newline="")))
    by_place = {(each["row"], each["metric"]): each for each in shown if each["kind"] == "cell"}
    same: dict[str, list[str]] = {}  # several rows may have one method at this scale
    for row in bench.expected.rows:
        same.setdefault(json.dumps([row.get("method"), row.get("set")]), []).append(row["id"])
    wanted = {(row["id"], column["metric"]) for row in spec["rows"] for column in spec["columns"]}
    if wanted != by_place.keys():
        return f"other cells: {sorted(wanted ^ by_place.keys())[:3]}"
    for row in spec["rows"]:
        was = same.get(json.dumps([row.get("method"), row.get("set")]), [])
        for column in spec["columns"]:
            cell = by_place[row["id"], column["metric"]]
            right = [bench.expected.cells.get((one, column["metric"])) for one in was]
            if cell["mean"] and right and cell["mean"] not in right:
                return f"{row['id']}, {column['metric']}: {cell['mean']} instead of {right}"
            reference = row.get("reported", {}).get(column["metric"])
            found = [
                line["value"] for line in lines
                if reference and all(line[name] == str(text) for name, text in reference.items())
            ]  # fmt: skip
            if cell["reported"] != (found[0] if len(found) == 1 else ""):
                return f"{row['id']}, {column['metric']}: reported {cell['reported']} instead of {found}"
            if cell["reported"] and not 0 <= float(cell["reported"]) <= 100:
                return f"{row['id']}, {column['metric']}: reported {cell['reported']} is no percentage"
    return ""

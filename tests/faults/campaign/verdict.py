"""What a case came to, and how that is found out from what commands printed, wrote and stored."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.campaign.reference import Expected, cells, numbers, plots, table_file
from tests.faults.campaign.workspace import Done, Workspace

OK, NAMED, UNCLEAR, TRACEBACK, WRONG = "ok", "named", "unclear", "traceback", "SILENTLY WRONG"
OUTCOMES = (OK, NAMED, UNCLEAR, TRACEBACK, WRONG)


@dataclass(frozen=True)
class Verdict:
    """What a case came to.

    Attributes:
        outcome: ok (the right numbers, or none where none can be), named (refused, with the file's name),
            unclear (refused otherwise), traceback, or SILENTLY WRONG.
        done: what was done to which file. why: what was seen, if that was not ok.
    """

    outcome: str
    done: str = ""
    why: str = ""


@dataclass(frozen=True)
class Case:
    """One case: its name repeats it; `group` is the line of the report that counts it."""

    name: str
    group: str
    run: Callable[[Bench, Random], Verdict]


@dataclass(frozen=True)
class Bench:
    """What a case works with."""

    workspace: Workspace
    expected: Expected

    @property
    def home(self) -> Path:
        return self.workspace.home

    @property
    def runs(self) -> Path:
        return self.home / "runs"


def squeezed(text: str) -> str:
    """Without white space: a table's cell breaks words."""
    return re.sub(r"\s", "", text)


def names(text: str, files: Iterable[Path]) -> bool:
    """Whether a text names one of the files: by its path, or in one line by its name and its folder's."""
    whole, lines = squeezed(text), text.splitlines()
    return any(
        squeezed(str(file)) in whole or any(file.name in line and file.parent.name in line for line in lines)
        for file in files
    )


def naming(text: str, files: Sequence[Path]) -> str:
    """The first line of a text that names one of the files; else its end."""
    return next((line for line in text.splitlines() if names(line, files)), text[-600:])


def judge(
    bench: Bench,
    done: str,
    commands: Sequence[Done],
    *,
    files: Sequence[Path],
    logs: Sequence[Path] = (),
    recomputed: Sequence[str] = (),
    table: bool = True,
    new_runs: bool = False,
) -> Verdict:
    """The verdict on damage that must change no number.

    Args:
        files: a message must name one of them. logs: files in which such a message may stand.
        recomputed: folders of runs that were computed again.
        table: whether the table was rendered. new_runs: whether other runs than the reference's may be there.
    """
    told = "\n".join(each.output for each in commands)
    told += "".join(log.read_text(errors="replace") for log in logs if log.is_file())
    for each in commands:
        if each.crash:
            return Verdict(TRACEBACK, done, f"{' '.join(each.words)}: {each.crash}")
    wrong, lost = [], []
    if table:
        file = table_file(bench.home)
        found = cells(file) if file.is_file() else {}
        for place, value in bench.expected.cells.items():
            here = found.get(place, "")
            (lost if here == "" != value else wrong if here != value else []).append(f"{place}: {here!r}")
        if found == bench.expected.cells and plots(bench.home) != bench.expected.plots:
            wrong.append("a plot differs")
    wrong += shown_wrong(bench, commands)
    wrong += stored_wrong(bench, recomputed, new_runs=new_runs)
    if wrong:
        return Verdict(WRONG, done, "; ".join(wrong[:4]))
    failed = [each for each in commands if each.status]
    if not lost and not failed:
        idle = [name for name in recomputed if not (bench.runs / name / "result.json").is_file()]
        return Verdict(UNCLEAR, done, f"not computed again: {idle}") if idle else Verdict(OK, done)
    if names(told, files):
        return Verdict(NAMED, done, naming(told, files))
    why = f"lost {lost[:3]}" if lost else " ".join(failed[0].words)
    return Verdict(UNCLEAR, done, f"{why}: {told[-2500:]}")


def shown_wrong(bench: Bench, commands: Sequence[Done]) -> list[str]:
    """Metrics in the output of `runs export -`, `runs list --json` and `runs show --json` that differ."""
    wrong = []
    for each in commands:
        if each.status or each.words[0] != "runs":
            continue
        for run, metrics in _shown(each):
            known = bench.expected.runs.get(run)
            if known is None:
                continue
            for name, value in metrics.items():
                right: Any = known["metrics"]
                if name not in right or not math.isclose(
                    float(value), right[name], rel_tol=1e-9, abs_tol=1e-12
                ):
                    wrong.append(f"{' '.join(each.words[:2])}: {run}: {name} {value}")
    return wrong


def _shown(done: Done) -> Iterable[tuple[str, dict[str, Any]]]:
    if done.words[1:] == ("export", "-"):
        start = done.output.find("run,stage,")
        for line in csv.DictReader(io.StringIO(done.output[start:] if start >= 0 else "")):
            found = {
                k.removeprefix("metric."): v for k, v in line.items() if k and k.startswith("metric.") and v
            }
            yield str(line["run"]), found
    elif "--json" in done.words:
        start = min((place for mark in "[{" if (place := done.output.find(mark)) >= 0), default=0)
        try:
            value = json.JSONDecoder().raw_decode(done.output[start:])[0]
        except ValueError:
            return
        runs = (
            [value["run"]] if "run" in value else value.get("runs", []) if isinstance(value, dict) else value
        )
        for run in runs:
            yield run["run"], {k: v for k, v in (run.get("metrics") or {}).items() if v is not None}


def stored_wrong(bench: Bench, recomputed: Sequence[str], *, new_runs: bool = False) -> list[str]:
    """Runs that were computed again to other numbers, and finished runs that should not be there."""
    wrong = []
    for name in recomputed:
        if (bench.runs / name / "result.json").is_file():
            found = numbers(bench.runs / name)
            wrong += [
                f"{name}: other {part}" for part in found if found[part] != bench.expected.runs[name][part]
            ]
    for folder in bench.runs.iterdir() if bench.runs.is_dir() and not new_runs else ():
        if folder.name not in bench.expected.runs and (folder / "result.json").is_file():
            wrong.append(f"{folder.name} was computed")
    return wrong

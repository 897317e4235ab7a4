"""Gives a stale result the stamp of today's code, if that code gives its numbers again.

A refactoring makes finished runs stale although no number changed. Instead of recomputing them whole, this
computes the start of each and compares it with what was recorded, bit for bit.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from mimbench import paths
from mimbench.atomic import read_json
from mimbench.commands.remove import parents_first
from mimbench.errors import RunFailed, UserError, visible
from mimbench.execute import worker
from mimbench.execute.machine import environment
from mimbench.store.folder import RunFolder
from mimbench.store.lock import RunLocked
from mimbench.store.records import (
    ARTEFACTS,
    RESULT_SCHEMA,
    Options,
    Restamp,
    Result,
    Stamp,
    write_result,
)
from mimbench.store.runs import RunStore

MIN_STEPS = 20  # a head that starts near zero gives the same loss with any encoder, so one step is too few
NOT_CHECKED = (
    "Not checked: the steps after the lines that were compared, the weights that these steps lead to, "
    "and the evaluation that follows a training."
)


class Enough(Exception):
    """All wanted lines have been computed."""


class Differs(Exception):
    """Why a result stays stale."""


class Start(RunFolder):
    """The start of a run, computed in another folder from the same spec, data and parents.

    Args:
        run: the finished run. path: where to compute. count: lines of metrics.jsonl to compute; 0 for a run
            without any, which is computed whole.

    Attributes:
        lines: what was logged; `total`: the run's steps.
    """

    def __init__(self, run: RunFolder, path: Path, count: int) -> None:
        super().__init__(run.store, path)
        self.spec = run.spec
        self.inputs = replace(run.inputs, options=Options(checkpoint_seconds=math.inf))
        self.count, self.total = count, 0
        self.lines: list[dict[str, Any]] = []

    def progress(self, step: int, total: int, **scalars: float) -> None:
        """Keep a line. Raises Enough after the last wanted one, Differs if none was recorded."""
        if not scalars:
            return
        if not self.count:
            raise Differs("it has no metrics.jsonl that its start could be compared with")
        self.total = total
        self.lines.append({"step": step, **scalars})
        if len(self.lines) == self.count:
            raise Enough


def restamp(because: str, console: Console, *, lines: int = 1, dry_run: bool = False) -> int:
    """Restamp every stale run whose recorded numbers today's code gives again, parents first.

    Args:
        because: why no number changed; kept in every result.
        lines: compare at least so many lines of metrics.jsonl, and enough to cover MIN_STEPS steps.
        dry_run: compute and compare, but write nothing.

    Returns:
        The exit status: 1 if a run stays stale.

    Raises:
        UserError: `because` is empty.
    """
    if not because.strip():
        raise UserError(
            "--because", because, remedy="Say why no number changed; it is kept with the results."
        )
    store = RunStore(paths.runs())
    accepted: set[str] = set()
    num_stale = 0
    for run in parents_first(store):
        if not _is_stale(run):
            continue
        num_stale += 1
        try:
            with run.lock():
                checked = _check(run, lines, accepted)
                if not dry_run:
                    _write(run, because.strip(), checked)
        except (Differs, RunLocked, RunFailed, UserError) as error:
            reason = (
                "it is being computed" if isinstance(error, RunLocked) else visible(str(error), lines=True)
            )
            console.print(f"left stale {run.path.name}: {reason}", markup=False, soft_wrap=True)
            continue
        accepted.add(run.spec.key)
        done = "would restamp" if dry_run else "restamped"
        console.print(f"{done} {run.path.name}: compared {checked}", markup=False, soft_wrap=True)
    if not num_stale:
        console.print("No run is stale.")
        return 0
    done = "would be" if dry_run else "were"
    console.print(
        f"{len(accepted)} of {num_stale} stale runs {done} restamped. {NOT_CHECKED}", soft_wrap=True
    )
    return int(len(accepted) < num_stale)


def _is_stale(run: RunFolder) -> bool:
    try:
        return run.outcome() == "stale"
    except UserError:  # its method is gone
        return False


def _check(run: RunFolder, lines: int, accepted: set[str]) -> str:
    """Compute a run's start and compare it; returns what was compared, in words.

    Raises:
        Differs: it cannot be compared, or its numbers differ from the recorded ones.
    """
    result = run.result
    assert result is not None, f"{run.path.name} is not done"
    for role, key in run.spec.parents.items():
        parent = run.store.get(key)
        if parent is None:
            raise Differs(f"its {role} was removed, so it cannot be computed")
        if key not in accepted and (outcome := parent.outcome()) != "done":
            raise Differs(f"its {role} {parent.path.name} is {outcome}")
    for path, why in run.damaged_artefacts().items():
        raise Differs(f"{path.name} is damaged ({why})")
    recorded = _recorded(run, lines)
    with tempfile.TemporaryDirectory() as place, _threads_of(run):
        start = Start(run, Path(place) / run.path.name, len(recorded))
        start.path.mkdir()
        metrics = _compute(start)
        if recorded:
            return _same_lines(recorded, start)
        return _same_files(run, result, start, metrics)


def _recorded(run: RunFolder, lines: int) -> list[dict[str, Any]]:
    """The first lines of metrics.jsonl: at least `lines`, and enough to cover MIN_STEPS steps."""
    found: list[dict[str, Any]] = []
    for line in run.metrics():
        if len(found) >= lines and found[-1]["step"] >= MIN_STEPS:
            break
        found.append({name: value for name, value in line.items() if name != "time"})
    return found


def _compute(start: Start) -> Mapping[str, float]:
    """Compute until there are enough lines, and return {}; a whole run's metrics if there are no lines."""
    try:
        with worker.logged(start.log_path):
            worker.seed_all(start.spec.seed)
            return worker.stage(start)
    except Enough:
        return {}
    except (Differs, RunFailed, UserError):
        raise
    except Exception as error:  # whatever today's code raises is why the run stays stale
        raise Differs(f"its start fails: {type(error).__name__}: {error}") from error
    finally:
        worker.free_memory()


@contextlib.contextmanager
def _threads_of(run: RunFolder) -> Iterator[None]:
    """Compute with as many threads as the run had.

    Raises:
        Differs: the run had another device, CUDA or torch, so its bits cannot be compared.
    """
    import torch

    then, now, before = read_json(run.path / "env.json"), environment(), torch.get_num_threads()
    try:
        facts = [(then["device"], now["device"], "device"), (then["cuda"], now["cuda"], "version of CUDA")]
        facts.append((then["versions"]["torch"], now["versions"].get("torch"), "version of torch"))
        threads = int(then["threads"])
    except (KeyError, TypeError, ValueError):
        raise Differs("its env.json does not say with which device and versions it was computed") from None
    for old, new, what in facts:
        if old != new:
            raise Differs(f"it was computed with another {what}: {old}, here {new}")
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _same_lines(recorded: list[dict[str, Any]], start: Start) -> str:
    """Compare the lines; returns what was compared, in words. Raises Differs at the first other number."""
    for old, new in itertools.zip_longest(recorded, start.lines):
        if new is None:
            raise Differs(f"it ends before step {old['step']}")
        for name in sorted({*old, *new}, key=list({**old, **new}).index):
            if _text(old.get(name)) != _text(new.get(name)):
                values = f"{_text(old.get(name))} then, {_text(new.get(name))} now"
                raise Differs(f"{name} at step {old['step']}: {values}")
    names = ", ".join(name for name in recorded[-1] if name != "step")
    count = "the first line" if len(recorded) == 1 else f"the first {len(recorded)} lines"
    return f"{count} of metrics.jsonl (to step {recorded[-1]['step']} of {start.total}: {names})"


def _same_files(run: RunFolder, result: Result, start: Start, metrics: Mapping[str, float]) -> str:
    """Compare a run that was computed whole; returns what was compared, in words. Raises Differs."""
    for name in sorted({*metrics, *result.metrics}):
        old, new = result.metrics.get(name), metrics.get(name)
        if _text(old) != _text(new if new is None else float(new)):
            raise Differs(f"{name}: {_text(old)} then, {_text(new)} now")
    compared = sorted(result.metrics)
    for name in ARTEFACTS:
        old_file, new_file = run.path / name, start.path / name
        if old_file.is_file() != new_file.is_file():
            then, now = ("written", "is not") if old_file.is_file() else ("not written", "is")
            raise Differs(f"{name} was {then} then and {now} now")
        if new_file.is_file():
            if old_file.read_bytes() != new_file.read_bytes():
                raise Differs(f"{name} is another file")
            compared.append(name)
    return f"the whole run: {', '.join(compared) or 'that its checkpoint loads'}"


def _text(value: Any) -> str:
    """A number's shortest decimal form that gives its bits again."""
    return json.dumps(value)


def _write(run: RunFolder, because: str, checked: str) -> None:
    result = run.result
    assert result is not None, f"{run.path.name} is not done"
    before, after = Stamp(result.source, result.parents), Stamp(run.source, run.lineages())
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    restamped = (*result.restamped, Restamp(before, after, because, date, checked))
    new = replace(
        result,
        source=after.source,
        parents=after.parents,
        schema=RESULT_SCHEMA,
        restamped=restamped,
        artefacts=result.artefacts
        or run.artefacts(),  # older schemas have none: from now on they are checked
    )
    write_result(run.path, new)

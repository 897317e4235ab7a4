"""Runs cases, each in a workspace that is put back afterwards; several processes share them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from random import Random

from tests.faults.campaign import computed, data_cases, stored
from tests.faults.campaign.reference import TABLE, Expected, build, own, require
from tests.faults.campaign.verdict import TRACEBACK, Bench, Case, Verdict
from tests.faults.campaign.workspace import Workspace

_bench: dict[str, Bench] = {}  # of this process


def all_cases() -> list[Case]:
    """Every case of a campaign, in the order of the report."""
    return [*stored.cases(), *computed.cases(), *data_cases.cases()]


def open_bench(reference: Workspace, expected: Expected, place: Path) -> Bench:
    """A workspace of its own for one process, with warm caches."""
    workspace = Workspace(place)
    workspace.copy_from(reference)
    for words in (TABLE, *(own(role, workspace.home) for role in ("imagenet", "captions", "ade20k", "coco"))):
        require(workspace, *words)
    workspace.keep()
    return Bench(workspace, expected)


def run_case(bench: Bench, case: Case) -> Verdict:
    """One case, by the campaign's seed and its own name; everything is put back after it."""
    try:
        return case.run(bench, Random(f"{bench.expected.seed} {case.name}"))
    finally:
        bench.workspace.restore()


def prepare(place: Path) -> None:
    """Compute the reference store, unless an earlier campaign left it in `place`."""
    kept = place / "expected"
    if not kept.exists():
        shutil.rmtree(place / "reference", ignore_errors=True)
        kept.write_bytes(pickle.dumps(build(place / "reference")[1]))


def _start(place: Path, jobs: Path, seed: int) -> None:
    """Open the bench of a new process."""
    import torch

    torch.set_num_threads(1)
    expected: Expected = pickle.loads((place / "expected").read_bytes())
    expected.seed = seed
    _bench["here"] = open_bench(Workspace(place / "reference"), expected, jobs / str(os.getpid()))


def _run(name: str) -> tuple[str, Verdict, float]:
    case, started = next(case for case in all_cases() if case.name == name), time.monotonic()
    try:
        verdict = run_case(_bench["here"], case)
    except Exception as error:  # a fault of the campaign itself: the report shows it
        verdict = Verdict(TRACEBACK, "the campaign itself", "".join(traceback.format_exception(error)))
    return name, verdict, time.monotonic() - started


def run(names: Sequence[str], seed: int, place: Path, jobs: int) -> Iterable[tuple[str, Verdict, float]]:
    """Run cases in several processes; gives name, verdict and seconds of each as it is done."""
    prepare(place)
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="jobs-", dir=place, ignore_cleanup_errors=True) as scratch,
        ProcessPoolExecutor(
            jobs, mp_context=context, initializer=_start, initargs=(place, Path(scratch), seed)
        ) as pool,
    ):
        try:
            for future in as_completed([pool.submit(_run, name) for name in names]):
                yield future.result()
        except BaseException:  # stopped: what was not begun is not begun any more
            pool.shutdown(wait=False, cancel_futures=True)
            raise

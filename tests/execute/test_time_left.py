"""The time left comes true: recorded executions are replayed, and what was said is compared with them."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console

from mimbench.execute.progress import Progress
from mimbench.execute.time_left import TimeLeft, Track
from mimbench.plan.graph import Node
from mimbench.plan.pace import Pace, Timed, kind_of
from mimbench.store.folder import Inputs, RunFolder
from mimbench.store.records import Status
from mimbench.store.spec import RunSpec

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Recorded:
    """A run of an execution, in seconds: given to a worker, begun, first and last step, end."""

    node: Node
    steps: int
    given: float
    begun: float
    first_step: float
    last_step: float
    end: float

    def step_at(self, now: float) -> int:
        if now < self.first_step:
            return 0
        share = (now - self.first_step) / max(self.last_step - self.first_step, 1e-9)
        return int(min(share, 1.0) * self.steps)


def read(name: str) -> list[Recorded]:
    """An execution with two workers.

    `dtm_smoke` is one of `reproduce-table dtm --scale smoke` on a busy machine. `dtm_toy` is put together
    from runs of the toy table that were measured on one core with a tenth of their steps, in the order in
    which the pool gives them out, each up to 8 % faster or slower.
    """
    nodes: dict[str, Node] = {}
    runs = []
    with open(HERE / f"{name}_trace.csv", newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            parents = {"parent": nodes[line["parent"]].key} if line["parent"] else {}
            spec = RunSpec(line["stage"], line["name"], "vit", {"run": line["run"]}, {}, 0, parents)  # type: ignore[arg-type]
            node = nodes[line["run"]] = Node(spec, Inputs(), line["run"], 1, float(line["flops"]), "missing")
            times = [float(line[when]) for when in ("given", "begun", "first_step", "last_step", "end")]
            runs.append(Recorded(node, int(line["steps"]), *times))
    return runs


def replay(runs: list[Recorded], pace: Pace, tick: float) -> list[tuple[float, float, float]]:
    """At each tick: the share of the FLOPs that is done, the seconds left as said, and as they came."""
    left, total = TimeLeft([run.node for run in runs], pace, workers=2), max(run.end for run in runs)
    flops = sum(run.node.flops for run in runs)
    waiting, running, done = list(runs), list[Recorded](), 0.0
    found = []
    for count in range(1, int(total / tick) + 1):
        now = count * tick
        for run in [run for run in running if run.end <= now]:
            left.end(run.node, now, run.end - run.begun)
            running.remove(run)
            done += run.node.flops
        for run in [run for run in waiting if run.given <= now]:
            left.start(run.node, now)
            waiting.remove(run)
            running.append(run)
        partial = 0.0
        for run in running:
            if run.begun <= now:
                step = run.step_at(now)
                left.tracks[run.node.key].see(step, run.steps if now >= run.first_step else 0, now)
                partial += run.node.flops * step / max(run.steps, 1)
        said = left.seconds(now)
        if said is not None:
            found.append(((done + partial) / flops, said, total - now))
    return found


def worst(found: list[tuple[float, float, float]]) -> float:
    """The largest relative error between a tenth and nine tenths of the work."""
    return max(abs(said / came - 1) for share, said, came in found if 0.1 <= share <= 0.9)


def pace_of(runs: list[Recorded], slower: float = 1.0) -> Pace:
    """What an earlier execution of the same runs leaves to know."""
    return Pace(Timed(kind_of(r.node), r.node.flops, (r.end - r.begun) / slower) for r in runs)


def test_a_first_toy_table_keeps_its_word_within_a_third() -> None:
    """Nothing is known before; no detection has been run until three quarters are over."""
    found = replay(read("dtm_toy"), Pace(), tick=1.0)
    assert min(share for share, _, _ in found) < 0.1, "it says nothing for too long"
    assert worst(found) < 1 / 3


@pytest.mark.parametrize("slower", [1.0, 2.0, 0.5])
def test_a_second_toy_table_keeps_its_word_also_where_the_machine_is_slower(slower: float) -> None:
    runs = read("dtm_toy")
    assert worst(replay(runs, pace_of(runs, slower), tick=1.0)) < 0.15


def test_seconds_of_a_smoke_table_are_half_right() -> None:
    """Its runs take a second or two, more the first time in a worker, whatever their FLOPs."""
    runs = read("dtm_smoke")
    assert worst(replay(runs, pace_of(runs), tick=0.25)) < 0.5


# -- single runs ---------------------------------------------------------------------------------------------


def node(name: str = "a", flops: float = 100.0, parent: Node | None = None) -> Node:
    parents = {"parent": parent.key} if parent else {}
    spec = RunSpec("pretrain", name, "vit", {"flops": flops}, {}, 0, parents)
    return Node(spec, Inputs(), name, 1, flops, "missing")


def test_nothing_is_said_before_there_is_anything_to_go_by() -> None:
    run = node()
    left = TimeLeft([run], Pace(), workers=1)
    assert left.seconds(0.0) is None
    left.start(run, 0.0)
    assert left.seconds(100.0) is None


def test_a_resumed_run_counts_only_its_new_steps() -> None:
    track = Track(node(), began=0.0)
    track.see(80, 100, 10.0)
    assert track.fraction == 0.8 and track.seconds_left(10.0) is None
    track.see(90, 100, 20.0)
    assert track.seconds_left(20.0) == pytest.approx(10.0)
    assert track.seconds_left(24.0) == pytest.approx(6.0), "the heartbeat is some seconds old"


def test_a_run_that_goes_back_to_an_older_checkpoint_starts_to_count_there() -> None:
    track = Track(node(), began=0.0)
    track.see(80, 100, 10.0)
    track.see(60, 100, 20.0)
    track.see(70, 100, 30.0)
    assert track.seconds_left(30.0) == pytest.approx(30.0)


def test_a_run_without_a_step_for_ten_minutes_stands_still_unless_it_is_evaluated() -> None:
    track = Track(node(), began=0.0)
    assert track.standstill(10_000.0) == 0.0  # it has not begun
    track.see(1, 100, 100.0)
    track.see(2, 100, 200.0)
    track.see(2, 100, 900.0)
    assert track.standstill(799.0) == 0.0 and track.standstill(900.0) == 700.0
    track.see(100, 100, 1000.0)
    assert track.standstill(9000.0) == 0.0


def test_a_standstill_is_shown() -> None:
    clock = iter([0.0, 0.0, *[700.0] * 20])
    run, out = node("slow"), Console(file=io.StringIO(), width=200)
    with Progress(out, [run], clock=lambda: next(clock)) as progress:
        progress.start(run, cast(RunFolder, SimpleNamespace(status=Status(), steps_done=lambda: 0)))
        progress.tracks[run.key].see(3, 100, 0.0)
        progress.tick()
    assert "slow 3/100; slow: no step for 11 min 40 s" in out.file.getvalue()  # type: ignore[attr-defined]


def test_a_dropped_run_is_to_come_again() -> None:
    runs = [node("a"), node("b")]
    left = TimeLeft(runs, Pace([Timed(kind_of(run), 100.0, 10.0) for run in runs]), workers=2)
    before = left.seconds(0.0)
    left.start(runs[0], 0.0)
    left.drop(runs[0])
    assert left.seconds(0.0) == before and set(left.waiting) == {run.key for run in runs}


def test_what_another_process_computes_takes_none_of_our_workers() -> None:
    theirs, ours = node("theirs"), node("ours")
    pace = Pace([Timed(kind_of(run), 100.0, 10.0) for run in (theirs, ours)])
    left = TimeLeft([theirs, ours], pace, workers=1)
    left.start(theirs, 0.0, elsewhere=True)
    assert left.seconds(0.0) == pytest.approx(10.0, abs=1.0)


def test_a_failed_run_teaches_nothing() -> None:
    run, other = node("a"), node("a", 200.0)
    left = TimeLeft([run, other], Pace(), workers=1)
    left.start(run, 0.0)
    left.end(run, 1.0)
    assert left.seconds(1.0) is None and not left.here.runs

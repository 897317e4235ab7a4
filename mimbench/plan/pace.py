"""Estimates from finished runs how long runs take, and how long a graph of runs takes on several workers."""

from __future__ import annotations

import heapq
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from mimbench.errors import RunFailed
from mimbench.plan.graph import Node, Plan
from mimbench.store.folder import RunFolder
from mimbench.store.index import snapshot
from mimbench.store.runs import RunStore

Kind = tuple[str, str, str]
"""Stage, name and arch. Runs of one kind do the same work, for more or fewer steps."""

FIXED_SECONDS = 1.0
"""Seconds of a run that do not depend on its FLOPs (start, evaluation), if the known runs do not tell."""

START_SECONDS, HAND_OVER_SECONDS = 5.0, 0.3
"""Seconds that a worker needs to import torch, and between two runs."""

MORE_THAN_FLOPS = 1.15
"""How much longer an unknown kind of run takes than its FLOPs suggest at the speed of other kinds.

FLOPs count training alone. In DTM's table at scale toy, evaluation and slower operations make classification,
segmentation and detection 1.0, 1.0 and 1.5 times as long.
"""


def kind_of(node: Node) -> Kind:
    return node.spec.stage, node.spec.name, node.spec.arch


@dataclass(frozen=True)
class Timed:
    """A run that is done, and how long it took."""

    kind: Kind
    flops: float
    seconds: float


class Pace:
    """Expected seconds of runs: a part that is fixed and a part that grows with the FLOPs.

    Both are learned from the runs most like the one in question: those of its kind; else those of its stage
    and arch; else those of its arch; else all.
    """

    def __init__(self, runs: Iterable[Timed] = ()) -> None:
        self.runs: list[Timed] = []
        self._kinds: set[Kind] = set()
        self._lines: dict[Kind, tuple[float, float] | None] = {}
        for run in runs:
            self.learn(run)

    def learn(self, run: Timed) -> None:
        self.runs.append(run)
        self._kinds.add(run.kind)
        self._lines.clear()

    def knows(self, kind: Kind) -> bool:
        """Whether a run of exactly this kind is known."""
        return kind in self._kinds

    def seconds(self, kind: Kind, flops: float) -> float | None:
        """Expected seconds of a run; None if no known run tells."""
        if kind not in self._lines:
            self._lines[kind] = self._line(kind)
        line = self._lines[kind]
        return line[0] + line[1] * flops if line else None

    def _line(self, kind: Kind) -> tuple[float, float] | None:
        """Fixed seconds and seconds per FLOP of a kind."""
        if self.knows(kind):
            return _fit([run for run in self.runs if run.kind == kind])
        stage, _, arch = kind
        others = [run for run in self.runs if run.flops]  # a run without FLOPs tells nothing about others
        groups = (
            [run for run in others if (run.kind[0], run.kind[2]) == (stage, arch)],
            [run for run in others if run.kind[2] == arch],
        )
        like = next((group for group in groups if group), others)
        if not like:
            return None
        fixed, per_flop = _line_through(like)
        return MORE_THAN_FLOPS * fixed, MORE_THAN_FLOPS * per_flop


def _line_through(runs: Sequence[Timed]) -> tuple[float, float]:
    """The assumed fixed seconds, and the median of the other seconds per FLOP.

    No line is fitted through runs of several kinds: a kind may be slower for other reasons than its FLOPs.
    """
    fixed = min(FIXED_SECONDS, *(run.seconds for run in runs))
    rates = [(run.seconds - fixed) / run.flops for run in runs if run.flops]
    return fixed, median(rates) if rates else 0.0


def _fit(runs: Sequence[Timed]) -> tuple[float, float]:
    """Fixed seconds and seconds per FLOP of one kind, neither below 0: least squares of the relative errors.

    Where all runs have about the same FLOPs, the fixed part is assumed.
    """
    if max(run.flops for run in runs) <= 1.2 * min(run.flops for run in runs):
        return _line_through(runs)
    # Minimise sum(((a + b F) / s - 1)^2).
    aa = sum(1 / run.seconds**2 for run in runs)
    ab = sum(run.flops / run.seconds**2 for run in runs)
    bb = sum((run.flops / run.seconds) ** 2 for run in runs)
    ay, by = sum(1 / run.seconds for run in runs), sum(run.flops / run.seconds for run in runs)
    fixed = (ay * bb - by * ab) / (aa * bb - ab * ab)
    per_flop = (by - fixed * ab) / bb
    if fixed < 0:
        return 0.0, by / bb
    return (fixed, per_flop) if per_flop >= 0 else (ay / aa, 0.0)


def history(plan: Plan, store: RunStore) -> list[Timed]:
    """The store's finished runs of the kinds in a plan: those of this machine, or if there are none, all.

    A run that is not in the plan gets the FLOPs of the plan's run of its kind, scaled by the images seen.
    """
    like: dict[str, Node] = {}  # by the start of a folder's name
    for node in plan.nodes.values():
        like.setdefault(node.spec.folder.rpartition("-")[0], node)
    here: list[Timed] = []
    elsewhere: list[Timed] = []
    for folder in snapshot(store):
        known = like.get(folder.path.name.rpartition("-")[0])
        if known is None:
            continue
        try:
            status = folder.status
            if status.state != "done" or not status.seconds:
                continue
            flops = _flops(folder, plan.nodes.get(folder.spec.key), known, status.total)
        except RunFailed:
            continue  # damaged
        timed = Timed(kind_of(known), flops, status.seconds)
        (here if status.host == socket.gethostname() else elsewhere).append(timed)
    return here or elsewhere


def _flops(folder: RunFolder, planned: Node | None, like: Node, steps: int) -> float:
    if planned is not None:
        return planned.flops
    spec = folder.spec
    if any(role.startswith("weights ") for role in spec.data):
        return 0.0  # loaded, not trained
    images = steps * spec.recipe["global_batch_size"]
    return like.flops * images / like.images if images and like.images else like.flops


@dataclass(frozen=True)
class Job:
    """A run that has not begun: its seconds, the runs that must be done first, and its rank in the queue.

    Attributes:
        rank: of the runs that can begin, the one with the highest rank begins first.
    """

    seconds: float
    parents: Collection[str]
    rank: float


def makespan(
    jobs: Mapping[str, Job],
    workers: int,
    running: Mapping[str, float] | None = None,
    elsewhere: Mapping[str, float] | None = None,
) -> float:
    """Seconds until every run is done.

    Args:
        jobs: key to a run that has not begun.
        workers: how many runs go on at the same time, those of `running` included.
        running: key to the seconds that a run here still takes; `elsewhere`: the same in other processes.
    """
    running, elsewhere = running or {}, elsewhere or {}
    ends = [(seconds, key) for runs in (running, elsewhere) for key, seconds in runs.items()]
    heapq.heapify(ends)
    unsettled = {*jobs, *running, *elsewhere}
    needs = {key: len(unsettled & set(job.parents)) for key, job in jobs.items()}
    children: dict[str, list[str]] = {}
    for key, job in jobs.items():
        for parent in unsettled & set(job.parents):
            children.setdefault(parent, []).append(key)
    ready = [(-jobs[key].rank, key) for key, count in needs.items() if not count]
    heapq.heapify(ready)
    free, now = max(workers - len(running), 0 if running else 1), 0.0
    while ready or ends:
        while ready and free:
            key = heapq.heappop(ready)[1]
            heapq.heappush(ends, (now + jobs[key].seconds, key))
            free -= 1
        now, done = heapq.heappop(ends)
        free += done not in elsewhere
        for key in children.get(done, ()):
            needs[key] -= 1
            if not needs[key]:
                heapq.heappush(ready, (-jobs[key].rank, key))
    return now


def ranks(todo: Sequence[Node]) -> dict[str, float]:
    """Run key to the FLOPs of the longest chain of runs that begins with it."""
    after: dict[str, float] = {}
    found: dict[str, float] = {}
    for node in reversed(todo):
        found[node.key] = node.flops + after.get(node.key, 0.0)
        for parent in node.spec.parents.values():
            after[parent] = max(after.get(parent, 0.0), found[node.key])
    return found


@dataclass(frozen=True)
class Estimate:
    """How long runs are expected to take on `workers` workers.

    Attributes:
        seconds: None if there is no finished run to estimate from.
        unknown: names whose kind has no finished run; their seconds are estimated from other kinds' FLOPs.
    """

    seconds: float | None
    workers: int
    unknown: tuple[str, ...]


def expect(plan: Plan, store: RunStore, workers: int, *, rerun_stale: bool = False) -> Estimate:
    """How long a plan's runs to do take, by the store's finished runs like them."""
    return estimate(plan.todo(rerun_stale=rerun_stale), Pace(history(plan, store)), workers)


def estimate(todo: Sequence[Node], pace: Pace, workers: int) -> Estimate:
    """How long the runs in `todo` take, the start of the workers included."""
    rank = ranks(todo)
    jobs = {}
    for node in todo:
        seconds = pace.seconds(kind_of(node), node.flops)
        if seconds is None:
            return Estimate(None, workers, ())
        jobs[node.key] = Job(seconds + HAND_OVER_SECONDS, list(node.spec.parents.values()), rank[node.key])
    unknown = dict.fromkeys(node.spec.name for node in todo if not pace.knows(kind_of(node)))
    return Estimate(START_SECONDS + makespan(jobs, workers), workers, tuple(unknown))

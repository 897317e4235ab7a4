"""Estimates how long an execution still takes. Reads no clock or file, so tests can replay a recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from mimbench.plan.graph import Node
from mimbench.plan.pace import HAND_OVER_SECONDS, Job, Kind, Pace, Timed, kind_of, makespan, ranks

TOLD, TOLD_SECONDS = 0.05, 5.0
"""The share of its steps, and the seconds, after which the speed of an unfinished run is trusted."""

LONG_SECONDS = 600.0
"""Without a step, after which a run in training is said to stand still."""


@dataclass
class Track:
    """A run that is being computed, here or by another process.

    Attributes:
        began: when a worker got it. `computes_since`: when its first progress was seen.
        is_first: whether its worker may still have been starting then.
        first_step: the step it resumed from: the rate of a resumed run must not count old steps.
        stepped: when the first and when the latest step was seen.
    """

    node: Node
    began: float
    elsewhere: bool = False
    is_first: bool = False
    computes_since: float | None = None
    step: int = 0
    total: int = 0
    first_step: int = 0
    stepped: tuple[float, float] = (0.0, 0.0)

    def standstill(self, now: float) -> float:
        """Seconds without a step if that is long for a run in training, else 0."""
        seconds = now - self.stepped[1]
        return seconds if self.step < self.total and seconds > LONG_SECONDS else 0.0

    def see(self, step: int, total: int, now: float) -> None:
        """Record the run's progress."""
        if self.computes_since is None:
            self.computes_since = now
        if not total:
            return
        if not self.total or step < self.first_step:  # the first look, or back at an older checkpoint
            self.first_step, self.stepped = step, (now, now)
        elif step != self.step:
            self.stepped = (self.stepped[0], now)
        self.step, self.total = step, total

    @property
    def fraction(self) -> float:
        return self.step / self.total if self.total else 0.0

    @property
    def new_fraction(self) -> float:
        """The share of all steps that was done since a worker got the run."""
        return (self.step - self.first_step) / self.total if self.total else 0.0

    @property
    def rate(self) -> float | None:
        """Steps a second."""
        first, latest = self.stepped
        done = self.step - self.first_step
        return done / (latest - first) if done > 0 and latest > first else None

    def seconds_left(self, now: float) -> float | None:
        """Seconds until its last step; None before its rate is known."""
        return max((self.total - self.step) / self.rate - (now - self.stepped[1]), 0.0) if self.rate else None


class TimeLeft:
    """Estimates the time left of an execution from the expected seconds of its runs and the workers.

    Args:
        pace: times of earlier runs; times of this execution are added to it.
    """

    def __init__(self, todo: Sequence[Node], pace: Pace, workers: int) -> None:
        self.before, self.here, self.workers = pace, Pace(), workers
        self.waiting = {node.key: node for node in todo}
        self.tracks: dict[str, Track] = {}
        self._rank = ranks(todo)
        self._tails: dict[Kind, float] = {}  # seconds after the last step: evaluation, files
        self._gaps: list[float] = []  # seconds between two runs of a worker

    def start(self, node: Node, now: float, *, elsewhere: bool = False) -> Track:
        self.waiting.pop(node.key, None)
        self.tracks[node.key] = track = Track(node, now, elsewhere, is_first=not self.here.runs)
        return track

    def drop(self, node: Node) -> None:
        """The run stopped before it was done; it will be started again."""
        if self.tracks.pop(node.key, None):
            self.waiting[node.key] = node

    def end(self, node: Node, now: float, seconds: float | None = None) -> None:
        """A run is settled.

        Args:
            seconds: of its work, if it was computed now; None if it failed, or was never begun.
        """
        self.waiting.pop(node.key, None)
        track = self.tracks.pop(node.key, None)
        if not seconds:
            return
        self.here.learn(Timed(kind_of(node), node.flops, seconds))
        if track is None:
            return
        if track.total and track.step == track.total:
            self._tails[kind_of(node)] = now - track.stepped[1]
        if not (track.is_first or track.elsewhere):
            self._gaps.append(max(now - track.began - seconds, 0.0))

    def seconds(self, now: float) -> float | None:
        """Seconds until every run is settled; None as long as no estimate is possible."""
        pace = self._pace(now)
        drift = self._drift(pace)
        gap = median(self._gaps) if self._gaps else HAND_OVER_SECONDS
        jobs = {}
        for key, node in self.waiting.items():
            expected = self._expected(node, pace, drift)
            if expected is None:
                return None
            jobs[key] = Job(expected + gap, list(node.spec.parents.values()), self._rank.get(key, 0.0))
        left: dict[bool, dict[str, float]] = {True: {}, False: {}}
        for key, track in self.tracks.items():
            remaining = self._remaining(track, self._expected(track.node, pace, drift), now)
            if remaining is None:
                return None
            left[track.elsewhere][key] = remaining
        return makespan(jobs, self.workers, left[False], left[True])

    def _pace(self, now: float) -> Pace:
        """The times of this execution: of finished runs, and of unfinished ones if their kind has none."""
        pace = Pace(self.here.runs)
        for track in self.tracks.values():
            kind, own = kind_of(track.node), track.seconds_left(now)
            spent = now - track.computes_since if track.computes_since is not None else 0.0
            if own is None or track.new_fraction < TOLD or spent < TOLD_SECONDS or self.here.knows(kind):
                continue
            flops = track.node.flops * (1 - track.first_step / track.total)
            pace.learn(Timed(kind, flops, spent + own + self._tail(kind)))
        return pace

    def _drift(self, pace: Pace) -> float:
        """The time that runs take here, divided by the time expected from earlier runs."""
        pairs = [
            (run.seconds, self.before.seconds(run.kind, run.flops) or 0.0)
            for run in pace.runs
            if self.before.knows(run.kind)
        ]
        before = sum(seconds for _, seconds in pairs)
        return sum(seconds for seconds, _ in pairs) / before if before else 1.0

    def _expected(self, node: Node, pace: Pace, drift: float) -> float | None:
        """Expected seconds of a whole run: from its kind here, else its kind earlier, else other kinds."""
        kind = kind_of(node)
        before = self.before.seconds(kind, node.flops)
        if before is not None and self.before.knows(kind) and not self.here.knows(kind):
            return before * drift
        here = pace.seconds(kind, node.flops)
        return here if here is not None or before is None else before * drift

    def _remaining(self, track: Track, expected: float | None, now: float) -> float | None:
        """Seconds that an unfinished run still takes: at first by its kind, later by its own speed."""
        kind = kind_of(track.node)
        spent = now - track.computes_since if track.computes_since is not None else 0.0
        resumed = track.first_step / track.total if track.total else 0.0
        by_kind = max(expected * (1 - resumed) - spent, 0.0) if expected is not None else None
        own = track.seconds_left(now)
        if own is None:
            return by_kind
        if track.step == track.total:  # only its evaluation is left
            evaluated = now - track.stepped[1]
            return max(self._tails[kind] - evaluated, 0.0) if kind in self._tails else by_kind or 0.0
        own += self._tail(kind)
        share = track.new_fraction / (1 - resumed)
        return own if by_kind is None else share * own + (1 - share) * by_kind

    def _tail(self, kind: Kind) -> float:
        """Seconds between a run's last step and its end, as the last run of its kind took."""
        return self._tails.get(kind, 0.0)

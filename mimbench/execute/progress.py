"""What the user sees while runs are computed: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape

from mimbench.execute.time_left import TimeLeft, Track
from mimbench.plan.graph import Node
from mimbench.plan.pace import Pace
from mimbench.plan.show import duration, literal
from mimbench.store.folder import RunFolder

PLAIN_SECONDS = 30.0


class Progress:
    """Progress of a plan's execution. Use as a context manager; call `tick` every now and then.

    Args:
        todo: the runs to come, for the overall time left.
        pace: how long such runs have taken before.
        workers: how many runs go on at the same time.
        clock: seconds, from any start.
    """

    def __init__(
        self,
        console: Console,
        todo: Sequence[Node],
        *,
        pace: Pace | None = None,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console, self.count, self.clock = console, len(todo), clock
        self.flops_total = sum(node.flops for node in todo) or 1.0
        self.flops_done = 0.0
        self.settled = 0
        self.time_left = TimeLeft(todo, pace or Pace(), workers)
        self._folders: dict[str, tuple[RunFolder, float]] = {}  # and its start, in the time of status files
        self._last = clock()
        self.display = Display(self) if console.is_terminal else None

    @property
    def tracks(self) -> dict[str, Track]:
        """The runs that are being computed, by key."""
        return self.time_left.tracks

    def __enter__(self) -> Progress:
        if self.display:
            self.display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self.display:
            self.display.stop()

    def start(self, node: Node, folder: RunFolder, *, elsewhere: bool = False) -> None:
        self._folders[node.key] = folder, time.time()
        self.time_left.start(node, self.clock(), elsewhere=elsewhere)
        if not self.display:
            if elsewhere:
                what = f"is being computed by {_holder(folder)}: waiting"
            else:
                step = folder.steps_done()
                what = f"goes on from step {step}" if step else "started"
            self._print(f"{node.label} {what} ({node.spec.folder})", soft_wrap=True)

    def drop(self, node: Node, why: str = "") -> None:
        """The run stopped before it was done; it will be started again. Prints why, if that is given."""
        self.time_left.drop(node)
        if why:
            self._print(f"{node.label}: {why}", style="yellow", soft_wrap=True)

    def end(self, node: Node, *, shared: bool = False, error: str = "") -> None:
        track = self.tracks.get(node.key)
        folder, _ = self._folders.pop(node.key, (None, 0.0))
        self.settled += 1
        self.flops_done += node.flops
        work = folder.status.seconds if folder and not error and not shared else None
        now = self.clock()
        self.time_left.end(node, now, work)
        count = f"[{self.settled}/{self.count}]"
        if error:
            self._print(f"{count} {node.label} failed: {error}", style="red", soft_wrap=True)
        elif not self.display:
            how = "shared" if shared else f"done in {duration(now - track.began if track else 0.0)}"
            self._print(f"{count} {node.label} {how}")

    def tick(self) -> None:
        now = self.clock()
        for key, track in self.tracks.items():
            folder, since = self._folders[key]
            status = folder.status
            if status.state == "running" and (track.elsewhere or status.time >= since):
                track.see(status.step, status.total, now)
        if self.display:
            self.display.update()
        elif now - self._last >= PLAIN_SECONDS:
            self._last = now
            running = ", ".join(f"{t.node.label} {t.step}/{t.total}" for t in self.tracks.values())
            stands = ((t.node.label, t.standstill(now)) for t in self.tracks.values())
            running += "".join(
                f"; {label}: no step for {duration(still)}" for label, still in stands if still
            )
            left = self.seconds_left
            rest = f", about {duration(left)} left" if left is not None else ""
            self._print(f"{100 * self.fraction:.0f} %{rest}: {running}", soft_wrap=True)

    def _print(self, text: str, *, style: str = "", soft_wrap: bool = False) -> None:
        self.console.print(literal(text), style=style, soft_wrap=soft_wrap)

    @property
    def fraction(self) -> float:
        """The share of the FLOPs that is done."""
        partial = sum(track.node.flops * track.fraction for track in self.tracks.values())
        return min((self.flops_done + partial) / self.flops_total, 1.0)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until every run is settled; None as long as no estimate is possible."""
        return self.time_left.seconds(self.clock())


def _holder(folder: RunFolder) -> str:
    """The process that computes a run, and how long ago it was heard of."""
    status = folder.status
    if not status.pid:
        return "another process"
    age = duration(max(time.time() - status.time, 0.0))
    return f"process {status.pid} on {status.host}, last heard of {age} ago"


class Display:
    """The live part, drawn by rich."""

    def __init__(self, progress: Progress) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        self.progress = progress
        self.bars = Bars(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"),
            console=progress.console, transient=True,
        )  # fmt: skip
        self.rows = {"": self.bars.add_task("[bold]all runs", total=1.0, text="")}

    def start(self) -> None:
        self.bars.start()

    def stop(self) -> None:
        self.bars.stop()

    def update(self) -> None:
        progress, now = self.progress, self.progress.clock()
        for key in [key for key in self.rows if key and key not in progress.tracks]:
            self.bars.remove_task(self.rows.pop(key))
        for key, track in progress.tracks.items():
            if key not in self.rows:
                label = escape(literal(track.node.label).plain)
                self.rows[key] = self.bars.add_task(label, total=1.0, text="")
            if not track.total:
                text = "in another process" if track.elsewhere else "starting"
            else:
                rate = f" · {track.rate:.1f} steps/s" if track.rate else ""
                left = track.seconds_left(now)
                text = f"{track.step}/{track.total}{rate}"
                text += f" · {duration(left)} left" if left is not None else ""
                still = track.standstill(now)
                text += f" · no step for {duration(still)}" if still else ""
            self.bars.update(self.rows[key], completed=track.fraction, text=text)
        text = f"{progress.settled}/{progress.count} runs"
        total = progress.seconds_left
        if total is not None:
            text += f" · {duration(total)} left"
        self.bars.update(self.rows[""], completed=progress.fraction, text=text)

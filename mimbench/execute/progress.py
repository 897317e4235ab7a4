"""What the user sees while runs are computed: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console

from mimbench.plan.graph import Node
from mimbench.store.folder import RunFolder

PLAIN_SECONDS = 30.0


@dataclass
class Track:
    """A run that is being computed, here or by another process."""

    node: Node
    folder: RunFolder
    began: float
    step: int = 0
    total: int = 0
    first_step: int | None = None  # where it went on from: a resumed run's rate must not count old steps
    elsewhere: bool = False

    def read(self) -> None:
        status = self.folder.status
        if status.state == "running":
            self.step, self.total = status.step, status.total
            if self.first_step is None and self.total:
                self.first_step = self.step

    @property
    def fraction(self) -> float:
        return self.step / self.total if self.total else 0.0

    @property
    def rate(self) -> float | None:
        """Steps a second."""
        elapsed, done = time.monotonic() - self.began, self.step - (self.first_step or 0)
        return done / elapsed if done > 0 and elapsed > 0 else None

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.step) / self.rate if self.rate else None


class Progress:
    """Progress of a plan's execution. Use as a context manager; call `tick` every now and then.

    Args:
        todo: the runs to come, for the overall time left.
    """

    def __init__(self, console: Console, todo: list[Node]) -> None:
        self.console, self.count = console, len(todo)
        self.flops_total = sum(node.flops for node in todo) or 1.0
        self.flops_done = self.flops_here = 0.0  # settled; computed (not shared) since the start
        self.settled = 0
        self.tracks: dict[str, Track] = {}
        self.began = self._last = time.monotonic()
        self._live = Display(self) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def start(self, node: Node, folder: RunFolder, *, elsewhere: bool = False) -> None:
        track = Track(node, folder, time.monotonic(), elsewhere=elsewhere)
        self.tracks[node.key] = track
        if not self._live:
            where = " is being computed by another process: waiting" if elsewhere else " started"
            self.console.print(f"{node.label}{where} ({node.spec.folder})", highlight=False, soft_wrap=True)

    def drop(self, node: Node) -> None:
        """The run stopped without an end; it will be started again."""
        self.tracks.pop(node.key, None)

    def end(self, node: Node, *, shared: bool = False, error: str = "") -> None:
        track = self.tracks.pop(node.key, None)
        self.settled += 1
        self.flops_done += node.flops
        if track and not shared and not error:
            self.flops_here += node.flops * (1 - (track.first_step or 0) / (track.total or 1))
        seconds = time.monotonic() - track.began if track else 0.0
        if error:
            self.console.print(
                f"[{self.settled}/{self.count}] {node.label} failed: {error}", style="red", markup=False
            )
        elif not self._live:
            how = "shared" if shared else f"done in {duration(seconds)}"
            self.console.print(
                f"[{self.settled}/{self.count}] {node.label} {how}", markup=False, highlight=False
            )

    def tick(self) -> None:
        for track in list(self.tracks.values()):
            track.read()
        if self._live:
            self._live.update()
        elif time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            running = ", ".join(f"{t.node.label} {t.step}/{t.total}" for t in self.tracks.values())
            left = self.seconds_left
            rest = f", about {duration(left)} left" if left is not None else ""
            self.console.print(
                f"{100 * self.fraction:.0f} %{rest}: {running}", highlight=False, soft_wrap=True
            )

    @property
    def fraction(self) -> float:
        partial = sum(track.node.flops * track.fraction for track in self.tracks.values())
        return min((self.flops_done + partial) / self.flops_total, 1.0)

    @property
    def seconds_left(self) -> float | None:
        """From the FLOPs done here so far; None before there is anything to go by."""
        here = self.flops_here
        for track in self.tracks.values():
            if track.total and not track.elsewhere:
                here += track.node.flops * (track.step - (track.first_step or 0)) / track.total
        elapsed = time.monotonic() - self.began
        return elapsed * (1 - self.fraction) * self.flops_total / here if here > 0 else None


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
        progress = self.progress
        for key in [key for key in self.rows if key and key not in progress.tracks]:
            self.bars.remove_task(self.rows.pop(key))
        for key, track in progress.tracks.items():
            if key not in self.rows:
                self.rows[key] = self.bars.add_task(track.node.label, total=1.0, text="")
            if not track.total:
                text = "in another process" if track.elsewhere else "starting"
            else:
                rate = f" · {track.rate:.1f} steps/s" if track.rate else ""
                left = f" · {duration(track.seconds_left)} left" if track.seconds_left is not None else ""
                text = f"{track.step}/{track.total}{rate}{left}"
            self.bars.update(self.rows[key], completed=track.fraction, text=text)
        text = f"{progress.settled}/{progress.count} runs"
        if progress.seconds_left is not None:
            text += f" · {duration(progress.seconds_left)} left"
        self.bars.update(self.rows[""], completed=progress.fraction, text=text)


def duration(seconds: float | None) -> str:
    """`12 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds or 0.0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

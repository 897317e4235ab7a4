"""The local executor: persistent worker processes, longest chain first, every run computed only once."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from mimbench import plugin
from mimbench.errors import RunFailed, visible
from mimbench.execute.machine import PARENT, default_jobs, gpu_ids, is_stopped_orphan, num_cores
from mimbench.execute.progress import Progress
from mimbench.plan.graph import Node, Plan
from mimbench.plan.pace import ranks
from mimbench.store.records import Damaged
from mimbench.store.runs import RunStore

TICK_SECONDS = 0.25
POLL_SECONDS = 1.0  # between two checks of a run that another process computes
SILENT_SECONDS = 60.0  # without a sign of life, after which a worker is ended
MAX_ATTEMPTS = 2  # if a worker dies twice on a run, it is no accident
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class Report:
    """What went wrong: messages by run key, and the runs that could not start because a parent failed."""

    failed: dict[str, str] = field(default_factory=dict)
    unreached: dict[str, str] = field(default_factory=dict)
    user_error: bool = False

    @property
    def exit_code(self) -> int:
        return (2 if self.user_error else 1) if self.failed else 0


class Worker:
    """One worker process and the thread that passes its replies on."""

    def __init__(
        self,
        place: Path,
        environment: Mapping[str, str],
        events: queue.SimpleQueue[tuple[Worker, dict[str, Any]]],
    ) -> None:
        self.node: Node | None = None
        self.heard = time.monotonic()  # when it last sent something
        self.is_silent = False  # ended for that
        self.gpu = environment.get("CUDA_VISIBLE_DEVICES")
        self.ready = False
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # its stderr outside of runs, for when it dies
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mimbench.execute.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=place,  # not the user's folder: Python would look for modules there first
            env=dict(environment),
            text=True,
            start_new_session=True,  # Ctrl-C reaches only the parent, which then closes the workers' input
        )
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def _listen(self, events: queue.SimpleQueue[tuple[Worker, dict[str, Any]]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.heard = time.monotonic()
            event = json.loads(line)
            if event["event"] != "alive":
                events.put((self, event))
        events.put((self, {"event": "died"}))

    def end_if_silent(self) -> None:
        """Kill a worker that is stopped or hangs; its `died` event follows."""
        if self.node is not None and time.monotonic() - self.heard > SILENT_SECONDS:
            self.is_silent = True
            self.process.kill()

    def send(self, node: Node, path: Path, *, rerun: bool) -> None:
        assert self.process.stdin is not None
        self.node = node
        try:
            self.process.stdin.write(json.dumps({"run": str(path), "rerun": rerun}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has just died; its `died` event says so

    def last_words(self) -> str:
        self.process.wait()
        if self.is_silent:
            return f"its worker process gave no sign of life for {SILENT_SECONDS:.0f} s and was ended"
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        code = self.process.returncode
        how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        return f"its worker process died ({how})" + (f": {visible(lines[-1], lines=True)}" if lines else "")

    def close(self) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


class Pool:
    """Workers, started when `start` or `run` is called, stopped by `close` or at the end of the `with` block.

    Args:
        jobs: workers at most; default: one per GPU, or one per core without a GPU.
    """

    def __init__(self, store: RunStore, jobs: int | None = None) -> None:
        self.store = store
        self.gpus = gpu_ids()
        self.jobs = jobs or default_jobs()
        self.workers: list[Worker] = []
        self.events: queue.SimpleQueue[tuple[Worker, dict[str, Any]]] = queue.SimpleQueue()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def start(self, count: int | None = None) -> None:
        """Start workers until there are `count`; they import torch meanwhile."""
        while len(self.workers) < min(count or self.jobs, self.jobs):
            self.store.root.mkdir(parents=True, exist_ok=True)
            self.workers.append(Worker(self.store.root, self.environment(), self.events))

    def environment(self) -> dict[str, str]:
        """A worker's environment. On CPU it has one thread: repeatable, and two such runs beat one on two."""
        threads = max(num_cores() // self.jobs, 1) if self.gpus else 1
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        environment = {**os.environ, "PYTHONPATH": path, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
        environment[PARENT] = str(os.getpid())
        environment[plugin.VARIABLE] = os.pathsep.join(map(str, plugin.included()))
        if self.gpus:
            taken = [worker.gpu for worker in self.workers]
            environment["CUDA_VISIBLE_DEVICES"] = min(self.gpus, key=taken.count)
        return environment

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.workers.clear()

    def run(self, plan: Plan, progress: Progress, *, rerun_stale: bool = False) -> Report:
        """Compute a plan's missing runs. Errors of single runs are reported, not raised; the others go on."""
        return _Execution(self, plan, progress, rerun_stale).run()


class _Execution:
    """One pass over a plan."""

    def __init__(self, pool: Pool, plan: Plan, progress: Progress, rerun_stale: bool) -> None:
        self.pool, self.plan, self.progress, self.rerun = pool, plan, progress, rerun_stale
        self.report = Report()
        todo = plan.todo(rerun_stale=rerun_stale)
        self.pending = {node.key: node for node in todo}  # neither started nor settled
        self.elsewhere: dict[str, Node] = {}  # computed by another process
        self.running: dict[str, Node] = {}
        self.attempts: dict[str, int] = dict.fromkeys(self.pending, 0)
        self.rank = ranks(todo)
        self._polled = 0.0
        self._looked = time.monotonic()

    def run(self) -> Report:
        while self.pending or self.running or self.elsewhere:
            self._poll_elsewhere()
            self._end_silent_workers()
            self._assign()
            try:
                worker, event = self.pool.events.get(timeout=TICK_SECONDS)
            except queue.Empty:
                pass
            else:
                self._on_event(worker, event)
            self.progress.tick()
        return self.report

    def _end_silent_workers(self) -> None:
        now, before = time.monotonic(), self._looked
        self._looked = now
        for worker in list(self.pool.workers):
            # this process was asleep and has not read their lines yet
            if now - before > SILENT_SECONDS / 4:
                worker.heard = now
            worker.end_if_silent()

    def _ready(self) -> list[Node]:
        """What can start now, longest chain first."""
        open_runs = self.pending.keys() | self.running.keys() | self.elsewhere.keys()
        ready = [n for n in self.pending.values() if not open_runs & set(n.spec.parents.values())]
        return sorted(ready, key=lambda node: -self.rank[node.key])

    def _assign(self) -> None:
        ready = self._ready()
        if ready:
            self.pool.start(len(self.running) + len(ready))
        idle = [worker for worker in self.pool.workers if worker.node is None]
        for worker, node in zip(idle, ready, strict=False):
            del self.pending[node.key]
            try:
                for key in node.spec.parents.values():  # their data and checkpoints may have moved
                    if parent := self.plan.nodes.get(key):
                        self.pool.store.create(parent.spec, parent.inputs)
                folder = self.pool.store.create(node.spec, node.inputs)
            except Damaged as error:
                self._fail(node, str(error))
                continue
            self.running[node.key] = node
            self.attempts[node.key] += 1
            self.progress.start(node, folder)
            worker.send(node, folder.path, rerun=self.rerun)

    def _on_event(self, worker: Worker, event: dict[str, Any]) -> None:
        if event["event"] == "ready":
            worker.ready = True
            return
        if worker not in self.pool.workers:
            return
        node, worker.node = worker.node, None
        if event["event"] == "died":
            self.pool.workers.remove(worker)
            words = worker.last_words()
            if node is None and worker.ready:
                return  # killed while it had nothing to do
            if node is None:  # it died before it got a run: the next worker would, too
                raise RunFailed(f"No worker could start: {words}.")
            self._on_death(node, words)
            return
        assert node is not None
        del self.running[node.key]
        if event["event"] == "done":
            self.progress.end(node, shared=event["shared"])
        elif event["event"] == "busy":
            self.progress.drop(node)
            self.elsewhere[node.key] = node
            self.attempts[node.key] -= 1
            self.progress.start(node, self.pool.store.folder(node.key), elsewhere=True)
        else:
            self.report.user_error |= event["user"]
            self._fail(node, event["message"])

    def _on_death(self, node: Node, words: str) -> None:
        del self.running[node.key]
        if self.attempts[node.key] < MAX_ATTEMPTS:
            self.progress.drop(node, f"{words}; it goes on from its last checkpoint")
            self.pending[node.key] = node
            return
        message = f"{words}, {MAX_ATTEMPTS} times"
        with contextlib.suppress(OSError):  # the disk is full: the message still reaches the user
            self.pool.store.folder(node.key).fail(message)
        self._fail(node, message)

    def _fail(self, node: Node, message: str) -> None:
        self.report.failed[node.key] = message
        self.progress.end(node, error=message)
        lost = {node.key}
        for key, other in self.plan.nodes.items():  # parents first, so one pass finds the whole subtree
            if key in self.pending and lost & set(other.spec.parents.values()):
                lost.add(key)
                del self.pending[key]
                self.report.unreached[key] = f"{node.label} failed"
                self.progress.end(other, error=f"not started, because {node.label} failed")

    def _end_orphan(self, node: Node) -> None:
        """End a stopped worker whose command is gone: it would hold the run's lock for ever."""
        status = self.pool.store.folder(node.key).status
        if status.host == socket.gethostname() and is_stopped_orphan(status.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(status.pid, signal.SIGKILL)

    def _poll_elsewhere(self) -> None:
        if not self.elsewhere or time.monotonic() - self._polled < POLL_SECONDS:
            return
        self._polled = time.monotonic()
        for key, node in list(self.elsewhere.items()):
            outcome = self.pool.store.outcome(key)
            if outcome == "running":
                self._end_orphan(node)
                continue
            del self.elsewhere[key]
            if outcome == "done" or (outcome == "stale" and not self.rerun):
                self.progress.end(node, shared=True)
            else:  # its process was killed or failed: ours takes over
                self.progress.drop(node)
                self.pending[key] = node

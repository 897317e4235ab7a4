"""A worker: one process that computes runs, one after another, and imports torch once for all of them.

It reads and writes JSON lines. In: `{"run": folder, "rerun": bool}`. Out: `{"event": ..., ...}`, where the
event is ready, done, busy, failed, or alive (every few seconds). The end of input means that the parent
process is gone; then the worker exits at once.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import queue
import random
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mimbench import catalog, discovery
from mimbench.atomic import trouble
from mimbench.errors import RunFailed, UserError, visible
from mimbench.execute import inputs
from mimbench.execute.machine import environment
from mimbench.store.folder import RunFolder
from mimbench.store.lock import RunLocked
from mimbench.store.runs import RunStore

ALIVE_SECONDS = 2.0  # between two signs of life


class Replies:
    """The lines to the parent process, written by several threads."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "w", buffering=1, encoding="utf-8")
        self._lock = threading.Lock()

    def send(self, reply: dict[str, Any]) -> None:
        with self._lock:
            self._file.write(json.dumps(reply) + "\n")

    def live(self) -> None:
        """Send signs of life for ever; a process that is stopped, or hangs outside Python, sends none."""
        while True:
            time.sleep(ALIVE_SECONDS)
            with contextlib.suppress(BrokenPipeError):  # the parent is gone; `_listen` ends the process
                self.send({"event": "alive"})


def main() -> None:
    replies = Replies(os.dup(1))
    os.dup2(2, 1)  # what a library prints must not end up among the replies
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    threading.Thread(target=replies.live, daemon=True).start()
    faulthandler.enable()  # a crash inside a library leaves its trace in the run's log
    with contextlib.suppress(ImportError):  # only saves time: a run that misses a module reports it
        importlib.import_module("mimbench.train.pretraining")
    replies.send({"event": "ready"})
    while True:
        request = requests.get()
        reply = handle(Path(request["run"]), rerun=request["rerun"])
        replies.send({**reply, "run": request["run"]})


def _listen(requests: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)  # at once: the lock ends with the process, the checkpoint stays


def handle(path: Path, *, rerun: bool) -> dict[str, Any]:
    """Compute the run unless it is done (or stale, unless `rerun` is set); returns the reply."""
    folder = RunFolder(RunStore(path.parent), path)
    try:
        with folder.lock():
            if folder.result is not None:
                if not rerun or folder.outcome() == "done":
                    return {"event": "done", "shared": True}
                folder.reset()
            folder.claim()
            with logged(folder.log_path):
                return compute(folder)
    except RunLocked:
        return {"event": "busy"}
    except (OSError, RunFailed) as error:  # the place cannot be written, or what is there is damaged
        return _failure(error, path)


def compute(folder: RunFolder) -> dict[str, Any]:
    """Run the stage and write its result; every error becomes a status, a line in the log and a reply."""
    try:
        inputs.check(folder)
        folder.begin({**environment(), **_plugin(folder)})
        seed_all(folder.spec.seed)
        metrics = stage(folder)
        _check_again(folder)
        folder.finish(metrics, percent=percentages(folder))
    except Exception as error:  # the worker goes on with other runs; log, status and reply say what happened
        traceback.print_exc()
        if not folder.path.is_dir():
            message = f"{folder.path} was deleted while the run was computed: the same command starts again."
            return {"event": "failed", "message": visible(message), "user": False}
        failure = _failure(error, folder.path)
        with contextlib.suppress(OSError):  # the disk is full: the message still reaches the user
            folder.fail(failure["message"])
        return failure
    finally:
        free_memory()
    return {"event": "done", "shared": False}


def _check_again(folder: RunFolder) -> None:
    """Raises RunFailed if data changed while the run read it; what was computed is deleted."""
    try:
        inputs.check(folder)
    except inputs.Changed as error:
        folder.reset()
        message = f"What it reads changed while it ran: {error.what}. Run the command again."
        raise RunFailed(message) from error
    except UserError as error:
        folder.reset()
        raise RunFailed(f"What it reads changed while it ran. {error}") from error


def _plugin(folder: RunFolder) -> dict[str, Any]:
    """The entry in env.json for the plug-in of a run's method or task, if any."""
    found = discovery.plugin_of(discovery.STAGES[folder.spec.stage], folder.spec.name)
    return {"plugin": found.facts()} if found else {}


def _failure(error: Exception, place: Path) -> dict[str, Any]:
    """The reply for an error."""
    user, found = isinstance(error, UserError), trouble(error, place)
    if user or isinstance(error, RunFailed):
        message = str(error)
    elif found:
        message, user = found.message, found.status == 2
    else:
        message = f"{type(error).__name__}: {error}"
    return {"event": "failed", "message": visible(message, lines=True), "user": user}


def stage(folder: RunFolder) -> dict[str, float]:
    """Compute what the run's spec says, with files in its folder; returns its metrics.

    Raises:
        Damaged: a file of a run that it starts from is not the one that run wrote.
    """
    spec = folder.spec
    folder.check_parents()
    if spec.stage == "downstream":
        return catalog.task(spec.name).run(folder)
    from mimbench.train import pretraining

    card = catalog.teacher(spec.name) if spec.stage == "teacher" else catalog.method(spec.name)
    if folder.weights and spec.stage == "pretrain":
        from mimbench.checkpoint import adopt

        return adopt.run(folder, card)
    if folder.weights:  # loaded, not trained: only check that it loads
        assert card.load is not None, f"{spec.name} is given weights but has no `load`"
        card.load(folder)
        return {}
    return pretraining.run(folder, card)


def percentages(folder: RunFolder) -> list[str]:
    """The names of a run's metrics that its task's card calls percentages."""
    if folder.spec.stage != "downstream":
        return []
    return [metric.name for metric in catalog.task(folder.spec.name).metrics if metric.unit == "%"]


def seed_all(seed: int) -> None:
    """Seed every generator, so that a run does not depend on what its worker did before."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Send stdout and stderr, also those of C libraries and child processes, to the end of a file."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    kept = os.dup(1), os.dup(2)
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        yield
    finally:
        for descriptor, place in ((1, kept[0]), (2, kept[1])):
            stream = sys.stdout if descriptor == 1 else sys.stderr
            with contextlib.suppress(OSError):  # disk full: the rest of the log goes to the old stream
                stream.flush()
            os.dup2(place, descriptor)
            with contextlib.suppress(OSError):
                stream.flush()
        for descriptor in (*kept, log):
            os.close(descriptor)


def free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

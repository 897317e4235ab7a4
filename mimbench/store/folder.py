"""One run's folder: what a stage reads, and where it leaves everything. Atomic writes, one lock a run."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from filelock import FileLock, Timeout

from mimbench.atomic import digest, disk, read_json, write_json, write_text
from mimbench.errors import RunFailed, UserError
from mimbench.store.fingerprint import run_fingerprint
from mimbench.store.spec import RunSpec, canonical_json

SCHEMA = 2  # 1: `parents` holds the parents' own sources, not their lineages
HEARTBEAT_SECONDS = 1.0
RESULTS = (
    "result.json",
    "trainer.pt",
    "teacher.safetensors",
    "encoder.safetensors",
    "metrics.jsonl",
    "status.json",
)

Outcome = Literal["missing", "running", "failed", "done", "stale"]


class RunLocked(Exception):
    """Another process computes this run."""


@dataclass(frozen=True)
class Options:
    """How a run is computed without changing what it computes."""

    num_workers: int = 0  # of the data loader
    checkpoint_seconds: float = 15.0  # between two checkpoints


@dataclass(frozen=True)
class Inputs:
    """Where this machine finds what the run reads; a path is no part of the run's key.

    Attributes:
        data: role to the dataset's root. weights: name to a foreign checkpoint.
    """

    data: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    options: Options = Options()


class Store(Protocol):
    """Where a folder finds its parents."""

    def get(self, key: str) -> RunFolder | None: ...

    def folder(self, key: str) -> RunFolder: ...


class RunFolder:
    """One run's folder: what a stage reads from, and where it leaves everything.

    Attributes:
        path: the folder. store: the store it belongs to.
        details: what the stage wants to keep beside its metrics; `finish` writes it.
    """

    def __init__(self, store: Store, path: Path) -> None:
        self.store, self.path = store, path
        self.details: dict[str, Any] = {}
        self._beat = 0.0
        self._lock = FileLock(path / ".lock", mode=0o644)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    # -- what the run is -------------------------------------------------------------------------------------

    @cached_property
    def spec(self) -> RunSpec:
        values = read_json(self.path / "spec.json")
        try:
            return RunSpec.from_dict({name: value for name, value in values.items() if name != "key"})
        except (AttributeError, KeyError, TypeError):
            raise RunFailed(
                f"{self.path} has no readable spec.json: `mimbench runs rm {self.path.name}` removes it."
            ) from None

    @cached_property
    def inputs(self) -> Inputs:
        values = _mapping(self.path / "inputs.json") or {}
        return Inputs(values.get("data", {}), values.get("weights", {}), Options(**values.get("options", {})))

    @cached_property
    def parents(self) -> dict[str, RunFolder]:
        """The runs that this one starts from, by role (`teacher`, `encoder`)."""
        return {role: self.store.folder(key) for role, key in self.spec.parents.items()}

    def data(self, role: str) -> Path:
        """The dataset root for a role."""
        if role not in self.inputs.data:
            raise UserError("--data", role, allowed=self.inputs.data, remedy=f"Give --data {role}=PATH.")
        return Path(self.inputs.data[role])

    @property
    def weights(self) -> dict[str, Path]:
        return {name: Path(path) for name, path in self.inputs.weights.items()}

    @property
    def options(self) -> Options:
        return self.inputs.options

    @property
    def encoder_path(self) -> Path:
        return self.path / "encoder.safetensors"

    @property
    def trainer_path(self) -> Path:
        return self.path / "trainer.pt"

    @property
    def log_path(self) -> Path:
        return self.path / "log"

    @cached_property
    def source(self) -> str:
        """The fingerprint of the code that computes this run, as it was when first asked for."""
        return run_fingerprint(self.spec.stage, self.spec.name, adopted=self.spec.adopted)

    # -- what became of it -----------------------------------------------------------------------------------

    @property
    def status(self) -> dict[str, Any]:
        """The last heartbeat (state, step, total, time, pid, host, message, source, seconds), or {}."""
        return _mapping(self.path / "status.json") or {}

    @property
    def result(self) -> dict[str, Any] | None:
        """metrics, details, source, parents' lineages, schema; None until the run is done."""
        return _mapping(self.path / "result.json")

    @property
    def plugin(self) -> dict[str, str] | None:
        """Name and place of the plug-in that its code came from; None for a method or task of ours."""
        return (_mapping(self.path / "env.json") or {}).get("plugin")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run; the lock goes with the process, however it dies.

        Raises:
            RunLocked: another process holds it.
        """
        try:
            with self._lock.acquire(timeout=0):
                yield
        except Timeout:
            raise RunLocked(self.path.name) from None

    def is_locked(self) -> bool:
        """Whether some process computes this run right now."""
        if self._lock.is_locked:
            return True
        if not (self.path / ".lock").exists():
            return False
        probe = FileLock(self.path / ".lock", mode=0o644)
        try:
            with probe.acquire(timeout=0):
                return False
        except Timeout:
            return True

    def outcome(self) -> Outcome:
        """missing (not done), running (locked), failed, done, or stale (code or parent changed since)."""
        result = self.result
        if result is not None:
            return "done" if self._is_current(result) else "stale"
        if self.is_locked():
            return "running"
        return "failed" if self.status.get("state") == "failed" else "missing"

    def _is_current(self, result: Mapping[str, Any]) -> bool:
        if result.get("source") != self.source:
            return False
        for role, key in self.spec.parents.items():
            parent = self.store.get(key)
            if parent is None:
                continue  # removed to save space: its code cannot be told, the number it led to stands
            found = parent.result
            if result.get("schema") == 1:
                stands_on = found["source"] if found else parent.source
            else:
                stands_on = parent.lineage
            if result.get("parents", {}).get(role) != stands_on:
                return False
            if found and not parent._is_current(found):
                return False
        return True

    @property
    def lineage(self) -> str:
        """The fingerprint of the code behind this run and behind all that it stands on.

        What its result says, or, where there is none, what a result would say now.
        """
        result = self.result
        source, parents = (result["source"], result["parents"]) if result else (self.source, self._lineages())
        return digest(canonical_json([source, parents])) if parents else source

    def _lineages(self) -> dict[str, str]:
        """The parents' lineages by role; without those that were removed."""
        found = {role: self.store.get(key) for role, key in self.spec.parents.items()}
        return {role: parent.lineage for role, parent in found.items() if parent}

    # -- what a running stage reports ------------------------------------------------------------------------

    def begin(self, environment: Mapping[str, Any]) -> None:
        """Start or go on; a checkpoint of other code, or from a parent since recomputed, is thrown away."""
        now, then = {"source": self.source, "parents": self._lineages()}, self.status
        if self.trainer_path.exists() and any(then.get(name) != value for name, value in now.items()):
            self.reset()
        with disk(self.path):
            write_json(self.path / "env.json", environment)
        self._write_status("running", message="", **now)

    def progress(self, step: int, total: int, **scalars: float) -> None:
        """Heartbeat (at most once a second), and one line of metrics.jsonl when there are scalars."""
        now = time.time()
        if scalars:
            line = json.dumps({"step": step, "time": now, **scalars})
            with disk(self.path), open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(line + "\n")
        if now - self._beat >= HEARTBEAT_SECONDS or step >= total:
            self._write_status("running", step=step, total=total)

    def rewind(self, step: int) -> None:
        """Forget the metrics beyond `step`, and a line that a kill cut off."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        kept = [line for line, values in _lines(path) if values["step"] <= step]
        with disk(self.path):
            write_text(path, "".join(line + "\n" for line in kept))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        return [values for _, values in _lines(path)] if path.exists() else []

    def last_metrics(self) -> dict[str, float]:
        """The scalars of the last line of metrics.jsonl; {} where there is none."""
        last = (self.metrics() or [{}])[-1]
        return {name: value for name, value in last.items() if name not in ("step", "time")}

    def finish(self, metrics: Mapping[str, float], **details: Any) -> None:
        """Write result.json, drop the checkpoint, which nothing reads any more, and say done.

        The result names the parents as they were when the run began: one may have been recomputed since.

        Raises:
            RunFailed: a metric is not a finite number, or the disk is full; no result is left behind then.
        """
        numbers = {name: float(value) for name, value in metrics.items()}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise RunFailed(f"{self.path.name}: {name} is {value}.")
        result = {
            "schema": SCHEMA,
            "metrics": numbers,
            "details": {**self.details, **details},
            "source": self.source,
            "parents": self.status.get("parents", self._lineages()),
        }
        with disk(self.path):
            write_json(self.path / "result.json", result)
        self.trainer_path.unlink(missing_ok=True)
        self._write_status("done", message="")

    def fail(self, message: str) -> None:
        """Record why the run stopped."""
        self._write_status("failed", message=message)

    def reset(self) -> None:
        """Forget the outcome and every checkpoint; spec, inputs and log stay."""
        for name in RESULTS:
            (self.path / name).unlink(missing_ok=True)

    def _write_status(self, state: str, **changes: Any) -> None:
        now, old = time.time(), self.status
        since = now - old["time"] if old.get("state") == "running" and old.get("pid") == os.getpid() else 0.0
        status = {"step": 0, "total": 0, "message": "", **old, **changes, "state": state, "time": now}
        status |= {"pid": os.getpid(), "host": socket.gethostname()}
        status["seconds"] = round(old.get("seconds", 0.0) + since, 3)  # of work, over all resumptions
        self._beat = now
        with disk(self.path):
            write_json(self.path / "status.json", status)


def _mapping(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where it is missing or damaged."""
    values = read_json(path)
    return values if isinstance(values, dict) else None


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield line, json.loads(line)
        except ValueError:
            continue  # the last line of a killed process

"""One run's folder: a stage reads from it and writes to it. Writes are atomic; each run has one lock."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

from mimbench.atomic import append_line, digest, read_json, sha256, write_json, write_text
from mimbench.errors import RunFailed, UserError
from mimbench.store import checkpoints, records
from mimbench.store.checkpoints import Origin
from mimbench.store.fingerprint import run_fingerprint
from mimbench.store.lock import RunLock
from mimbench.store.records import (
    ARTEFACTS,
    Damaged,
    Edited,
    Inputs,
    Lineages,
    Misnamed,
    Options,
    Result,
    State,
    Status,
    impossible,
    remedy,
)
from mimbench.store.spec import RunSpec, canonical_json

HEARTBEAT_SECONDS = 1.0
WRITTEN = ("env.json", "metrics.jsonl", "log")  # while a run is computed; nothing reads them first
RESULTS = ("result.json", *checkpoints.NAMES, *ARTEFACTS, "metrics.jsonl", "status.json")

Outcome = Literal["missing", "running", "failed", "done", "stale", "damaged", "edited"]
UNREADABLE = ("damaged", "edited")  # outcomes of runs whose numbers are not shown


class Store(ABC):
    """Runs by their keys: where a folder finds its parents."""

    root: Path

    @abstractmethod
    def get(self, key: str) -> RunFolder | None:
        """The run with this key; None if there is none."""

    def folder(self, key: str) -> RunFolder:
        """The run with this key. Raises UserError if there is none."""
        folder = self.get(key)
        if folder is None:
            raise UserError("run", key, remedy="`mimbench runs list` shows the runs there are.")
        return folder

    @abstractmethod
    def __iter__(self) -> Iterator[RunFolder]:
        """Every run, also those that cannot be read, by the names of their folders."""


class RunFolder:
    """One run's folder: a stage reads from it and writes to it.

    Attributes:
        path: the folder. name: its name. store: the store it belongs to.
        details: what the stage records besides its metrics; `finish` writes it.
    """

    def __init__(self, store: Store, path: Path) -> None:
        self.store, self.path, self.name = store, path, path.name
        self.details: dict[str, Any] = {}
        self._beat = 0.0
        self._code: tuple[str, Lineages] | None = None  # source and lineages when the run began

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    # -- what the run is -------------------------------------------------------------------------------------

    @cached_property
    def spec(self) -> RunSpec:
        """What the run is. Raises Damaged."""
        spec = records.read_spec(self.path)
        if spec is None:
            raise Damaged(f"{self.path} has no readable spec.json: {remedy(self.path)}")
        if spec.key[:8] != self.path.name[-8:]:
            raise Damaged(
                f"{self.path / 'spec.json'} belongs to another run ({spec.key}): {remedy(self.path)}"
            )
        if spec.folder != self.path.name:
            raise Misnamed(self.path, spec.folder)
        return spec

    def is_blank(self) -> bool:
        """Whether there is neither a spec nor a result yet. Raises Damaged."""
        return records.read_spec(self.path) is None and not (self.path / "result.json").exists()

    @cached_property
    def inputs(self) -> Inputs:
        """The paths of what it reads. Raises Damaged."""
        return records.read_inputs(self.path) or Inputs()

    @cached_property
    def parents(self) -> dict[str, RunFolder]:
        """The runs that this one starts from, by role (`teacher`, `encoder`)."""
        return {role: self.store.folder(key) for role, key in self.spec.parents.items()}

    def data(self, role: str) -> Path:
        """The dataset root for a role. Raises UserError if there is none."""
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
        """The fingerprint of the code that computes this run; computed once, on the first use."""
        return run_fingerprint(self.spec.stage, self.spec.name, adopted=self.spec.adopted)

    # -- what became of it -----------------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """The last heartbeat; an empty one if there is none, or if the file is damaged."""
        with suppress(Damaged):
            return records.read_status(self.path) or Status()
        return Status()

    @property
    def result(self) -> Result | None:
        """What the run gave; None until it is done. Raises Damaged."""
        return records.read_result(self.path)

    def damage(self) -> list[str]:
        """One message per damaged spec, result, status and inputs, with what to do about it."""
        found = []
        for read in (
            lambda: self.spec,
            lambda: self.result,
            lambda: records.read_status(self.path),
            lambda: records.read_inputs(self.path),
        ):
            try:
                read()
            except Damaged as error:
                found.append(str(error))
        return found

    @property
    def plugin(self) -> dict[str, str] | None:
        """Name and place of the plug-in that its code came from; None for a method or task of ours."""
        with suppress(OSError):
            values = read_json(self.path / "env.json")
            found = values.get("plugin") if isinstance(values, dict) else None
            if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
                return found
        return None

    def odd_files(self) -> list[Path]:
        """What is no ordinary file where the run writes one."""
        return [path for name in WRITTEN if os.path.lexists(path := self.path / name) and not path.is_file()]

    def artefacts(self) -> dict[str, str]:
        """The SHA-256 of each file here that other runs read, by the file's name."""
        return {name: sha256(self.path / name) for name in ARTEFACTS if (self.path / name).is_file()}

    def damaged_artefacts(self) -> dict[Path, str]:
        """Each file that is not what the result says, and why. Raises Damaged if there is no sound result."""
        result, found = self.result, {}
        for name, expected in (result.artefacts if result else {}).items():
            path = self.path / name
            try:
                if sha256(path) != expected:
                    found[path] = "it is not the file that the run wrote"
            except OSError as error:
                found[path] = f"it cannot be read: {error.strerror}"
        return found

    def check_parents(self) -> None:
        """Raises Damaged unless the files of the runs that this one starts from are those that they wrote."""
        for parent in self.parents.values():
            for path, why in parent.damaged_artefacts().items():
                raise Damaged(f"{path} is damaged ({why}): {remedy(parent.path)}")

    @cached_property
    def _lock(self) -> RunLock:
        return RunLock(self.path)

    def lock(self) -> AbstractContextManager[None]:
        """Lock the run. Raises RunLocked if another process computes it."""
        return self._lock.hold(self.status)

    def is_locked(self) -> bool:
        """Whether some process computes this run right now."""
        return self._lock.is_held() or self._lock.is_held_without_file(self.status)

    def outcome(self) -> Outcome:
        """missing (not done), running (locked), failed, done, stale (code or a parent changed), damaged (a
        file cannot be read), edited (the result has changed since the run wrote it)."""
        try:
            result = self.result
            if result is not None:
                return "done" if self._is_current(result) else "stale"
            if (self.path / "spec.json").exists():
                self.spec  # noqa: B018 - it may be damaged
        except Edited:
            return "edited"
        except Damaged:
            return "damaged"
        if self.is_locked():
            return "running"
        return "failed" if self.status.state == "failed" else "missing"

    def _is_current(self, result: Result) -> bool:
        if result.source != self.source:
            return False
        for role, key in self.spec.parents.items():
            parent = self.store.get(key)
            if parent is None:
                continue  # removed to save space: its code is unknown, this run's result stays valid
            try:
                found = parent.result
                if result.schema == 1:
                    stands_on = found.source if found else parent.source
                else:
                    stands_on = parent.lineage
                if result.parents.get(role) != stands_on:
                    return False
                if found and not parent._is_current(found):
                    return False
            except Damaged:
                continue  # damaged: its code is unknown, too
        return True

    @property
    def lineage(self) -> str:
        """The fingerprint of the code of this run and of all runs that it starts from.

        It comes from the result; without one, it is what a result would record now. Raises Damaged.
        """
        result = self.result
        source, parents = (result.source, result.parents) if result else (self.source, self.lineages())
        return digest(canonical_json([source, parents])) if parents else source

    def lineages(self) -> Lineages:
        """The parents' lineages by role, without removed parents. Raises Damaged."""
        found = {role: self.store.get(key) for role, key in self.spec.parents.items()}
        return {role: parent.lineage for role, parent in found.items() if parent}

    # -- what a running stage reports ------------------------------------------------------------------------

    def claim(self) -> None:
        """Record which process works on the run, as soon as it holds the lock."""
        self._write_status("running", message="")

    def _require_lock(self) -> None:
        """Raises RunFailed if the file of the lock was deleted while this process computes the run."""
        if self._lock.is_lost():
            raise RunFailed(
                f"{self._lock.file} was deleted while the run was computed. Another process may compute it "
                "too, so this one stops; the same command goes on from the last checkpoint."
            )

    def begin(self, environment: Mapping[str, Any]) -> None:
        """Start or resume. A checkpoint is deleted if its code, or that of a parent, has changed since.

        Raises:
            Damaged: a folder or a pipe stands where a file of the run belongs.
        """
        if odd := self.odd_files():
            raise Damaged(f"{odd[0]} is no ordinary file: {remedy(self.path)}")
        source, parents = self.source, self.lineages()
        for path in checkpoints.present(self.path):
            with suppress(Damaged):  # it is set aside when it is read
                origin = checkpoints.read_origin(path)
                if (origin.source, origin.parents) != (source, parents):
                    self.reset()
        self._code = source, parents
        write_json(self.path / "env.json", environment)
        self._write_status("running", message="", source=source, parents=parents)

    def steps_done(self) -> int:
        """The step of the checkpoint that today's code goes on from; 0 if there is none."""
        for path in checkpoints.present(self.path):
            with suppress(Damaged, UserError):
                origin = checkpoints.read_origin(path)
                is_current = (origin.source, origin.parents) == (self.source, self.lineages())
                return origin.step if is_current else 0
        return 0

    def progress(self, step: int, total: int, **scalars: float) -> None:
        """Heartbeat (at most once a second), and one line of metrics.jsonl when there are scalars."""
        now = time.time()
        if scalars:
            line = json.dumps({"step": step, "time": now, **scalars})
            append_line(self.path / "metrics.jsonl", line)
        if now - self._beat >= HEARTBEAT_SECONDS or step >= total:
            self._require_lock()
            self._write_status("running", step=step, total=total)

    def save_checkpoint(self, step: int, content: Callable[[BinaryIO], object]) -> None:
        """Write a checkpoint after `step` steps, and keep the one before; `content` writes it into a file."""
        self._require_lock()
        source, parents = self._code or ("", {})
        checkpoints.save(self.path, Origin(self.path.name, step, source, parents), content)

    def metrics_text(self) -> str:
        """The content of metrics.jsonl without broken lines."""
        path = self.path / "metrics.jsonl"
        return "".join(line + "\n" for line, _ in records.metrics_lines(path)) if path.exists() else ""

    def restore_metrics(self, text: str) -> None:
        """Write metrics.jsonl as it was at a checkpoint: lines after it go, and damaged ones are mended."""
        path = self.path / "metrics.jsonl"
        if text or path.exists():
            write_text(path, text)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, each with its `step`."""
        path = self.path / "metrics.jsonl"
        return [values for _, values in records.metrics_lines(path)] if path.exists() else []

    def last_metrics(self) -> dict[str, float]:
        """The scalars of the last line of metrics.jsonl; {} where there is none."""
        last = (self.metrics() or [{}])[-1]
        return {name: value for name, value in last.items() if name not in ("step", "time")}

    def finish(self, metrics: Mapping[str, float], *, percent: Iterable[str] = (), **details: Any) -> None:
        """Write result.json, delete the checkpoints, which nothing needs any more, and set the state to done.

        The result records the parents as they were when the run began: one may have been recomputed since.

        Args:
            percent: the names of metrics that are percentages.

        Raises:
            RunFailed: a metric is not a finite number, or no percentage; or the lock was deleted. Then no
                result is written.
            OSError: the disk is full. Then no result is written.
        """
        self._require_lock()
        numbers = {name: float(value) for name, value in metrics.items()}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise RunFailed(f"{self.path.name}: {name} is {value}.")
        percentages = tuple(name for name in percent if name in numbers)
        if wrong := impossible(numbers, percentages):
            raise RunFailed(f"{self.path.name}: {wrong}. No result was written: check the validation data.")
        parents = self._code[1] if self._code else self.lineages()
        told = {**self.details, **details}
        result = Result(numbers, self.source, parents, told, artefacts=self.artefacts(), percent=percentages)
        records.write_result(self.path, result)
        checkpoints.discard(self.path)
        self._write_status("done", message="")

    def fail(self, message: str) -> None:
        """Record why the run stopped."""
        self._write_status("failed", message=message)

    def reset(self) -> None:
        """Delete the outcome and every checkpoint; spec, inputs and log stay."""
        for name in RESULTS:
            (self.path / name).unlink(missing_ok=True)

    def _write_status(self, state: State, **changes: Any) -> None:
        now, old = time.time(), self.status
        here = old.state == "running" and old.pid == os.getpid()
        seconds = round(old.seconds + (max(now - old.time, 0.0) if here else 0.0), 3)
        at = {"time": now, "seconds": seconds, "pid": os.getpid(), "host": socket.gethostname()}
        self._beat = now
        records.write_status(self.path, replace(old, state=state, **{**at, **changes}))

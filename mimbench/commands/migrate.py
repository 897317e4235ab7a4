"""Gives finished runs on the user's own data the keys that today's commands look for.

Older versions identified data by the names and sizes of its files; since then its content decides. Where the
data still has the old fingerprint, the run gets a new spec with today's identity, and so do the runs that
start from it. Their results say that the content was not recorded when they were computed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mimbench.atomic import write_json
from mimbench.commands.remove import dependants, parents_first
from mimbench.data import Identity
from mimbench.data.files import Progress
from mimbench.errors import RunFailed, UserError
from mimbench.plan.datasets import Data
from mimbench.plan.request import Request
from mimbench.store import old_keys
from mimbench.store.folder import RunFolder
from mimbench.store.lock import RunLocked
from mimbench.store.records import Damaged, Inputs, Result, write_result
from mimbench.store.remarks import BY_STAMP, KEY_BEFORE, NOT_RECORDED
from mimbench.store.runs import WORKSHOP, RunStore
from mimbench.store.spec import RunSpec

REWRITTEN = ("spec.json", "inputs.json", "result.json")


class Refused(Exception):
    """Why a run was left as it is."""


@dataclass(frozen=True)
class Move:
    """A run that gets a new key.

    Attributes:
        spec, inputs, result: the new ones.
        is_made: whether an earlier command, which was killed, has made the new folder.
    """

    run: RunFolder
    spec: RunSpec
    inputs: Inputs
    result: Result
    is_made: bool = False

    @property
    def key_before(self) -> str:
        return self.run.spec.key


@dataclass(frozen=True)
class Left:
    """A run that stays as it is, and why."""

    run: RunFolder
    reason: str


class Examination:
    """Finds the runs of a store with old keys, and what their new keys are. It writes nothing.

    Args:
        moved: role to the dataset's root today, for data that is no longer at the recorded path.
        trust_stat: identify the data by sizes and times, for commands with --trust-stat.
        cache: where digests of files are remembered. progress: told how many files are read.
    """

    def __init__(
        self,
        store: RunStore,
        moved: Mapping[str, Path],
        *,
        trust_stat: bool = False,
        cache: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.store, self.moved, self.trust_stat = store, moved, trust_stat
        self.cache, self.progress = cache, progress
        self._data: dict[tuple[str, Path, bool], Data] = {}
        self._identities: dict[tuple[str, Path, bool, bool], Identity] = {}
        self._before: dict[Path, str] = {}
        self._renamed: dict[str, str] = {}  # a run's key to its new one
        self._not_recorded: dict[str, list[str]] = {}  # by new key, as in the result's details
        self._left: dict[str, RunFolder] = {}  # by key
        self._claimed: dict[str, RunFolder] = {}  # by new key
        self._readable: set[Path] = set()

    def __call__(self) -> Iterator[Move | Left]:
        """Every run that has an old key, parents first; runs that cannot be read are among them."""
        runs, ordered = list(self.store), list(parents_first(self.store))
        self._readable = {run.path for run in ordered}
        for run in ordered:
            with contextlib.suppress(RunFailed):
                self._note_migrated(run)
        for run in runs:
            if run.path not in self._readable:
                yield Left(run, run.damage()[0])
        running = {run.path for run in runs if run.is_locked()}
        for run in ordered:
            if not self._is_old(run.spec):
                continue
            try:
                move = self._move(run, running)
            except (Refused, RunFailed, UserError) as error:
                if run.spec.key not in self._renamed:
                    self._left[run.spec.key] = run
                yield Left(run, str(error))
                continue
            self._renamed[run.spec.key] = move.spec.key
            self._not_recorded[move.spec.key] = list(move.result.details.get(NOT_RECORDED, []))
            self._claimed[move.spec.key] = run
            yield move

    def _note_migrated(self, run: RunFolder) -> None:
        details = run.result.details if run.result else {}
        if KEY_BEFORE in details:
            self._renamed[str(details[KEY_BEFORE])] = run.spec.key
            self._not_recorded[run.spec.key] = list(details.get(NOT_RECORDED, []))

    def _is_old(self, spec: RunSpec) -> bool:
        """Whether today's planner gives a run with this spec another key."""
        above = set(spec.parents.values())
        moved = above & (self._renamed.keys() | self._left.keys())
        return bool(old_keys.old_roles(spec) or old_keys.unread(spec) or moved or old_keys.skips(spec))

    def _move(self, run: RunFolder, running: Collection[Path]) -> Move:
        """The run's new spec and result. Raises Refused, RunFailed or UserError."""
        spec = run.spec
        result = _sound_result(run, self.store, running)
        if made := self._made(run):
            assert made.result is not None
            return Move(run, made.spec, made.inputs, made.result, is_made=True)
        parents = {role: self._parent(role, key) for role, key in spec.parents.items()}
        old, roots = old_keys.old_roles(spec), self._roots(run)
        found = {role: self._identity(run, result, role, roots[role]) for role in old}
        unread = old_keys.unread(spec)
        kept = spec.skip_corrupt and not (unread or old_keys.skips(spec))
        skips = any(each.left_out for each in found.values()) if old else kept
        data = {role: told for role, told in spec.data.items() if role not in unread}
        data |= {role: each.digest for role, each in found.items()}
        new = replace(spec, data=data, parents=parents, skip_corrupt=skips)
        if unread and (new.key in self._claimed or self.store.get(new.key)):
            self._renamed[spec.key] = new.key  # that run has the same encoder
        self._require_free(new)
        told = {*old, *(role for key in parents.values() for role in self._not_recorded.get(key, ()))}
        details = {**result.details, KEY_BEFORE: spec.key}
        if told:
            details[NOT_RECORDED] = sorted(told)
        if self.trust_stat and old:
            details[BY_STAMP] = old
        inputs = replace(run.inputs, data={**run.inputs.data, **{role: str(roots[role]) for role in old}})
        # Older results have no digests of their files; from now on these are checked.
        result = replace(result, details=details, artefacts=result.artefacts or run.artefacts())
        return Move(run, new, inputs, result)

    def _parent(self, role: str, key: str) -> str:
        """The new key of a run that another starts from. Raises Refused if it is not known."""
        there = self.store.get(key)
        if key in self._left or (there and there.path not in self._readable):
            name = self._left[key].path.name if key in self._left else there and there.path.name
            raise Refused(f"its {role} {name} was left as it is.")
        if key not in self._renamed and there is None:
            raise Refused(
                f"its {role} {key[:8]} was removed, so its new key is not known. It stays readable; today's "
                "commands compute both again."
            )
        return self._renamed.get(key, key)

    def _made(self, run: RunFolder) -> RunFolder | None:
        """The sound new folder that an earlier command made before it was killed, if any."""
        there = self.store.get(self._renamed.get(run.spec.key, run.spec.key))
        if there is None or there.path == run.path:
            return None
        with contextlib.suppress(Damaged):
            return there if there.result and not there.damaged_artefacts() else None
        return None

    def _require_free(self, new: RunSpec) -> None:
        """Raises Refused if another run has the new key."""
        if other := self._claimed.get(new.key):
            raise Refused(f"it becomes the same run as {other.path.name}: `mimbench runs rm` removes it.")
        if there := self.store.get(new.key):
            raise Refused(
                f"today's run, {there.path.name}, is in the store already: `mimbench runs rm` removes one of "
                "the two."
            )

    def _roots(self, run: RunFolder) -> dict[str, Path]:
        """Where the data is whose identity is old. Raises Refused if nobody knows."""
        return {role: self._root(run, role) for role in old_keys.old_roles(run.spec)}

    def _root(self, run: RunFolder, role: str) -> Path:
        """The recorded folder if it has the data that the run read, else the one that --data gives."""
        given = self.moved.get(role)
        if given is None and role == "captions":  # as for every command, captions.json may lie in imagenet's
            imagenet = self.moved.get("imagenet")
            given = imagenet if imagenet and (imagenet.expanduser() / "captions.json").is_file() else None
        named = [path for path in (run.inputs.data.get(role), given) if path]
        if not named:
            raise Refused(f"it does not say where its data is: give --data {role}=PATH.")
        recorded, *rest = [Path(path).expanduser().resolve() for path in named]
        with contextlib.suppress(Refused):
            self._require_same(run.spec, role, recorded)
            return recorded
        return rest[0] if rest else recorded  # `_identity` says what is wrong with it

    def _identity(self, run: RunFolder, result: Result, role: str, root: Path) -> Identity:
        """Today's identity of a run's data. Raises Refused if it is not the data that the run read."""
        spec = run.spec
        self._require_same(spec, role, root)
        labels, data = spec.stage == "downstream", (role, root, spec.skip_corrupt)
        place = (*data, labels)
        if place not in self._identities:
            if data not in self._data:
                skips = spec.skip_corrupt
                request = Request(data={role: root}, skip_corrupt=skips, trust_stat=self.trust_stat)
                self._data[data] = Data(request, Path, cache=self.cache, progress=self.progress)
            identity = self._data[data].identity(role, labels=labels)
            self._before.pop(root)  # reading takes time: the data may have changed meanwhile
            self._require_same(spec, role, root)
            self._identities[place] = identity
        found = self._identities[place]
        skipped = result.details.get("skipped_images", result.details.get("skipped_pictures", []))
        if spec.skip_corrupt and _stems(skipped) != _stems(found.left_out):
            raise Refused(
                f"it left out {len(skipped)} images that did not decode; today's rules leave out "
                f"{len(found.left_out)}. Compute it again."
            )
        return found

    def _require_same(self, spec: RunSpec, role: str, root: Path) -> None:
        if root not in self._before:
            self._before[root] = _names_and_sizes(root, role)
        if self._before[root] != spec.data[role]:
            raise Refused(
                f"the files in {root} are not those that it read: their names or sizes differ. Restore "
                f"them or give --data {role}=PATH; otherwise compute it again."
            )


def _stems(files: Iterable[str]) -> set[str]:
    """The files' names without their endings: an image and its label map are one."""
    return {Path(file).stem for file in files}


def _sound_result(run: RunFolder, store: RunStore, running: Collection[Path]) -> Result:
    """A finished run's result. Raises Refused or Damaged if there is none, or if the run is in use."""
    if run.is_locked():
        raise Refused("it is being computed: stop that, or wait.")
    result = run.result
    if result is None:
        raise Refused("it is not finished: today's commands compute it under its new key, from the start.")
    for path, why in run.damaged_artefacts().items():
        raise Refused(
            f"{path.name} is damaged ({why}): `mimbench runs verify --repair` deletes what is damaged."
        )
    if running:
        for child in dependants(store, [run]):
            if child.path in running:
                raise Refused(f"{child.path.name} starts from it and is being computed: stop that, or wait.")
    return result


def _names_and_sizes(root: Path, role: str) -> str:
    """The fingerprint that older versions gave a dataset: every file's path below the root, and its size.

    Raises:
        Refused: the folder is gone, or a file cannot be read.
    """
    if not root.is_dir():
        raise Refused(
            f"its data is gone: there is no folder {root}. Give --data {role}=PATH if it has moved."
        )

    def stop(error: OSError) -> None:
        raise error

    found = []
    try:
        for folder, _, names in os.walk(root, followlinks=True, onerror=stop):
            inside = os.path.relpath(folder, root)
            for name in names:
                size = os.stat(os.path.join(folder, name)).st_size
                found.append((name if inside == "." else f"{inside}/{name}", size))
    except OSError as error:
        raise Refused(f"its data cannot be read: {error.filename}: {error.strerror}.") from error
    total = hashlib.sha256()
    for relative, size in sorted(found):
        total.update(f"{relative}\0{size}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()[:16]


def migrate(moves: Iterable[Move], store: RunStore, tell: Callable[[Move], object]) -> list[Left]:
    """Give the runs their new keys; returns those that failed. `tell` is called after each that did not."""
    left: list[Left] = []
    failed: dict[str, RunFolder] = {}  # by new key
    for move in moves:
        try:
            for role, key in move.spec.parents.items():
                if key in failed:
                    raise Refused(f"its {role} {failed[key].path.name} was left as it is.")
            _carry_out(move, store)
        except (Refused, RunFailed, OSError) as error:
            reason = f"{error.strerror}: {error.filename}." if isinstance(error, OSError) else str(error)
            left.append(Left(move.run, reason))
            failed[move.spec.key] = move.run
            continue
        tell(move)
    return left


def _carry_out(move: Move, store: RunStore) -> None:
    """Make the new folder, then delete the old one. A kill leaves at least one of them whole.

    The new folder is made in the workshop, of links to the old one's files, and gets its name when it is
    whole; the old one loses its name before it is deleted.

    Raises:
        Refused: another process uses the run, or has changed it since it was examined.
    """
    run, place = move.run, store.root / WORKSHOP / move.run.path.name
    if not run.path.is_dir():
        raise Refused("another process has removed or migrated it.")
    try:
        with run.lock():
            now = RunFolder(store, run.path)
            if now.spec != run.spec or now.result != run.result:
                raise Refused("another process has changed it.")
            shutil.rmtree(place, ignore_errors=True)
            if not move.is_made:
                made = place / move.spec.folder
                _copy(run.path, made)
                write_json(made / "spec.json", {**move.spec.as_dict(), "key": move.spec.key})
                write_json(made / "inputs.json", asdict(move.inputs))
                write_result(made, move.result)
                os.rename(made, store.root / move.spec.folder)
            place.mkdir(parents=True, exist_ok=True)
            os.rename(run.path, place / run.path.name)
    except RunLocked:
        raise Refused("another process uses it: wait, then run the command again.") from None
    shutil.rmtree(place, ignore_errors=True)


def _copy(folder: Path, new: Path) -> None:
    """A folder's files as hard links, or as copies where the file system has no links."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    hidden_or_rewritten = shutil.ignore_patterns(".*", *REWRITTEN)
    shutil.copytree(folder, new, symlinks=True, copy_function=link, ignore=hidden_or_rewritten)


def num_stale(store: RunStore, moves: Iterable[Move]) -> int:
    """How many of the migrated runs are stale."""
    count = 0
    for move in moves:
        with contextlib.suppress(UserError):  # its method is gone
            count += store.folder(move.spec.key).outcome() == "stale"
    return count


def clear(store: RunStore) -> None:
    """Delete what commands that were killed left in the workshop."""
    workshop = store.root / WORKSHOP
    for place in workshop.iterdir() if workshop.is_dir() else ():
        run = RunFolder(store, store.root / place.name)
        if not (run.path.is_dir() and run.is_locked()):
            shutil.rmtree(place, ignore_errors=True)
    with contextlib.suppress(OSError):  # none was there, or another process works in it
        workshop.rmdir()

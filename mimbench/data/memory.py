"""What is known of a dataset's files, kept in the cache folder between commands.

Digests of content stay true as long as a file keeps its stamp. Facts also depend on the code that found them
out: another version looks again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import __version__ as pillow
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mimbench.atomic import atomic_path
from mimbench.data.files import ALGORITHM, CHANGED, MODIFIED, NOTHING, STAMPS, Folder, checksum

FRESH_NS = 2_000_000_000  # a file changed so short before it was read may change again under the same stamp
RULES = ("decode.py", "look.py", "heads.py")  # beside this file: the code that finds facts out


@functools.cache
def rules() -> str:
    """The digest of the code that finds out facts, and of the library that decodes."""
    total = hashlib.sha256(pillow.encode())
    for name in RULES:
        total.update(Path(__file__).with_name(name).read_bytes())
    return total.hexdigest()


class Memory:
    """Digests of a dataset's files, kept in the cache folder between commands.

    Args:
        place: the cache folder; None keeps nothing.
        root: the dataset's root.

    Attributes:
        folders: what is known, by path. before: what was known when the memory was read.
    """

    def __init__(self, place: Path | None, root: Path) -> None:
        self.root = root
        name = hashlib.sha256(
            f"{ALGORITHM} {STAMPS} {len(NOTHING)} {os.fspath(root)}".encode("utf-8", "surrogateescape")
        )
        self.file = place / "files" / f"{name.hexdigest()[:16]}.safetensors" if place else None
        self.folders: dict[str, Folder] = {}
        self.changed = False
        self._load()
        self.before = dict(self.folders)

    def _load(self) -> None:
        if self.file is None or not self.file.is_file():
            return
        # without a cache it only takes longer
        with contextlib.suppress(OSError, SafetensorError, ValueError, KeyError):
            values = load_file(self.file)
            content = values.pop("seal")
            if content.tobytes() != _seal(values):
                return
            if values["rules"].tobytes().decode() != rules():
                values["facts"][:] = -1
            paths = os.fsdecode(values["paths"].tobytes()).split("\0")
            ends = np.cumsum(values["counts"])
            starts = ends - values["counts"]
            name_ends = np.cumsum(values["lengths"])
            blob = values["names"].tobytes()
            for index, path in enumerate(paths):
                part = slice(int(starts[index]), int(ends[index]))
                first = int(name_ends[index] - values["lengths"][index])
                self.folders[path] = Folder(
                    path,
                    blob[first : int(name_ends[index])],
                    values["stamps"][part],
                    values["digests"][part],
                    values["known"][part],
                    values["facts"][part],
                )

    def recall(self, folder: Folder) -> None:
        """Give a scanned folder what is known of its files."""
        known = self.folders.get(folder.path)
        if known is None:
            return
        here: np.ndarray = np.arange(len(folder))
        there = here
        if known.names != folder.names:
            places = {name: index for index, name in enumerate(known.each())}
            pairs = [(index, places[name]) for index, name in enumerate(folder.each()) if name in places]
            here, there = np.array(pairs, np.int64).reshape(-1, 2).T
        same = (known.stamps[there] == folder.stamps[here]).all(axis=1)
        here, there = here[same], there[same]
        folder.facts[here] = np.where(folder.facts[here] < 0, known.facts[there], folder.facts[here])
        new = known.known[there] & ~folder.known[here]
        folder.digests[here[new]] = known.digests[there[new]]
        folder.known[here[new]] = True

    def keep(self, folder: Folder, started: int) -> None:
        """Remember a folder; what was changed just before `started` (nanoseconds) is not trusted again."""
        fresh = folder.stamps[:, [MODIFIED, CHANGED]].max(axis=1, initial=-1) > started - FRESH_NS
        kept = Folder(
            folder.path, folder.names, folder.stamps, folder.digests, folder.known & ~fresh,
            np.where(fresh[:, None], np.int32(-1), folder.facts),
        )  # fmt: skip
        old = self.folders.get(folder.path)
        if old is not None and old.names != kept.names:
            kept = _merged(old, kept)
        self.folders[folder.path] = kept
        self.changed = True

    def save(self) -> None:
        """Write what changed. A cache that cannot be written only costs time."""
        if self.file is None or not self.changed or not self.folders:
            return
        folders = list(self.folders.values())
        names = b"".join(folder.names for folder in folders)
        values = {
            "paths": np.frombuffer(os.fsencode("\0".join(folder.path for folder in folders)), np.uint8),
            "counts": np.array([len(folder) for folder in folders], np.int64),
            "lengths": np.array([len(folder.names) for folder in folders], np.int64),
            "names": np.frombuffer(names, np.uint8),
            "stamps": np.concatenate([folder.stamps for folder in folders]),
            "digests": np.concatenate([folder.digests for folder in folders]),
            "known": np.concatenate([folder.known for folder in folders]),
            "facts": np.concatenate([folder.facts for folder in folders]),
            "rules": np.frombuffer(rules().encode(), np.uint8),
        }
        seal = np.frombuffer(_seal(values), np.uint8)
        with contextlib.suppress(OSError, SafetensorError):  # the disk is full, or the folder is read-only
            with atomic_path(self.file) as temporary:
                save_file({**values, "seal": seal}, temporary)
        self.changed = False


def difference(before: Folder, now: Folder) -> bytes | None:
    """The name of the first file that is new or has another content, or else of one that is gone.

    Files of `before` may be those of another stage, too, which reads more of the folder.
    """
    places = {name: index for index, name in enumerate(before.each())}
    for index, name in enumerate(now.each()):
        there = places.get(name)
        if there is None:
            return name
        if (before.stamps[there] == now.stamps[index]).all():
            continue
        if (
            not (before.known[there] and now.known[index])
            or (before.digests[there] != now.digests[index]).any()
        ):
            return name
    return min(places.keys() - set(now.each()), default=None)


def _seal(values: Mapping[str, np.ndarray]) -> bytes:
    total: Any = checksum()
    for name in sorted(values):
        total.update(name.encode())
        total.update(np.ascontiguousarray(values[name]).data)
    return total.digest()[:16]


def _merged(old: Folder, new: Folder) -> Folder:
    """Both folders' files: another stage may read other files of the same folder.

    Where both have a file, `new` counts.
    """
    entries: dict[bytes, tuple[Folder, int]] = {}
    for folder in (old, new):
        for index, name in enumerate(folder.each()):
            entries[name] = folder, index
    ordered = sorted(entries)

    def column(name: str) -> np.ndarray:
        return np.stack([getattr(entries[key][0], name)[entries[key][1]] for key in ordered])

    return Folder(
        new.path, b"\0".join(ordered), column("stamps"), column("digests"), column("known"), column("facts")
    )

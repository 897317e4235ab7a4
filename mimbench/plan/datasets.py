"""The datasets behind a request: where each role's data is, its fingerprint, its size."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mimbench.atomic import file_digest
from mimbench.data import EXTENSIONS
from mimbench.errors import Unavailable, UserError
from mimbench.plan.request import Request

ROLES = ("imagenet", "ade20k", "coco", "captions")


class Data:
    """The datasets of a request: path, fingerprint and size of each role, found when first asked for.

    Args:
        toy: makes the project's own data and gives its root; called only if some role falls back on it.
    """

    def __init__(self, request: Request, toy: Callable[[], Path]) -> None:
        self.request, self.toy = request, functools.cache(toy)
        self._fingerprints: dict[str, str] = {}
        self._sizes: dict[tuple[str, bool], int] = {}
        if request.data:
            from mimbench.data.check import require
        for role in request.data:
            if role not in ROLES:
                raise UserError("--data", role, allowed=ROLES, remedy="Write --data ROLE=PATH.")
            require(role, self.path(role))  # wrong data is an error before anything else happens

    def path(self, role: str) -> Path:
        """Raises Unavailable where the user must give the data and did not."""
        given = self.request.data
        if role in given:
            return given[role].expanduser().resolve()
        if role == "captions" and "imagenet" in given and (given["imagenet"] / "captions.json").is_file():
            return given["imagenet"].expanduser().resolve()
        if self.request.scale in ("smoke", "toy") or (role == "captions" and self.request.scale == "small"):
            return self.toy() / ("imagenet" if role == "captions" else role)
        option = f"--data {role}=PATH"
        raise Unavailable(f"no data: give {option}", option)

    def fingerprint(self, role: str) -> str:
        if role not in self._fingerprints:
            self._fingerprints[role] = data_fingerprint(self.path(role), field=f"--data {role}")
        return self._fingerprints[role]

    def weights_fingerprint(self, name: str, path: Path) -> str:
        """The fingerprint of the checkpoint given as --weights."""
        key = f"weights {name}"
        if key not in self._fingerprints:
            self._fingerprints[key] = file_digest(path, field=f"--{key}")
        return self._fingerprints[key]

    def size(self, role: str, *, labelled: bool) -> int:
        """Training pictures; the labelled ones where only those are trained on. 0 where there are none."""
        if (role, labelled) not in self._sizes:
            try:
                self._sizes[role, labelled] = self._count_pictures(role, labelled)
            except Unavailable:  # which only a run that loads weights survives
                self._sizes[role, labelled] = 0
        return self._sizes[role, labelled]

    def _count_pictures(self, role: str, labelled: bool) -> int:
        root = self.path(role)
        if role == "coco":
            return _count(root / "train2017")
        if role == "ade20k":
            return _count(root / "images" / "training")
        subset = root / "train_labelled.txt"
        if labelled and subset.is_file():
            return sum(bool(line.strip()) for line in subset.read_text(encoding="utf-8").splitlines())
        return _count(root / "train")


def _count(folder: Path) -> int:
    return sum(path.suffix.lower() in EXTENSIONS for path in folder.rglob("*"))


def data_fingerprint(path: Path, *, field: str = "--data") -> str:
    """The fingerprint of a dataset: its files' relative paths and sizes, or what its `toy.json` says.

    Raises:
        UserError: the folder is missing, unreadable or empty; `field` names the role.
    """
    remedy = "Give the dataset's root folder."
    if not path.is_dir():
        raise UserError(field, str(path), remedy=f"There is no such folder. {remedy}")
    toy = path / "toy.json"
    if toy.is_file():
        try:
            return str(json.loads(toy.read_text(encoding="utf-8"))["fingerprint"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                field, str(toy), remedy="The file is damaged: delete the folder, it is made again."
            ) from error
    total = hashlib.sha256()
    count = 0
    for relative, size in sorted(_files(path, field)):
        total.update(f"{relative}\0{size}\n".encode("utf-8", "surrogateescape"))
        count += 1
    if count == 0:
        raise UserError(field, str(path), remedy=f"The folder is empty. {remedy}")
    return total.hexdigest()[:16]


def _files(root: Path, field: str) -> Iterator[tuple[str, int]]:
    def unreadable(error: OSError) -> None:
        raise UserError(
            field, error.filename, remedy=f"The folder cannot be read ({error.strerror})."
        ) from error

    onerror: Callable[[OSError], None] = unreadable
    for folder, _, names in os.walk(root, followlinks=True, onerror=onerror):
        for name in names:
            file = os.path.join(folder, name)
            try:
                size = os.stat(file).st_size
            except OSError as error:
                remedy = f"It cannot be read ({error.strerror}): restore what it links to, or remove it."
                raise UserError(field, file, remedy=remedy) from error
            yield os.path.relpath(file, root).replace(os.sep, "/"), size

"""The datasets and checkpoints behind a request: where they are, their fingerprints, their sizes."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol

from mimbench.atomic import file_digest
from mimbench.data import EXTENSIONS
from mimbench.errors import Unavailable, UserError
from mimbench.plan.request import ROLES, Request

__all__ = ["ROLES", "Data", "Everything", "Source", "data_fingerprint"]


class Source(Protocol):
    """What the planner must know about the data and the checkpoints that its runs read.

    Attributes:
        everything_given: whether the planner also plans the rows that a table leaves out at a scale.
    """

    everything_given: bool

    def path(self, role: str) -> Path: ...

    def fingerprint(self, role: str) -> str: ...

    def size(self, role: str, *, labelled: bool) -> int: ...

    def checkpoint(self, title: str, name: str) -> dict[str, Path]: ...

    def weights_fingerprint(self, name: str, path: Path) -> str: ...


class Everything:
    """Answers as if every dataset and checkpoint were given; the recipes of a plan do not depend on them."""

    everything_given = True

    def path(self, role: str) -> Path:
        del role
        return Path()

    def fingerprint(self, role: str) -> str:
        del role
        return ""

    def size(self, role: str, *, labelled: bool) -> int:
        del role, labelled
        return 1_000_000

    def checkpoint(self, title: str, name: str) -> dict[str, Path]:
        del title, name
        return {}

    def weights_fingerprint(self, name: str, path: Path) -> str:
        del name, path
        return ""


class Data:
    """The datasets and checkpoints of a request.

    It makes nothing: the fingerprint and the sizes of the project's own data are known before it is made.

    Args:
        toy: returns the root of the project's own data; called only if some role falls back on it.

    Raises:
        UserError: an unknown role, or data with errors.
    """

    everything_given = False

    def __init__(self, request: Request, toy: Callable[[], Path]) -> None:
        self.request, self.toy = request, functools.cache(toy)
        self._fingerprints: dict[str, str] = {}
        self._sizes: dict[tuple[str, bool], int] = {}
        self._count = functools.cache(_count)
        if request.data:
            from mimbench.data.check import require
        for role in request.data:
            if role not in ROLES:
                raise UserError("--data", role, allowed=ROLES, remedy="Write --data ROLE=PATH.")
            require(role, self.path(role))  # wrong data is an error before anything else happens

    def path(self, role: str) -> Path:
        """Where the data of a role is, or where it will be made before the first run reads it.

        Raises:
            Unavailable: the user must give it and did not.
        """
        given = self._given(role)
        if given is not None:
            return given
        if self._is_toy(role):
            return self.toy() / ("imagenet" if role == "captions" else role)
        option = f"--data {role}=PATH"
        raise Unavailable(f"no data: give {option}", option)

    def _given(self, role: str) -> Path | None:
        given = self.request.data
        if role in given:
            return given[role].expanduser().resolve()
        if role == "captions" and "imagenet" in given and (given["imagenet"] / "captions.json").is_file():
            return given["imagenet"].expanduser().resolve()
        return None

    def _is_toy(self, role: str) -> bool:
        """Whether a role falls back on the project's own data at the request's scale."""
        scale = self.request.scale
        own = scale in ("smoke", "toy") or (role == "captions" and scale == "small")
        return own and self._given(role) is None

    @property
    def toy_size(self) -> Literal["smoke", "toy"]:
        """Which of the project's own datasets the request falls back on."""
        return "smoke" if self.request.scale == "smoke" else "toy"

    def fingerprint(self, role: str) -> str:
        if role not in self._fingerprints:
            if self._is_toy(role):
                from mimbench.data import toy

                self._fingerprints[role] = toy.fingerprint(0, self.toy_size)
            else:
                self._fingerprints[role] = data_fingerprint(self.path(role), field=f"--data {role}")
        return self._fingerprints[role]

    def checkpoint(self, title: str, name: str) -> dict[str, Path]:
        """Name to path of the checkpoint given as --weights NAME. Raises Unavailable if it was not given."""
        if name not in self.request.weights:
            option = f"--weights {name}=PATH"
            raise Unavailable(f"{title} is not trained at this scale: give {option}", option)
        return {name: self.request.weights[name].resolve()}

    def weights_fingerprint(self, name: str, path: Path) -> str:
        """The fingerprint of the checkpoint given as --weights."""
        key = f"weights {name}"
        if key not in self._fingerprints:
            self._fingerprints[key] = file_digest(path, field=f"--{key}")
        return self._fingerprints[key]

    def size(self, role: str, *, labelled: bool) -> int:
        """How many training images there are; with `labelled`, how many labelled ones. 0 without data."""
        if (role, labelled) not in self._sizes:
            try:
                self._sizes[role, labelled] = self._count_images(role, labelled)
            except Unavailable:  # only a run that loads weights can go on without data
                self._sizes[role, labelled] = 0
        return self._sizes[role, labelled]

    def _count_images(self, role: str, labelled: bool) -> int:
        if self._is_toy(role):
            return toy_images(self.toy_size, role, labelled=labelled)
        root = self.path(role)
        if labelled and not (root / "train_labelled.txt").is_file():
            return self.size(role, labelled=False)  # a large folder is walked once
        return count_images(root, role, labelled=labelled)


def toy_images(size: str, role: str, *, labelled: bool) -> int:
    """How many training images the project's own data of that size has, made or not."""
    from mimbench.data import toy

    plan, classes = toy.PLANS[size], len(toy.CLASSES)
    if role in ("ade20k", "coco"):
        return plan.scenes_train
    return classes * plan.labelled_per_class if labelled else plan.train // classes * classes


def count_images(root: Path, role: str, *, labelled: bool) -> int:
    """How many training images a dataset has; with `labelled`, the length of its list of them, if any."""
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
    """The fingerprint of a dataset: a hash of its files' relative paths and sizes, or the one in `toy.json`.

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
                field, str(toy), remedy="The file is damaged. Delete the folder; mimbench makes it again."
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

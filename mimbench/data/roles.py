"""The datasets behind a request: where each role's data is, its fingerprint, its size."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from mimbench.catalog import Unavailable
from mimbench.data import EXTENSIONS
from mimbench.errors import UserError
from mimbench.fingerprint import data_fingerprint, file_fingerprint
from mimbench.request import Request

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
        raise Unavailable(f"no data: give --data {role}=PATH")

    def fingerprint(self, role: str) -> str:
        if role not in self._fingerprints:
            self._fingerprints[role] = data_fingerprint(self.path(role), field=f"--data {role}")
        return self._fingerprints[role]

    def weights_fingerprint(self, name: str, path: Path) -> str:
        """The fingerprint of the checkpoint given as --weights."""
        key = f"weights {name}"
        if key not in self._fingerprints:
            self._fingerprints[key] = file_fingerprint(path, field=f"--{key}")
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

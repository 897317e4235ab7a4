"""The datasets and checkpoints behind a request: where they are, their fingerprints, their sizes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from mimbench.atomic import file_digest
from mimbench.data import Identity
from mimbench.errors import Unavailable, UserError
from mimbench.plan.request import ROLES, Request

if TYPE_CHECKING:
    from mimbench.data.dataset import Dataset
    from mimbench.data.files import Progress


class Source(Protocol):
    """What the planner must know about the data and the checkpoints that its runs read.

    Attributes:
        everything_given: whether the planner also plans the rows that a table leaves out at a scale.
    """

    everything_given: bool

    def path(self, role: str) -> Path: ...

    def identity(self, role: str, *, labels: bool) -> Identity: ...

    def size(self, role: str, *, labelled: bool) -> int: ...

    def checkpoint(self, title: str, name: str) -> dict[str, Path]: ...

    def weights_fingerprint(self, name: str, path: Path) -> str: ...


class Everything:
    """Answers as if every dataset and checkpoint were given; the recipes of a plan do not depend on them."""

    everything_given = True

    def path(self, role: str) -> Path:
        del role
        return Path()

    def identity(self, role: str, *, labels: bool) -> Identity:
        del role, labels
        return Identity("")

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
        cache: where digests of files are remembered; None remembers nothing.
        progress: told how many files of how many are read, where that takes time.

    Raises:
        UserError: an unknown role, or data with errors.
    """

    everything_given = False

    def __init__(
        self,
        request: Request,
        toy: Callable[[], Path],
        *,
        cache: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.request, self.toy = request, functools.cache(toy)
        self.cache, self.progress = cache, progress
        self._identities: dict[tuple[str, bool], Identity] = {}
        self._weights: dict[str, str] = {}
        self._sizes: dict[tuple[str, bool], int] = {}
        self._datasets: dict[Path, Dataset] = {}
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
        if role == "captions" and "imagenet" in given:
            from mimbench.data.walk import is_there

            root = given["imagenet"].expanduser().resolve()
            if is_there(root / "captions.json", "captions"):
                return root
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

    def identity(self, role: str, *, labels: bool) -> Identity:
        """What a pretraining reads of a dataset, or a task (`labels`). Our own data: its version and seed."""
        if (role, labels) not in self._identities:
            if self._is_toy(role):
                from mimbench.data import toy

                found = Identity(toy.fingerprint(0, self.toy_size))
            else:
                found = self._on_disk(role).identity(
                    role,
                    labels=labels,
                    trust_stat=self.request.trust_stat,
                    progress=self.progress,
                )
            self._identities[role, labels] = found
        return self._identities[role, labels]

    def _on_disk(self, role: str) -> Dataset:
        root = self.path(role)
        if root not in self._datasets:
            from mimbench.data.dataset import Dataset

            self._datasets[root] = Dataset(root, self.cache, skip_corrupt=self.request.skip_corrupt)
        return self._datasets[root]

    def checkpoint(self, title: str, name: str) -> dict[str, Path]:
        """Name to path of the checkpoint given as --weights NAME. Raises Unavailable if it was not given."""
        if name not in self.request.weights:
            option = f"--weights {name}=PATH"
            raise Unavailable(f"{title} is not trained at this scale: give {option}", option)
        return {name: self.request.weights[name].resolve()}

    def weights_fingerprint(self, name: str, path: Path) -> str:
        """The fingerprint of the checkpoint given as --weights."""
        if name not in self._weights:
            self._weights[name] = file_digest(path, field=f"--weights {name}")
        return self._weights[name]

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
        return self._on_disk(role).count(role, labels=labelled)


def toy_images(size: str, role: str, *, labelled: bool) -> int:
    """How many training images the project's own data of that size has, made or not."""
    from mimbench.data import toy

    plan, classes = toy.PLANS[size], len(toy.CLASSES)
    if role in ("ade20k", "coco"):
        return plan.scenes_train
    return classes * plan.labelled_per_class if labelled else plan.train // classes * classes

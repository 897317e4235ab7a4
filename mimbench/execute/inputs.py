"""Checks before a run starts, and again when it ends, that its data and checkpoints are the planned ones."""

from __future__ import annotations

from mimbench import paths
from mimbench.atomic import file_digest
from mimbench.data import STAMP, toy
from mimbench.data.dataset import Dataset
from mimbench.data.toy import manifest
from mimbench.errors import UserError
from mimbench.store.folder import RunFolder
from mimbench.store.remarks import BY_STAMP, CONVERTED

WEIGHTS = "weights "  # how the roles of checkpoints begin
DIGITS = 32  # of an identity by content; shorter ones are of older versions, which cannot be checked
AGAIN = "Run the command again: it plans with the data as it is now."


class Changed(UserError):
    """What a run reads is not what the run was planned with.

    Attributes:
        what: the option, its path and the first changed file, if that is known.
    """

    def __init__(self, option: str, path: str, first: str = "") -> None:
        where = f" (first: {first})" if first else ""
        super().__init__(f"{option}, {path}", remedy=f"It has changed{where}. {AGAIN}")
        self.what = f"{option}, {path}{where}"


def check(folder: RunFolder) -> None:
    """Check what the run reads against its spec; decode, once, what it reads only at its end.

    Raises:
        Changed: it has changed. UserError: an image for the evaluation does not decode.
    """
    labels = folder.spec.stage == "downstream"
    for run in (folder, *folder.parents.values()):
        if run is folder or run.spec.stage == "teacher":  # a loaded teacher's file is read by each child
            _check_weights(run)
    for role, planned in folder.spec.data.items():
        if role.startswith(WEIGHTS):
            continue
        own = planned in (toy.fingerprint(0, size) for size in toy.PLANS)
        by_stamp = planned.startswith(STAMP)
        if not own and not by_stamp and len(planned) != DIGITS:
            continue
        dataset = Dataset(folder.data(role), paths.cache(), skip_corrupt=folder.spec.skip_corrupt)
        if own:
            manifest.check(dataset, role, planned, labels=labels)
            continue
        found = dataset.identity(role, labels=labels, trust_stat=by_stamp)
        if by_stamp:
            folder.details[BY_STAMP] = sorted(folder.spec.data)
        if found.digest != planned:
            first = dataset.changed(role, labels=labels)
            named = str(dataset.root / first) if first else ""
            raise Changed(f"--data {role}", str(dataset.root), named)
        dataset.require(role, labels=labels)
        if converted := dataset.conversions(role, labels=labels):
            folder.details[CONVERTED] = converted


def _check_weights(folder: RunFolder) -> None:
    """Raises Changed if a checkpoint given with --weights is not the one that the run was planned with."""
    for role, planned in folder.spec.data.items():
        if role.startswith(WEIGHTS):
            path = folder.weights[role.removeprefix(WEIGHTS)]
            if file_digest(path, field=f"--{role}") != planned:
                raise Changed(f"--{role}", str(path))

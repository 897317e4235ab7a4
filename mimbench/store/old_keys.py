"""What the keys of older versions counted of a run's data, and today's do not."""

from __future__ import annotations

import re

from mimbench.store.spec import RunSpec

OLD = re.compile(r"[0-9a-f]{16}")  # an identity by names and sizes; by content there are 32 digits
OWN_DIGITS = 64  # of the identity of the project's own data, which has not changed


def _data(spec: RunSpec) -> dict[str, str]:
    """The identities of its data by role, without checkpoints: their digests have always been by content."""
    return {role: told for role, told in spec.data.items() if not role.startswith("weights ")}


def unread(spec: RunSpec) -> set[str]:
    """The roles that a pretraining without a step does not read; older versions counted them."""
    return set(_data(spec)) if spec.stage == "pretrain" and spec.recipe.get("epochs") == 0 else set()


def old_roles(spec: RunSpec) -> list[str]:
    """The roles whose identity is by names and sizes."""
    old = {role for role, told in _data(spec).items() if OLD.fullmatch(told)}
    return sorted(old - unread(spec))


def skips(spec: RunSpec) -> bool:
    """Whether its key has skip_corrupt although it left nothing out: it reads our own data or none."""
    return spec.skip_corrupt and all(len(told) == OWN_DIGITS for told in _data(spec).values())

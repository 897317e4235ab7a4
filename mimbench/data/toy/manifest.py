"""The toy data's manifest: what its files held when they were made, so that damage is noticed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimbench.atomic import read_json, write_json
from mimbench.data.dataset import Dataset
from mimbench.data.files import ALGORITHM, hash_file
from mimbench.errors import UserError

NAME = "manifest.json"
ROLES = {"imagenet": ("imagenet", "captions"), "ade20k": ("ade20k",), "coco": ("coco",)}  # by folder


def write(root: Path) -> None:
    """Write the manifest of each dataset below `root`, which was just made."""
    for folder, roles in ROLES.items():
        place = root / folder
        files = {file: hash_file(str(place / file)).hex() for file in _files(place)}
        dataset = Dataset(place, cache=None)
        reads = {
            _stage(role, labels): dataset.identity(role, labels=labels).digest
            for role in roles
            for labels in (False, True)
        }
        write_json(place / NAME, {"algorithm": ALGORITHM, "reads": reads, "files": files})


def check(dataset: Dataset, role: str, fingerprint: str, *, labels: bool) -> None:
    """Check what a stage reads of the toy data.

    Args:
        fingerprint: of the data that the run was planned with.

    Raises:
        UserError: it is not as it was made; the message names the first file.
    """
    known: Any = read_json(dataset.root / NAME)
    stamp: Any = read_json(dataset.root / "toy.json")
    remedy = f"It is not as it was made. Delete {dataset.root.parent}; mimbench makes it again."
    if not isinstance(stamp, dict) or stamp.get("fingerprint") != fingerprint:
        raise UserError("toy data", str(dataset.root / "toy.json"), remedy=remedy)
    try:
        made, files = known["reads"][_stage(role, labels)], dict(known["files"])
    except (TypeError, KeyError, ValueError):
        place = str(dataset.root / NAME)
        raise UserError("toy data", place, remedy=f"It is damaged. {remedy}") from None
    with contextlib.suppress(UserError):  # a file is missing, or breaks a rule: it is named below
        if dataset.identity(role, labels=labels).digest == made:
            return
    raise UserError("toy data", str(dataset.root / _first_changed(dataset.root, files)), remedy=remedy)


def _first_changed(root: Path, files: Mapping[str, str]) -> str:
    """The first file that is not as the manifest says, relative to the root; else the manifest."""
    here = set(_files(root))
    for file in sorted(here | files.keys()):
        if file not in here:
            return file
        try:
            if hash_file(str(root / file)).hex() != files.get(file):
                return file
        except OSError:  # a loop of links
            return file
    return NAME


def _stage(role: str, labels: bool) -> str:
    return f"{role}, {'task' if labels else 'pretraining'}"


def _files(root: Path) -> list[str]:
    """Every file of the data itself, relative to the root."""
    found = (
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, names in os.walk(root)
        for name in names
        if name[0] != "." and name not in (NAME, "toy.json")
    )
    return sorted(found)

"""The toy data's manifest: what its files held when they were made, so that damage is noticed."""

from __future__ import annotations

import os
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
        if dataset.identity(role, labels=labels).digest == known["reads"][_stage(role, labels)]:
            return
        files = dict(known["files"])
    except UserError as error:  # a file is missing
        raise UserError("toy data", error.value, remedy=remedy) from None
    except (TypeError, KeyError, ValueError, AttributeError):
        raise UserError("toy data", str(dataset.root / NAME), remedy=f"It is damaged. {remedy}") from None
    here = set(_files(dataset.root))
    changed = sorted(
        file for file in here | files.keys()
        if file not in here or hash_file(str(dataset.root / file)).hex() != files.get(file)
    )  # fmt: skip
    place = dataset.root / changed[0] if changed else dataset.root
    raise UserError("toy data", str(place), remedy=remedy)


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

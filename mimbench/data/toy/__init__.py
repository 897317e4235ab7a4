"""The toy data: textured shapes on textured grounds, seeded, in the real on-disk formats.

A class is a shape AND a texture (striped disc, checked cross, ...). Colours are drawn independently of the
class, and all shapes have the same area, so colour and size do not give the class away. Few images are
labelled, so that pretraining on the others can help.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mimbench.atomic import RANDOM, naming, write_json
from mimbench.errors import UserError

SHAPES = ("cross", "disc", "square", "triangle")
TEXTURES = ("checked", "dotted", "striped")
GROUNDS = ("cloudy", "noisy", "smooth")
CLASSES = tuple(f"{texture}-{shape}" for texture in TEXTURES for shape in SHAPES)  # sorted
LABELS = (*(f"{kind} ground" for kind in GROUNDS), *CLASSES)  # ADE20K labels 1, 2, ...; 0 is 'other'
VERSION = 1  # of the toy data: raise it if any image, label or caption changes
PUBLISHED = {  # fingerprints of version 1: results with them exist
    (1, 0, "toy"): "b1ef514571eb03f9a5e7cbcf3bc15d387c96bda3c58bff60c0057557ab9bbc5d",
    (1, 0, "smoke"): "2662b04c8d94b3d73f70abfcfb82e8b1241170350a0a0f5401d6ac2535808629",
}


class Plan(NamedTuple):
    """Numbers and sizes (pixels) of what is made; image counts are divisible by the number of classes."""

    img_size: int
    train: int
    val: int
    labelled_per_class: int
    scene_size: int
    scenes_train: int
    scenes_val: int


PLANS = {
    "toy": Plan(64, 3000, 1200, 20, 96, 500, 200),
    "smoke": Plan(32, 48, 24, 2, 64, 8, 4),
}


def ensure(root: Path, seed: int = 0, size: Literal["toy", "smoke"] = "toy") -> Path:
    """Make the toy data under `root` (`imagenet/`, `ade20k/`, `coco/`) unless it is there; return `root`.

    The folder appears complete or not at all, also if two processes make it at once. Data that an older
    version made with the same seed and size is replaced.

    Raises:
        UserError: the size is unknown, or `root` holds something else, also toy data of another seed or size.
    """
    from filelock import FileLock

    from mimbench.data.files import ALGORITHM
    from mimbench.data.toy import make, manifest

    if size not in PLANS:
        raise UserError("size", size, allowed=PLANS)
    root = Path(root)
    stamp = {"fingerprint": fingerprint(seed, size), "seed": seed, "size": size, "manifest": ALGORITHM}
    if _stamp_of(root) == stamp:
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.parent / f".{root.name}.lock"):
        if _stamp_of(root) == stamp:
            return root
        there = _stamp_of(root)
        if there is None and root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UserError("toy data folder", str(root), remedy="It is not empty; name a new folder.")
        if there and (there.get("seed"), there.get("size")) != (seed, size):
            what = f"It holds the {there.get('size')} data of seed {there.get('seed')}"
            remedy = f"{what}; delete it, or name a new folder for the {size} data of seed {seed}."
            raise UserError("toy data folder", str(root), remedy=remedy)
        for abandoned in root.parent.glob(f".{root.name}.*"):  # by a killed process: we hold the lock
            if re.fullmatch(rf"\.{re.escape(root.name)}\.{RANDOM}", abandoned.name):
                shutil.rmtree(abandoned)
        # Inside the temporary folder, which is private: the data itself must get ordinary permissions.
        with naming(root), tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as workshop:
            made = Path(workshop) / "new"
            make.make(made, PLANS[size], seed)
            manifest.write(made)
            for folder in (made / "imagenet", made / "ade20k", made / "coco", made):
                write_json(folder / "toy.json", stamp)
            if root.exists():
                root.rename(Path(workshop) / "old")
            made.rename(root)
    return root


def fingerprint(seed: int, size: str) -> str:
    """SHA-256 of what determines the data: the version, the seed and the size."""
    name = (VERSION, seed, size)
    return PUBLISHED.get(name) or hashlib.sha256(repr(name).encode()).hexdigest()


def _stamp_of(root: Path) -> dict[str, Any] | None:
    try:
        return json.loads((root / "toy.json").read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None

"""The toy data: textured shapes on textured grounds, seeded, in the real on-disk formats.

A class is a shape AND a texture (striped disc, checked cross, ...). Colours are drawn independently of the
class, and all shapes have the same area, so colour and size do not give the class away. Few images are
labelled, so that pretraining on the others can help.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

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


def fingerprint(seed: int, size: str) -> str:
    """SHA-256 of what determines the data: the version, the seed and the size."""
    name = (VERSION, seed, size)
    return PUBLISHED.get(name) or hashlib.sha256(repr(name).encode()).hexdigest()

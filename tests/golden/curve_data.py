"""A small data set for the golden curves: the same pixels on every platform.

Blocks of random colour with grains and simple shapes, drawn by NumPy in whole numbers and written as PNG:
JPEG files, and what they decode to, differ between builds of libjpeg. The layouts are the real ones
(ImageFolder with captions and a list of labelled images, ADE20K, COCO).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image

SHAPES = {  # corners (x, y) in quarters of the radius, clockwise in an image
    "bar": [(-4, -1), (4, -1), (4, 1), (-4, 1)],
    "diamond": [(0, -4), (4, 0), (0, 4), (-4, 0)],
    "square": [(-3, -3), (3, -3), (3, 3), (-3, 3)],
    "triangle": [(0, -4), (4, 4), (-4, 4)],
}
FILLS = ("plain", "striped")
CLASSES = tuple(f"{fill}-{shape}" for fill in FILLS for shape in SHAPES)  # sorted
COLOURS = {  # one for each class, which most of its objects have, so that twenty steps learn something
    "blue": (30, 60, 230), "cyan": (20, 220, 230), "green": (20, 200, 40), "grey": (128, 128, 128),
    "pink": (240, 130, 200), "red": (230, 30, 30), "white": (245, 245, 245), "yellow": (240, 220, 20),
}  # fmt: skip
GROUNDS = {"dark ground": (10, 90), "light ground": (130, 220)}  # ADE20K labels 1 and 2: least and greatest
TRAIN, LABELLED, VAL = 6, 3, 6  # images of a class
SCENES = {"train": 8, "val": 12}
TRAINED_ON = {  # role to the images that a run trains on; a task on ImageNet uses the labelled ones
    "imagenet": LABELLED * len(CLASSES),
    "captions": TRAIN * len(CLASSES),
    "ade20k": SCENES["train"],
    "coco": SCENES["train"],
}
IMAGENET, ADE20K, COCO = (36, 40), (64, 80), (48, 64)  # height, width; the tasks evaluate scenes unresized


def make(root: Path) -> Path:
    """Write `imagenet/`, `ade20k/` and `coco/` under `root`; returns it."""
    make_imagenet(root / "imagenet")
    make_ade20k(root / "ade20k")
    make_coco(root / "coco")
    return root


def make_imagenet(root: Path) -> None:
    captions, labelled = {}, []
    for split, (name, count) in enumerate({"train": TRAIN, "val": VAL}.items()):
        for label, class_name in enumerate(CLASSES):
            (root / name / class_name).mkdir(parents=True)
            for index in range(count):
                rng = np.random.default_rng((split, label, index))
                image, colour = ground(rng, *IMAGENET), colour_of(rng, label)
                corners = outline(rng, label, *IMAGENET, radius=rng.integers(9, 14))
                paint(rng, image, corners, label, colour)
                path = f"{name}/{class_name}/{index}.png"
                save(image, root / path)
                captions[path] = f"a {colour} {class_name.replace('-', ' ')}"
                if name == "train" and index < LABELLED:
                    labelled.append(path)
    (root / "captions.json").write_text(json.dumps(captions))
    (root / "train_labelled.txt").write_text("\n".join(labelled) + "\n")


def make_ade20k(root: Path) -> None:
    for split, (name, folder) in enumerate({"train": "training", "val": "validation"}.items()):
        for index in range(SCENES[name]):
            image, labels, objects = scene(np.random.default_rng((10 + split, index)), *ADE20K)
            for label, corners in objects:
                labels[inside(corners, *ADE20K)] = 1 + len(GROUNDS) + label
            labels[:2] = 0  # other
            # A PNG file, too: mmsegmentation wants this suffix, and what decodes looks at the content.
            save(image, root / "images" / folder / f"{index}.jpg")
            save(labels, root / "annotations" / folder / f"{index}.png")
    (root / "classes.txt").write_text("\n".join((*GROUNDS, *SHAPES)) + "\n")


def make_coco(root: Path) -> None:
    categories = [{"id": 3 * label + 1, "name": name} for label, name in enumerate(SHAPES)]
    for split, (name, count) in enumerate(SCENES.items()):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            image, _, objects = scene(np.random.default_rng((20 + split, index)), *COCO)
            save(image, root / f"{name}2017" / f"{index}.png")
            images.append({"id": index, "file_name": f"{index}.png", "height": COCO[0], "width": COCO[1]})
            for label, corners in objects:
                ids = {"id": len(annotations) + 1, "image_id": index, "category_id": 3 * label + 1}
                annotations.append({**ids, **annotation(corners)})
        document = {"images": images, "annotations": annotations, "categories": categories}
        file = root / "annotations" / f"instances_{name}2017.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document))


def annotation(corners: np.ndarray) -> dict[str, Any]:
    """One object as COCO writes it: a polygon, its box as x, y, width, height, and its area."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    return {
        "iscrowd": 0,
        "area": int(inside(corners, *COCO).sum()),
        "bbox": [*low.tolist(), *(high - low).tolist()],
        "segmentation": [corners.ravel().tolist()],
    }


def scene(
    rng: Generator, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, np.ndarray]]]:
    """An image `[H, W, 3]`, the labels `[H, W]` of its two grounds, and shape and corners of its objects."""
    left, right = (ground(rng, height, width, *bounds) for bounds in GROUNDS.values())
    labels = np.ones((height, width), dtype=np.uint8)
    labels[:, rng.integers(width // 4, width - width // 4) :] = 2
    image = np.where(labels[..., None] == 1, left, right)
    objects = []
    for _ in range(rng.integers(1, 3)):
        label = int(rng.integers(len(SHAPES)))
        corners = outline(rng, label, height, width, radius=rng.integers(14, 22))
        paint(rng, image, corners, label, colour_of(rng, label))
        objects.append((label, corners))
    return image, labels, objects


def ground(rng: Generator, height: int, width: int, low: int = 60, high: int = 196) -> np.ndarray:
    """Blocks of random colour, four pixels a side, with grains: `[H, W, 3]` of uint8."""
    blocks = rng.integers(low, high, (height // 4, width // 4, 3)).repeat(4, axis=0).repeat(4, axis=1)
    return (blocks + grains(rng, height, width)).astype(np.uint8)


def grains(rng: Generator, height: int, width: int) -> np.ndarray:
    """Noise that makes all patches differ: of two equal ones, rounding decides which is matched first."""
    return rng.integers(-10, 10, (height, width, 3))


def colour_of(rng: Generator, label: int) -> str:
    """The class's colour for two objects out of three, any for the third."""
    return list(COLOURS)[label if rng.integers(3) else rng.integers(len(COLOURS))]


def outline(rng: Generator, label: int, height: int, width: int, radius: int) -> np.ndarray:
    """The corners `[K, 2]`, x before y, of an object that lies within the image."""
    centre = rng.integers(radius, (width - radius, height - radius))
    return centre + np.array(SHAPES[CLASSES[label].split("-")[1]]) * radius // 4


def inside(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """Which pixels `[H, W]` lie in the convex polygon."""
    y, x = np.mgrid[:height, :width]
    edges = zip(corners, np.roll(corners, -1, axis=0), strict=True)
    return np.all([(bx - ax) * (y - ay) >= (by - ay) * (x - ax) for (ax, ay), (bx, by) in edges], axis=0)


def paint(rng: Generator, image: np.ndarray, corners: np.ndarray, label: int, colour: str) -> None:
    """Paint an object over the image; of a striped one every other pair of rows."""
    height, width, _ = image.shape
    mask = inside(corners, height, width)
    if CLASSES[label].startswith("striped"):
        mask &= (np.arange(height) // 2 % 2 == 0)[:, None]
    image[mask] = (COLOURS[colour] + grains(rng, height, width))[mask]


def save(pixels: np.ndarray, path: Path) -> None:
    """As PNG, whatever the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")

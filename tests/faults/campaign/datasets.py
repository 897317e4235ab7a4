"""Small sound datasets of each format, drawn from a generator, and what a run reads of a dataset."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from mimbench.errors import UserError

CLASSES = ("bar", "disc", "Ring", "star é", "tree")


def picture(draw: Random, width: int, height: int) -> Image.Image:
    """A smooth picture without symmetry, so that a turned one differs and JPEG keeps it."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    a, b, c = (draw.uniform(0.2, 1.0) for _ in range(3))
    pixels = np.stack([255 * a * x, 255 * b * y, 255 * c * x * (1 - y)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def imagenet(root: Path, draw: Random) -> None:
    """`<split>/<class>/<image>`, with a list of labelled images in one of its spellings, or without."""
    listed = []
    for split, count in (("train", 4), ("val", 2)):
        for name in CLASSES[: draw.randint(3, 4)] if split == "train" else sorted(_folders(root / "train")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                side = draw.randint(24, 40)
                picture(draw, side, draw.randint(24, 40)).save(
                    root / split / name / f"{split}_{name[0]}{index}.jpg"
                )
                if split == "train" and index < 2:
                    listed.append(
                        draw.choice([f"train/{name}/", f"{name}/", ""]) + f"{split}_{name[0]}{index}.jpg"
                    )
    if draw.random() < 0.6:
        (root / "train_labelled.txt").write_text("\n".join(listed) + "\n")


def captions(root: Path, draw: Random) -> None:
    imagenet(root, draw)
    text = {
        path.relative_to(root).as_posix(): f"a {path.parent.name} number {index}"
        for index, path in enumerate(sorted((root / "train").rglob("*.jpg")))
    }
    (root / "captions.json").write_text(json.dumps(text, indent=1))


def ade20k(root: Path, draw: Random) -> None:
    count = draw.randint(3, 6)
    for split, images in (("training", 4), ("validation", 3)):
        for part in ("images", "annotations"):
            (root / part / split).mkdir(parents=True)
        for index in range(images):
            width, height = draw.randint(34, 60), draw.randint(34, 60)
            picture(draw, width, height).save(root / "images" / split / f"{index:03}.jpg", quality=95)
            labels = np.zeros((height, width), np.uint8)
            for label in range(1, count + 1):
                labels[draw.randrange(height) :, draw.randrange(width) :] = label
            labels[0, : count + 1] = range(count + 1)
            Image.fromarray(labels).save(root / "annotations" / split / f"{index:03}.png")
    (root / "classes.txt").write_text("".join(f"class {index}\n" for index in range(count)))


def coco(root: Path, draw: Random) -> None:
    categories = [{"id": 3 * index + 1, "name": name} for index, name in enumerate(CLASSES[:3])]
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train", 4), ("val", 3)):
        (root / f"{split}2017").mkdir()
        document: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
        for index in range(count):
            width, height = draw.randint(48, 64), draw.randint(48, 64)
            name = f"{split}_{index}.jpg"
            picture(draw, width, height).save(root / f"{split}2017" / name, quality=95)
            document["images"].append({"id": 10 + index, "file_name": name, "width": width, "height": height})
            for _ in range(2):
                x, y, w, h = (
                    draw.randint(1, 20),
                    draw.randint(1, 20),
                    draw.randint(9, 24),
                    draw.randint(9, 24),
                )
                document["annotations"].append({
                    "id": len(document["annotations"]) + 1, "image_id": 10 + index,
                    "category_id": draw.choice(categories)["id"], "bbox": [x, y, w, h], "area": w * h,
                    "iscrowd": 0, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                })  # fmt: skip
        source(root, split).write_text(json.dumps(document))


MAKERS: dict[str, Callable[[Path, Random], None]] = {
    "imagenet": imagenet, "captions": captions, "ade20k": ade20k, "coco": coco,
}  # fmt: skip
WORDS = {
    "imagenet": ("run", "scratch", "classification"),
    "captions": ("run", "dtm"),
    "ade20k": ("run", "scratch", "segmentation"),
    "coco": ("run", "scratch", "detection"),
}


def command(role: str, root: Path) -> tuple[str, ...]:
    folder = "imagenet" if role == "captions" else role
    return (*WORDS[role], "--scale", "smoke", "--data", f"{folder}={root}")


def source(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}2017.json"


def _folders(path: Path) -> list[str]:
    return [each.name for each in path.iterdir() if each.is_dir()]


@dataclass
class Read:
    """What the readers of a run give for a dataset.

    Attributes:
        images: relative path to pixels, [H, W, 3] of uint8. labels: relative path of the image to its class,
            or its label map. order: of ImageNet's images, with those that are listed twice.
            documents: COCO's annotations by split.
        error: of the first reader that raised; crash: if that was no error of the user's.
    """

    images: dict[str, np.ndarray] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: str = ""
    crash: str = ""


def read(role: str, root: Path) -> Read:
    """Read everything that a run reads, with the run's own readers."""
    found = Read()
    try:
        {"imagenet": _read_folders, "captions": _read_folders, "ade20k": _read_ade, "coco": _read_coco}[role](
            root, found, role
        )
    except UserError as error:
        found.error = str(error)
    except Exception as error:  # of whatever library reads it
        found.error = found.crash = "".join(traceback.format_exception(error)[-2:])
    return found


def _read_folders(root: Path, found: Read, role: str) -> None:
    from mimbench.data.image_folder import CaptionedImages, ImageFolder

    labels = role == "imagenet"
    for split in ("train", "val") if labels else ("train",):
        folder = ImageFolder(root, split, labelled=labels)
        for index in range(len(folder)):
            found.images[folder.name(index)] = np.asarray(folder.load(index))
            found.labels[folder.name(index)] = folder.classes[folder.samples[index][1]]
            found.order.append(folder.name(index))
        if not labels:
            texts = CaptionedImages(folder, lambda image: image).captions
            found.labels = {folder.name(index): text for index, text in enumerate(texts)}


def _read_ade(root: Path, found: Read, role: str) -> None:
    from downstream.openmmlab import LoadImage
    from downstream.segmentation import build_dataset
    from mimbench import catalog

    recipe = catalog.task("segmentation").recipes()["smoke"]
    for split in ("training", "validation"):
        dataset = build_dataset(root, split, recipe)
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            name = str(Path(info["img_path"]).relative_to(root))
            shown = LoadImage()(dict(info))
            found.images[name] = shown["img"][:, :, ::-1]
            (loader,) = (step for step in dataset.pipeline.transforms if type(step).__name__ == "LoadLabels")
            found.labels[name] = loader({**shown, "seg_fields": []})["gt_seg_map"]
            dataset[index]


def _read_coco(root: Path, found: Read, role: str) -> None:
    from downstream.detection import build_dataset
    from downstream.openmmlab import LoadImage
    from mimbench import catalog

    recipe = catalog.task("detection").recipes()["smoke"]
    for split in ("train", "val"):
        dataset = build_dataset(root, split, recipe)
        found.documents[split] = dataset.document
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            name = str(Path(info["img_path"]).relative_to(root))
            found.images[name] = LoadImage()(dict(info))["img"][:, :, ::-1]
            dataset[index]

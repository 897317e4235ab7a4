"""Writes the toy data: the drawn images in the formats of ImageNet, ADE20K and COCO."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from PIL import Image

from mimbench.atomic import RANDOM, naming, write_json
from mimbench.data.files import ALGORITHM
from mimbench.data.toy import CLASSES, LABELS, PLANS, VERSION, Plan, fingerprint, manifest
from mimbench.data.toy.draw import draw_image, draw_scene
from mimbench.errors import UserError


def ensure(root: Path, seed: int = 0, size: Literal["toy", "smoke"] = "toy") -> Path:
    """Make the toy data under `root` (`imagenet/`, `ade20k/`, `coco/`) unless it is there; return `root`.

    The folder appears complete or not at all, also if two processes make it at once. Data that an older
    version made with the same seed and size is replaced.

    Raises:
        UserError: the size is unknown, or `root` holds something else, also toy data of another seed or size.
    """
    if size not in PLANS:
        raise UserError("size", size, allowed=PLANS)
    root = Path(root)
    stamp = {"fingerprint": fingerprint(seed, size), "seed": seed, "size": size, "manifest": ALGORITHM}
    if _stamp_of(root) == stamp:
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with _lock(root.parent / f".{root.name}.lock"):
        if _stamp_of(root) == stamp:
            return root
        there = _stamp_of(root)
        if there is None and root.exists() and (not root.is_dir() or any(root.iterdir())):
            remedy = "It is not empty, and has no toy.json. Delete it, or name a new folder."
            raise UserError("toy data folder", str(root), remedy=remedy)
        if there and (there.get("seed"), there.get("size")) != (seed, size):
            what = f"It holds the {there.get('size')} data of seed {there.get('seed')}, as its toy.json says"
            remedy = f"{what}; delete it, or name a new folder for the {size} data of seed {seed}."
            raise UserError("toy data folder", str(root), remedy=remedy)
        for abandoned in root.parent.glob(f".{root.name}.*"):  # by a killed process: we hold the lock
            if re.fullmatch(rf"\.{re.escape(root.name)}\.{RANDOM}", abandoned.name):
                shutil.rmtree(abandoned)
        # Inside the temporary folder, which is private: the data itself must get ordinary permissions.
        with naming(root), tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as workshop:
            made = Path(workshop) / "new"
            make(made, PLANS[size], seed)
            manifest.write(made)
            for folder in (made / "imagenet", made / "ade20k", made / "coco", made):
                write_json(folder / "toy.json", stamp)
            if root.exists():
                root.rename(Path(workshop) / "old")
            made.rename(root)
    return root


@contextlib.contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Hold a lock, and leave no file: the folder is the user's.

    The file is deleted while the lock is held. Processes that wait for it notice that, and lock a new file.
    """
    with FileLock(file):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                file.unlink()


def _stamp_of(root: Path) -> dict[str, Any] | None:
    """What toy.json says; None without that file. Raises UserError if it is damaged."""
    file, found = root / "toy.json", None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError):
        pass
    if isinstance(found, dict) and {"fingerprint", "seed", "size"} <= found.keys():
        return found
    remedy = f"It is damaged. Delete {root}; mimbench makes it again."
    raise UserError("toy data", str(file), remedy=remedy)


def make(root: Path, plan: Plan, seed: int) -> None:
    """Write the three datasets into `root`, which is not there yet."""
    _make_imagenet(root / "imagenet", plan, seed)
    _make_ade20k(root / "ade20k", plan, seed)
    _make_coco(root / "coco", plan, seed)


def _make_imagenet(root: Path, plan: Plan, seed: int) -> None:
    captions: dict[str, str] = {}
    labelled: list[str] = []
    for split, (name, count) in enumerate({"train": plan.train, "val": plan.val}.items()):
        for label, class_name in enumerate(CLASSES):
            folder = root / name / class_name
            folder.mkdir(parents=True)
            for index in range(count // len(CLASSES)):
                rng = np.random.default_rng((seed, split, label, index))
                image, caption = draw_image(rng, plan.img_size, label)
                image.save(folder / f"{index:04d}.jpg", quality=92)
                if name == "train":
                    captions[f"train/{class_name}/{index:04d}.jpg"] = caption
                    if index < plan.labelled_per_class:
                        labelled.append(f"train/{class_name}/{index:04d}.jpg")
    (root / "train_labelled.txt").write_text("\n".join(labelled) + "\n")
    write_json(root / "captions.json", captions)


def _make_ade20k(root: Path, plan: Plan, seed: int) -> None:
    counts = {"training": plan.scenes_train, "validation": plan.scenes_val}
    for split, (name, count) in enumerate(counts.items()):
        images, annotations = root / "images" / name, root / "annotations" / name
        images.mkdir(parents=True)
        annotations.mkdir(parents=True)
        for index in range(count):
            scene = draw_scene(np.random.default_rng((seed, 10 + split, index)), plan.scene_size)
            scene.image.save(images / f"toy_{index:05d}.jpg", quality=92)
            Image.fromarray(scene.labels).save(annotations / f"toy_{index:05d}.png")
    (root / "classes.txt").write_text("\n".join(LABELS) + "\n")


def _make_coco(root: Path, plan: Plan, seed: int) -> None:
    categories = [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES, 1)]
    (root / "annotations").mkdir(parents=True)
    for split, (name, count) in enumerate({"train": plan.scenes_train, "val": plan.scenes_val}.items()):
        (root / f"{name}2017").mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            scene = draw_scene(np.random.default_rng((seed, 20 + split, index)), plan.scene_size)
            image_id = split * 100_000 + index + 1
            file_name = f"{image_id:012d}.jpg"
            scene.image.save(root / f"{name}2017" / file_name, quality=92)
            side = {"width": plan.scene_size, "height": plan.scene_size}
            images.append({"id": image_id, "file_name": file_name, "license": 1, **side})
            for label, mask in scene.instances:
                ids = {"id": len(annotations) + 1, "image_id": image_id}
                annotations.append({**ids, **_annotation(label, mask)})
        document = {
            "info": {"description": f"mimbench toy scenes, seed {seed}", "version": str(VERSION)},
            "licenses": [
                {"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}
            ],
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
        (root / "annotations" / f"instances_{name}2017.json").write_text(json.dumps(document))


def _annotation(label: int, mask: np.ndarray) -> dict[str, Any]:
    """One instance as COCO writes it: uncompressed column-major run lengths, box as x, y, width, height."""
    flat = np.concatenate([[0], mask.ravel(order="F"), [0]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(flat))  # where runs of 0 and 1 end, in turn, beginning with 0
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = float(columns[0]), float(rows[0])
    return {
        "category_id": label + 1,
        "iscrowd": 0,
        "area": float(mask.sum()),
        "bbox": [x, y, float(columns[-1]) + 1 - x, float(rows[-1]) + 1 - y],
        "segmentation": {"size": list(mask.shape), "counts": [int(n) for n in counts]},
    }

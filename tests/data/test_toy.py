"""Toy data: the same from the same seed, in the real formats, and not solvable by colour."""

from __future__ import annotations

import hashlib
import json
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimbench.data import toy
from mimbench.data.toy import draw
from mimbench.data.toy.make import _lock, ensure
from mimbench.errors import UserError


def digest(root: Path) -> dict[str, str]:
    return {
        file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(root.rglob("*"))
        if file.is_file()
    }


def test_same_seed_gives_the_same_files(smoke_data: Path, tmp_path: Path) -> None:
    again = digest(ensure(tmp_path / "again", size="smoke"))
    assert again == digest(smoke_data)
    other = digest(ensure(tmp_path / "other", seed=1, size="smoke"))
    assert set(other) == set(again)
    assert all(other[name] != again[name] for name in again if name.endswith((".jpg", "toy.json")))


def test_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ensure(tmp_path / "toy", size="smoke")
    (root / "imagenet" / "mark").touch()
    ensure(root, size="smoke")
    assert (root / "imagenet" / "mark").exists()
    with pytest.raises(UserError, match="holds the smoke data of seed 0"):
        ensure(root, seed=1, size="smoke")  # other data is not lost
    assert (root / "imagenet" / "mark").exists()
    monkeypatch.setattr(toy, "VERSION", toy.VERSION + 1)
    ensure(root, size="smoke")  # what an older version made is replaced as a whole
    assert not (root / "imagenet" / "mark").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy"]


def test_a_change_of_what_is_drawn_raises_the_version(smoke_data: Path) -> None:
    """Runs are named after the version: where this fails, raise VERSION and pin what is made now."""
    labels = hashlib.sha256()
    for name in ("captions.json", "train_labelled.txt"):
        labels.update((smoke_data / "imagenet" / name).read_bytes())
    means = [
        round(float(np.asarray(Image.open(file).convert("RGB")).mean()))
        for folder in ("imagenet/val", "ade20k/images", "ade20k/annotations", "coco/val2017")
        for file in sorted((smoke_data / folder).rglob("*.*"))[:4]
    ]
    boxes = json.loads((smoke_data / "coco" / "annotations" / "instances_val2017.json").read_text())
    areas = [round(item["bbox"][2] * item["bbox"][3]) for item in boxes["annotations"][:8]]
    assert (toy.VERSION, labels.hexdigest()[:16]) == (1, "36ac13743cc4f025")
    assert means == pytest.approx(
        [122, 130, 114, 109, 123, 125, 109, 96, 5, 6, 3, 6, 88, 147, 132, 120], abs=1
    )
    assert areas == pytest.approx([361, 256, 342, 440, 324, 625, 260, 315], rel=0.02)


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2) as pool:
        jobs = [pool.submit(ensure, tmp_path / "toy", 0, "smoke") for _ in range(2)]
        assert [job.result() for job in jobs] == [tmp_path / "toy"] * 2
    assert json.loads((tmp_path / "toy" / "toy.json").read_text())["size"] == "smoke"


def _count_up(folder: Path) -> None:
    for _ in range(20):
        with _lock(folder / ".lock"):
            count = int((folder / "count").read_text())
            time.sleep(0.001)
            (folder / "count").write_text(str(count + 1))


def test_a_lock_whose_file_is_deleted_still_excludes(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    with ProcessPoolExecutor(3) as pool:
        for job in [pool.submit(_count_up, tmp_path) for _ in range(3)]:
            job.result()
    assert (tmp_path / "count").read_text() == "60"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_refuses_a_folder_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty"):
        ensure(tmp_path, size="smoke")
    assert (tmp_path / "thesis.tex").exists()


def test_unknown_size_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'smoke'"):
        ensure(tmp_path / "toy", size="smok")  # type: ignore[arg-type]


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mimbench.data.toy.make.draw_scene", full_disk)
    with pytest.raises(OSError, match="No space") as caught:
        ensure(tmp_path / "toy", size="smoke")
    assert caught.value.filename == str(tmp_path / "toy")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    left = [tmp_path / ".toy.k1ll_ed0" / "new" / "imagenet", tmp_path / ".toy.an0ther_"]
    others = [tmp_path / ".toy.x.k1ll_ed0", tmp_path / ".toys.k1ll_ed0", tmp_path / ".toy.notes"]
    for folder in (*left, *others):
        folder.mkdir(parents=True)
    ensure(tmp_path / "toy", size="smoke")
    kept = {"toy", *(folder.name for folder in others)}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_labelled_subset_is_balanced_and_captions_are_complete(smoke_data: Path) -> None:
    root = smoke_data / "imagenet"
    labelled = (root / "train_labelled.txt").read_text().split()
    plan = toy.PLANS["smoke"]
    assert len(set(labelled)) == len(toy.CLASSES) * plan.labelled_per_class
    assert {Path(name).parent.name for name in labelled} == set(toy.CLASSES)
    captions = json.loads((root / "captions.json").read_text())
    images = {path.relative_to(root).as_posix() for path in (root / "train").rglob("*.jpg")}
    assert set(captions) == images and len(images) == plan.train
    for name, caption in captions.items():
        texture, shape = Path(name).parent.name.split("-")
        assert any(word in caption for word in draw.SYNONYMS[texture])
        assert any(word in caption for word in draw.SYNONYMS[shape])


def test_coco_reads_the_scenes_back(smoke_data: Path) -> None:
    from pycocotools.coco import COCO

    coco = COCO(smoke_data / "coco" / "annotations" / "instances_train2017.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(toy.CLASSES)
    covered = {image_id: np.zeros((64, 64), dtype=int) for image_id in coco.getImgIds()}
    for entry in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(entry)
        covered[entry["image_id"]] += mask
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, w, h = entry["bbox"]
        assert (x, y, x + w, y + h) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert mask.sum() == entry["area"] >= draw.MIN_VISIBLE
    assert all(count.max() == 1 for count in covered.values()), (
        "masks show what is visible: no pixel has two objects"
    )


@pytest.mark.parametrize("index", range(8))
def test_labels_agree_with_instances(index: int) -> None:
    scene = draw.draw_scene(np.random.default_rng(index), 96)
    assert 1 <= len(scene.instances) <= 5
    for label, mask in scene.instances:
        assert (scene.labels[mask] == toy.LABELS.index(toy.CLASSES[label]) + 1).all()
    grounds = set(np.unique(scene.labels)) & {1, 2, 3}
    assert 1 <= len(grounds) <= 2


def test_ade20k_labels(smoke_data: Path) -> None:
    names = (smoke_data / "ade20k" / "classes.txt").read_text().splitlines()
    assert names == list(toy.LABELS) and len(names) == 15
    for path in (smoke_data / "ade20k" / "annotations").rglob("*.png"):
        labels = np.asarray(Image.open(path))
        assert labels.dtype == np.uint8 and labels.max() <= len(names)


def colour_features(image: Image.Image) -> np.ndarray:
    """Mean and spread of each channel, a 4x4x4 histogram, and the same histogram sorted."""
    pixels = np.asarray(image).astype(int).reshape(-1, 3)
    histogram = np.bincount((pixels // 64) @ [16, 4, 1], minlength=64) / len(pixels)
    return np.concatenate([pixels.mean(0), pixels.std(0), histogram, np.sort(histogram)])


def ridge_accuracy(features: np.ndarray, labels: np.ndarray, num_train: int) -> float:
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    features = np.c_[features, np.ones(len(features))]
    x, y = features[:num_train], np.eye(len(toy.CLASSES))[labels[:num_train]]
    weights = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ y)
    return float(((features[num_train:] @ weights).argmax(1) == labels[num_train:]).mean())


def test_colour_does_not_give_the_class() -> None:
    labels = np.arange(1200) % len(toy.CLASSES)
    images = [
        draw.draw_image(np.random.default_rng((7, i)), 64, int(label))[0] for i, label in enumerate(labels)
    ]
    features = np.stack([colour_features(image) for image in images])
    accuracy = ridge_accuracy(features, labels, 800)
    assert accuracy < 1 / 12 + 4 * np.sqrt(1 / 12 * 11 / 12 / 400)  # chance + 4 standard deviations
    leak = (
        features[:, :1] + 40 * labels[:, None]
    )  # the probe itself can see a colour that depends on the class
    assert ridge_accuracy(np.c_[features, leak, leak**2], labels, 800) > 0.2

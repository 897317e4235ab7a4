"""A dataset's identity: it changes with what a stage reads, and with nothing else."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimbench.data import STAMP, files, look, memory
from mimbench.data.dataset import Dataset
from mimbench.errors import UserError

OLD = 1_600_000_000  # a time of modification that is trusted


@pytest.fixture
def root(smoke_data: Path, tmp_path: Path) -> Path:
    shutil.copytree(smoke_data, tmp_path / "data")
    return age(tmp_path / "data")


def age(root: Path) -> Path:
    """Give every file the same old time."""
    for file in root.rglob("*"):
        os.utime(file, (OLD, OLD))
    return root


def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take files for old that were made just now: nobody can set back the time of change."""
    monkeypatch.setattr(memory, "FRESH_NS", 0)


def digest(
    root: Path, role: str, labels: bool, cache: Path | None = None, *, skip: bool = False, trust: bool = False
) -> str:
    found = Dataset(root / FOLDERS[role], cache, skip_corrupt=skip)
    return found.identity(role, labels=labels, trust_stat=trust).digest


FOLDERS = {"imagenet": "imagenet", "captions": "imagenet", "ade20k": "ade20k", "coco": "coco"}
EVERY = [(role, labels) for role in FOLDERS for labels in (False, True)]


def rewrite(file: Path) -> None:
    """Other content of the same size, with the same time of modification."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    stamp = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def first(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[0]


READ = {  # what is changed: which stages read it
    "imagenet/train/*/*.jpg": {
        ("imagenet", False),
        ("captions", False),
        ("imagenet", True),
        ("captions", True),
    },
    "imagenet/val/*/*.jpg": {("imagenet", True), ("captions", True)},
    "imagenet/train_labelled.txt": {("imagenet", True), ("captions", True)},
    "imagenet/captions.json": {("captions", False), ("captions", True)},
    "ade20k/images/training/*.jpg": {("ade20k", False), ("ade20k", True)},
    "ade20k/annotations/validation/*.png": {("ade20k", False), ("ade20k", True)},
    "ade20k/classes.txt": {("ade20k", False), ("ade20k", True)},
    "coco/val2017/*.jpg": {("coco", False), ("coco", True)},
    "coco/annotations/instances_train2017.json": {("coco", False), ("coco", True)},
}


@pytest.mark.parametrize("pattern", READ)
def test_content_that_a_stage_reads_decides(root: Path, pattern: str) -> None:
    before = {stage: digest(root, *stage) for stage in EVERY}
    if pattern.endswith(("txt", "json")):
        file = first(root, pattern)
        file.write_text(file.read_text() + "\n")
        labelled = file.name == "train_labelled.txt"
        assert labelled or file.stat().st_size > 0
    else:
        rewrite(first(root, pattern))
    after = {stage: digest(root, *stage) for stage in EVERY}
    assert {stage for stage in EVERY if before[stage] != after[stage]} == READ[pattern]


@pytest.mark.parametrize(
    "name",
    [".DS_Store", "README", "imagenet/train/.hidden.jpg", "imagenet/val/notes.txt", "imagenet/train/a.jpg",
     "ade20k/annotations/training/unread.png", "coco/train2017/unlisted.jpg", "imagenet/.cache/x.jpg"],
)  # fmt: skip
def test_what_no_reader_opens_changes_nothing(root: Path, name: str) -> None:
    before = {stage: digest(root, *stage) for stage in EVERY}
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"x")
    assert {stage: digest(root, *stage) for stage in EVERY} == before


def test_names_and_class_folders_decide(root: Path) -> None:
    train = root / "imagenet" / "train"
    found = {digest(root, "imagenet", True)}
    (train / "zebra").mkdir()  # an empty class moves no label, but the head has one output more
    found.add(digest(root, "imagenet", True))
    first(train, "*/*.jpg").rename(first(train, "*/*.jpg").with_name("zz.jpg"))
    (root / "imagenet" / "train_labelled.txt").unlink()
    found.add(digest(root, "imagenet", True))
    assert len(found) == 3


def test_the_place_of_the_data_does_not_matter(root: Path, tmp_path: Path) -> None:
    before = digest(root, "coco", True)
    shutil.copytree(root, tmp_path / "copy")
    assert digest(tmp_path / "copy", "coco", True) == before


def test_digests_are_remembered_by_stamp(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, hashed = tmp_path / "cache", []
    real = files.hash_file
    monkeypatch.setattr(files, "hash_file", lambda path, *rest: hashed.append(path) or real(path, *rest))
    settled(monkeypatch)
    before = digest(root, "imagenet", False, cache)
    assert len(hashed) == 48
    assert digest(root, "imagenet", False, cache) == before and len(hashed) == 48
    image = first(root, "imagenet/train/*/*.jpg")
    image.write_bytes(image.read_bytes() + b"x")
    assert digest(root, "imagenet", False, cache) not in ("", before) and len(hashed) == 49
    monkeypatch.setattr(memory, "FRESH_NS", 10**12)
    image.write_bytes(image.read_bytes() + b"y")
    digest(root, "imagenet", False, cache)
    digest(root, "imagenet", False, cache)
    assert hashed.count(os.fsencode(image.name)) > hashed[:49].count(os.fsencode(image.name)) + 1, (
        "a file that was changed just now may change again within its time stamp"
    )


@pytest.mark.parametrize("pattern", ["imagenet/val/*/*.jpg", "coco/annotations/*train*"])
def test_content_that_brings_its_old_time_along_is_read_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    """As an archive does, or `cp -p`: size, time of modification and inode are those of before."""
    settled(monkeypatch)
    role = pattern.split("/")[0]
    before = digest(root, role, True, tmp_path / "cache")
    file = first(root, pattern)
    if role == "coco":
        content, stamp = file.read_bytes(), file.stat()
        file.write_bytes(content.replace(b'"iscrowd": 0', b'"iscrowd": 1', 1))
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert file.stat().st_size == stamp.st_size and file.read_bytes() != content
    else:
        rewrite(file)
    assert digest(root, role, True, tmp_path / "cache") != before


def test_other_rules_look_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an older version found out of a file counts no more; the digest of its content does."""
    settled(monkeypatch)
    image = first(root, "imagenet/val/*/*.jpg")
    known = Dataset(root / "imagenet", tmp_path / "cache", skip_corrupt=True)
    monkeypatch.setattr(look, "WHETHER", files.Look((files.DECODES,), lambda path: (0, *files.NOTHING[1:])))
    assert known.identity("imagenet", labels=True).left_out
    monkeypatch.undo()
    monkeypatch.setattr(files, "hash_file", None)
    again = Dataset(root / "imagenet", tmp_path / "cache", skip_corrupt=True)
    assert image.relative_to(root / "imagenet").as_posix() in again.identity("imagenet", labels=True).left_out
    monkeypatch.setattr(memory, "rules", lambda: "other")
    again = Dataset(root / "imagenet", tmp_path / "cache", skip_corrupt=True)
    assert not again.identity("imagenet", labels=True).left_out


def test_a_cache_of_another_stage_is_added_to(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    expected = {stage: digest(root, *stage) for stage in EVERY}
    for stage in [*reversed(EVERY), *EVERY]:
        assert digest(root, *stage, cache) == expected[stage]


@pytest.mark.parametrize("damage", [b"", b"no zip", "flip", "cut"])
def test_a_damaged_cache_costs_time_only(root: Path, tmp_path: Path, damage: bytes | str) -> None:
    cache = tmp_path / "cache"
    before = digest(root, "ade20k", True, cache)
    (kept,) = (cache / "files").iterdir()
    content = bytearray(kept.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
    elif damage == "cut":
        content = content[:-100]
    else:
        content = bytearray(damage)
    kept.write_bytes(content)
    assert digest(root, "ade20k", True, cache) == before


def test_a_cache_that_cannot_be_written_costs_time_only(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert digest(root, "coco", True, tmp_path / "file" / "x") == digest(root, "coco", True)


def test_by_size_and_time_nothing_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "hash_file", None)
    before = digest(root, "imagenet", False, trust=True)
    assert before.startswith(STAMP)
    os.utime(first(root, "imagenet/train/*/*.jpg"), (OLD + 1, OLD + 1))
    assert digest(root, "imagenet", False, trust=True) != before


def test_only_what_is_left_out_counts_with_skip_corrupt(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = digest(root, "imagenet", True)
    assert digest(root, "imagenet", True, cache, skip=True) == before
    image = first(root, "imagenet/val/*/*.jpg")
    image.write_bytes(b"no image")
    found = Dataset(root / "imagenet", cache, skip_corrupt=True).identity("imagenet", labels=True)
    assert found.left_out == (image.relative_to(root / "imagenet").as_posix(),) and found.digest != before
    image.write_bytes(b"no image either")
    again = Dataset(root / "imagenet", cache, skip_corrupt=True).identity("imagenet", labels=True)
    assert again == found, "what a file holds that is left out does not matter"
    assert digest(root, "imagenet", False, cache, skip=True) == digest(root, "imagenet", False)


def test_every_image_is_decoded_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(monkeypatch)
    cache, decoded = tmp_path / "cache", []
    real = look.decode
    monkeypatch.setattr(look, "decode", lambda path, **how: decoded.append(path) or real(path, **how))
    for _ in range(2):
        digest(root, "imagenet", False, cache, skip=True)
    assert len(decoded) == len(set(decoded)) == 48


@pytest.mark.parametrize("role", ["imagenet", "ade20k", "coco"])
def test_an_image_of_the_evaluation_is_decoded_before_anything_runs(root: Path, role: str) -> None:
    data = Dataset(root / role, None)
    data.require(role, labels=True)
    pattern = {"imagenet": "val/*/*.jpg", "ade20k": "images/validation/*.jpg", "coco": "val2017/*.jpg"}[role]
    image = first(root / role, pattern)
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(UserError, match=f"image: '{image}'.*--skip-corrupt") as caught:
        Dataset(root / role, None).require(role, labels=True)
    assert caught.value.value == str(image)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imagenet/train_labelled.txt", "line 1 of .*train_labelled.txt: .train/gone/1.jpg.*no such image"),
        ("ade20k/annotations/training/toy_00000.png", "--data ade20k: .*toy_00000.png.*No such file"),
    ],
)
def test_a_file_that_is_listed_and_not_there_is_named(root: Path, name: str, message: str) -> None:
    if name.endswith("txt"):
        (root / name).write_text("train/gone/1.jpg\n")
    else:
        (root / name).unlink()
    role = name.split("/")[0]
    with pytest.raises(UserError, match=message):
        digest(root, role, True)


def test_what_was_just_found_out_is_not_forgotten(root: Path, tmp_path: Path) -> None:
    """A file that has just changed is not remembered, but one command looks at it once."""
    image = first(root, "coco/val2017/*.jpg")
    image.write_bytes(image.read_bytes() + b"x")
    found = Dataset(root / "coco", tmp_path / "cache")
    found.identity("coco", labels=True)
    folders, _ = found.reads("coco", labels=True)
    fill = functools.partial(files.fill, root / "coco", folders, found.memory, field="x")
    fill(look=look.SIZES)
    fill(look=look.WHETHER)
    assert all(folder.known.all() and (folder.facts[:, files.WIDTH] != 0).all() for folder in folders)
    images = [folder for folder in folders if folder.path.endswith("2017")]
    assert all((folder.facts[:, files.WIDTH] == 64).all() for folder in images)


def test_by_size_and_time_only_what_the_evaluation_needs_is_looked_at(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed, real = [], files.hash_file
    monkeypatch.setattr(files, "hash_file", lambda name, *rest: hashed.append(name) or real(name, *rest))
    found = Dataset(root / "ade20k", None)
    found.identity("ade20k", labels=True, trust_stat=True)
    found.require("ade20k", labels=True)
    assert hashed == [b"classes.txt"]


LISTS = {  # what decides labels, and is small: who reads it, and another content of the same size
    "coco/annotations/instances_train2017.json": (
        "coco", lambda text: text.replace('"iscrowd": 0', '"iscrowd": 1', 1)
    ),
    "imagenet/train_labelled.txt": ("imagenet", lambda text: "\n".join(reversed(text.splitlines())) + "\n"),
    "imagenet/captions.json": ("captions", lambda text: text.replace("disc", "dusk")),
    "ade20k/classes.txt": ("ade20k", lambda text: text.replace("disc", "dusk")),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_by_size_and_time_lists_count_by_content(root: Path, name: str) -> None:
    """An editor may keep the size, and a copy the time of modification."""
    file, (role, change) = root / name, LISTS[name]
    before, stamp = digest(root, role, True, trust=True), file.stat()
    file.write_text(change(file.read_text()))
    assert file.stat().st_size == stamp.st_size
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert digest(root, role, True, trust=True) != before


@pytest.mark.parametrize("odd", ["fifo", "link"])
def test_what_is_no_ordinary_file_is_named(root: Path, odd: str) -> None:
    place = first(root, "imagenet/train/*") / "odd.jpg"
    os.mkfifo(place) if odd == "fifo" else place.symlink_to(root / "gone")
    with pytest.raises(UserError, match="odd.jpg"):
        digest(root, "imagenet", False)


def test_links_are_followed(root: Path, tmp_path: Path) -> None:
    before = digest(root, "imagenet", False)
    train = root / "imagenet" / "train"
    (tmp_path / "elsewhere").mkdir()
    for folder in sorted(train.iterdir())[:2]:
        folder.rename(tmp_path / "elsewhere" / folder.name)
        folder.symlink_to(tmp_path / "elsewhere" / folder.name)
    assert digest(root, "imagenet", False) == before
    assert Dataset(root / "imagenet", None).count("imagenet", labels=False) == 48


def test_counts(root: Path) -> None:
    found = Dataset(root / "imagenet", None)
    assert (found.count("imagenet", labels=False), found.count("imagenet", labels=True)) == (48, 24)
    assert Dataset(root / "coco", None).count("coco", labels=True) == 8
    assert Dataset(root / "ade20k", None).count("ade20k", labels=True) == 8


def test_training_images_without_an_annotation_are_not_read(root: Path) -> None:
    before = digest(root, "coco", True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "coco" / "train2017" / "extra.jpg")
    assert digest(root, "coco", True) == before

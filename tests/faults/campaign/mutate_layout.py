"""What lies in a dataset's folders besides the files of its format: hidden, further down, links, no files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from tests.faults.campaign.data_cases import Expect, of
from tests.faults.campaign.datasets import picture, source
from tests.faults.campaign.mutate_folders import LIST, a_class
from tests.faults.campaign.mutate_masks import labels_of_maps


@of("imagenet", unlisted=True)
def images_further_down(root: Path, draw: Random) -> Expect:
    """torchvision's ImageFolder reads every level, and follows links to folders."""
    folder = a_class(root, draw, draw.choice(["train", "val"]))
    form = draw.choice(["deep", "link", "circle"])
    if form == "circle":
        (folder / "more").symlink_to(".")
        return Expect(f"{folder}/more leads round", refused=(str(folder / "more"),))
    place = folder / "a" / "b" if form == "deep" else root / "other"
    place.mkdir(parents=True)
    path = draw.choice(sorted(folder.glob("*.jpg")))
    path.rename(place / path.name)
    if form == "link":
        (folder / "more").symlink_to(place)
    return Expect(f"{folder}: {form}", refused=(str(place if form == "deep" else folder / "more"),))


@of("imagenet", unlisted=True)
def class_is_a_link_to_nothing(root: Path, draw: Random) -> Expect:
    name = a_class(root, draw, "val").name
    splits = draw.choice([["train"], ["val"], ["train", "val"]])
    for split in splits:
        shutil.rmtree(root / split / name)
        (root / split / name).symlink_to(draw.choice(["/nowhere", name, "../gone"]))
    return Expect(f"{name} links to nothing in {splits}", refused=(str(root / splits[0] / name),))


def no_ordinary_file(file: Path, draw: Random) -> Expect:
    """The name is there: a run must not do as if the file were not."""
    file.unlink(missing_ok=True)
    kind = draw.choice(["a broken link", "a link to itself", "a folder", "a pipe"])
    if kind == "a folder":
        file.mkdir()
    elif kind == "a pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(file.name if kind == "a link to itself" else "/nowhere")
    return Expect(f"{file.name} is {kind}", refused=(str(file),))


@of("imagenet", "ade20k", "coco", "captions")
def list_is_no_ordinary_file(root: Path, draw: Random) -> Expect:
    names = {
        "imagenet": LIST,
        "ade20k": "classes.txt",
        "coco": f"annotations/instances_{draw.choice(['train', 'val'])}2017.json",
        "captions": "captions.json",
    }
    return no_ordinary_file(root / names[root.name], draw)


@of("ade20k")
def hidden_folder(root: Path, draw: Random) -> Expect:
    """Editors keep older versions in hidden folders; a map in there has other labels."""
    for path in sorted((root / "images" / "training").glob("*.jpg"))[: draw.randint(1, 3)]:
        for file in (path, root / "annotations" / "training" / f"{path.stem}.png"):
            place = file.parent / ".ipynb_checkpoints" / f"{file.stem}-checkpoint{file.suffix}"
            place.parent.mkdir(exist_ok=True)
            shutil.copy(file, place)
        Image.fromarray(np.full_like(np.asarray(Image.open(place)), 1)).save(place)
    return Expect("a hidden folder", right=labels_of_maps(root), identity="same", same_numbers=True)


@of("ade20k")
def folders_below(root: Path, draw: Random) -> Expect:
    """mmsegmentation reads every level, and .jpg alone; links may lead round in a circle."""
    folder = root / draw.choice(["images", "annotations"]) / draw.choice(["training", "validation"])
    kind = draw.choice([".", "..", "/nowhere", "deep/1.JPG", "deep/1.jpeg"])
    place = folder / (kind if kind.startswith("deep") else "loop")
    if kind.startswith("deep"):
        place.parent.mkdir()
        picture(draw, 30, 30).save(place, "JPEG")
    else:
        place.symlink_to(kind)
    return Expect(f"{place} is odd", refused=(str(place),))


@of("coco")
def image_that_no_run_reads(root: Path, draw: Random) -> Expect:
    """mmdetection learns from images with annotations; the others may be anything."""
    file = source(root, "train")
    document = json.loads(file.read_text())
    image = draw.choice(document["images"])
    document["annotations"] = [each for each in document["annotations"] if each["image_id"] != image["id"]]
    file.write_text(json.dumps(document))
    path = root / "train2017" / image["file_name"]
    path.unlink() if draw.random() < 0.5 else path.write_bytes(b"junk")
    return Expect(f"{path.name} is not there, or junk", identity="other")

"""Oddities of images for dense tasks: orientations in odd places, names without an ending, thin images."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from tests.faults.campaign.data_cases import Expect, of, some
from tests.faults.campaign.datasets import picture, source
from tests.faults.campaign.mutate_masks import ORIENTATION, by_mmcv, close, replace

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
TURNED = ("PNG", "TIFF", "TIFF of grey", "TIFF with XMP", "malformed")  # kinds that mmcv turns


@of("ade20k", "coco")
def orientation_in_other_places(root: Path, draw: Random) -> Expect:
    """In other formats and places, or malformed: mmcv reads all of them, and turns some."""
    path = some(draw, root, "images/*/*.jpg" if (root / "images").is_dir() else "*2017/*.jpg")
    with Image.open(path) as image:
        width, height = image.size
    kind = draw.choice(["XMP", "WebP", "XMP before EXIF", "damaged", *TURNED])
    base = picture(draw, height, width) if kind in TURNED else picture(draw, width, height)
    exif = Image.Exif()
    exif[ORIENTATION] = draw.choice([5, 6, 7, 8])
    tags = {"tiffinfo": {ORIENTATION: exif[ORIENTATION]}}
    maker = struct.pack(">HHIIHHIHHI", 0x010F, 5, 1, 38, ORIENTATION, 3, 1, exif[ORIENTATION], 0, 0)
    malformed = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + maker + struct.pack(">II", 1, 2)
    how: dict[str, tuple[str, dict[str, object]]] = {
        "XMP": ("JPEG", {"quality": 95, "xmp": XMP}),
        "WebP": ("WEBP", {"lossless": True, "exif": exif}),
        "XMP before EXIF": ("JPEG", {"quality": 95}),
        "damaged": ("JPEG", {"quality": 95}),
        "PNG": ("PNG", {"exif": exif}),
        "TIFF": ("TIFF", {"compression": draw.choice(["raw", "tiff_lzw", "jpeg"]), **tags}),
        "TIFF of grey": ("TIFF", tags),
        "TIFF with XMP": ("TIFF", {"tiffinfo": {**tags["tiffinfo"], 700: XMP.replace(b"6", b"3")}}),
        "malformed": ("JPEG", {"quality": 95, "exif": malformed}),
    }
    form, more = how[kind]
    replace(path, base.convert("L") if kind == "TIFF of grey" else base, form, **more)
    plain = path.read_bytes()
    if kind == "XMP before EXIF":
        path.write_bytes(_with_segments(plain, b"http://ns.adobe.com/xap/1.0/\0" + XMP, malformed))
    while kind == "damaged":
        block = bytearray(malformed)
        for _ in range(draw.randint(1, 4)):
            block[draw.randrange(len(block))] = draw.choice([0, 1, 2, 3, 255, draw.randrange(256)])
        path.write_bytes(_with_segments(plain, bytes(block)))
        if by_mmcv(path).shape[:2] == (height, width):
            break
    name, wanted = path.relative_to(root).as_posix(), by_mmcv(path)
    return Expect(
        f"{name} has an orientation: {kind}",
        right=lambda found: close(found, name, wanted),
        identity="other",
    )


def _with_segments(content: bytes, *segments: bytes) -> bytes:
    """A JPEG file with these APP1 segments before all others."""
    parts = [b"\xff\xe1" + struct.pack(">H", len(each) + 2) + each for each in segments]
    return content[:2] + b"".join(parts) + content[2:]


@of("coco")
def name_without_a_known_ending(root: Path, draw: Random) -> Expect:
    """mmdetection reads it by its content, so it must decode like any other."""
    file = source(root, draw.choice(["train", "val"]))
    document = json.loads(file.read_text())
    entry = draw.choice(document["images"])
    path = root / file.stem.removeprefix("instances_") / entry["file_name"]
    entry["file_name"] = draw.choice(["x", "picture.jfif", "a.txt", "b.json", "c.JPG.1"])
    file.write_text(json.dumps(document))
    other = path.rename(path.with_name(entry["file_name"]))
    if draw.random() < 0.5:
        return Expect(f"{other.name}", identity="other", same_numbers=True)
    content = other.read_bytes()
    other.write_bytes(draw.choice([content[: len(content) // 2], b"", b"GIF89a", draw.randbytes(99)]))
    return Expect(f"{other.name} is broken", refused=(str(other),))


@of("ade20k", "coco")
def thin_image(root: Path, draw: Random) -> Expect:
    """Fitted into the task's size it would have no pixel of a side, unless it is not that thin."""
    short = draw.randint(1, 6)
    size = short * draw.choice([60, 100, 101, 300, 1000]) + draw.randint(0, 1), short
    refused, size = size[0] > 100 * short, size[:: draw.choice([1, -1])]
    if (root / "images").is_dir():
        path = some(draw, root, "images/*/*.jpg")
        labels = root / "annotations" / path.parent.name / f"{path.stem}.png"
        Image.fromarray(np.ones(size[::-1], np.uint8)).save(labels)
    else:
        file = source(root, draw.choice(["train", "val"]))
        document = json.loads(file.read_text())
        entry = draw.choice(document["images"])
        path = root / file.stem.removeprefix("instances_") / entry["file_name"]
        entry["width"], entry["height"] = size
        for each in document["annotations"]:
            if each["image_id"] == entry["id"]:
                x, y = size[0] - 1, size[1]
                each.update(bbox=[0, 0, x, y], area=x * y, segmentation=[[0, 0, x, 0, x, y, 0, y]])
        file.write_text(json.dumps(document))
    picture(draw, *size).save(path)
    done = f"{path.name} is {size[0]}x{size[1]}"
    return Expect(done, refused=(str(path),)) if refused else Expect(done, identity="other")

"""Oddities of images and label maps: formats, orientations, depths, sizes, labels."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import cv2
import numpy as np
from PIL import Image

from tests.faults.campaign.data_cases import Expect, of, some
from tests.faults.campaign.datasets import Read, picture, source

ORIENTATION = 0x0112  # in EXIF


def close(found: Read, name: str, wanted: np.ndarray, most: float = 4.0) -> str:
    """What is wrong with an image that was read; two decoders of JPEG differ by a little."""
    here = found.images.get(name)
    if here is None:
        return f"{name} was not read"
    if here.shape != wanted.shape:
        return f"{name} has the shape {here.shape} instead of {wanted.shape}"
    away = float(np.abs(here.astype(float) - wanted.astype(float)).mean())
    return f"{name} is {away:.1f} away" if away > most else ""


def by_mmcv(path: Path) -> np.ndarray:
    import mmcv

    return mmcv.imfrombytes(path.read_bytes(), flag="color", channel_order="rgb", backend="cv2")


def _save_turned(path: Path, image: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(path, quality=95, exif=exif)


def _turned(orientation: int, role: str) -> Callable[[Path, Random], Expect]:
    def mutator(root: Path, draw: Random) -> Expect:
        """As a camera held on its side stores it; dense tasks see it upright, ImageNet does not."""
        pattern = {"imagenet": "val/*/*.jpg", "ade20k": "images/*/*.jpg", "coco": "*2017/*.jpg"}[role]
        path = some(draw, root, pattern)
        name = path.relative_to(root).as_posix()
        with Image.open(path) as image:
            width, height = image.size
        if orientation >= 5 and role != "imagenet":
            width, height = height, width  # upright it has the size that masks and annotations state
        _save_turned(path, picture(draw, width, height), orientation)
        wanted = np.asarray(Image.open(path).convert("RGB")) if role == "imagenet" else by_mmcv(path)
        return Expect(
            f"{name} has EXIF orientation {orientation}",
            right=lambda found: close(found, name, wanted), identity="other",
            of_pretraining="same" if role == "imagenet" else "",
        )  # fmt: skip

    mutator.__name__ = f"orientation_{orientation}"
    return mutator


for _role in ("ade20k", "coco", "imagenet"):
    for _orientation in range(1, 9) if _role != "imagenet" else (3, 6):
        of(_role)(_turned(_orientation, _role))


@of("ade20k", "coco")
def lies_on_its_side(root: Path, draw: Random) -> Expect:
    """The stated size is that of the stored pixels, not of the upright image."""
    pattern = "images/*/*.jpg" if (root / "images").is_dir() else "*2017/*.jpg"
    path = some(draw, root, pattern)
    with Image.open(path) as image:
        width, height = image.size
    if width == height:
        return Expect("a square image", identity="same")
    _save_turned(path, picture(draw, width, height), draw.choice([5, 6, 7, 8]))
    other = path.name if pattern[0] == "*" else f"{path.stem}.png"
    return Expect(f"{path.name} lies on its side", refused=(other, f"{height}x{width}"))


def replace(path: Path, image: Image.Image, form: str, **how: object) -> None:
    """Another format under the same name: readers go by content."""
    out = io.BytesIO()
    image.save(out, form, **how)
    path.write_bytes(out.getvalue())


def _modes(mode: str, role: str) -> Callable[[Path, Random], Expect]:
    def mutator(root: Path, draw: Random) -> Expect:
        pattern = {"imagenet": "train/*/*.jpg", "ade20k": "images/*/*.jpg", "coco": "*2017/*.jpg"}[role]
        path = some(draw, root, pattern)
        name = path.relative_to(root).as_posix()
        with Image.open(path) as image:
            base = picture(draw, *image.size)
        if mode == "I;16":
            grey = (
                np.asarray(base.convert("L")).astype(np.float64) * 65535 / 255 - draw.randint(0, 90)
            ).clip(0)
            replace(path, Image.fromarray(grey.astype(np.uint16)), "PNG")
            wanted = np.repeat(np.rint(np.floor(grey) * 255 / 65535)[..., None], 3, axis=2)
        else:
            shown = base.convert(mode)
            form = "TIFF" if mode == "CMYK" else "PNG"
            replace(path, shown, form)
            wanted = np.asarray(Image.open(path).convert("RGB"))
        return Expect(
            f"{name} is a {mode} image",
            right=lambda found: close(found, name, wanted, 0.51),
            of_pretraining="other" if role == "imagenet" else "", identity="other",
        )  # fmt: skip

    mutator.__name__ = f"image_of_mode_{mode}"
    return mutator


for _mode in ("I;16", "P", "CMYK", "LA", "1", "RGBA", "L"):
    for _role in ("imagenet", "ade20k", "coco") if _mode in ("I;16", "LA") else ("imagenet",):
        of(_role, unlisted=True)(_modes(_mode, _role))


def _unknown_range(kind: str, role: str) -> Callable[[Path, Random], Expect]:
    def mutator(root: Path, draw: Random) -> Expect:
        pattern = {"imagenet": "val/*/*.jpg", "ade20k": "images/validation/*.jpg", "coco": "val2017/*.jpg"}[
            role
        ]
        path = some(draw, root, pattern)
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"))
        values = grey.astype(np.float32) / 255 if kind == "float" else grey.astype(np.int32)
        replace(path, Image.fromarray(values * 99_999 if kind == "32 bits" else values), "TIFF")
        if kind == "signed":  # 32 bits is what Pillow writes; OpenCV has 16
            path.write_bytes(cv2.imencode(".tif", grey.astype(np.int16))[1].tobytes())
        return Expect(f"{path.name} is a {kind} TIFF", refused=(str(path),))

    mutator.__name__ = f"{kind}_tiff"
    return mutator


for _role in ("imagenet", "ade20k", "coco"):
    for _kind in ("float", "32 bits", "32 bits of small numbers", "signed"):
        of(_role)(_unknown_range(_kind, _role))


@of("imagenet", unlisted=True)
def an_animation(root: Path, draw: Random) -> Expect:
    """Its first frame counts, as torchvision has it."""
    path = some(draw, root, "train/*/*.jpg")
    frames = [picture(draw, 30, 30) for _ in range(3)]
    replace(path, frames[0], "PNG", save_all=True, append_images=frames[1:])
    name, wanted = path.relative_to(root).as_posix(), np.asarray(frames[0])
    return Expect(
        f"{name} has three frames", of_pretraining="other",
        right=lambda found: close(found, name, wanted, 0.0),
    )  # fmt: skip


# -- label maps ----------------------------------------------------------------------------------------------


def labels_of_maps(root: Path, change: str = "") -> Callable[[Read], str]:
    """Compares every label map with what Pillow and NumPy make of the file."""

    def right(found: Read) -> str:
        for path in sorted((root / "annotations").rglob("*.png")):
            if any(part[0] == "." for part in path.relative_to(root).parts):
                continue
            raw = np.asarray(Image.open(path)).astype(int)
            wanted = np.where((raw == 0) | (raw == 255), 255, raw - 1)
            name = (
                path.relative_to(root).as_posix().replace("annotations", "images", 1).replace(".png", ".jpg")
            )
            if name not in found.labels:
                return f"{name} was not read {change}"
            if (found.labels[name].astype(int) != wanted).any():
                return f"other labels of {name} {change}"
        return ""

    return right


def _map(draw: Random, root: Path, split: str = "*") -> tuple[Path, np.ndarray]:
    path = some(draw, root, f"annotations/{split}/*.png")
    return path, np.asarray(Image.open(path)).copy()


def _labels(name: str, change: Callable[[np.ndarray, Random, int], Image.Image], *, refused: bool) -> None:
    def mutator(root: Path, draw: Random) -> Expect:
        path, labels = _map(draw, root)
        count = len((root / "classes.txt").read_text().splitlines())
        replace(
            path, change(labels, draw, count), "TIFF" if name in ("32 bits", "a negative label") else "PNG"
        )
        if refused:
            return Expect(f"{path.name}: {name}", refused=(str(path),))
        return Expect(f"{path.name}: {name}", right=labels_of_maps(root), identity="other")

    mutator.__name__ = name.replace(" ", "_")
    of("ade20k")(mutator)


def _beyond(labels: np.ndarray, draw: Random, count: int) -> Image.Image:
    labels[draw.randrange(labels.shape[0]), draw.randrange(labels.shape[1])] = draw.randint(count + 1, 254)
    return Image.fromarray(labels)


def _wide(labels: np.ndarray, draw: Random, count: int) -> Image.Image:
    wide = labels.astype(np.uint16)
    wide[draw.randrange(labels.shape[0]), 0] = 256 * draw.randint(1, 200) + draw.randint(0, count)
    return Image.fromarray(wide)


def _void(labels: np.ndarray, draw: Random, count: int) -> Image.Image:
    labels[labels == draw.randint(0, count)] = 255
    labels[0] = 255
    return Image.fromarray(labels)


def _palette(labels: np.ndarray, draw: Random, count: int) -> Image.Image:
    image = Image.fromarray(labels)
    image.putpalette([draw.randrange(256) for _ in range(768)])
    return image


def _negative(labels: np.ndarray, draw: Random, count: int) -> Image.Image:
    signed = labels.astype(np.int32)
    signed[draw.randrange(labels.shape[0]), 0] = -draw.randint(1, 300)
    return Image.fromarray(signed)


_labels("a label beyond the classes", _beyond, refused=True)
_labels("a label beyond 8 bits", _wide, refused=True)
_labels(
    "16 bits that hold small labels",
    lambda x, d, c: Image.fromarray((x % (c + 1)).astype(np.uint16)),
    refused=False,
)
_labels("void", _void, refused=False)
_labels("a palette", _palette, refused=False)
_labels("a map of colours", lambda x, d, c: Image.fromarray(np.stack([x] * 3, -1)), refused=True)
_labels("a map with alpha", lambda x, d, c: Image.fromarray(np.stack([x, x], -1)), refused=True)
_labels("32 bits", lambda x, d, c: Image.fromarray(x.astype(np.int32) + 70_000), refused=True)
_labels("a negative label", _negative, refused=True)
_labels("one map of void only", lambda x, d, c: Image.fromarray(np.full_like(x, 255)), refused=False)


@of("ade20k")
def a_map_of_few_bits(root: Path, draw: Random) -> Expect:
    """Written here bit by bit: Pillow writes and reads such grey in its own way."""
    path, labels = _map(draw, root)
    bits = draw.choice([2, 4])
    count = len((root / "classes.txt").read_text().splitlines())
    labels = labels % min(2**bits, count + 1)
    labels[0, 0] = 1
    rows = b""
    for row in labels.tolist():
        digits = "".join(f"{label:0{bits}b}" for label in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + int(digits, 2).to_bytes(len(digits) // 8, "big")
    header = struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], bits, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        png += (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )
    path.write_bytes(png)
    image = path.relative_to(root).as_posix().replace("annotations", "images", 1).replace(".png", ".jpg")
    wanted = np.where(labels == 0, 255, labels.astype(int) - 1)

    def right(found: Read) -> str:
        return "" if (found.labels[image].astype(int) == wanted).all() else f"other labels of {image}"

    return Expect(f"{path.name} has {bits} bits", right=right, identity="other")


@of("ade20k")
def map_of_another_size(root: Path, draw: Random) -> Expect:
    path, labels = _map(draw, root)
    change = draw.choice(["narrower", "wider", "turned"])
    if change == "turned" and labels.shape[0] != labels.shape[1]:
        labels = np.ascontiguousarray(labels.T)
    elif change == "wider":
        labels = np.pad(labels, ((0, 0), (0, draw.randint(1, 9))))
    else:
        labels = labels[:, : -draw.randint(1, 9)]
    Image.fromarray(labels).save(path)
    return Expect(f"{path.name} is {change}", refused=(str(path), f"{labels.shape[1]}x{labels.shape[0]}"))


@of("ade20k")
def only_void_in_a_split(root: Path, draw: Random) -> Expect:
    split = draw.choice(["training", "validation"])
    for path in (root / "annotations" / split).glob("*.png"):
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), draw.choice([0, 255]))).save(path)
    return Expect(f"no label in {split}", refused=(str(root / "annotations" / split),))


@of("ade20k")
def no_map(root: Path, draw: Random) -> Expect:
    path, _ = _map(draw, root)
    path.unlink()
    return Expect(f"{path.name} is missing", refused=(str(path),))


@of("ade20k")
def a_map_too_many(root: Path, draw: Random) -> Expect:
    path, labels = _map(draw, root)
    Image.fromarray(labels).save(path.with_name("unused.png"))
    return Expect("a map without image", identity="same", right=lambda found: "")


@of("ade20k", "coco")
def cut_image(root: Path, draw: Random) -> Expect:
    ade = (root / "images").is_dir()
    path = some(draw, root, "images/validation/*.jpg" if ade else "val2017/*.jpg")
    content = path.read_bytes()
    path.write_bytes(content[: draw.randint(len(content) // 2, len(content) - 40)])
    return Expect(f"{path.name} is cut off", refused=(str(path),))


@of("ade20k")
def cut_map(root: Path, draw: Random) -> Expect:
    path, _ = _map(draw, root)
    content = path.read_bytes()
    path.write_bytes(content[: draw.randint(8, len(content) - 20)])
    return Expect(f"{path.name} is cut off", refused=(str(path),))


@of("ade20k")
def number_of_classes(root: Path, draw: Random) -> Expect:
    file, count = root / "classes.txt", draw.choice([0, 1, 255, 300, 1000])
    file.write_text("".join(f"c{index}\n" for index in range(count)))
    return Expect(f"{count} classes", refused=(str(file),))


@of("ade20k")
def class_named_twice(root: Path, draw: Random) -> Expect:
    file = root / "classes.txt"
    name = draw.choice(file.read_text().splitlines())
    file.write_text(file.read_text() + name + "\n")
    return Expect(f"{name} twice", refused=(str(file), name))


@of("ade20k")
def classes_with_a_mark_and_line_ends(root: Path, draw: Random) -> Expect:
    file = root / "classes.txt"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_text().replace("\n", "  \r\n").encode() + b"\r\n")
    return Expect("classes.txt of Windows", right=labels_of_maps(root), same_numbers=True)


@of("ade20k")
def zero_and_void_are_one(root: Path, draw: Random) -> Expect:
    for path in (root / "annotations").rglob("*.png"):
        labels = np.asarray(Image.open(path)).copy()
        labels[labels == 0] = 255
        Image.fromarray(labels).save(path)
    return Expect("every 0 is 255", right=labels_of_maps(root), identity="other", same_numbers=True)


@of("ade20k", "coco")
def capital_extension(root: Path, draw: Random) -> Expect:
    """mmsegmentation reads .jpg alone, so another spelling must not be left out in silence."""
    if (root / "images").is_dir():
        path = some(draw, root, "images/*/*.jpg")
        path.rename(path.with_suffix(draw.choice([".JPG", ".jpeg", ".png"])))
        return Expect(f"{path.name} is called otherwise", refused=(path.stem,))
    file = source(root, draw.choice(["train", "val"]))
    document = json.loads(file.read_text())
    entry = draw.choice(document["images"])
    folder = root / file.stem.removeprefix("instances_")
    other = entry["file_name"].replace(".jpg", ".JPEG")
    (folder / entry["file_name"]).rename(folder / other)
    entry["file_name"] = other
    file.write_text(json.dumps(document))
    return Expect(f"{other}", identity="other", same_numbers=True)

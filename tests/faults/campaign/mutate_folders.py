"""Oddities of folders, lists and captions in ImageNet's layout."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path
from random import Random

from PIL import Image

from tests.faults.campaign.data_cases import Expect, of, rewrite, some
from tests.faults.campaign.datasets import Read, picture

LIST = "train_labelled.txt"


def labels_right(root: Path) -> object:
    """Compares the labels of a run with the names of folders, and the list with what a person reads in it."""

    def right(found: Read) -> str:
        for name, label in found.labels.items():
            if Path(name).parent.name != label:
                return f"{name} has the label {label}"
        listed = root / LIST
        if not listed.is_file():
            return ""
        lines = [line.strip() for line in listed.read_text("utf-8-sig").splitlines() if line.strip()]
        wanted = sorted(Path(line).name for line in lines)
        here = sorted(Path(name).name for name in found.order if name.startswith("train/"))
        return "" if here == wanted else f"{here} were read of the list {wanted}"

    return right


def taken(root: Path, done: str, **more: object) -> Expect:
    return Expect(done, right=labels_right(root), **more)  # type: ignore[arg-type]


def listed(root: Path) -> list[str]:
    """The lines of the list, which is written if there is none."""
    file = root / LIST
    if not file.is_file():
        names = sorted(path.relative_to(root).as_posix() for path in root.glob("train/*/*0.jpg"))
        file.write_text("\n".join(names) + "\n")
    return file.read_text().splitlines()


def a_class(root: Path, draw: Random, split: str = "train") -> Path:
    return draw.choice(sorted(path for path in (root / split).iterdir() if path.is_dir()))


@of("imagenet")
def litter(root: Path, draw: Random) -> Expect:
    """What systems and people leave behind is no image."""
    for _ in range(4):
        folder = draw.choice([root, root / "train", a_class(root, draw), a_class(root, draw, "val")])
        (folder / draw.choice([".DS_Store", "Thumbs.db", "README.md", "._a.jpg", "desktop.ini"])).write_bytes(
            b"x"
        )
    return taken(root, "hidden files", identity="same", of_pretraining="same", same_numbers=True)


@of("imagenet")
def empty_class_folder(root: Path, draw: Random) -> Expect:
    """It is a class of the task's, because labels follow the folders; a pretraining sees no difference."""
    (root / "train" / draw.choice(["aaa", "zzz", "m"])).mkdir()
    return taken(root, "an empty class folder", identity="other", of_pretraining="same")


@of("imagenet")
def class_in_val_alone(root: Path, draw: Random) -> Expect:
    name = draw.choice(["aaa", "discs", "Bar"])
    folder = root / "val" / name
    folder.mkdir()
    picture(draw, 30, 30).save(folder / "1.jpg")
    return Expect(f"val has a class {name}", refused=(str(folder),))


@of("imagenet")
def class_in_train_alone(root: Path, draw: Random) -> Expect:
    name = a_class(root, draw, "val").name
    shutil.rmtree(root / "val" / name)
    return taken(root, f"val has no class {name}", identity="other", of_pretraining="same")


@of("imagenet", unlisted=True)
def one_class(root: Path, draw: Random) -> Expect:
    """A pretraining can do with one class, a task cannot: the check alone does not know which is meant."""
    for name in [path.name for path in (root / "train").iterdir()][1:]:
        shutil.rmtree(root / "train" / name)
        shutil.rmtree(root / "val" / name)
    return Expect("one class", refused=(str(root / "train"),), checked=False)


@of("imagenet")
def flat_split(root: Path, draw: Random) -> Expect:
    split = draw.choice(["train", "val"])
    for path in sorted((root / split).rglob("*.jpg")):
        path.rename(root / split / path.name)
    for folder in [path for path in (root / split).iterdir() if path.is_dir()]:
        folder.rmdir()
    return Expect(f"{split} is flat", refused=(str(root / split), f"{split}/<class>/<image>"))


@of("imagenet")
def nested_split(root: Path, draw: Random) -> Expect:
    split = draw.choice(["train", "val"])
    (root / "more").mkdir()
    shutil.move(root / split, root / "more" / "deep")
    shutil.move(root / "more", root / split)
    return Expect(f"{split} is one folder too deep", refused=(str(root / split),))


@of("imagenet")
def no_val(root: Path, draw: Random) -> Expect:
    shutil.rmtree(root / "val")
    if draw.random() < 0.5:
        (root / "val").mkdir()
    return Expect("no val", refused=(str(root / "val"),))


@of("imagenet")
def list_names_nothing(root: Path, draw: Random) -> Expect:
    lines = listed(root)
    index = draw.randrange(len(lines))
    lines[index] = draw.choice(
        [
            "train/bar/none.jpg",
            "none.jpg",
            "bar/none.jpg",
            "val/bar/val_b0.jpg",
            "../train_b0.jpg",
            "/etc/passwd",
            "train",
        ]
    )
    (root / LIST).write_text("\n".join(lines) + "\n")
    return Expect(f"line {index + 1} is {lines[index]}", refused=(f"line {index + 1}", lines[index]))


@of("imagenet")
def list_is_ambiguous(root: Path, draw: Random) -> Expect:
    lines = listed(root)
    for folder in (root / "train").iterdir():
        picture(draw, 30, 30).save(folder / "same.jpg")
    lines.append("same.jpg")
    (root / LIST).write_text("\n".join(lines) + "\n")
    return Expect("a name of several classes", refused=(f"line {len(lines)}", "same.jpg"))


@of("imagenet")
def list_names_an_image_twice(root: Path, draw: Random) -> Expect:
    """Whoever repeats an image has made a mistake: nobody weights images so."""
    lines = listed(root)
    lines.append(draw.choice(lines))
    (root / LIST).write_text("\n".join(lines) + "\n")
    return Expect("a line twice", refused=(f"line {len(lines)} of", lines[-1]))


@of("imagenet")
def list_of_one_class(root: Path, draw: Random) -> Expect:
    folder = a_class(root, draw)
    names = sorted(path.name for path in folder.iterdir())
    (root / LIST).write_text("".join(f"train/{folder.name}/{name}\n" for name in names))
    return Expect(f"a list of {folder.name} alone", refused=(str(root / LIST), folder.name))


@of("imagenet", unlisted=True)
def class_of_unread_files(root: Path, draw: Random) -> Expect:
    """As torchvision reads nothing else; nor do its folders in folders count here."""
    folder = a_class(root, draw, draw.choice(["train", "val"]))
    form = draw.choice([".jfif", ".gif", ".txt", "/"])
    (folder / "deep").mkdir() if form == "/" else None
    for path in sorted(folder.glob("*.jpg")):
        path.rename(folder / "deep" / path.name if form == "/" else path.with_suffix(form))
    return Expect(f"{folder} holds {form}", refused=(str(folder),))


@of("imagenet", unlisted=True)
def folder_of_images_beside_images(root: Path, draw: Random) -> Expect:
    folder = a_class(root, draw, draw.choice(["train", "val"]))
    (folder / "deep").mkdir()
    path = draw.choice(sorted(folder.glob("*.jpg")))
    path.rename(folder / "deep" / path.name)
    return Expect(f"{folder} holds a folder of images", refused=(str(folder / "deep"),))


@of("imagenet", unlisted=True)
def portable_grey_maps(root: Path, draw: Random) -> Expect:
    path = some(draw, root, "*/*/*.jpg")
    Image.open(path).convert("L").save(path.with_suffix(".pgm"))
    path.unlink()
    return taken(root, f"{path.name} is a .pgm", identity="other")


@of("imagenet")
def list_of_windows(root: Path, draw: Random) -> Expect:
    lines = listed(root)
    text = "\r\n".join(f"{line}{draw.choice(['', ' ', '   '])}" for line in lines) + "\r\n\r\n"
    (root / LIST).write_bytes((b"\xef\xbb\xbf" if draw.random() < 0.7 else b"") + text.encode())
    return taken(root, "a list with line ends of Windows", of_pretraining="same")


@of("imagenet")
def list_in_another_order(root: Path, draw: Random) -> Expect:
    """The order decides which images a batch has, so it is another run."""
    lines = listed(root)
    first = lines[0]
    lines.reverse()
    (root / LIST).write_text("\n".join(lines) + "\n")
    return taken(root, f"the list is turned round: {first} last", identity="other", of_pretraining="same")


@of("imagenet")
def list_of_the_same_size(root: Path, draw: Random) -> Expect:
    lines = listed(root)
    index = draw.randrange(len(lines))
    other = lines[index].replace("0.jpg", "3.jpg").replace("1.jpg", "2.jpg")
    lines[index] = other
    (root / LIST).write_text("\n".join(lines) + "\n")
    return taken(root, f"line {index + 1} is {other}", identity="other", of_pretraining="same")


@of("imagenet")
def list_not_utf8(root: Path, draw: Random) -> Expect:
    lines = listed(root)
    (root / LIST).write_bytes("\n".join([*lines, "d\xe4.jpg"]).encode(draw.choice(["latin-1", "utf-16"])))
    return Expect("a list that is not UTF-8", refused=(str(root / LIST),))


@of("imagenet")
def list_empty(root: Path, draw: Random) -> Expect:
    (root / LIST).write_bytes(draw.choice([b"", b"\n\n", b" \n", b"\xef\xbb\xbf"]))
    return Expect("an empty list", refused=(str(root / LIST),))


@of("imagenet", unlisted=True)
def names_with_blanks_and_accents(root: Path, draw: Random) -> Expect:
    path = some(draw, root, "train/*/*.jpg")
    form = draw.choice(["NFC", "NFD"])
    other = path.with_name(
        unicodedata.normalize(
            form, draw.choice(["é 1.jpg", " ü .jpg", "日本.jpg", "a\u00a0b.JPG", "x,y'\".jpg"])
        )
    )
    path.rename(other)
    return taken(root, f"an image called {other.name!r}", identity="other", of_pretraining="other")


@of("imagenet", unlisted=True)
def both_unicode_forms(root: Path, draw: Random) -> Expect:
    folder = a_class(root, draw)
    for form in ("NFC", "NFD"):
        picture(draw, 30, 30).save(folder / unicodedata.normalize(form, "é.jpg"))
    return taken(root, "one name in both of Unicode's forms", identity="other", of_pretraining="other")


@of("imagenet")
def same_names_in_both_splits(root: Path, draw: Random) -> Expect:
    folder = a_class(root, draw, "val")
    for path in sorted((root / "train" / folder.name).iterdir())[:2]:
        shutil.copy(path, folder / path.name)
    return taken(root, "equal names in both splits", identity="other", of_pretraining="same")


@of("imagenet", unlisted=True)
def capital_letters(root: Path, draw: Random) -> Expect:
    path = some(draw, root, "train/*/*.jpg")
    other = path.with_suffix(draw.choice([".JPG", ".JPEG", ".Jpeg", ".jpeg"]))
    path.rename(other)
    return taken(root, other.name, identity="other", of_pretraining="other")


@of("imagenet")
def links(root: Path, draw: Random) -> Expect:
    """What links lead to is what is read: it is the same data."""
    (root.parent / "away").mkdir()
    if draw.random() < 0.5:
        folder = a_class(root, draw)
        shutil.move(folder, root.parent / "away" / folder.name)
        folder.symlink_to(root.parent / "away" / folder.name)
    else:
        path = some(draw, root, "*/*/*.jpg")
        shutil.move(path, root.parent / "away" / path.name)
        path.symlink_to(root.parent / "away" / path.name)
    return taken(root, "a link", identity="same", of_pretraining="same")


@of("imagenet", unlisted=True)
def link_to_nothing(root: Path, draw: Random) -> Expect:
    path = some(draw, root, "*/*/*.jpg")
    path.unlink()
    path.symlink_to(draw.choice([path.name, "none.jpg", "/nowhere/none.jpg"]))
    return Expect("a link to nothing", refused=(str(path),))


@of("imagenet", "ade20k", "coco", unlisted=True)
def pipe(root: Path, draw: Random) -> Expect:
    path = some(draw, root, "[v]*/*/*.jpg") if (root / "val").is_dir() else some(draw, root, "**/*[02].jpg")
    path.unlink()
    os.mkfifo(path)
    return Expect("a pipe", refused=(str(path),))


@of("imagenet", "ade20k", "coco", unlisted=True)
def folder_called_like_an_image(root: Path, draw: Random) -> Expect:
    path = some(draw, root, "**/*.jpg")
    path.unlink()
    path.mkdir()
    return Expect("a folder called .jpg", refused=(path.name if (root / "images").is_dir() else str(path),))


def _broken(name: str, pattern: str) -> None:
    def mutator(root: Path, draw: Random) -> Expect:
        path = some(draw, root, pattern)
        content = path.read_bytes()
        path.write_bytes({
            "cut off": content[: draw.randint(len(content) // 3, len(content) - 30)],
            "empty": b"",
            "a page of HTML": b"<!DOCTYPE html><title>404</title>",
            "zeros": bytes(len(content)),
            "a PDF": b"%PDF-1.4\n" + draw.randbytes(300),
        }[name])  # fmt: skip
        return Expect(f"{path.name} is {name}", refused=(str(path),))

    mutator.__name__ = f"{'val' if pattern.startswith('val') else 'train'} {name}"
    of("imagenet", unlisted=True)(mutator)


for _name in ("cut off", "empty", "a page of HTML", "zeros", "a PDF"):
    _broken(_name, "val/*/*.jpg")
    _broken(_name, "train/*/*.jpg")


@of("imagenet", unlisted=True)
def exchanged_images(root: Path, draw: Random) -> Expect:
    """Two images exchange their names, times and sizes included: another label for each."""
    first, second = (
        draw.choice(sorted(folder.iterdir())) for folder in draw.sample(sorted((root / "train").iterdir()), 2)
    )
    between = first.with_name("between")
    first.rename(between)
    second.rename(first)
    between.rename(second)
    return taken(root, f"{first.name} and {second.name}", identity="other", of_pretraining="other")


@of("imagenet", "ade20k", "coco")
def same_size_another_content(root: Path, draw: Random) -> Expect:
    """A comment in a JPEG changes; the file keeps its size and its time."""
    pattern = {"images": "images/*/*.jpg", "annotations": "*2017/*.jpg"}
    form = next(
        (pattern[name] for name in ("images", "annotations") if (root / name).is_dir()), "val/*/*.jpg"
    )
    path = some(draw, root, form)
    image = Image.open(path)
    image.load()
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[18] ^= 1  # inside the header's thumbnail or quantisation: still a JPEG, or not
    other = path.with_name("other")
    other.write_bytes(bytes(content))
    try:
        Image.open(other).load()
    except OSError:
        other.write_bytes(path.read_bytes()[:-1] + b"\xd8")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)
    return Expect(f"{path.name}: a byte", identity="other")


@of("imagenet", "ade20k", "coco", "captions")
def touched(root: Path, draw: Random) -> Expect:
    """Times alone say nothing."""
    for path in root.rglob("*"):
        if path.is_file():
            os.utime(path, (draw.randint(1, 2**31), draw.randint(1, 2**31)))
    return Expect("other times", identity="same", of_pretraining="same")


@of("imagenet", "ade20k", "coco", "captions")
def moved(root: Path, draw: Random) -> Expect:
    """Every file is a copy; the content decides."""
    for path in [path for path in root.rglob("*") if path.is_file()]:
        rewrite(path, path.read_bytes())
    return Expect("files with other inodes", identity="same", of_pretraining="same")

"""ImageNet's layout, `<split>/<class>/<image>`, and the datasets that training draws from it."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from mimbench.data import Twice, each_once, imagenet
from mimbench.data.captions import LENGTH, Tokenizer, is_cut, words
from mimbench.data.decode import CorruptImage, decode
from mimbench.data.walk import is_there
from mimbench.errors import UserError

CACHE_BYTES = 2**30  # decoded images kept in memory


class Samples(Sequence[tuple[Path, int]]):
    """The path and the label of each image, packed: a pair of objects would take 400 bytes an image.

    Args:
        root: the dataset's folder. files: relative to it, with `/`. labels: class name to label.
    """

    def __init__(self, root: Path, files: Iterable[str], labels: Mapping[str, int]) -> None:
        self.root = root
        names, ends, found = bytearray(), array("q", [0]), array("i")
        for file in files:
            names += os.fsencode(file)
            ends.append(len(names))
            found.append(labels[file.split("/")[1]])
        self._names, self._ends = names, np.frombuffer(ends, np.int64)
        self.labels = np.frombuffer(found, np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """The image's path relative to the root."""
        return os.fsdecode(bytes(self._names[self._ends[index] : self._ends[index + 1]]))

    @overload
    def __getitem__(self, index: int) -> tuple[Path, int]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[Path, int]]: ...

    def __getitem__(self, index: int | slice) -> tuple[Path, int] | list[tuple[Path, int]]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # raises IndexError
        return self.root / self.name(place), int(self.labels[place])


class ImageFolder:
    """The images and labels of one split; labels follow the sorted class folders of `train`.

    Args:
        root: the dataset's folder.
        split: `train` or `val`.
        labelled: use only the images that `train_labelled.txt` lists, if there is that file.
        skip_corrupt: decode every image first and leave out those that cannot be read.

    Attributes:
        samples: path and class index of each image.
        classes: class names by index.
        skipped: relative paths of the images left out.

    Raises:
        UserError: a folder or a listed image is missing or empty; a class of `val` is not in `train`.
    """

    def __init__(self, root: Path, split: str, *, labelled: bool = False, skip_corrupt: bool = False) -> None:
        self.root, self.split = Path(root), split
        splits = ("train", "val") if split == "val" and (self.root / "train").is_dir() else (split,)
        for problem in imagenet.layout(self.root, splits):
            raise UserError("data folder", problem.entry, remedy=problem.message)
        self.classes = imagenet.class_folders(self.root / splits[0])
        files: Iterable[str] | None = imagenet.listed(self.root) if labelled and split == "train" else None
        if files is None:
            files = (
                f"{split}/{name}/{image}"
                for name in imagenet.class_folders(self.root / split)
                for image in imagenet.image_names(self.root / split / name)
            )
        self.samples = self._packed(files)
        self._cache: dict[int, Image.Image] = {}
        self._cache_room = CACHE_BYTES
        self.skipped: list[str] = []
        if skip_corrupt:
            self._leave_out_corrupt()

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, index: int) -> Image.Image:
        """The image as RGB; do not change it in place. Raises CorruptImage, which names the file."""
        image = self._cache.get(index)
        if image is None:
            image = Image.fromarray(decode(self.samples[index][0]))
            size = 4 * image.width * image.height  # Pillow keeps four bytes a pixel
            if size <= self._cache_room:
                self._cache[index] = image
                self._cache_room -= size
        return image

    def name(self, index: int) -> str:
        """The image's path relative to the root, as captions.json has it."""
        return self.samples.name(index)

    def _packed(self, files: Iterable[str]) -> Samples:
        return Samples(self.root, files, {name: label for label, name in enumerate(self.classes)})

    def _leave_out_corrupt(self) -> None:
        def readable(sample: tuple[Path, int]) -> bool:
            try:
                decode(sample[0])
            except CorruptImage:
                return False
            return True

        with ThreadPoolExecutor() as pool:
            kept = list(pool.map(readable, self.samples))
        self.skipped = [self.name(index) for index, good in enumerate(kept) if not good]
        self.samples = self._packed(self.name(index) for index, good in enumerate(kept) if good)
        if not len(self):
            raise UserError(
                "data folder",
                str(self.root / self.split),
                remedy=f"No image in it can be decoded, such as {self.skipped[0]}.",
            )


class PretrainImages:
    """Images without labels: `augment` makes each a uint8 tensor [3, H, W]."""

    def __init__(self, folder: ImageFolder, augment: Callable[[Image.Image], Any]) -> None:
        self.folder, self.augment = folder, augment

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Any:
        return self.augment(self.folder.load(index))


class CaptionedImages(PretrainImages):
    """Images with the tokens of their captions, [T] of int64, from `captions.json` beside the splits.

    Raises:
        UserError: there is no captions.json, or an image has no caption in it, or one without a word.
    """

    def __init__(self, folder: ImageFolder, augment: Callable[[Image.Image], Any]) -> None:
        super().__init__(folder, augment)
        captions = read_captions(folder.root)
        self.captions = [
            caption_of(captions, folder.root, folder.name(index)) for index in range(len(folder))
        ]
        self.tokenizer = Tokenizer.build(self.captions)
        self._tokens = [np.array(self.tokenizer.encode(caption), dtype=np.int64) for caption in self.captions]

    def __getitem__(self, index: int) -> tuple[Any, np.ndarray]:
        return super().__getitem__(index), self._tokens[index]


class LabelledImages:
    """Images with labels: `transform` makes each a normalised float tensor [3, H, W]."""

    def __init__(self, folder: ImageFolder, transform: Callable[[Image.Image], Any]) -> None:
        self.folder, self.transform = folder, transform

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.folder.load(index)), self.folder.samples[index][1]


def read_captions(root: Path) -> dict[str, str]:
    """`captions.json`: relative path to caption.

    Raises:
        UserError: it is missing or no ordinary file, is no such JSON object, or gives an image two captions.
    """
    path = root / "captions.json"
    try:
        is_there(path, "captions")
        captions = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=each_once)
    except FileNotFoundError:
        raise UserError(
            "captions", str(path), remedy="The file does not exist; map images to sentences in it."
        ) from None
    except OSError as error:
        remedy = f"It cannot be read ({error.strerror}); map images to sentences in it."
        raise UserError("captions", str(path), remedy=remedy) from error
    except Twice as error:
        remedy = f"It has {error.args[0]!r} twice; give each image one caption."
        raise UserError("captions", str(path), remedy=remedy) from None
    except (ValueError, RecursionError) as error:
        raise UserError("captions", str(path), remedy=f"It is not JSON: {error}.") from error
    if not isinstance(captions, dict) or not all(isinstance(text, str) for text in captions.values()):
        raise UserError("captions", str(path), remedy='Write {"train/<class>/<image>": "<sentence>", ...}.')
    return captions


def caption_of(captions: Mapping[str, str], root: Path, name: str) -> str:
    """The caption of an image, whose `name` is relative to the root.

    Raises:
        UserError: it has none, or one without a word.
    """
    if name not in captions:
        remedy = f"{name!r} has no caption. Add one, or remove the image."
        raise UserError(str(root / "captions.json"), remedy=remedy)
    if not words(captions[name]):
        remedy = (
            "It has no word: words are made of the letters a to z and digits. Write one, or remove the image."
        )
        raise UserError(f"caption of {name} in {root / 'captions.json'}", captions[name], remedy=remedy)
    return captions[name]


def cut_captions(captions: Mapping[str, str], names: Iterable[str]) -> Iterator[str]:
    """A sentence on the captions that are cut, if any are."""
    cut = [name for name in names if is_cut(captions.get(name, ""))]
    if cut:
        yield f"captions cut after {LENGTH - 1} words: {len(cut)} (first: {cut[0]})"

"""ImageNet's layout, `<split>/<class>/<image>`, and the datasets that training draws from it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mimbench.data import EXTENSIONS
from mimbench.data.captions import Tokenizer
from mimbench.data.decode import CorruptImage, decode
from mimbench.errors import UserError

CACHE_BYTES = 2**30  # decoded images kept in memory


def class_folders(split_folder: Path) -> list[str]:
    """The class names of one split, in the order of their labels."""
    return sorted(entry.name for entry in os.scandir(split_folder) if entry.is_dir() and entry.name[0] != ".")


def image_files(folder: Path) -> list[Path]:
    """The images directly in `folder`, by name."""
    names = (entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(EXTENSIONS))
    return [folder / name for name in sorted(names) if name[0] != "."]


class ImageFolder:
    """The images and labels of one split; labels follow the sorted class folders of `train`.

    Args:
        root: the dataset's folder.
        split: `train` or `val`.
        subset_file: a text file under `root`; only the images it lists (by path under `root`) are used.
        skip_corrupt: decode every image first and leave out those that cannot be read.

    Attributes:
        samples: path and class index of each image.
        classes: class names by index.
        skipped: relative paths of the images left out.

    Raises:
        UserError: a folder or a listed image is missing or empty; a class of `val` is not in `train`.
    """

    def __init__(
        self, root: Path, split: str, *, subset_file: str | None = None, skip_corrupt: bool = False
    ) -> None:
        self.root, self.split = Path(root), split
        folder = self.root / split
        if not folder.is_dir():
            raise UserError(
                "data folder",
                str(folder),
                remedy=f"It does not exist; ImageNet's layout is {split}/<class>/*.jpg.",
            )
        reference = self.root / "train"
        self.classes = class_folders(reference if reference.is_dir() else folder)
        unknown = sorted(set(class_folders(folder)) - set(self.classes))
        if unknown:
            raise UserError(
                f"class folder of {folder}",
                unknown[0],
                allowed=self.classes,
                remedy="Train has no such class.",
            )
        self.samples = [
            (path, label)
            for label, name in enumerate(self.classes)
            if (folder / name).is_dir()
            for path in image_files(folder / name)
        ]
        if not self.samples:
            raise UserError(
                "data folder",
                str(folder),
                remedy=f"It holds no images; ImageNet's layout is {split}/<class>/*.jpg.",
            )
        if subset_file is not None:
            self.samples = self._listed(self.root / subset_file)
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
        """The image's path relative to the root, as captions.json and the subset file write it."""
        return self.samples[index][0].relative_to(self.root).as_posix()

    def _listed(self, file: Path) -> list[tuple[Path, int]]:
        if not file.is_file():
            raise UserError("subset file", str(file), remedy="It does not exist.")
        by_path = dict(self.samples)
        samples = []
        for line in filter(None, map(str.strip, file.read_text(encoding="utf-8").splitlines())):
            if self.root / line not in by_path:
                raise UserError(
                    f"image listed in {file}", line, remedy=f"It is not in {self.root / self.split}."
                )
            samples.append((self.root / line, by_path[self.root / line]))
        if not samples:
            raise UserError("subset file", str(file), remedy="It lists no images.")
        return samples

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
        self.samples = [sample for sample, good in zip(self.samples, kept, strict=True) if good]
        if not self.samples:
            raise UserError(
                "data folder", str(self.root / self.split), remedy="No image in it can be decoded."
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
        UserError: there is no captions.json, or an image has no caption in it.
    """

    def __init__(self, folder: ImageFolder, augment: Callable[[Image.Image], Any]) -> None:
        super().__init__(folder, augment)
        captions = read_captions(folder.root)
        self.captions = []
        for index in range(len(folder)):
            if folder.name(index) not in captions:
                raise UserError(
                    f"image without caption in {folder.root / 'captions.json'}",
                    folder.name(index),
                    remedy="Add its caption, or remove the image.",
                )
            self.captions.append(captions[folder.name(index)])
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
        UserError: the file is missing or is not such a JSON object.
    """
    path = root / "captions.json"
    try:
        captions = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            "captions", str(path), remedy="The file does not exist; map images to sentences in it."
        ) from None
    except ValueError as error:
        raise UserError("captions", str(path), remedy=f"It is not JSON: {error}.") from error
    if not isinstance(captions, dict) or not all(isinstance(text, str) for text in captions.values()):
        raise UserError("captions", str(path), remedy='Write {"train/<class>/<image>": "<sentence>", ...}.')
    return captions

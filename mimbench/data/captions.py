"""A word-level tokenizer for captions, built from the captions themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

PAD, EOS, UNKNOWN = 0, 1, 2
SPECIAL = ("<pad>", "<eos>", "<unknown>")
WORD = re.compile(r"[a-z0-9']+")
LENGTH = 24  # tokens of a sentence, with `eos`


def words(caption: str) -> list[str]:
    """The words of a caption; there are none in scripts without the letters a to z."""
    return WORD.findall(caption.lower())


def is_cut(caption: str) -> bool:
    """Whether a caption has more words than a sentence of `LENGTH` tokens holds."""
    return len(words(caption)) > LENGTH - 1


@dataclass(frozen=True)
class Tokenizer:
    """Words in sorted order after the special tokens; a sentence ends in `eos` and is padded to `length`."""

    words: tuple[str, ...]
    length: int = LENGTH
    pad: ClassVar[int] = PAD
    eos: ClassVar[int] = EOS

    @classmethod
    def build(cls, captions: Iterable[str], length: int = LENGTH) -> Tokenizer:
        found = {word for caption in captions for word in words(caption)}
        return cls(SPECIAL + tuple(sorted(found)), length)

    @property
    def size(self) -> int:
        return len(self.words)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {word: index for index, word in enumerate(self.words)})

    def encode(self, caption: str) -> list[int]:
        """`length` token ids; a longer caption is cut, and still ends in `eos`."""
        index: dict[str, int] = self._index  # type: ignore[attr-defined]
        ids = [index.get(word, UNKNOWN) for word in words(caption)][: self.length - 1]
        return [*ids, EOS, *[PAD] * (self.length - 1 - len(ids))]

"""A word-level tokenizer for captions, built from the captions themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

PAD, EOS, UNKNOWN = 0, 1, 2
SPECIAL = ("<pad>", "<eos>", "<unknown>")
WORD = re.compile(r"[a-z0-9']+")


@dataclass(frozen=True)
class Tokenizer:
    """Words in sorted order after the special tokens; a sentence ends in `eos` and is padded to `length`."""

    words: tuple[str, ...]
    length: int = 24
    pad: ClassVar[int] = PAD
    eos: ClassVar[int] = EOS

    @classmethod
    def build(cls, captions: Iterable[str], length: int = 24) -> Tokenizer:
        words = {word for caption in captions for word in WORD.findall(caption.lower())}
        return cls(SPECIAL + tuple(sorted(words)), length)

    @property
    def size(self) -> int:
        return len(self.words)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {word: index for index, word in enumerate(self.words)})

    def encode(self, caption: str) -> list[int]:
        """`length` token ids; a longer caption is cut, and still ends in `eos`."""
        index: dict[str, int] = self._index  # type: ignore[attr-defined]
        ids = [index.get(word, UNKNOWN) for word in WORD.findall(caption.lower())][: self.length - 1]
        return [*ids, EOS, *[PAD] * (self.length - 1 - len(ids))]

"""Oddities of captions.json."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from tests.faults.campaign.data_cases import Expect, of
from tests.faults.campaign.datasets import Read


def _caption_edit(root: Path) -> tuple[Path, dict[str, object]]:
    file = root / "captions.json"
    return file, json.loads(file.read_text())


@of("captions")
def caption_missing(root: Path, draw: Random) -> Expect:
    file, texts = _caption_edit(root)
    name = draw.choice(sorted(texts))
    del texts[name]
    file.write_text(json.dumps(texts))
    return Expect(f"{name} has no caption", refused=(name,))


@of("captions")
def caption_of_no_image(root: Path, draw: Random) -> Expect:
    file, texts = _caption_edit(root)
    texts[draw.choice(["train/none/1.jpg", "none.jpg", "val/bar/none.jpg"])] = "nothing"
    file.write_text(json.dumps(texts))
    return Expect("a caption too many", of_pretraining="other", right=_captions_right(root))


def _captions_right(root: Path) -> object:
    texts = json.loads((root / "captions.json").read_text("utf-8-sig"))

    def right(found: Read) -> str:
        wrong = [name for name, text in found.labels.items() if texts[name] != text]
        return f"another caption of {wrong[:2]}" if wrong else ""

    return right


@of("captions")
def caption_of_another_kind(root: Path, draw: Random) -> Expect:
    file, texts = _caption_edit(root)
    texts[draw.choice(sorted(texts))] = draw.choice([None, 3, ["a"], {}])
    file.write_text(json.dumps(draw.choice([texts, list(texts), "x", None])))
    return Expect("captions of another kind", refused=(str(file),))


@of("captions")
def caption_twice(root: Path, draw: Random) -> Expect:
    """JSON lets a name stand twice; which one counts is not known."""
    file, texts = _caption_edit(root)
    name = draw.choice(sorted(texts))
    file.write_text(json.dumps(texts).replace("{", "{" + f'"{name}": "another sentence", ', 1))
    return Expect(f"{name} has two captions", refused=(str(file), name))


@of("captions")
def caption_without_words(root: Path, draw: Random) -> Expect:
    file, texts = _caption_edit(root)
    name = draw.choice(sorted(texts))
    texts[name] = draw.choice(["", "  ", "...", "小猫", "кот"])
    file.write_text(json.dumps(texts, ensure_ascii=draw.random() < 0.5), encoding="utf-8")
    return Expect(f"the caption of {name} is {texts[name]!r}", refused=(str(file), name))


@of("captions")
def caption_changed(root: Path, draw: Random) -> Expect:
    file, texts = _caption_edit(root)
    first, second = draw.sample(sorted(texts), 2)
    texts[first], texts[second] = texts[second], texts[first]
    file.write_text(json.dumps(texts, indent=1))
    return Expect("captions exchanged", of_pretraining="other", right=_captions_right(root))


@of("captions")
def captions_with_a_mark(root: Path, draw: Random) -> Expect:
    file = root / "captions.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    return Expect("captions of Windows", right=_captions_right(root))


@of("captions")
def captions_not_json(root: Path, draw: Random) -> Expect:
    file = root / "captions.json"
    content = file.read_bytes()
    file.write_bytes(
        draw.choice([content[: len(content) // 2], b"", b"<html>", "d\xe4".encode("latin-1"), b"[" * 99_999])
    )
    return Expect("captions that are no JSON", refused=(str(file),))

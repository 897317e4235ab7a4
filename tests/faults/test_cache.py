"""Damaged entries of the user's cache: they are made again, and no other value comes out."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from mimbench.catalog import Catalog, Resolved
from mimbench.store.fingerprint import source_fingerprint
from tests.faults.damage import SEED, flipped
from tests.world import forget


def resolve(cache: Path, scale: str) -> Resolved:
    return Catalog(cache).resolve("method", "plain", scale, data_size=4)


def test_flips_in_a_recipe_change_nothing(world: Path, tmp_path: Path) -> None:
    cache, draw = tmp_path / "cache", random.Random(SEED)
    whole = resolve(cache, "smoke")
    entries = [file for file in sorted(cache.iterdir()) if file.suffix == ".json"]
    assert len(entries) == 2
    for entry in entries:
        content = entry.read_bytes()
        for _ in range(60):
            entry.write_bytes(flipped(content, draw.randrange(8 * len(content))))
            assert resolve(cache, "smoke") == whole
            entry.write_bytes(content)


def test_no_entry_passes_for_another(world: Path, tmp_path: Path) -> None:
    whole, wrong = resolve(tmp_path / "one", "smoke"), resolve(tmp_path / "other", "toy")
    (smoke,) = {file.name for file in (tmp_path / "one").iterdir()} - names(tmp_path / "other")
    (toy,) = {file.name for file in (tmp_path / "other").iterdir()} - names(tmp_path / "one")
    shutil.copy(tmp_path / "other" / toy, tmp_path / "one" / smoke)
    assert resolve(tmp_path / "one", "smoke") == whole != wrong


def names(cache: Path) -> set[str]:
    return {file.name for file in cache.iterdir()}


def test_a_source_passes_for_no_other(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    forget()
    whole = source_fingerprint(("pretrain.methods.plain",))
    first, *others = sorted((tmp_path / "cache" / "sources").iterdir())
    for other in others:
        shutil.copy(first, other)
    forget()
    assert source_fingerprint(("pretrain.methods.plain",)) == whole

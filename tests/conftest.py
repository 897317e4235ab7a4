"""Fixtures that every area's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# One thread for torch, here and in every process a test starts: bitwise repeatable, fair to other workers.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Small real datasets beside the checkout; CONTRIBUTING.md says what is expected there."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no real pictures at {folder}")
    return folder


@pytest.fixture(scope="session")
def smoke_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest toy data: `imagenet/`, `ade20k/` and `coco/` under one root. Read only."""
    from mimbench.data import toy

    return toy.ensure(tmp_path_factory.mktemp("data") / "smoke", size="smoke")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace: this test's runs, data and reports go nowhere else."""
    monkeypatch.setenv("MIMBENCH_HOME", str(tmp_path))
    return tmp_path

"""The command line's workspace."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mimbench import paths
from tests.cli.bench import Bench
from tests.world import ROOT


@pytest.fixture
def bench(world: Path, smoke_data: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    real = paths.share
    share = workspace / "share"
    monkeypatch.setattr(paths, "share", lambda name: share / name if name == "tables" else real(name))
    data = Path(shutil.copytree(smoke_data, workspace / "data" / "smoke"))
    bench = Bench(workspace, data)
    bench.table()
    (share / "tables" / "reported.csv").write_text(
        (ROOT / "tables" / "reported.csv").read_text().splitlines()[0] + "\n"
    )
    return bench

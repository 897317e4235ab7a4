"""One shipped table from its TOML file to the page: every station runs, without a substitute."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "dtm_main_smoke.csv"
KEPT = ("kind", "row", "metric", "status", "provenance", "n", "reported", "reported_kind", "against")
TOLERANCE = {"top1": 12.5, "miou": 3.0, "box_ap": 3.0, "mask_ap": 3.0}  # 24 images: three of them in top-1


def test_dtm_main_at_scale_smoke(workspace: Path) -> None:
    """26 runs (two teachers, six pretrainings, three tasks on each) on the toy data; then cells and files.

    What is compared with the golden file are statuses, figures and provenance text for text, and our numbers
    within what another processor's rounding may move. The second command computes nothing, and writes the
    same bytes.
    """
    command = [sys.executable, "-m", "mimbench", "reproduce-table", "dtm", "--scale", "smoke"]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    out = workspace / "reports" / "out" / "dtm"
    assert {file.suffix for file in out.iterdir()} == {".html", ".md", ".csv", ".json", ".tex", ".svg"}
    found, golden = read(out / "main-smoke.csv"), read(GOLDEN)
    for ours, kept in zip(found, golden, strict=True):
        assert {name: ours[name] for name in KEPT} == {name: kept[name] for name in KEPT}
        assert bool(ours["mean"]) == bool(kept["mean"])
        if kept["mean"]:
            allowed = TOLERANCE[kept["metric"]]
            assert float(ours["mean"]) == pytest.approx(float(kept["mean"]), abs=allowed), kept["row"]
    written = {file.name: file.read_bytes() for file in out.iterdir()}
    runs = sorted((workspace / "runs").glob("*/result.json"))
    made = {file: file.stat().st_mtime_ns for file in runs}
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    assert {file: file.stat().st_mtime_ns for file in runs} == made and len(made) == 26
    assert {file.name: file.read_bytes() for file in out.iterdir()} == written


def read(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))

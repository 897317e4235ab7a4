"""The store that the campaign damages: real runs at scale smoke, and what they gave."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from mimbench.store.folder import RunFolder
from mimbench.store.records import Options
from tests.faults.campaign.workspace import ROOT, Killed, Workspace

TABLE = ("reproduce-table", "dtm", "--scale", "smoke")
STOPPED = ("run", "mae", "--scale", "smoke", "--set", "mae.epochs=8")
STOP_AT = 7  # steps

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]


def own(role: str, home: Path) -> tuple[str, ...]:
    """The words of a run on the user's own data of a role."""
    words = {
        "imagenet": ("run", "mae", "classification"),
        "captions": ("run", "dtm"),
        "ade20k": ("run", "scratch", "segmentation"),
        "coco": ("run", "scratch", "detection"),
    }
    folder = "imagenet" if role == "captions" else role
    return (*words[role], "--scale", "smoke", "--data", f"{folder}={home / 'own' / folder}")


def loaded(home: Path, suffix: str) -> tuple[str, ...]:
    """The words of a run on a checkpoint of the user's own."""
    return ("run", "mae", "knn", "--scale", "smoke", "--weights", f"mae={home / 'own' / f'mae{suffix}'}")


@dataclass
class Expected:
    """What the undisturbed runs gave.

    Attributes:
        runs: the folder's name to the run's numbers: metrics, losses by step, digests of its artefacts.
        cells: (row, column) of the table to the text of its value.
        plots: the digest of each SVG of the table.
        stopped: the folder of the run that was interrupted. table: the folders of the table's runs.
        rows: the rows of the table's file. parents: a run's folder to those of the runs it starts from.
        seed: of the campaign.
    """

    runs: dict[str, dict[str, object]] = field(default_factory=dict)
    cells: dict[tuple[str, str], str] = field(default_factory=dict)
    plots: dict[str, str] = field(default_factory=dict)
    stopped: str = ""
    table: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    parents: dict[str, list[str]] = field(default_factory=dict)
    seed: int = 0


def numbers(folder: Path) -> dict[str, object]:
    """What a finished run gave, read without the project's own readers."""
    result = json.loads((folder / "result.json").read_text())
    logged = folder / "metrics.jsonl"  # some tasks train nothing
    lines = [json.loads(line) for line in logged.read_text().splitlines()] if logged.exists() else []
    losses = [{name: value for name, value in line.items() if name != "time"} for line in lines]
    files = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("encoder.safetensors", "teacher.safetensors")
        if (folder / name).is_file()
    }
    return {"metrics": result["metrics"], "losses": losses, "files": files}


def cells(file: Path) -> dict[tuple[str, str], str]:
    """(row, metric) of a rendered CSV to the mean there."""
    text = file.read_text(encoding="utf-8")
    lines = csv.DictReader(io.StringIO(text))
    return {(line["row"], line["metric"]): line["mean"] for line in lines if line["kind"] == "cell"}


def table_file(home: Path, suffix: str = ".csv") -> Path:
    return home / "reports" / "out" / "dtm" / f"main-smoke{suffix}"


def plots(home: Path) -> dict[str, str]:
    folder = home / "reports" / "out" / "dtm"
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.svg"))}


def build(place: Path, rows: Collection[str] = ()) -> tuple[Workspace, Expected]:
    """Compute the reference store in `place`; about a minute.

    Args:
        rows: the table's rows that are kept; all by default.
    """
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    workspace, expected = Workspace(place), Expected()
    home = workspace.home
    shutil.copytree(ROOT / "tables", workspace.tables)
    if rows:
        keep_rows(workspace.tables / "dtm" / "main.toml", rows)
    require(workspace, *TABLE)
    expected.table = sorted(folder.name for folder in home.glob("runs/*-*"))
    expected.rows = tomllib.loads((workspace.tables / "dtm" / "main.toml").read_text())["rows"]
    (home / "own").mkdir()
    for role in ("imagenet", "ade20k", "coco"):
        ignore = shutil.ignore_patterns("toy.json", "manifest.json")
        shutil.copytree(home / "data" / "smoke" / role, home / "own" / role, ignore=ignore)
    (encoder,) = home.glob("runs/pretrain-mae-*/encoder.safetensors")
    shutil.copy(encoder, home / "own" / "mae.safetensors")
    torch.save({"model": load_file(encoder)}, home / "own" / "mae.pth")
    for role in ("imagenet", "captions", "ade20k", "coco"):
        require(workspace, *own(role, home))
    for suffix in (".safetensors", ".pth"):
        require(workspace, *loaded(home, suffix))
    before = {folder.name for folder in home.glob("runs/*-*")}
    require(workspace, *STOPPED)
    (stopped,) = {folder.name for folder in home.glob("runs/*-*")} - before
    for folder in home.glob("runs/*-*"):
        expected.runs[folder.name] = numbers(folder)
        keys = json.loads((folder / "spec.json").read_text())["parents"].values()
        expected.parents[folder.name] = [path.name for key in keys for path in home.glob(f"runs/*-{key[:8]}")]
    shutil.rmtree(home / "runs" / stopped)
    interrupt(workspace)
    expected.stopped, expected.cells = stopped, cells(table_file(home))
    expected.plots = plots(home)
    return workspace, expected


def keep_rows(file: Path, rows: Collection[str]) -> None:
    """Cut a table's file to some rows, without claims."""
    head, *blocks = file.read_text().partition("[[claims]]")[0].split("[[rows]]\n")
    kept = [block for block in blocks if re.match(r'id = "(.+)"', block)[1] in rows]  # type: ignore[index]
    file.write_text("[[rows]]\n".join([head, *kept]))


def require(workspace: Workspace, *words: str) -> None:
    done = workspace.call(*words)
    assert done.status == 0 and not done.crash, (words, done.output, done.crash)


def interrupt(workspace: Workspace) -> None:
    """Begin the run that stays unfinished: it ends after some steps, each of which left a checkpoint."""
    progress = RunFolder.progress

    def stop(self: RunFolder, step: int, total: int, **scalars: float) -> None:
        progress(self, step, total, **scalars)
        if step == STOP_AT:
            raise Killed

    with (
        mock.patch.object(RunFolder, "progress", stop),
        mock.patch.object(RunFolder, "options", Options(checkpoint_seconds=0.0)),
    ):
        try:
            workspace.call(*STOPPED)
        except Killed:
            return
    raise AssertionError("the run was not interrupted")

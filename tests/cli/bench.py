"""A workspace with one small table, and the command line in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from mimbench.catalog import Catalog
from mimbench.cli import app
from mimbench.plan.datasets import Data
from mimbench.plan.graph import Plan
from mimbench.plan.planner import Planner
from mimbench.plan.request import Request
from mimbench.store.folder import RunFolder
from mimbench.store.runs import RunStore
from mimbench.table import spec as tables

TABLE = """
paper = "P"
name = "main"
title = "The title"
section = "Section 1"
baseline = "nothing"
[[columns]]
task = "echo"
metric = "score"
title = "Score"
[[columns]]
task = "echo"
metric = "other"
title = "Other"
[[rows]]
id = "nothing"
label = "Nothing"
method = "none-at-all"
[[rows]]
id = "plain"
label = "Plain"
method = "plain"
set = { "echo.mode" = "MODE" }
"""


class Bench:
    """A workspace with one table, whose pretraining is done already: workers only fine-tune."""

    def __init__(self, root: Path, data: Path) -> None:
        self.root, self.data = root, data
        self.store = RunStore(root / "runs")

    def plan(self, **asked: Any) -> Plan:
        """The plan of the table; `asked` are fields of the Request."""
        spec, request = tables.load("plain"), Request(**{"scale": "smoke", **asked})
        planner = Planner(Catalog(None), self.store, Data(request, lambda: self.data), request)
        return planner.table(spec.rows, spec.columns, "tables/plain/main.toml")

    def finish(self, **asked: Any) -> None:
        """Fill the store with the plan's runs, finished and with made-up numbers."""
        for node in self.plan(**asked).nodes.values():
            folder = self.store.create(node.spec, node.inputs)
            if folder.result is None:
                folder.begin({})
                numbers = {"score": 40.0 + node.spec.seed, "other": 1.0}
                folder.finish(numbers if node.spec.stage == "downstream" else {})

    def table(self, mode: str = "ok") -> None:
        file = self.root / "share" / "tables" / "plain" / "main.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(TABLE.replace("MODE", mode))
        for node in self.plan().nodes.values():
            if node.spec.stage == "pretrain" and node.outcome != "done":
                self.store.create(node.spec, node.inputs).finish({})

    def call(self, *words: str) -> Result:
        return CliRunner().invoke(app, words, catch_exceptions=False)

    def run(self, stage: str = "downstream") -> RunFolder:
        """The first run of a stage."""
        return next(folder for folder in self.store if folder.spec.stage == stage)

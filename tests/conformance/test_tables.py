"""What every table file must do: name what exists, cite what was reported, lead to a plan at every scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mimbench import catalog, discovery
from mimbench.plan.datasets import Data
from mimbench.plan.planner import Planner
from mimbench.plan.request import ROLES, Request
from mimbench.recipe import SCALES
from mimbench.store.runs import RunStore
from mimbench.table import reported
from mimbench.table.spec import TableSpec, list_tables, load

TABLES = list_tables()
pytestmark = pytest.mark.parametrize(
    ("paper", "table"), TABLES, ids=[f"{paper}-{table}" for paper, table in TABLES]
)


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> catalog.Catalog:
    return catalog.Catalog(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def lines() -> list[reported.Reported]:
    return reported.read()


@pytest.fixture
def spec(paper: str, table: str) -> TableSpec:
    return load(paper, table)


def test_it_names_what_exists(spec: TableSpec, cards: catalog.Catalog) -> None:
    for column in spec.columns:
        metrics = [metric["name"] for metric in cards.describe("task", column.task).metrics]
        assert column.metric in metrics and column.title
    methods = [row.method for row in spec.rows if row.method]
    assert methods, "no row can be run"
    assert all(discovery.kind_of(name) for name in methods), "a method, or a teacher that the table is about"
    assert spec.row(spec.baseline).method, "the baseline must be run"


def test_every_reported_value_resolves_to_its_columns_metric(
    spec: TableSpec, lines: list[reported.Reported]
) -> None:
    for row in spec.rows:
        for metric, reference in row.reported.items():
            assert reported.find(lines, reference, where=row.id).metric == metric
    for claim in spec.claims:
        if claim.reported_delta:
            assert reported.find(lines, claim.reported_delta, where=claim.label).value != 0


@pytest.mark.parametrize("scale", SCALES)
def test_it_leads_to_a_plan(
    spec: TableSpec,
    scale: str,
    paper: str,
    table: str,
    cards: catalog.Catalog,
    smoke_data: Path,
    tmp_path: Path,
) -> None:
    """With data for every role and every checkpoint given, each cell that names a method is a run."""
    where = f"tables/{paper}/{table}.toml"
    save_file({"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    teachers = map(catalog.teacher, discovery.names("teacher"))
    wanted = {card.recipes()[scale].values().get("weights") for card in teachers}
    request = Request(
        scale=scale,
        seeds=2,
        data={role: smoke_data / ("imagenet" if role == "captions" else role) for role in ROLES},
        weights={name: tmp_path / "weights.safetensors" for name in wanted if name},
    )
    planner = Planner(cards, RunStore(tmp_path / "runs"), Data(request, lambda: smoke_data), request)
    plan = planner.table(spec.rows, spec.columns, where)
    cells = [(row, index) for row in spec.rows if row.method for index in range(len(spec.columns))]
    reasons = {cell: str(reason) for cell, reason in plan.blocked.items()}
    assert reasons == {(row.id, i): row.not_at[scale] for row, i in cells if scale in row.not_at}
    assert set(plan.cells) == {(row.id, index) for row, index in cells} - set(plan.blocked)
    seen: set[str] = set()
    for key, node in plan.nodes.items():
        assert set(node.spec.parents.values()) <= seen, "parents come first"
        assert set(plan.recipes[key].sources) == set(plan.recipes[key].values)
        seen.add(key)
    for cell in plan.cells.values():
        assert set(cell) == {0, 1} and all(
            plan.nodes[key].spec.stage == "downstream" for key in cell.values()
        )
    folders = {node.spec.folder for node in plan.nodes.values()}
    assert len(folders) == len(plan.nodes)


def test_without_data_it_says_what_to_give(
    spec: TableSpec, paper: str, table: str, cards: catalog.Catalog, tmp_path: Path
) -> None:
    request = Request(scale="paper")

    def no_toy() -> Path:
        raise AssertionError("the paper's scale never falls back on toy data")

    planner = Planner(cards, RunStore(tmp_path), Data(request, no_toy), request)
    plan = planner.table(spec.rows, spec.columns, f"tables/{paper}/{table}.toml")
    assert plan.cells == {} and plan.nodes == {}
    own = {reason for row in spec.rows for reason in row.not_at.values()}
    assert plan.blocked and all(
        reason.option.startswith("--data") or str(reason) in own for reason in plan.blocked.values()
    )

"""The graph of runs behind a table: every run once, parents first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mimbench.catalog import Resolved
from mimbench.errors import Unavailable
from mimbench.store.folder import Inputs, Outcome
from mimbench.store.spec import RunSpec


@dataclass
class Node:
    """One run of the graph."""

    spec: RunSpec
    inputs: Inputs
    label: str
    images: int
    flops: float
    outcome: Outcome
    users: set[str] = field(default_factory=set)  # the rows that need it

    @property
    def key(self) -> str:
        return self.spec.key


@dataclass
class Plan:
    """The graph of runs, and which run fills which cell.

    Attributes:
        nodes: key to run, parents before children.
        cells: (row id, column index) to {seed: key of the run with the cell's number}.
        blocked: (row id, column index) to why it cannot be run here.
        recipes: key to the resolved recipe with its sources.
        targets: keys of the requested runs; all others are runs that these need.
        provenance: row id to where its method's code comes from: official, reconstruction, own.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    cells: dict[tuple[str, int], dict[int, str]] = field(default_factory=dict)
    blocked: dict[tuple[str, int], Unavailable] = field(default_factory=dict)
    recipes: dict[str, Resolved] = field(default_factory=dict)
    targets: set[str] = field(default_factory=set)
    provenance: dict[str, str] = field(default_factory=dict)

    @classmethod
    def union(cls, plans: Mapping[str, Plan]) -> Plan:
        """All runs of several tables, given by name, each once; without the cells of the tables.

        The rows of a main table are methods. For a row of an ablation (`4 branches`), the run's label names
        the table too.
        """
        whole = cls()
        for table, plan in plans.items():
            for key, node in plan.nodes.items():
                label = node.label if table.endswith("/main") else f"{table}: {node.label}"
                known = whole.nodes.setdefault(key, replace(node, label=label, users=set()))
                known.users.update(node.users)
            whole.recipes.update(plan.recipes)
            whole.targets.update(plan.targets)
        return whole

    def drop_unused(self) -> None:
        """Drop the runs that no target needs, such as those of a row that cannot be run."""
        needed = set(self.targets)
        for key, node in reversed(self.nodes.items()):
            if key in needed:
                needed.update(node.spec.parents.values())
        self.nodes = {key: node for key, node in self.nodes.items() if key in needed}

    def lineage(self, key: str) -> list[str]:
        """A run, what it needs, what these need, and so on."""
        parents = self.nodes[key].spec.parents.values()
        return [key, *(run for parent in parents for run in self.lineage(parent))]

    def pretraining_flops(self) -> dict[str, float]:
        """Row id to the FLOPs of its pretraining; without rows whose encoder is loaded or not trained.

        The forward passes of a teacher count, its training does not.
        """
        found = {}
        for (row, _), keys in self.cells.items():
            parents = self.nodes[next(iter(keys.values()))].spec.parents
            if "encoder" in parents and (flops := self.nodes[parents["encoder"]].flops):
                found[row] = flops
        return found

    def loaded(self) -> dict[str, str]:
        """Row id to the file name of the checkpoint that replaces its pretraining, for rows that have one."""
        found = {}
        for (row, _), keys in self.cells.items():
            parents = self.nodes[next(iter(keys.values()))].spec.parents
            if "encoder" in parents and (node := self.nodes[parents["encoder"]]).spec.adopted:
                found[row] = ", ".join(Path(path).name for path in node.inputs.weights.values())
        return found

    def todo(self, *, rerun_stale: bool = False) -> list[Node]:
        """The runs to do, parents first: targets that are not done, and what these still need."""
        settled = {"done"} if rerun_stale else {"done", "stale"}
        needed = set(self.targets)
        for key, node in reversed(self.nodes.items()):
            if key in needed and node.outcome not in settled:
                needed.update(node.spec.parents.values())
        return [n for key, n in self.nodes.items() if key in needed and n.outcome not in settled]

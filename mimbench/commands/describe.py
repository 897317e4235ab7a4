"""What `--json` prints: plain values, with a `schema` number that grows when a key changes its meaning.

    methods     {schema, methods: [{kind, name, title, paper, code, provenance, trains,
                needs: {role: name}, data, scales, golden, points}]}; kind is `method` or `teacher`
    tasks       {schema, tasks: [{name, title, protocol, takes, data, scales, metrics: [{name, title}]}]}
    tables      {schema, tables: [{method, table, title, paper, section, baseline,
                columns: [{task, metric, title}], rows: [{id, label, method}]}]}; a row whose method is null
                is only reported
    plan        {schema, method, table, scale, seeds, runs: [{run, key, label, stage, name, arch, seed,
                needs: {role: run}, images, flops, state}], to_do: {runs, images, flops, seconds, workers},
                cells: [{row, metric, runs: {seed: run}}], blocked: [{row, metric, reason, option}]}
    runs list   {schema, workspace, runs: [{run, key, path, subject, stage, name, arch, method, task, seed,
                scale, changes: {field: value}, weights: [name], state, plugin: {name, path or
                distribution} or null, step, total, seconds, updated, message, parents: {role: run},
                metrics: {name: value}}]}
    runs show   {schema, run: as in runs list, children: [run], spec, inputs, status, result}
    doctor      {schema, ready, checks: [{section, name, status, found, remedy, details}]}

`run` is a folder's name in the store, `flops` a plain count, `updated` UTC in ISO 8601. `seconds` is the time
that a run has taken; in `to_do` an estimate, null where no run like these has finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from mimbench import paths
from mimbench.catalog import Catalog, Description
from mimbench.commands.list_runs import Listed
from mimbench.plan.graph import Node, Plan
from mimbench.plan.pace import Estimate
from mimbench.plan.request import Request
from mimbench.store.folder import UNREADABLE, RunFolder
from mimbench.table import spec as tables
from mimbench.table.spec import TableSpec

SCHEMA = 1


def methods(catalog: Catalog) -> dict[str, Any]:
    """Every method, then every teacher."""
    names = (
        "kind", "name", "title", "paper", "code", "provenance", "trains", "needs", "data", "scales",
        "golden", "points",
    )  # fmt: skip
    found = [*catalog.all("method"), *catalog.all("teacher")]
    return {"schema": SCHEMA, "methods": [_facts(about, names) for about in found]}


def tasks(catalog: Catalog) -> dict[str, Any]:
    names = ("name", "title", "protocol", "takes", "data", "scales")
    metrics = {about.name: [_choose(metric, ("name", "title")) for metric in about.metrics]
               for about in catalog.all("task")}  # fmt: skip
    found = [{**_facts(about, names), "metrics": metrics[about.name]} for about in catalog.all("task")]
    return {"schema": SCHEMA, "tasks": found}


def list_tables() -> dict[str, Any]:
    found = [(method, tables.load(method, name)) for method, name in tables.list_tables()]
    return {"schema": SCHEMA, "tables": [_table(method, spec) for method, spec in found]}


def plan(
    method: str,
    table: str,
    request: Request,
    found: Plan,
    expected: Estimate,
    *,
    rerun_stale: bool = False,
) -> dict[str, Any]:
    todo = found.todo(rerun_stale=rerun_stale)
    metrics = [column.metric for column in tables.load(method, table).columns]
    cells = [
        {
            "row": row,
            "metric": metrics[column],
            "runs": {str(seed): found.nodes[key].spec.folder for seed, key in keys.items()},
        }
        for (row, column), keys in found.cells.items()
    ]
    blocked = [
        {"row": row, "metric": metrics[column], "reason": str(reason), "option": reason.option or None}
        for (row, column), reason in found.blocked.items()
    ]
    return {
        "schema": SCHEMA,
        "method": method,
        "table": table,
        "scale": request.scale,
        "seeds": request.seeds,
        "runs": [_node(node, found) for node in found.nodes.values()],
        "to_do": {
            "runs": len(todo),
            "images": sum(node.images for node in todo),
            "flops": sum(node.flops for node in todo),
            "seconds": expected.seconds if todo else 0.0,
            "workers": expected.workers,
        },
        "cells": cells,
        "blocked": blocked,
    }


def runs(found: Iterable[Listed]) -> dict[str, Any]:
    return {"schema": SCHEMA, "workspace": str(paths.workspace()), "runs": [run(listed) for listed in found]}


def run(listed: Listed) -> dict[str, Any]:
    """One run. Without a readable spec, the fields that come from it are null or empty."""
    spec, folder = listed.spec, listed.folder
    found: dict[str, Any] = {
        "run": listed.name,
        "key": spec.key if spec else None,
        "path": str(folder.path),
        "subject": listed.subject,
        "stage": spec.stage if spec else None,
        "name": spec.name if spec else None,
        "arch": spec.arch if spec else None,
        "method": listed.method,
        "task": spec.name if spec and spec.stage == "downstream" else None,
        "seed": spec.seed if spec else None,
        "scale": listed.scale or None,
        "changes": dict(listed.changes),
        "weights": list(listed.weights),
        "state": listed.state,
        "plugin": listed.folder.plugin,
    }
    updated = datetime.fromtimestamp(listed.updated, timezone.utc).isoformat(timespec="seconds")
    return found | {
        "step": listed.step,
        "total": listed.total,
        "seconds": listed.seconds,
        "updated": updated,
        "message": listed.message,
        "parents": _parents(folder) if spec else {},
        "metrics": dict(listed.metrics),
    }


def one_run(listed: Listed, children: Iterable[RunFolder]) -> dict[str, Any]:
    """Everything that a run's folder records."""
    folder, spec = listed.folder, listed.spec
    return {
        "schema": SCHEMA,
        "run": run(listed),
        "children": [child.path.name for child in children],
        "spec": spec.as_dict() if spec else None,
        "inputs": None if any("inputs.json" in told for told in folder.damage()) else asdict(folder.inputs),
        "status": asdict(folder.status) if folder.status.state else None,
        "result": asdict(folder.result) if listed.state not in UNREADABLE and folder.result else None,
    }


def _parents(folder: RunFolder) -> dict[str, str | None]:
    """Role to the parent's name; None if it was removed."""
    found = {role: folder.store.get(key) for role, key in folder.spec.parents.items()}
    return {role: parent.path.name if parent else None for role, parent in found.items()}


def _node(node: Node, found: Plan) -> dict[str, Any]:
    spec = node.spec
    return {
        "run": spec.folder,
        "key": node.key,
        "label": node.label,
        "stage": spec.stage,
        "name": spec.name,
        "arch": spec.arch,
        "seed": spec.seed,
        "needs": {role: found.nodes[key].spec.folder for role, key in spec.parents.items()},
        "images": node.images,
        "flops": node.flops,
        "state": node.outcome,
    }


def _table(method: str, spec: TableSpec) -> dict[str, Any]:
    return {
        "method": method,
        "table": spec.name,
        "title": spec.title,
        "paper": spec.paper,
        "section": spec.section,
        "baseline": spec.baseline,
        "columns": [column.model_dump() for column in spec.columns],
        "rows": [{"id": row.id, "label": row.label, "method": row.method} for row in spec.rows],
    }


def _facts(about: Description, names: Iterable[str]) -> dict[str, Any]:
    return _choose(asdict(about), names)


def _choose(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: values[name] for name in names}

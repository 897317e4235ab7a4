"""Digests of what runs compute, to prove that a refactor alters no number.

    python tests/golden/digests.py before.json           # compute
    python tests/golden/digests.py after.json --against before.json

Every method, teacher and task runs at scale smoke with two seeds, through the planner, the worker processes,
the loader, the loop and the checkpoints, as a table's runs do. `--tables` adds every run of every shipped
table with seed 0, and with them every switch that an ablation turns. The file holds each run's key and
the SHA-256 of its losses, its encoder, its teacher file and its metrics.

Digests are equal on one machine and one set of installed packages only; so the file is not committed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from rich.console import Console  # noqa: E402

from mimbench import catalog as cards  # noqa: E402
from mimbench import discovery  # noqa: E402
from mimbench.catalog import Catalog  # noqa: E402
from mimbench.data.toy.make import ensure  # noqa: E402
from mimbench.errors import Unavailable  # noqa: E402
from mimbench.execute.pool import Pool  # noqa: E402
from mimbench.execute.progress import Progress  # noqa: E402
from mimbench.plan.datasets import Data  # noqa: E402
from mimbench.plan.graph import Plan  # noqa: E402
from mimbench.plan.planner import Planner  # noqa: E402
from mimbench.plan.request import Request  # noqa: E402
from mimbench.store.folder import RunFolder  # noqa: E402
from mimbench.store.runs import RunStore  # noqa: E402
from mimbench.table import spec as tables  # noqa: E402

SEEDS = 2
HOSTS = ("mae", "dtm")  # every task takes their encoders: fixed positions; relative ones with layer scale
CAPTIONED = ("clip",)  # the pilot study reads captions


def wanted() -> Iterator[tuple[str, str | None]]:
    """(method or teacher, task or None): what runs, with what it needs."""
    tasks = {name: cards.task(name) for name in discovery.names("task")}
    for name in discovery.names("method"):
        yield name, "classification"
    for name in discovery.names("teacher"):
        yield name, None
    for task, card in tasks.items():
        takers = HOSTS if card.takes == "encoder" else CAPTIONED
        yield from ((name, task) for name in takers)


def plan_all(store: RunStore, data: Path, with_tables: bool) -> Plan:
    request = Request(scale="smoke", seeds=SEEDS)
    catalog, datasets = Catalog(None), Data(request, lambda: data)
    planner = Planner(catalog, store, datasets, request)
    for name, task in wanted():
        for seed in range(SEEDS):
            try:
                planner.cell(tables.Row(id=name, label=name, method=name), task, seed, "digests")
            except Unavailable as reason:
                print(f"not at this scale: {name} {task or ''}: {reason}")
    plans = {"digests": planner.plan}
    if with_tables:
        request = replace(request, seeds=1)
        for method, table in tables.list_tables():
            spec = tables.load(method, table)
            planner = Planner(catalog, store, datasets, request)
            plans[f"{method}/{table}"] = planner.table(spec.rows, spec.columns, f"{method}/{table}")
    return Plan.union(plans)


def digests_of(folder: RunFolder) -> dict[str, str]:
    """The run's key and a SHA-256 of each thing that it computed."""
    result = folder.result
    assert result is not None, f"{folder.path.name} is not done"
    losses = [{k: v for k, v in line.items() if k != "time"} for line in folder.metrics()]
    found = {
        "key": folder.spec.key,
        "losses": _sha256(json.dumps(losses, sort_keys=True).encode()),
        "metrics": _sha256(json.dumps(dict(result.metrics), sort_keys=True).encode()),
    }
    for name in ("encoder", "teacher"):
        file = folder.path / f"{name}.safetensors"
        if file.is_file():
            found[name] = _sha256(file.read_bytes())
    return found


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--against", type=Path, help="an older file; exit status 1 where a digest differs")
    parser.add_argument("--tables", action="store_true", help="every run of every table too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        store = RunStore(Path(place) / "runs")
        plan = plan_all(store, ensure(Path(place) / "data", size="smoke"), options.tables)
        with Pool(store) as pool, Progress(Console(), plan.todo()) as progress:
            report = pool.run(plan, progress)
        if report.failed:
            print("\n".join(f"{plan.nodes[key].label}: {why}" for key, why in report.failed.items()))
            return 1
        found = {folder.path.name: digests_of(folder) for folder in store}
    options.file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(f"{len(found)} runs: {options.file}")
    if options.against is None:
        return 0
    known = json.loads(options.against.read_text())
    both = sorted(known.keys() & found.keys())
    differ = [name for name in both if known[name] != found[name]]
    for name in differ:
        old, new = known[name], found[name]
        print(f"differs: {name}: {', '.join(k for k in sorted({*old, *new}) if old.get(k) != new.get(k))}")
    new = sorted(found.keys() - known.keys())
    print(*(f"not in {options.against}: {name}" for name in new), sep="\n", end="\n" if new else "")
    print(f"{len(both)} compared, {len(differ)} differ, {len(known.keys() - found.keys())} not run now")
    return bool(differ or new)


if __name__ == "__main__":
    sys.exit(main())

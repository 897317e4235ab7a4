"""A small table from invented numbers, of any number of metrics and seeds, for the renderers' tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mimbench.render import Context, UsedRecipe
from mimbench.table.aggregate import aggregate
from mimbench.table.cell import SeedOutcome, Table
from mimbench.table.reported import Reported
from mimbench.table.spec import TableSpec, parse

TASKS = {
    "top1": ("classification", "ImageNet-1K top-1"),
    "miou": ("segmentation", "ADE20K mIoU"),
    "box_ap": ("detection", "COCO box AP"),
    "mask_ap": ("detection", "COCO mask AP"),
    "top1_knn": ("knn", "ImageNet-1K k-NN top-1"),
    "top1_linear": ("linear_probe", "ImageNet-1K linear probe top-1, last layer alone"),
    "macc": ("segmentation", "ADE20K mean accuracy over all 150 classes"),
    "box_ap50": ("detection", "COCO box AP50"),
}
MEANS = {"scratch": 30.0, "mae": 34.0, "host": 36.0, "ours": 38.0}  # ours, of the first metric
THEIRS = {"scratch": 82.3, "mae": 83.6, "quoted": 84.4, "ours": 85.4}
CONTEXT = Context(
    command="mimbench reproduce-table ours --table main",
    facts={"mimbench": "0.1.0", "data: imagenet": "invented & <tested>", "data: coco": "invented & <tested>"},
    recipes=[UsedRecipe("Ours", ("Ours",), {"mask_ratio": (0.383, "official <code>")})],
)


def figure(row: str, metric: str, value: float, **changes: str) -> Reported:
    """A line of reported.csv."""
    known = {
        "paper": "MAE",
        "table_id": "T3",
        "table_title": "Comparisons",
        "row": row,
        "arch": "ViT-B/16",
        "pretrain_epochs": "300",
        "target": "",
        "dataset": "invented",
        "metric": metric,
        "text": f"{value:.1f}",
        "kind": "paper-text",
        "provenance": "paper-text(ar5iv.labs.arxiv.org/html/2111.06377)",
    }
    return Reported(**(known | changes))


def figures(metrics: Sequence[str]) -> list[Reported]:
    """The paper's values of the rows in `THEIRS`; those of `quoted` and `ours` are second-hand."""
    second = {"paper": "TinyMIM", "kind": "secondary", "provenance": "secondary(arXiv 2301.01296 Table 3)"}
    lines = []
    for row, value in THEIRS.items():
        changes = second if row in ("quoted", "ours") else {}
        lines += [figure(row, metric, value / (1 + index), **changes) for index, metric in enumerate(metrics)]
    costs = {"scratch": 10.0, "mae": 16.4, "ours": 20.0}
    return lines + [figure(row, "gpu_days", value) for row, value in costs.items()]


def references(row: str, metrics: Sequence[str]) -> dict[str, Any]:
    """The references of a row to its lines of `figures`, by metric."""
    names = ("paper", "table_id", "row", "arch", "dataset", "metric")
    columns = [metric for metric in metrics if metric in TASKS]
    lines = [line for line in figures(columns) if line.row == row and line.metric in metrics]
    return {line.metric: {name: getattr(line, name) for name in names} for line in lines}


def make_spec(
    metrics: Sequence[str], texts: Mapping[str, str], *, cost: bool = False, against: str | None = None
) -> TableSpec:
    """The table's file.

    Args:
        texts: in place of its `title`, `note`, `label`, `row_note`, `claim` and `metric`.
        against: the row that the last one is compared with, where that is not the table's baseline.
    """
    known = [*metrics, *(["gpu_days"] if cost else [])]
    reported = {row: references(row, known) for row in THEIRS}
    rows: list[dict[str, Any]] = [
        {"id": "scratch", "label": "Scratch", "method": "scratch", "reported": reported["scratch"]},
        {
            "id": "mae",
            "label": "MAE, the longest of all schedules in its repository",
            "method": "mae",
            "note": "1600 epochs in the paper, and with another decoder than the one that the others have",
            "reported": reported["mae"],
        },
        {"id": "quoted", "label": "Quoted", "note": "not run: no recipe", "reported": reported["quoted"]},
        {"id": "host", "label": "Host", "method": "host", "note": texts.get("row_note", "without morphing")},
        {
            "id": "ours",
            "label": texts.get("label", "Ours"),
            "method": "ours",
            "baseline": against,
            "reported": reported["ours"],
        },
    ]
    columns = [{"task": TASKS[metric][0], "metric": metric, "title": TASKS[metric][1]} for metric in metrics]
    columns[0]["title"] = texts.get("metric", columns[0]["title"])
    first = metrics[0]
    values = {
        "paper": "Nobody et al., A Method That Is Invented, arXiv 2401.00254",
        "name": "main",
        "title": texts.get("title", "Ours against training from scratch"),
        "section": "Section 5.1",
        "note": texts.get("note", "Every number here is invented."),
        "baseline": "scratch",
        "columns": columns,
        "rows": rows,
        "claims": [
            {"label": texts.get("claim", "Ours beats MAE"), "row": "ours", "against": "mae", "column": first},
            {"label": "Ours beats its host", "row": "ours", "against": "host", "column": first},
        ],
    }
    if cost:
        values["cost"] = {"metric": "gpu_days", "unit": "GPU-days"}
    return parse(values, where="tables/ours/main.toml", name="main")


def make_table(
    *,
    metrics: int = 4,
    seeds: int = 3,
    scale: str = "toy",
    broken: bool = False,
    cost: bool = False,
    against: str | None = None,
    texts: Mapping[str, str] | None = None,
    outcomes: Mapping[tuple[str, int], Mapping[int, SeedOutcome]] | None = None,
    loaded: Mapping[str, str] | None = None,
) -> Table:
    """The table with `metrics` columns.

    Args:
        broken: with failed, stale and impossible runs; `texts` may have the message of the `failure`.
        outcomes: in place of those of some (row, column).
    """
    names = list(TASKS)[:metrics]
    spec = make_spec(names, texts or {}, cost=cost, against=against)
    found = {
        (row, index): {
            seed: SeedOutcome(
                "ok", value(row, index, seed), run=f"run-{row}-{index}-{seed}", start=f"pretrain-{row}-{seed}"
            )
            for seed in range(seeds)
        }
        for row in MEANS
        for index in range(metrics)
    }
    if broken:
        note = (texts or {}).get("failure", "loss is NaN | at <step> 8")
        found["ours", metrics - 2][1] = SeedOutcome("failed", run="run-failed", note=note)
        found["mae", metrics - 1] = {
            seed: SeedOutcome("not_runnable", note="needs 24 GB") for seed in range(seeds)
        }
        found["mae", 1] = {
            seed: SeedOutcome("stale", item.value, run=item.run) for seed, item in found["mae", 1].items()
        }
    provenance = {"scratch": "official", "mae": "official", "ours": "own", "host": "reconstruction"}
    flops = {"scratch": 1e12, "mae": 5.3e12, "ours": 5.46e12}
    return aggregate(spec, found | dict(outcomes or {}), figures(names), scale, provenance, flops, loaded)


def value(row: str, index: int, seed: int) -> float:
    """What a run gives, in [0, 100]."""
    mean = MEANS[row]
    return mean / (index + 1) + 0.5 * seed + 0.1 * ((seed * 7 + mean) % 5)

from __future__ import annotations

import json
from typing import Any

import pytest

from mimbench.render import json as json_file
from mimbench.table.cell import SeedOutcome
from mimbench.table.spec import parse
from tests.render.sample import CONTEXT, make_table


def document(**options: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json_file.render(make_table(**options), CONTEXT))
    return found


def test_cells_have_every_seed_its_run_and_the_verdict() -> None:
    found = document()
    assert (found["schema"], found["kind"], found["scale"], found["seeds"]) == (
        1,
        "mimbench table",
        "toy",
        [0, 1, 2],
    )
    rows = {row["id"]: row for row in found["rows"]}
    cell = rows["ours"]["cells"][0]
    assert (cell["task"], cell["metric"], cell["status"]) == ("classification", "top1", "ok")
    assert list(cell["seeds"]) == ["0", "1", "2"]
    assert cell["seeds"]["1"] == {"value": 38.5, "status": "ok", "run": "run-ours-0-1", "note": ""}
    assert cell["ours"]["n"] == 3 and cell["ours"]["low"] < cell["ours"]["mean"] < cell["ours"]["high"]
    assert cell["reported"]["value"] == 85.4 and not cell["reported"]["first_hand"]
    assert cell["reported"]["links"] == ["https://arxiv.org/abs/2301.01296"]
    assert cell["verdict"] == {"word": "same direction", "reason": ""}
    assert rows["scratch"]["baseline"]
    names = ("scratch", "ours", "host", "quoted")
    assert [rows[name]["provenance"] for name in names] == ["official", "own", "reconstruction", None]
    assert rows["quoted"]["cells"][0]["ours"] is None and rows["quoted"]["method"] is None


def test_what_is_broken_says_why() -> None:
    found = document(broken=True)
    rows = {row["id"]: row for row in found["rows"]}
    failed = rows["ours"]["cells"][2]
    assert failed["status"] == "failed" and failed["seeds"]["1"]["note"] == "loss is NaN | at <step> 8"
    assert failed["seeds"]["1"]["value"] is None
    assert rows["mae"]["cells"][1]["stale"] and rows["mae"]["cells"][3]["verdict"]["word"] == "not runnable"
    assert found["summary"]["cells"] == {"complete": 14, "of": 16, "stale": 1}
    assert found["summary"]["verdicts"]["not run"] == 1


def test_the_spec_comes_back_as_the_same_table() -> None:
    table = make_table(cost=True)
    found = json.loads(json_file.render(table, CONTEXT))
    assert parse(found["spec"], where="json", name="main") == table.spec


def test_it_says_how_to_make_it_again_and_with_which_recipes() -> None:
    found = document()
    assert found["command"] == CONTEXT.command and found["facts"]["mimbench"] == "0.1.0"
    assert found["recipes"][0]["fields"]["mask_ratio"] == {"value": 0.383, "source": "official <code>"}
    assert found["links"] == ["https://arxiv.org/abs/2401.00254"]


def test_numbers_have_no_binary_noise() -> None:
    noise = {("ours", 0): {0: SeedOutcome("ok", 0.1 + 0.2)}}
    cell = document(seeds=1, outcomes=noise)["rows"][-1]["cells"][0]
    assert cell["seeds"]["0"]["value"] == 0.3 and cell["ours"]["std"] is None


@pytest.mark.parametrize("options", [{"seeds": 0}, {"metrics": 1}, {"scale": "paper", "cost": True}])
def test_any_table_is_valid_json(options: dict[str, Any]) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    json.loads(json_file.render(make_table(**options), CONTEXT), parse_constant=refuse)

"""The run store as a pandas table."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from mimbench.errors import UserError
from mimbench.store.export import export, frame
from mimbench.store.folder import Inputs
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec


@pytest.fixture
def filled(store: RunStore, world: Path) -> RunStore:
    """A finished pretraining, two tasks on it of which one has not run, and a damaged folder."""
    pretraining = RunSpec(
        "pretrain", "plain", "vit_toy", {"epochs": 2, "taps": [1, 2]}, {"imagenet": "f00"}, 1
    )
    folder = store.create(pretraining, Inputs())
    folder.encoder_path.write_bytes(b"")
    folder.finish({})
    for seed, task in enumerate(("echo", "scenes")):
        spec = RunSpec(
            "downstream", task, "vit_toy", {"base_lr": 0.1}, {}, seed, {"encoder": pretraining.key}
        )
        run = store.create(spec, Inputs())
        if task == "echo":
            run.finish({"score": 61.5})
    damaged = store.root / "pretrain-plain-vit_toy-00000000"
    damaged.mkdir()
    (damaged / "spec.json").write_text("{")
    return store


def test_a_line_for_every_run_with_recipe_numbers_and_parents(filled: RunStore) -> None:
    runs = frame(filled)
    assert len(runs) == 3  # what a damaged run was cannot be told
    pretraining = runs[runs.stage == "pretrain"].iloc[0]
    echo = runs[runs.name == "echo"].iloc[0]
    assert pretraining["recipe.epochs"] == 2 and pretraining["recipe.taps"] == [1, 2]
    assert pretraining["data.imagenet"] == "f00" and pd.isna(pretraining["recipe.base_lr"])
    assert (echo["metric.score"], echo.seed, echo["parent.encoder"]) == (61.5, 0, pretraining.name)
    assert runs[runs.name == "scenes"].iloc[0].state == "missing"
    assert runs["metric.score"].count() == 1
    assert list(runs.method) == ["plain", "plain", "plain"]  # that of a task's encoder too


def test_a_parent_that_was_removed_is_a_missing_value(filled: RunStore) -> None:
    before = frame(filled)
    filled.remove(*filled.named(before[before.stage == "pretrain"].index[0]))
    runs = frame(filled)
    assert len(runs) == 2 and runs["metric.score"].count() == 1
    assert "parent.encoder" not in runs or runs["parent.encoder"].isna().all()
    assert runs.method.isna().all()


def test_csv_and_json_hold_the_same_runs(filled: RunStore, tmp_path: Path) -> None:
    assert export(filled, tmp_path / "runs.csv") == export(filled, tmp_path / "runs.json") == 3
    written = pd.read_csv(tmp_path / "runs.csv", index_col="run")
    records = {line["run"]: line for line in json.loads((tmp_path / "runs.json").read_text())}
    assert list(written.index) == list(records) == list(frame(filled).index)
    for run, line in written.iterrows():
        assert pd.isna(line["metric.score"]) == (records[run]["metric.score"] is None)


def test_an_empty_store_and_bad_names(store: RunStore, tmp_path: Path) -> None:
    assert frame(store).empty and export(store, tmp_path / "runs.csv") == 0
    with pytest.raises(UserError, match=r"must end in \.csv or \.json"):
        export(store, tmp_path / "runs.xlsx")
    with pytest.raises(UserError, match="There is no folder"):
        export(store, tmp_path / "nowhere" / "runs.csv")


def test_a_choice_of_runs_with_further_columns(filled: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [folder for folder in filled if folder.path.name.startswith("downstream-echo")]
    extra = {chosen[0].path.name: {"scale": "toy"}}
    assert frame(chosen, extra).scale.item() == "toy"
    assert export(chosen, None, extra=extra) == 1
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].startswith("run,stage,name,method,arch,seed,scale,state")
    assert export(chosen, None, form="json") == 1
    assert json.loads(capsys.readouterr().out)[0]["method"] == "plain"


def test_a_format_wins_over_a_name(filled: RunStore, tmp_path: Path) -> None:
    export(filled, tmp_path / "runs.txt", form="json")
    assert len(json.loads((tmp_path / "runs.txt").read_text())) == 3
    with pytest.raises(UserError, match="Allowed: csv, json"):
        export(filled, tmp_path / "runs.csv", form="xlsx")


def test_a_spreadsheet_computes_no_text(store: RunStore, tmp_path: Path) -> None:
    recipe = {"mode": "=1+1", "rate": -0.5, "taps": [1]}
    store.create(RunSpec("pretrain", "plain", "vit_toy", recipe, {}, 0), Inputs())
    export(store, tmp_path / "runs.csv")
    line = pd.read_csv(tmp_path / "runs.csv").iloc[0]
    assert line["recipe.mode"] == "'=1+1" and line["recipe.rate"] == -0.5
    assert frame(store)["recipe.mode"].item() == "=1+1"

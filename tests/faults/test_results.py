"""Damaged and edited results and specs: no wrong number is ever shown as a number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimbench.store import records
from mimbench.store.export import frame, state
from mimbench.store.folder import RunFolder
from mimbench.store.records import Damaged, Edited
from mimbench.store.runs import RunStore
from tests.cli.bench import Bench
from tests.faults.damage import every_flip

TABLE = ("reproduce-table", "plain", "--scale", "smoke")
ARTEFACT = "encoder.safetensors"


@pytest.mark.parametrize(
    ("file", "read"), [("result.json", records.read_result), ("spec.json", records.read_spec)]
)
def test_no_single_flip_gives_another_value(
    file: str, read: Callable[[Path], Any], new_run: Callable[..., RunFolder]
) -> None:
    """The same value, or a message that names the file. A spec that is not JSON counts as missing."""
    run = new_run()
    run.encoder_path.write_bytes(b"weights")
    run.finish({"score": 41.5}, percent=["score"], steps=3)
    path = run.path / file
    content, whole, found = path.read_bytes(), read(run.path), 0
    for damaged in every_flip(content):
        path.write_bytes(damaged)
        try:
            value = read(run.path)
        except Damaged as error:
            found += str(path) in str(error)
            continue
        assert value == whole or (file == "spec.json" and value is None)
        found += value is None
    assert found > 7 * len(content), "only spaces and line feeds may change"


def edit(run: RunFolder, change: Callable[[dict[str, Any]], object]) -> None:
    path = run.path / "result.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values, indent=2))


def score(value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda values: values["metrics"].update(score=value)


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a better number": score(88.33),
    "the last digit": score(40.000001),
    "above 100": score(250),
    "below 0": score(-5),
    "huge": score(1e308),
    "another metric": lambda values: values["metrics"].update(more=1.0),
    "one metric less": lambda values: values["metrics"].pop("other"),
    "swapped": lambda values: values["metrics"].update(score=1.0, other=40.0),
    "other code": lambda values: values.update(source="0123456789abcdef"),
    "details": lambda values: values["details"].update(steps=7),
    "no percentages": lambda values: values.update(percent=[]),
    "another artefact": lambda values: values.update(artefacts={ARTEFACT: "0" * 64}),
    "no seal": lambda values: values.pop("seal"),
    "an empty seal": lambda values: values.update(seal=""),
    "an older schema": lambda values: values.update(schema=2),
    "an older schema without a seal": lambda values: (values.update(schema=2), values.pop("seal")),
    "a note": lambda values: values.update(note="checked by hand"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_result_is_no_number(name: str, new_run: Callable[..., RunFolder]) -> None:
    run = new_run()
    run.finish({"score": 40.0, "other": 1.0}, percent=["score"], steps=3)
    edit(run, EDITS[name])
    with pytest.raises(Edited, match=r"result\.json was edited or damaged.*verify --repair"):
        records.read_result(run.path)
    assert run.outcome() == state(run) == "edited" and frame(run.store).empty
    assert run.store.leftovers() == []


def test_what_changes_no_value_is_no_edit(new_run: Callable[..., RunFolder]) -> None:
    run = new_run()
    run.finish({"score": 40.0}, nan=float("nan"), nothing=None, ratio=1.0)
    before = run.result
    path = run.path / "result.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**dict(reversed(values.items())), "metrics": {"score": 40}}))
    assert run.result is not None and before is not None and run.result.metrics == before.metrics
    assert run.outcome() == "done"


def test_another_runs_result_is_no_result(new_run: Callable[..., RunFolder]) -> None:
    one, other = new_run(seed=1), new_run(seed=2)
    one.finish({"score": 41.0})
    other.finish({"score": 42.0})
    shutil.copy(other.path / "result.json", one.path / "result.json")
    assert one.outcome() == "edited" and other.outcome() == "done"


def test_another_runs_spec_is_no_spec(new_run: Callable[..., RunFolder]) -> None:
    one, other = new_run(seed=1), new_run(seed=2)
    one.finish({"score": 41.0})
    shutil.copy(other.path / "spec.json", one.path / "spec.json")
    again = RunFolder(one.store, one.path)
    assert again.outcome() == "damaged" and "belongs to another run" in again.damage()[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["recipe"].update(steps=4),
        lambda values: values.update(seed=7),
        lambda values: values.update(seed=7, key="f" * 16),
        lambda values: values.update(skip_corrupt=True),
        lambda values: values["data"].update(imagenet="0" * 16),
        lambda values: values["data"].pop("imagenet"),
        lambda values: values.pop("key"),
        lambda values: values["recipe"].update(steps=float("nan")),
    ],
)
def test_an_edited_spec_is_damaged(
    change: Callable[[dict[str, Any]], object], new_run: Callable[..., RunFolder]
) -> None:
    run = new_run()
    path, key = run.path / "spec.json", run.spec.key
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    again = RunFolder(run.store, run.path)
    assert again.outcome() == "damaged" and str(path) in again.damage()[0]
    assert run.store.outcome(key) == "damaged"


def test_an_edited_number_stands_in_no_list_and_no_table(bench: Bench) -> None:
    bench.finish()
    run = bench.run()
    edit(run, score(88.33))
    listed, shown = bench.call("runs", "list"), bench.call("runs", "show", run.path.name)
    exported = bench.call("runs", "export", "-")
    table, planned = bench.call(*TABLE), bench.call("plan", *TABLE[1:])
    assert "edited" in listed.stdout and "edited" in shown.stdout and "edited" in planned.stdout
    for done in (listed, shown, exported, planned, table):
        assert "88.3" not in done.output and "its seal does not fit" in done.output.replace("\n", " ")
    assert table.exit_code == 1 and "40.0" in table.stdout, "the other row"
    page = (bench.root / "reports" / "out" / "plain" / "main-smoke.html").read_text()
    assert "seed 0 damaged: see `mimbench runs verify`" in page and "damaged" in table.stdout
    assert "does not fit" not in page and str(run.path / "result.json") not in page
    assert [found.exit_code for found in (listed, shown, exported, planned)] == [0] * 4
    for written in (bench.root / "reports" / "out").rglob("*.*"):
        assert b"88.3" not in written.read_bytes(), written
    assert "88.33" in (run.path / "result.json").read_text(), "nobody writes over it"
    assert "edited" in bench.call("runs", "list", "--state", "edited").stdout


def test_an_older_result_with_an_impossible_percentage_is_no_number(bench: Bench) -> None:
    """It has no seal, but today's card says which of its numbers are percentages."""
    bench.finish()
    run = bench.run()

    def age(values: dict[str, Any]) -> None:
        del values["seal"], values["artefacts"], values["percent"]
        values.update(schema=2)
        values["metrics"]["score"] = 250.0

    edit(run, age)
    assert run.outcome() == "done"
    listed, shown, table = (
        bench.call("runs", "list"),
        bench.call("runs", "show", run.path.name),
        bench.call(*TABLE),
    )
    assert table.exit_code == 0
    written = (bench.root / "reports" / "out" / "plain" / "main-smoke.md").read_text()
    assert "seed 0 damaged: see" in written and "a percentage lies between" not in written
    for told in (listed.stderr, shown.stderr):
        assert "score is 250, but a percentage lies between 0 and 100" in told
    assert "**250" not in written and "| 250" not in written
    assert "damaged" in listed.stdout and "250" not in listed.stdout
    assert "250" not in bench.call("runs", "export", "-").stdout
    assert bench.call("runs", "verify").exit_code == 1


@pytest.mark.parametrize("value", [-100.0, -0.001, 100.001, float("nan"), float("inf")])
def test_a_metric_that_cannot_be_fails_the_run(value: float, new_run: Callable[..., RunFolder]) -> None:
    run = new_run()
    with pytest.raises(records.RunFailed, match="score"):
        run.finish({"score": value, "cosine": -0.5}, percent=["score"])
    assert run.result is None
    run.finish({"score": 100.0, "cosine": -0.5}, percent=["score", "not given"])
    assert run.result is not None and run.result.percent == ("score",)


def test_old_results_have_no_seal_and_stay_readable(store: RunStore) -> None:
    for schema in (1, 2):
        folder = Path(__file__).resolve().parents[1] / "fixtures" / f"result-schema-{schema}"
        result = records.read_result(folder)
        assert result is not None and result.artefacts == {} and result.schema == schema

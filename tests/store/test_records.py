"""The files in a run's folder: old ones stay readable, and odd ones are named and never crash a command."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimbench.store import records
from mimbench.store.export import frame, state
from mimbench.store.folder import RunFolder
from mimbench.store.records import Damaged, Inputs, Restamp, Result, Stamp, Status
from mimbench.store.runs import RunStore

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
READERS = {
    "result.json": records.read_result,
    "status.json": records.read_status,
    "inputs.json": records.read_inputs,
    "spec.json": records.read_spec,
}


@pytest.mark.parametrize(
    ("schema", "source", "encoder"),
    [(1, "62431d6dd6a2805f", "9a5c254852410d52"), (2, "abaed44947f80aac", "3fa473b4e21008f8")],
)
def test_files_of_every_schema_stay_readable(
    schema: int, source: str, encoder: str, store: RunStore, tmp_path: Path
) -> None:
    folder = FIXTURES / f"result-schema-{schema}"
    result, status, spec = (
        read(folder) for read in (READERS[f"{n}.json"] for n in ("result", "status", "spec"))
    )
    assert result.schema == schema and result.metrics == {
        "top1": 16.66666603088379,
        "top5": 54.16666793823242,
    }
    assert (result.source, result.parents, result.restamped) == (source, {"encoder": encoder}, ())
    assert result.details["steps"] == 3 and result.details["labelled_pictures"] == 24
    assert (status.state, status.step, status.total, status.source) == ("done", 3, 3, source)
    assert status.seconds > 0 and status.parents == {"encoder": encoder}
    assert (spec.stage, spec.name, spec.recipe["layer_decay"]) == ("downstream", "classification", 0.8)
    assert spec.key == json.loads((folder / "spec.json").read_text())["key"]  # the same run today
    store.root.mkdir()
    (store.root / spec.folder).symlink_to(folder)
    (found,) = store
    assert state(found) == "stale"
    assert frame(store).iloc[0]["metric.top1"] == result.metrics["top1"]


def test_a_result_comes_back_as_it_was_written(tmp_path: Path) -> None:
    restamp = Restamp(Stamp("a", {"encoder": "b"}), Stamp("c", {}), "renamed", "2026-01-01T00:00:00", "all")
    result = Result({"top1": 1.0}, "c", {"encoder": "d"}, {"steps": [1, None]}, restamped=(restamp,))
    records.write_result(tmp_path, result)
    assert records.read_result(tmp_path) == result
    written = json.loads((tmp_path / "result.json").read_text())["restamped"][0]
    assert written.keys() == {"from", "to", "because", "date", "checked"}
    status = Status("running", 3, 9, "", 1.5, 2.5, 7, "host", "source", {"encoder": "a"})
    records.write_status(tmp_path, status)
    assert records.read_status(tmp_path) == status


GOOD = {
    "result.json": {"schema": 2, "metrics": {"top1": 1}, "details": {}, "source": "a", "parents": {}},
    "status.json": {"state": "done", "step": 1, "total": 2, "seconds": 1.5, "time": 2, "pid": 3, "host": "h"},
    "inputs.json": {"data": {"coco": "/d"}, "weights": {}, "options": {"num_workers": 1}},
    "spec.json": {
        "stage": "pretrain", "name": "mae", "arch": "vit_toy", "recipe": {"a": [1, None]},
        "data": {"coco": "f"}, "seed": 0, "parents": {}, "skip_corrupt": False, "key": "43c9ea0b12367168",
    },
}  # fmt: skip
ODD: list[tuple[str, str, Any, str]] = [
    ("result.json", "metrics", [1], "metrics"),
    ("result.json", "metrics", {"top1": "88.3"}, "metrics.top1"),
    ("result.json", "metrics", {"top1": True}, "metrics.top1"),
    ("result.json", "metrics", {"top1": None}, "metrics.top1"),
    ("result.json", "metrics", {"top1": float("nan")}, "metrics.top1"),
    ("result.json", "metrics", {"top1": float("inf")}, "metrics.top1"),
    ("result.json", "metrics", {"top1": 10**400}, "metrics.top1"),
    ("result.json", "parents", ["a"], "parents"),
    ("result.json", "source", 7, "source"),
    ("result.json", "schema", "2", "schema"),
    ("result.json", "schema", 99, "newer version"),
    ("result.json", "details", "none", "details"),
    ("result.json", "restamped", {"from": 1}, "restamped"),
    ("status.json", "seconds", "1.5", "seconds"),
    ("status.json", "step", 1.5, "step"),
    ("status.json", "step", "1", "step"),
    ("status.json", "state", "asleep", "state"),
    ("status.json", "time", float("nan"), "time"),
    ("status.json", "time", 1e17, "time"),
    ("status.json", "time", -1e15, "time"),
    ("status.json", "seconds", -1.0, "seconds"),
    ("status.json", "seconds", 1e308, "seconds"),
    ("status.json", "step", -1, "step"),
    ("status.json", "message", {"a": 1}, "message"),
    ("status.json", "schema", 99, "newer version"),
    ("inputs.json", "data", ["/d"], "data"),
    ("inputs.json", "options", {"num_workers": "2"}, "options.num_workers"),
    ("spec.json", "parents", ["a"], "parents"),
    ("spec.json", "recipe", None, "recipe"),
    ("spec.json", "seed", 0.5, "seed"),
    ("spec.json", "stage", "train", "stage"),
    ("spec.json", "name", "[/x]", "is no name"),
    ("spec.json", "arch", "a\x1b[31m", "is no name"),
    ("spec.json", "rank", 3, "does not know (rank): use a newer version"),
]


@pytest.mark.parametrize(("file", "key", "value", "told"), ODD)
def test_a_wrong_shape_is_damaged_and_the_message_names_file_and_remedy(
    file: str, key: str, value: Any, told: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_text(json.dumps(GOOD[file]))
    assert READERS[file](tmp_path) is not None
    (tmp_path / file).write_text(json.dumps({**GOOD[file], key: value}))
    with pytest.raises(Damaged) as caught:
        READERS[file](tmp_path)
    message = str(caught.value)
    assert str(tmp_path / file) in message and told in message
    assert f"`mimbench runs rm {tmp_path.name}`" in message and "\x1b" not in message


@pytest.mark.parametrize("file", READERS)
def test_missing_keys_and_no_object_are_damaged_and_no_json_counts_as_never_written(
    file: str, tmp_path: Path
) -> None:
    path, read = tmp_path / file, READERS[file]
    assert read(tmp_path) is None
    for text in (b"", b"{", b"null", b'{"a": 1}x', b"[" * 100_000, b"\xff\xfe{}"):
        path.write_bytes(text)
        if file == "result.json":  # it may have taken days
            with pytest.raises(Damaged, match="empty or not JSON"):
                read(tmp_path)
        else:
            assert read(tmp_path) is None
    for value in ([], "text", 3, True):
        path.write_text(json.dumps(value))
        with pytest.raises(Damaged, match="dictionary"):
            read(tmp_path)
    if file in ("result.json", "spec.json"):
        path.write_text("{}")
        with pytest.raises(Damaged, match="required"):
            read(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(Damaged, match="cannot be read: Is a directory"):
        read(tmp_path)
    path.rmdir()
    os.symlink(path.name, path)
    with pytest.raises(Damaged, match="cannot be read: Too many levels of symbolic links"):
        read(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(file=st.sampled_from(sorted(READERS)), data=st.data())
def test_no_value_anywhere_gives_another_error(
    file: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    keys = data.draw(st.lists(st.sampled_from(sorted(GOOD[file])), max_size=3))
    values = {**GOOD[file], **{key: data.draw(JSON) for key in keys}}
    (folder / file).write_text(json.dumps(values))
    try:
        READERS[file](folder)
    except Damaged as error:
        assert str(folder / file) in str(error)


def test_options_of_a_newer_version_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "inputs.json").write_text('{"data": {"coco": "/d"}, "options": {"num_workers": 2, "new": 1}}')
    found = records.read_inputs(tmp_path)
    assert isinstance(found, Inputs) and found.data == {"coco": "/d"} and found.options.num_workers == 2


@pytest.mark.parametrize(
    "line", ["{", "[1]", "3", '{"loss": 1.0}', '{"step": "2"}', '{"step": null}', "\udcff\udcfe"]
)
def test_odd_lines_of_metrics_are_passed_over(line: str, new_run: Callable[..., RunFolder]) -> None:
    folder = new_run()
    folder.progress(1, 9, loss=1.0)
    with open(folder.path / "metrics.jsonl", "ab") as file:
        file.write(line.encode("utf-8", "surrogateescape") + b"\n")
    folder.progress(2, 9, loss=0.5)
    assert [values["step"] for values in folder.metrics()] == [1, 2]
    assert len(folder.metrics_text().splitlines()) == 2


def test_a_damaged_heartbeat_costs_nothing(new_run: Callable[..., RunFolder]) -> None:
    folder = new_run()
    folder.begin({})
    folder.save_checkpoint(1, lambda file: file.write(b"weights"))
    (folder.path / "status.json").write_text('{"state": "running", "seconds": "many"}')
    assert folder.status == Status() and folder.outcome() == "missing"
    assert len(folder.damage()) == 1 and "status.json" in folder.damage()[0]
    folder.begin({})
    assert folder.trainer_path.exists() and folder.damage() == []
    folder.finish({"score": 1.0})
    (folder.path / "status.json").write_text("[]")
    assert folder.outcome() == "done"


def test_a_damaged_parent_is_like_a_removed_one(new_run: Callable[..., RunFolder]) -> None:
    parent = new_run(seed=1)
    parent.finish({"score": 1.0})
    child = new_run(seed=2, parents={"encoder": parent.spec.key})
    child.finish({"score": 1.0})
    for file in ("result.json", "spec.json"):
        (parent.path / file).write_text("{}")
        assert RunFolder(child.store, child.path).outcome() == "done"
        assert RunFolder(parent.store, parent.path).outcome() == "damaged"


def test_a_message_of_a_failure_reaches_no_terminal_raw(new_run: Callable[..., RunFolder]) -> None:
    folder = new_run()
    folder.fail("a\x1b[31mb\nc")
    assert folder.status.message == "a\\x1b[31mb\nc"

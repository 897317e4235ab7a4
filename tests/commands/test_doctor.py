"""`mimbench doctor`: what it says of the places, and that it only looks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mimbench import plugin
from mimbench.cli import app
from mimbench.commands import doctor
from mimbench.store.folder import Inputs
from mimbench.store.runs import RunStore
from mimbench.store.spec import RunSpec


def places() -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.check_places()}


def test_it_names_the_cache_and_the_runs_with_their_size(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "some" / "cache"
    monkeypatch.setenv("MIMBENCH_CACHE", str(cache))
    assert "not made yet" in places()["runs"].found
    assert (places()["cache"].status, places()["cache"].found) == ("ok", f"{cache}, not made yet")
    assert list(workspace.iterdir()) == []  # it only looked
    run = RunStore(workspace / "runs").create(RunSpec("pretrain", "x", "vit_toy", {}, {}, 0), Inputs())
    run.encoder_path.write_bytes(b"x" * 3_000_000)
    cache.mkdir(parents=True)
    (cache / "a.json").write_bytes(b"x" * 200_000)
    assert ", 1 run (3.0 MB)" in places()["runs"].found
    assert places()["cache"].found == f"{cache} (0.2 MB)"


def test_a_cache_that_cannot_be_written_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "file" / "below"))
    assert doctor.check_cache().status == "note" and "MIMBENCH_CACHE" in doctor.check_cache().remedy
    monkeypatch.setattr("mimbench.paths.cache", lambda: None)
    assert doctor.check_cache().status == "note" and "MIMBENCH_CACHE" in doctor.check_cache().remedy


def test_it_names_the_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(doctor.check_plugins()) == []
    (tmp_path / "mine" / "methods").mkdir(parents=True)
    for name in ("one.py", "two.py", "_shared.py"):
        (tmp_path / "mine" / "methods" / name).touch()
    monkeypatch.setenv(plugin.VARIABLE, "")
    plugin.include([tmp_path / "mine"])
    (check,) = doctor.check_plugins()
    assert check.found == f"mine ({tmp_path / 'mine'})" and check.details == ("2 methods",)
    monkeypatch.undo()
    plugin.forget()


def test_as_json(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for slow in ("check_devices", "check_dependencies"):  # they import torch, and read 20 packages
        monkeypatch.setattr(doctor, slow, lambda: [doctor.Check("ok", "x", "y")])
    monkeypatch.setattr(doctor, "check_ops", lambda: doctor.Check("ok", "x", "y"))
    done = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(done.stdout)
    assert found["schema"] == 1 and found["ready"] == (done.exit_code == 0)
    assert {check["section"] for check in found["checks"]} >= {"machine", "dependencies", "places", "scales"}
    assert all(check["status"] in doctor.MARKS for check in found["checks"])
    assert list(workspace.iterdir()) == []

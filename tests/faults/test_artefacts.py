"""The files that runs hand to other runs: what was not written by the run is not read."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mimbench.execute import worker
from mimbench.store.folder import RunFolder
from tests.faults.damage import KINDS, remove


@pytest.fixture
def family(new_run: Callable[..., RunFolder]) -> tuple[RunFolder, RunFolder]:
    """A finished run with an encoder and a teacher file, and a run that starts from it."""
    parent = new_run(seed=1)
    parent.encoder_path.write_bytes(bytes(range(256)) * 8)
    (parent.path / "teacher.safetensors").write_bytes(b"teacher" * 99)
    parent.finish({"score": 41.0})
    return parent, new_run(seed=2, parents={"encoder": parent.spec.key})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["encoder.safetensors", "teacher.safetensors"])
def test_a_damaged_file_is_named_and_not_read(
    file: str, kind: str, family: tuple[RunFolder, RunFolder]
) -> None:
    parent, child = family
    path = parent.path / file
    content = path.read_bytes()
    KINDS[kind](path)
    reply = worker.handle(child.path, rerun=False)
    assert reply["event"] == "failed" and not reply["user"]
    assert str(path) in reply["message"] and f"runs verify --repair {parent.path.name}" in reply["message"]
    assert not (child.path / "calls").exists() and child.result is None, "the stage did not start"
    remove(path)
    path.write_bytes(content)
    assert worker.handle(child.path, rerun=False)["event"] == "done"


def test_another_runs_encoder_is_not_read(
    family: tuple[RunFolder, RunFolder], new_run: Callable[..., RunFolder]
) -> None:
    parent, child = family
    parent.encoder_path.write_bytes(b"of another run")
    reply = worker.handle(child.path, rerun=False)
    assert "it is not the file that the run wrote" in reply["message"]


def test_what_a_result_says_of_its_files(family: tuple[RunFolder, RunFolder]) -> None:
    result = family[0].result
    assert result is not None and result.artefacts.keys() == {"encoder.safetensors", "teacher.safetensors"}
    assert all(len(digest) == 64 for digest in result.artefacts.values())
    family[1].finish({"score": 1.0})
    assert family[1].result is not None and family[1].result.artefacts == {}

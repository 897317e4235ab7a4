"""What a worker replies, and what it leaves behind, when a run cannot be computed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mimbench.execute import worker
from mimbench.store.folder import RunFolder
from tests.world import ROOT

LOGGED = """
import sys
from pathlib import Path
from mimbench.execute.worker import logged

try:
    with logged(Path(sys.argv[1])):
        print("in the run")
        if sys.argv[2:]:
            raise KeyError("its own error")
except KeyError:
    print("its own error")
print("after the run", flush=True)
print("and an error", file=sys.stderr)
"""


def logged(log: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)  # the text shall still be in a buffer when the log is closed
    command = [sys.executable, "-c", LOGGED, str(log), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_output_goes_to_the_log_and_then_where_it_went_before(tmp_path: Path) -> None:
    for words in ((), ("fail",)):
        done = logged(tmp_path / "log", *words)
        assert done.returncode == 0 and done.stderr == "and an error\n"
        assert done.stdout == ("its own error\n" if words else "") + "after the run\n"
    assert (tmp_path / "log").read_text() == "in the run\n" * 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("words", [(), ("fail",)])
def test_a_full_log_keeps_neither_the_streams_nor_the_error(words: tuple[str, ...]) -> None:
    done = logged(Path("/dev/full"), *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("after the run\n") and done.stderr == "and an error\n"
    assert ("its own error" in done.stdout) == bool(words)


def test_a_damaged_result_is_replied_and_left_as_it_is(new_run: Callable[..., RunFolder]) -> None:
    folder = new_run()
    folder.finish({"score": 1.0})
    (folder.path / "result.json").write_text('{"metrics": 3}')
    for rerun in (False, True):
        reply = worker.handle(folder.path, rerun=rerun)
        assert reply["event"] == "failed" and not reply["user"]
        assert "result.json is damaged" in reply["message"] and "mimbench runs rm" in reply["message"]
    assert (folder.path / "result.json").read_text() == '{"metrics": 3}' and folder.status.state == "done"


def test_a_folder_that_is_deleted_meanwhile_is_named_and_not_made_again(
    new_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_run()

    def stage(folder: RunFolder) -> dict[str, float]:
        shutil.rmtree(folder.path)
        folder.progress(1, 2, loss=0.5)
        return {}

    monkeypatch.setattr(worker, "stage", stage)
    reply = worker.handle(folder.path, rerun=False)
    assert reply["message"].startswith(f"{folder.path} was deleted while the run was computed")
    assert not folder.path.exists()


def test_a_percentage_that_cannot_be_fails_the_run(
    new_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task's card says which of its numbers are percentages."""
    folder = new_run()
    monkeypatch.setattr(worker, "stage", lambda folder: {"score": -100.0, "other": 1.0})
    reply = worker.handle(folder.path, rerun=False)
    assert reply["event"] == "failed" and "score is -100, but a percentage" in reply["message"]
    assert folder.outcome() == "failed" and folder.result is None
    monkeypatch.setattr(worker, "stage", lambda folder: {"score": 100.0})
    assert worker.handle(folder.path, rerun=False)["event"] == "done"
    assert folder.result is not None and folder.result.percent == ("score",)


@pytest.mark.parametrize(
    ("error", "message", "user"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "The disk is full: {} could not be written.",
            False,
        ),
        (OSError(errno.EROFS, "Read-only", "/x"), "The file system is read-only: /x could not", False),
        (OSError(errno.EDQUOT, "Quota", "/x"), "Your disk quota is used up: /x could not", False),
        (PermissionError(errno.EACCES, "Denied", "/x"), "Permission denied: /x.", False),
        (FileNotFoundError(errno.ENOENT, "None", "/x"), "FileNotFoundError: [Errno 2] None: '/x'", False),
        (OSError(errno.ENOTCONN, "Not connected"), "OSError: [Errno 107] Not connected", False),
        (ValueError("a\x1b[31mb"), "ValueError: a\\x1b[31mb", False),
    ],
)
def test_an_error_of_a_stage_is_a_reply_and_a_status(
    error: Exception,
    message: str,
    user: bool,
    new_run: Callable[..., RunFolder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = new_run()

    def fail(folder: RunFolder) -> dict[str, float]:
        raise error

    monkeypatch.setattr(worker, "stage", fail)
    reply = worker.handle(folder.path, rerun=False)
    assert reply["event"] == "failed" and reply["user"] == user
    assert reply["message"].startswith(message.format(folder.path))
    assert folder.status.state == "failed" and folder.status.message == reply["message"]
    assert json.loads((folder.path / "status.json").read_text())["schema"] == 1


def test_a_full_disk_that_a_library_hides_in_its_own_error_is_told(
    new_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_run()

    def fail(folder: RunFolder) -> dict[str, float]:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as cause:
            raise RuntimeError("unexpected pos 64 vs 0") from cause

    monkeypatch.setattr(worker, "stage", fail)
    assert worker.handle(folder.path, rerun=False)["message"].startswith(f"The disk is full: {folder.path}")

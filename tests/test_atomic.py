"""Files are whole or absent, and a place that cannot be written is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mimbench.atomic import TROUBLES, abandoned, append_line, atomic_path, naming, trouble, write_text


@pytest.mark.parametrize("code", sorted(TROUBLES))
def test_a_sentence_says_what_happened_where_and_what_to_do(code: int) -> None:
    found = trouble(OSError(code, os.strerror(code), "/a/place"), chosen=["/a"])
    assert found is not None and "/a/place" in found.message and "{}" not in found.message
    assert found.message.count(". ") >= 1 and found.message.endswith(".")
    failures = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
    assert found.status == (1 if code in failures else 2)


@pytest.mark.parametrize(
    ("file", "is_told"), [("/a/b", True), ("/a/b/c", True), ("/a", True), ("/x", False), ("/a/bc", False)]
)
def test_a_missing_file_is_the_users_mistake_only_where_the_user_chose_the_place(
    file: str, is_told: bool
) -> None:
    for code in (errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
        error = OSError(code, os.strerror(code), file)
        assert (trouble(error, chosen=["/a/b"]) is not None) == is_told
        assert trouble(error) is None
    assert trouble(FileNotFoundError(errno.ENOENT, "no file named"), chosen=["/a/b"]) is None


def test_other_errors_are_not_explained() -> None:
    for error in (BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError("no number"), ValueError("x")):
        assert trouble(error) is None


def test_a_library_that_hides_a_full_disk_is_seen_through_but_not_its_other_errors() -> None:
    def hidden(code: int) -> RuntimeError:
        error = RuntimeError("unexpected pos")
        error.__context__ = OSError(code, os.strerror(code))
        return error

    found = trouble(hidden(errno.ENOSPC), Path("/a/run"))
    assert found and found.message.startswith("The disk is full: /a/run could not be written.")
    assert trouble(hidden(errno.EEXIST)) is None
    nameless = trouble(OSError(errno.ENOSPC, "No space left on device"))
    assert nameless and "a file could not be written" in nameless.message


def test_an_error_names_the_file_and_not_its_temporary(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "file" / "x.json", "{}")
    assert caught.value.filename == str(tmp_path / "file" / "x.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "folder", "{}")
    assert caught.value.filename == str(tmp_path / "folder")
    with pytest.raises(OSError) as caught, atomic_path(tmp_path / "y.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "y.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    with pytest.raises(OSError) as caught, naming(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device", "/named/already")
    assert caught.value.filename == "/named/already"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_line_that_does_not_fit_names_its_file() -> None:
    with pytest.raises(OSError) as caught:
        append_line(Path("/dev/full"), "x")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")


def test_only_old_temporary_files_are_abandoned(tmp_path: Path) -> None:
    assert abandoned(tmp_path / "nothing") == []
    with atomic_path(tmp_path / "x.json") as temporary:
        assert abandoned(tmp_path) == []
        os.utime(temporary, (1e9, 1e9))
        assert abandoned(tmp_path) == [temporary]
    os.utime(tmp_path / "x.json", (1e9, 1e9))
    assert abandoned(tmp_path) == []

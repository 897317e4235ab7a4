"""The results section of a document is replaced, and nothing around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimbench.errors import UserError
from mimbench.render import readme


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "main.md"
    path.write_text("# A table\n\n| a |\n| --- |\n\n## Claims\n")
    return path


def test_the_section_is_replaced_and_the_rest_kept(tmp_path: Path, page: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text(f"before\n\n{readme.BEGIN}\nold\n{readme.END}\n\nafter\n")
    readme.update(document, [page])
    once = document.read_text()
    assert once.startswith("before\n\n<!-- results:begin -->\n\n### A table\n")
    assert "#### Claims" in once and "old" not in once and once.endswith("<!-- results:end -->\n\nafter\n")
    readme.update(document, [page])
    assert document.read_text() == once, "a second time changes nothing"


@pytest.mark.parametrize(
    "text", ["", readme.BEGIN, f"{readme.END} {readme.BEGIN}", readme.BEGIN * 2 + readme.END]
)
def test_a_document_without_one_pair_of_marks_is_left_alone(tmp_path: Path, page: Path, text: str) -> None:
    document = tmp_path / "README.md"
    document.write_text(text)
    with pytest.raises(UserError, match="results:begin"):
        readme.update(document, [page])
    assert document.read_text() == text


def test_what_is_missing_is_named(tmp_path: Path, page: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        readme.update(tmp_path / "absent.md", [page])
    with pytest.raises(UserError, match="reproduce-table"):
        readme.update(tmp_path / "absent.md", [])

"""The results section of a document is replaced, and nothing around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimbench.errors import UserError
from mimbench.render import readme

PAGE = "# A table\n\n| a |\n| --- |\n\n## Claims\n"


def test_the_section_is_replaced_and_the_rest_kept(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text(f"before\n\n{readme.BEGIN}\nold\n{readme.END}\n\nafter\n")
    readme.update(document, [PAGE])
    once = document.read_text()
    assert once.startswith("before\n\n<!-- results:begin -->\n\n### A table\n")
    assert "#### Claims" in once and "old" not in once and once.endswith("<!-- results:end -->\n\nafter\n")
    readme.update(document, [PAGE])
    assert document.read_text() == once, "a second time changes nothing"


@pytest.mark.parametrize(
    "text", ["", readme.BEGIN, f"{readme.END} {readme.BEGIN}", readme.BEGIN * 2 + readme.END]
)
def test_a_document_without_one_pair_of_marks_is_left_alone(tmp_path: Path, text: str) -> None:
    document = tmp_path / "README.md"
    document.write_text(text)
    with pytest.raises(UserError, match="results:begin"):
        readme.update(document, [PAGE])
    assert document.read_text() == text


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        readme.update(tmp_path / "absent.md", [PAGE])
    (tmp_path / "README.md").write_text(readme.BEGIN + readme.END)
    with pytest.raises(UserError, match="reproduce-table"):
        readme.update(tmp_path / "README.md", [])

"""What a result records that its reader should know, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOT_RECORDED = "content_not_recorded"  # roles whose content was not recorded when the run was computed
KEY_BEFORE = "key_before"  # the run's key before `mimbench runs migrate`
BY_STAMP = "identified_by_size_and_time"
CONVERTED = "converted_images"  # sentences, see mimbench.data.look.conversions; `converted`: of annotations


def of_data(details: Mapping[str, Any]) -> dict[str, str]:
    """How the data of a result was identified, by role, unless by its content."""
    found = dict.fromkeys(_list(details, BY_STAMP), "identified by sizes and times of files (--trust-stat)")
    older = "content was not recorded when this was computed, only names and sizes of files"
    return found | dict.fromkeys(_list(details, NOT_RECORDED), older)


def remarks(details: Mapping[str, Any]) -> list[str]:
    """One sentence per remark."""
    found = [f"{role}: {text}" for role, text in of_data(details).items()]
    found += [str(text) for name in (CONVERTED, "converted") for text in _list(details, name)]
    if skipped := _list(details, "skipped_images"):
        found.append(f"images left out because they do not decode: {len(skipped)} (first: {skipped[0]})")
    if before := details.get(KEY_BEFORE):
        found.append(f"its key was {before} before `mimbench runs migrate`")
    return found


def _list(details: Mapping[str, Any], name: str) -> list[str]:
    value = details.get(name)
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else []

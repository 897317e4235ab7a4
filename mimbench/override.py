"""Changes of a recipe's plain values, by a table's row or by the user's --set.

Apart from the recipes, so that an edit of a message here makes no stored result stale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mimbench.errors import UserError
from mimbench.recipe import words


def override(values: Mapping[str, Any], changes: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Apply a table row's or the user's overrides to a recipe's plain values.

    Args:
        values: a recipe's `values()`.
        changes: field name to new value.
        where: how the user knows the place of the override (`--set`, `tables/dtm/main.toml: rows.dtm.set`);
            one that ends in a dot (`--set clip.`) is written together with the field's name.

    Raises:
        UserError: an unknown field, or a value of another type than the recipe's.
    """
    result = dict(values)
    for name, value in changes.items():
        if name not in values:
            option, _, prefix = where.rpartition(" ") if where.endswith(".") else (where, "", "")
            raise UserError(option, prefix + name, allowed=[prefix + field for field in sorted(values)])
        result[name] = _like(values[name], value, place(where, name))
    return result


def place(where: str, name: str) -> str:
    """A field by the name that the user knows it under."""
    return where + name if where.endswith(".") else f"{where} {name}"


def _like(old: Any, new: Any, where: str) -> Any:
    """`new`, accepted when it has the kind of `old`; what may follow None, the recipe's type decides.

    The text "none" is None, which TOML has no word for, except in a field of texts.
    """
    if new == "none" and not isinstance(old, str):
        new = None
    if old is None or new is None or type(new) is type(old):
        return new
    if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
        return float(new)
    kind = "a list" if isinstance(old, list) else words(type(old))
    raise UserError(where, new, remedy=f"Give {kind}, such as {old!r}.")

"""Applies overrides (of a table's row or of --set) to a recipe's plain values, and words errors about them.

This is not in recipe.py, because changing a message there makes stored results stale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mimbench.errors import UserError
from mimbench.recipe import Recipe


def override(
    kind: type[Recipe], values: Mapping[str, Any], changes: Mapping[str, Any], *, where: str, of: str = ""
) -> dict[str, Any]:
    """Apply a table row's or the user's overrides to a recipe's plain values.

    The text "none" means None, for which TOML has no word, except in a field of texts.

    Args:
        kind: the recipe's class, which says what each field takes.
        values: a recipe's `values()`.
        changes: field name to new value.
        where: where the user wrote the override (`--set`, `tables/dtm/main.toml: rows.dtm.set`). If it ends
            in a dot (`--set clip.`), messages join it to the field's name.
        of: the recipe's title, for messages; empty for none.

    Raises:
        UserError: an unknown field, or a value of another kind than the field's.
    """
    result = dict(values)
    for name, value in changes.items():
        if name not in values:
            option, prefix = place(where, "", of), ""
            if where.endswith("."):
                option, _, prefix = where.rpartition(" ")
            raise UserError(option, prefix + name, allowed=[prefix + field for field in sorted(values)])
        missing = value == "none" and not isinstance(values[name], str)
        try:
            result[name] = kind.plain(name, None if missing else value)
        except UserError as error:
            raise UserError(
                place(where, name, of), value, allowed=error.allowed, remedy=error.remedy
            ) from None
    return result


def place(where: str, name: str, of: str = "") -> str:
    """A field's name in messages: where it was changed, its name, and the title of its recipe."""
    if where.endswith("."):
        return where + name
    return " ".join(part for part in (where, name, f"({of})" if of else "") if part)


@dataclass(frozen=True)
class Changed:
    """Which fields of a recipe were changed, for the messages about its values.

    Attributes:
        title: of the recipe's method or task.
        places: field to where it was changed last.
        default: where the user can change a field that was not changed.
    """

    title: str
    places: Mapping[str, str]
    default: str = "--set"

    def name(self, field: str) -> str:
        """A field's name in messages."""
        return place(self.places.get(field, ""), field, self.title)

    def settings(self, **values: Any) -> str:
        """These values in the form in which the user would write them."""
        where = next(iter(self.places.values()), self.default)
        if not where.startswith("--set"):
            return ", ".join(f"{field}={value}" for field, value in values.items())
        return " ".join(f"{place(where, field)}={value}" for field, value in values.items())

    def named(self, error: UserError) -> UserError:
        """The error with the field named as the user wrote it.

        If that field was not changed, the message lists the fields that were.
        """
        remedy = error.remedy
        if self.places and error.field not in self.places:
            given = ", ".join(place(where, field) for field, where in self.places.items())
            remedy = f"{remedy} Changed: {given}.".strip()
        return UserError(self.name(error.field), error.value, allowed=error.allowed, remedy=remedy)


def check_epochs(values: Mapping[str, Any], changed: Changed, *, trains: bool) -> None:
    """Raises UserError if `epochs` was changed to 0 or less, or if the warm-up is longer than the training.

    Args:
        values: a recipe's plain values.
        trains: whether it trains; a recipe that loads its weights may have 0 epochs.
    """
    epochs, warmup = values.get("epochs"), values.get("warmup_epochs")
    if not isinstance(epochs, float):
        return
    if trains and epochs <= 0 and "epochs" in changed.places:
        raise UserError(changed.name("epochs"), epochs, remedy="Give a number above 0.")
    if not isinstance(warmup, float) or warmup <= epochs:
        return
    why = f"{changed.title}'s warmup_epochs={warmup} exceeds epochs={epochs}."
    if "epochs" not in changed.places:
        remedy = f"{why} Give {epochs} at most, or more epochs too."
        raise UserError(changed.name("warmup_epochs"), warmup, remedy=remedy)
    fix = changed.settings(epochs=epochs, warmup_epochs=float(f"{epochs / 10:.2g}"))
    raise UserError(changed.name("epochs"), epochs, remedy=f"{why} Give both: {fix}")


def check_patches(img_size: Any, patch_size: Any, changed: Changed, *, of_encoder: bool) -> None:
    """Raises UserError, with sizes that work, if images cannot be cut into whole patches.

    Args:
        img_size, patch_size: in pixels; the recipe itself refuses anything but positive whole numbers.
        of_encoder: whether `patch_size` belongs to the encoder that a task takes, not to the recipe.
    """
    if type(img_size) is not int or type(patch_size) is not int or min(img_size, patch_size) < 1:
        return
    if img_size % patch_size == 0:
        return
    images = changed.settings(img_size=max(round(img_size / patch_size), 1) * patch_size)
    if of_encoder:
        why = f"{changed.title} takes img_size={img_size}, its encoder has patch_size={patch_size}"
    else:
        why = f"{changed.title} has img_size={img_size} and patch_size={patch_size}"
    why += ": img_size must be a multiple of patch_size."
    if "patch_size" not in changed.places:
        raise UserError(changed.name("img_size"), img_size, remedy=f"{why} Give {images}")
    divisors = [n for n in range(2, img_size) if img_size % n == 0]
    divisors.sort(key=lambda n: (abs(n - patch_size), -n))
    patches = " or ".join(changed.settings(patch_size=n) for n in sorted(divisors[:2]))
    fix = f"{patches}; or {images} too" if patches else f"{images} too"
    raise UserError(changed.name("patch_size"), patch_size, remedy=f"{why} Give {fix}")

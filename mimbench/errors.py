"""The user's mistakes, as errors that say what is allowed and what to do, and text that is safe to show."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

NO_VALUE = object()


class UserError(Exception):
    """A mistake in what the user asked for; the command line prints it and exits with status 2.

    Args:
        field: what was wrong, by the name the user typed it under (`METHOD`, `--set mask_ratio`).
        value: the wrong value, if there is one.
        allowed: the valid values, if they can be listed; the message suggests the nearest one.
        remedy: what to do about it.
    """

    def __init__(
        self, field: str, value: object = NO_VALUE, *, allowed: Iterable[object] = (), remedy: str = ""
    ) -> None:
        self.field, self.remedy = field, remedy
        self.value = None if value is NO_VALUE else value
        self.allowed = [str(item) for item in allowed]
        super().__init__(self._message(value))

    def _message(self, value: object) -> str:
        if value is not NO_VALUE:
            parts = [f"{self.field}: {value!r} is not valid."]
            if nearest := difflib.get_close_matches(str(value), self.allowed, n=1, cutoff=0.5):
                parts.append(f"Did you mean {nearest[0]!r}?")
        elif self.allowed or self.remedy:
            parts = [f"{self.field}:"]
        else:
            return self.field
        if self.allowed:
            parts.append(f"Allowed: {', '.join(self.allowed)}.")
        if self.remedy:
            parts.append(self.remedy)
        return " ".join(parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, vars(self))  # pickle would call the type with the message


def _restore(kind: type[UserError], args: tuple[Any, ...], parts: Mapping[str, Any]) -> UserError:
    """A UserError as it was before it was pickled."""
    error = kind.__new__(kind, *args)
    vars(error).update(parts)
    return error


class RunFailed(Exception):
    """A run cannot go on (non-finite loss, full disk); the command exits with status 1."""


class Unavailable(Exception):
    """A run is impossible at this scale or with the data given; the message is the reason that tables show.

    Args:
        option: the option that makes it possible (`--data coco=PATH`); empty if none does.
    """

    def __init__(self, reason: str, option: str = "") -> None:
        super().__init__(reason)
        self.option = option


# What a formula begins with in a spreadsheet, in full width too.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
# Control characters, characters that change the writing direction, and undecodable bytes of a file's name.
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def visible(text: str, *, lines: bool = False) -> str:
    r"""The text with characters that a terminal would obey or could not print escaped: ESC as `\x1b`.

    Args:
        lines: keep line feeds and tabs.
    """

    if text.isprintable():  # nearly every text
        return text

    def written(found: re.Match[str]) -> str:
        keep = lines and found[0] in "\n\t"
        return found[0] if keep else found[0].encode("unicode_escape").decode()

    return _HIDDEN.sub(written, text)


def spreadsheet(value: str) -> str:
    """The text as a CSV cell that no spreadsheet evaluates.

    A text that begins like a formula (= + - @, a tab, a line break) gets an apostrophe in front; a number
    stays as it is.
    """
    shown = visible(value.replace("\r\n", "\n"), lines=True)
    formula = shown.startswith(_FORMULA) and not _NUMBER.fullmatch(shown)
    return f"'{shown}" if formula else shown

"""The user's mistakes: one exception that says what was wrong, what is allowed, and what to do."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable

NO_VALUE = object()


class UserError(Exception):
    """A mistake in what the user asked for; the command line prints it and exits with status 2.

    Pickle and a DataLoader rebuild one as `UserError(text)`, from its message or the traceback that ends with
    it.

    Args:
        field: what was wrong, by the name the user typed it under (`METHOD`, `--set mask_ratio`).
        value: the offending value, where there is one.
        allowed: the valid values, where they can be listed; the nearest one is suggested.
        remedy: what to do about it.
    """

    def __init__(
        self, field: str, value: object = NO_VALUE, *, allowed: Iterable[object] = (), remedy: str = ""
    ) -> None:
        self.allowed = [str(item) for item in allowed]
        if value is NO_VALUE and not self.allowed and not remedy:
            message = _original_message(type(self), field)
            self.field, value, self.remedy = _parts(message)
        else:
            self.field, self.remedy = field, remedy
            message = self._message(value)
        self.value = None if value is NO_VALUE else value
        super().__init__(message)

    def _message(self, value: object) -> str:
        if value is NO_VALUE:
            parts = [f"{self.field}:"]
        else:
            parts = [f"{self.field}: {value!r} is not valid."]
            if nearest := difflib.get_close_matches(str(value), self.allowed, n=1, cutoff=0.5):
                parts.append(f"Did you mean {nearest[0]!r}?")
        if self.allowed:
            parts.append(f"Allowed: {', '.join(self.allowed)}.")
        if self.remedy:
            parts.append(self.remedy)
        return " ".join(parts)


class RunFailed(Exception):
    """A run stopped for a reason of its own (non-finite loss, full disk); the command exits with status 1.

    Args:
        message: what happened, or the traceback that ends with it, from which a DataLoader rebuilds it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_original_message(type(self), message))


class Unavailable(Exception):
    """Something that cannot be run at this scale; the message is the reason that the table shows.

    Args:
        option: what the user can give to change that (`--data coco=PATH`), if anything.
    """

    def __init__(self, reason: str, option: str = "") -> None:
        super().__init__(reason)
        self.option = option


def _original_message(kind: type[Exception], text: str) -> str:
    """The message at the end of a traceback's text, where a `kind` was raised; any other text as it is."""
    last = rf"Traceback \(most recent call last\):.*^(?:\S+\.)?{kind.__name__}: (.*)"
    found = re.search(last, text, re.DOTALL | re.MULTILINE)
    return found[1].strip() if found else text


def _parts(message: str) -> tuple[str, object, str]:
    """Field, value and remedy in a UserError's message; the whole message as field where it has no value."""
    found = re.fullmatch(r"(.+?): (.+?) is not valid\. ?(.*)", message, re.DOTALL)
    if found:
        try:
            return found[1], ast.literal_eval(found[2]), found[3]
        except (SyntaxError, ValueError):  # the value's text is not Python's, or the field has a colon in it
            pass
    return message, NO_VALUE, ""


_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""`text` on one line with what a terminal would obey or could not print written out (`\x1b`, `\n`).

    That is: control characters, the marks that turn the writing direction, and the bytes of a file's name
    that are no text.
    """
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)

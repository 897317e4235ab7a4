"""The user's mistakes: one exception that says what was wrong, what is allowed, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user asked for; the command line prints it and exits with status 2.

    Args:
        field: what was wrong, by the name the user typed it under (`METHOD`, `--set mask_ratio`).
        value: the offending value.
        allowed: the valid values, where they can be listed; the nearest one is suggested.
        remedy: what to do about it.
    """

    def __init__(
        self, field: str, value: object, *, allowed: Iterable[object] = (), remedy: str = ""
    ) -> None:
        self.field, self.value, self.remedy = field, value, remedy
        self.allowed = [str(item) for item in allowed]
        super().__init__(self._message())

    def _message(self) -> str:
        parts = [f"{self.field}: {self.value!r} is not valid."]
        nearest = difflib.get_close_matches(str(self.value), self.allowed, n=1, cutoff=0.5)
        if nearest:
            parts.append(f"Did you mean {nearest[0]!r}?")
        if self.allowed:
            parts.append(f"Allowed: {', '.join(self.allowed)}.")
        if self.remedy:
            parts.append(self.remedy)
        return " ".join(parts)


class RunFailed(Exception):
    """A run stopped for a reason of its own (non-finite loss, full disk); the command exits with status 1."""

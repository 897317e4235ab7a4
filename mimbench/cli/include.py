"""`--include PATH`, which may come before or after the command."""

from __future__ import annotations

from collections.abc import Sequence

import typer

OPTION = "--include"


def to_front(words: Sequence[str]) -> list[str]:
    """The command line with every `--include PATH` before the command, where click looks for it.

    Raises:
        typer.BadParameter: the last one has no path.
    """
    front: list[str] = []
    rest: list[str] = []
    left = iter(words)
    for word in left:
        if word == "--":
            rest += [word, *left]
        elif word == OPTION:
            value = next(left, None)
            if value is None:
                raise typer.BadParameter(f"{OPTION} needs a folder or a file: {OPTION} PATH")
            front += [word, value]
        elif word.startswith(f"{OPTION}="):
            front.append(word)
        else:
            rest.append(word)
    return front + rest

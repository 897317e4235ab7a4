"""Names for shell completion, read from files and folders without importing anything heavy.

A completion must never fail: if names cannot be read, it offers none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import typer


def _silent(find: Callable[..., Iterable[str]]) -> Callable[..., list[str]]:
    @wraps(find)  # typer looks at the names of its parameters
    def complete(*arguments: Any, **named: Any) -> list[str]:
        try:
            return list(find(*arguments, **named))
        except Exception:  # a message would end up on the line that the user is typing
            return []

    return complete


@_silent
def papers() -> Iterable[str]:
    """The methods that have tables."""
    return dict.fromkeys(paper for paper, _ in _tables())


@_silent
def tables(ctx: typer.Context) -> Iterable[str]:
    """The tables of the METHOD that was typed, or all tables."""
    # While an option lacks its value, click has not parsed METHOD: it is among the extra words.
    typed = {ctx.params.get("method"), *ctx.args}
    of_method = [name for owner, name in _tables() if owner in typed]
    return of_method or sorted({name for _, name in _tables()})


@_silent
def any_table(ctx: typer.Context) -> Iterable[str]:
    """The values of `reproduce-all --table`."""
    return ["all", *tables(ctx)]


@_silent
def papers_and_tables() -> Iterable[str]:
    """METHOD and METHOD/TABLE."""
    return [*papers(), *("/".join(table) for table in _tables())]


@_silent
def scales() -> Iterable[str]:
    from mimbench.recipe import SCALES

    return SCALES


@_silent
def methods() -> Iterable[str]:
    from mimbench.discovery import names

    return [*names("method"), *names("teacher")]


@_silent
def tasks() -> Iterable[str]:
    from mimbench.discovery import names

    return names("task")


@_silent
def runs() -> Iterable[str]:
    """The runs of the workspace by name, and by key."""
    from mimbench.paths import runs

    names = [path.name for path in runs().glob("*-*-*-*")]
    return [*names, *(name.rpartition("-")[2] for name in names)]


@_silent
def methods_and_runs() -> Iterable[str]:
    return [*methods(), *runs()]


@_silent
def states() -> Iterable[str]:
    from mimbench.store.export import STATES

    return STATES


@_silent
def stages() -> Iterable[str]:
    from typing import get_args

    from mimbench.store.spec import Stage

    return get_args(Stage)


def sorts() -> list[str]:
    return ["newest", "oldest", "name"]


@_silent
def roles() -> Iterable[str]:
    from mimbench.plan.request import ROLES

    return [f"{role}=" for role in ROLES]


def _tables() -> list[tuple[str, str]]:
    """Every (method, table), those of plug-ins too, as `mimbench.table.spec` finds them, without pydantic."""
    from mimbench.discovery import sound_plugins
    from mimbench.paths import share

    folders = [share("tables"), *(each.tables for each in sound_plugins())]
    return sorted({(file.parent.name, file.stem) for folder in folders for file in folder.glob("*/*.toml")})

"""What a name stands for: a method, a teacher, a task, a paper's table, a run; the nearest known names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Literal

from mimbench import discovery
from mimbench.errors import UserError
from mimbench.store.folder import RunFolder
from mimbench.store.runs import RunStore
from mimbench.table import spec as tables
from mimbench.table.spec import TableSpec

Kind = Literal["method", "teacher", "task", "paper", "table", "run"]
TITLES: dict[Kind, str] = {
    "method": "a method", "teacher": "a teacher", "task": "a task", "paper": "a paper with tables",
    "table": "a table", "run": "a run",
}  # fmt: skip
PLURALS: dict[Kind, str] = {
    "method": "Methods", "teacher": "Teachers", "task": "Tasks", "paper": "Tables", "table": "Tables",
    "run": "Runs",
}  # fmt: skip
LISTS: dict[Kind, str] = {
    "method": "mimbench methods", "teacher": "mimbench methods", "task": "mimbench tasks",
    "paper": "mimbench tables", "table": "mimbench tables", "run": "mimbench runs list",
}  # fmt: skip
NEAREST = 5
"""How many names a message lists if there are more than MANY."""
MANY = 10


def known_names(store: RunStore | None = None) -> dict[str, list[Kind]]:
    """Every known name, and the kinds of things it stands for: `dtm` is a method, and a paper with tables.

    A table has two names: `main`, and with its paper `dtm/main`.
    """
    pairs: list[tuple[str, Kind]] = []
    kinds: tuple[discovery.Kind, ...] = ("method", "teacher", "task")
    for kind in kinds:
        pairs += [(name, kind) for name in discovery.names(kind)]
    for paper, table in tables.list_tables():
        pairs += [(paper, "paper"), (table, "table"), (f"{paper}/{table}", "table")]
    pairs += [(folder.path.name, "run") for folder in store or ()]
    found: dict[str, list[Kind]] = {}
    for name, kind_of_name in dict.fromkeys(pairs):
        found.setdefault(name, []).append(kind_of_name)
    return found


def use_of(name: str, kind: Kind) -> str:
    """The command that does something with a name."""
    if kind == "method":
        return f"`mimbench run {name} classification` computes it."
    if kind == "teacher":
        return f"`mimbench run {name}` computes it."
    if kind == "task":
        return f"`mimbench run METHOD {name}` computes it for a method."
    if kind == "paper":
        return f"`mimbench reproduce-table {name}` computes its main table."
    if kind == "table":
        papers, table = papers_of(name), name.rpartition("/")[2]
        return f"`mimbench reproduce-table {one_or(papers, 'METHOD')} --table {table}` computes it."
    return f"`mimbench runs show {name}` describes it."


def papers_of(table: str) -> list[str]:
    """The papers that have a table, which is named with or without its paper."""
    paper, _, name = table.rpartition("/")
    return [paper] if paper else [owner for owner, other in tables.list_tables() if other == name]


def one_or(names: Sequence[str], several: str) -> str:
    """The name if there is only one, else the word for any of them."""
    return names[0] if len(names) == 1 else several


def _title(name: str, kind: Kind) -> str:
    return f"a table of {_and(papers_of(name))}" if kind == "table" else TITLES[kind]


def _and(words: Sequence[str], last: str = "and") -> str:
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def wrong_name(
    field: str,
    name: str,
    *wanted: Kind,
    store: RunStore | None = None,
    allowed: Sequence[str] = (),
    title: str = "",
    use: Callable[[str, Kind], str] = use_of,
) -> UserError:
    """The error for a name of a wrong kind. It says of which kind the name is, or which names are near it.

    Args:
        field: the argument or option that the name was given for (`METHOD`).
        wanted: the kinds that are valid there.
        store: the names of its runs count as names; None for none.
        allowed: the valid names; default: all names of the kinds in `wanted`.
        title: what a valid name is; default: one of the kinds in `wanted`.
        use: what to do with a name of another kind.
    """
    names = known_names(store)
    fitting = list(allowed) or [text for text, kinds in names.items() if set(kinds) & set(wanted)]
    title = title or _and([TITLES[kind] for kind in wanted], "or")
    commands = _and([f"`{command}`" for command in dict.fromkeys(LISTS[kind] for kind in wanted)])
    lists = f"{commands} {'list' if ' and ' in commands else 'lists'} them all"
    lists += "." if wanted == ("run",) else "; --include PATH adds your own."
    if name in names:
        kind = _told_kind(names[name], wanted)
        remedy = f"{name!r} is {_title(name, kind)}, not {title}. {use(name, kind)}"
        same = [text for text in fitting if f"-{name}-" in text]
        some = same if len(fitting) > MANY else fitting
        if some:
            remedy += f" {PLURALS[wanted[-1]]}: {_listed(some)}."
        return UserError(field, remedy=remedy)
    near = difflib.get_close_matches(name, fitting, n=NEAREST, cutoff=0.5)
    nearest = difflib.get_close_matches(name, [*fitting, *names], n=1, cutoff=0.6)
    if nearest and nearest[0] not in fitting:
        kind = _told_kind(names[nearest[0]], wanted)
        remedy = f"There is no {name!r}. Did you mean {nearest[0]!r}, {_title(nearest[0], kind)}?"
        return UserError(field, remedy=f"{remedy} {use(nearest[0], kind)} {lists}")
    return UserError(field, name, allowed=near if len(fitting) > MANY else fitting, remedy=lists)


def _told_kind(kinds: Sequence[Kind], wanted: Sequence[Kind]) -> Kind:
    """The kind to name of a name that has several: who wants a table and names `dtm` means the paper."""
    return "paper" if "paper" in kinds and "table" in wanted else kinds[0]


def _listed(names: Sequence[str]) -> str:
    few = len(names) <= MANY
    return ", ".join(names if few else names[:NEAREST]) + ("" if few else f" and {len(names) - NEAREST} more")


def load_table(paper: str, table: str) -> TableSpec:
    """A paper's table by its names. Raises UserError for an unknown one, or for a mistake in its file."""
    of_paper = [name for owner, name in tables.list_tables() if owner == paper]
    if not of_paper:
        raise wrong_name("METHOD", paper, "paper")
    if table not in of_paper:
        raise _wrong_table(paper, table, of_paper)
    return tables.load(paper, table)


def _wrong_table(paper: str, table: str, of_paper: Sequence[str]) -> UserError:
    name = table.removeprefix(f"{paper}/")
    if name in of_paper:
        return UserError("--table", table, remedy=f"Give the table's name alone: --table {name}.")
    return wrong_name("--table", table, "table", allowed=of_paper, title=f"a table of {paper}")


def find_run(store: RunStore, text: str, *also: Kind) -> RunFolder:
    """The one run whose folder's name or key begins with what the user typed.

    Args:
        also: other kinds of names that would be valid too, for the message.

    Raises:
        UserError: no run or several runs match.
    """
    found = store.named(text)
    if not found:
        raise wrong_name("RUN", text, *also, "run", store=store)
    if len(found) > 1:
        names = _listed([folder.path.name for folder in found])
        remedy = f"{len(found)} runs begin like that: {names}. `mimbench runs list` shows them all."
        raise UserError("RUN", text, remedy=remedy)
    return found[0]

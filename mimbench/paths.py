"""Where things are: the tables and templates that ship with the project, and the user's workspace."""

from __future__ import annotations

import os
from pathlib import Path

from mimbench.errors import UserError

PACKAGE = Path(__file__).resolve().parent


def share(name: str) -> Path:
    """The shipped folder `tables` or `reports`: the checkout's own, or the copy inside an installed wheel."""
    # Beside an installed mimbench there may be a package `tables` that is not ours.
    shipped = PACKAGE / "_share"
    return (shipped if shipped.is_dir() else PACKAGE.parent) / name


def checkout() -> Path | None:
    """The root of the checkout that mimbench runs from; None for an installed wheel."""
    root = PACKAGE.parent
    is_wheel = (PACKAGE / "_share").is_dir()
    return None if is_wheel or not (root / "pretrain" / "methods").is_dir() else root


def workspace() -> Path:
    """The folder that holds runs/, data/ and reports/out: MIMBENCH_HOME, else the current directory.

    Raises:
        UserError: it is not a folder, and cannot be made.
    """
    given = os.environ.get("MIMBENCH_HOME")
    try:
        named = Path(given).expanduser() if given else Path.cwd()
    except FileNotFoundError as error:
        raise UserError(
            "MIMBENCH_HOME", remedy="The current folder is gone: change to another one."
        ) from error
    try:
        place = base = named.resolve()
    except (OSError, RuntimeError) as error:  # Python reports a loop of links as either
        remedy = "It cannot be found: is it a loop of symbolic links?"
        raise UserError("MIMBENCH_HOME", str(named), remedy=remedy) from error
    while not base.exists():
        base = base.parent
    if not base.is_dir() or (base != place and not os.access(base, os.W_OK)):
        remedy = f"It must be a folder, or one that can be made; {base} does not allow that."
        raise UserError("MIMBENCH_HOME", str(place), remedy=remedy)
    return place


def runs() -> Path:
    return workspace() / "runs"


def data() -> Path:
    return workspace() / "data"


def reports_out() -> Path:
    return workspace() / "reports" / "out"


def cache() -> Path | None:
    """The user's cache folder, which can be deleted at any time; None if there is no home folder.

    MIMBENCH_CACHE, else mimbench/ in XDG_CACHE_HOME or ~/.cache. Commands that only show something make no
    other folder.
    """
    if given := os.environ.get("MIMBENCH_CACHE"):
        return Path(os.path.expanduser(given)).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG standard ignores a relative path
        base = os.path.expanduser("~/.cache")
    return Path(base) / "mimbench" if os.path.isabs(base) else None


def old_cache() -> Path:
    """Where older versions kept the cache: in the workspace."""
    return runs() / ".cache"


def version() -> str:
    """The installed version, or the version of the checkout that Python imports."""
    import importlib.metadata  # here, because it takes a tenth of the time of `mimbench --help`

    try:
        return importlib.metadata.version("mimbench")
    except importlib.metadata.PackageNotFoundError:
        pyproject = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
        found = next(line for line in pyproject.splitlines() if line.startswith("version = "))
        return f"{found[11:-1]} (checkout at {PACKAGE.parent})"

"""Folders and single files, as every format has them: what is hidden is left out, what is odd is named."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from mimbench.data import EXTENSIONS, Problem
from mimbench.errors import UserError


def is_there(file: Path, what: str) -> bool:
    """Whether there is an ordinary file of this name, or a link to one.

    Raises:
        UserError: a folder, a pipe or a link to nothing has the name; `what` names it.
    """
    if not os.path.lexists(file):
        return False
    try:
        mode = os.stat(file).st_mode
    except OSError as error:
        remedy = f"It cannot be read ({error.strerror}): restore it, or what it links to, or remove it."
        raise UserError(what, str(file), remedy=remedy) from error
    if not stat.S_ISREG(mode):
        raise UserError(what, str(file), remedy="It is no ordinary file: replace it, or remove it.")
    return True


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link that leads round in a circle is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def links_to_nothing(entries: list[os.DirEntry[str]]) -> Iterator[Problem]:
    """Links to nothing that may have been folders: they have no name of an image, and are not hidden."""
    for entry in entries:
        if entry.name[0] == "." or not entry.is_symlink() or entry.name.lower().endswith(EXTENSIONS):
            continue
        if not os.path.exists(entry.path):
            message = "It is a link to nothing: restore what it links to, or remove it."
            yield Problem("broken link", entry.path, message)


def walk(top: Path | str, problems: list[Problem] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Folders from `top` down, each with the sorted names of what is in it and is no folder.

    Hidden files and folders are left out. Links to folders are followed, except to a folder above.

    Args:
        problems: gets the folders that cannot be read or lead round in a circle, and links to nothing.
    """
    yield from _walk(os.fspath(top), (), [] if problems is None else problems)


def _leads_round(link: str, above: tuple[str, ...]) -> bool:
    """Whether a link leads to one of the folders that it is reached by, or to one above them."""
    target = Path(os.path.realpath(link))
    return any(Path(os.path.realpath(each)).is_relative_to(target) for each in above)


def _walk(folder: str, above: tuple[str, ...], problems: list[Problem]) -> Iterator[tuple[str, list[str]]]:
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        problems.append(Problem("unreadable folder", folder, f"It cannot be read ({error.strerror})."))
        return
    problems += links_to_nothing(found)
    above = (*above, folder)
    below, names = [], []
    for entry in found:
        if not is_folder(entry):
            names.append(entry.name)
        elif entry.is_symlink() and _leads_round(entry.path, above):
            message = "It links to a folder that it lies in: remove the link."
            problems.append(Problem("folders in a circle", entry.path, message))
        else:
            below.append(entry.path)
    yield folder, names
    for path in below:
        yield from _walk(path, above, problems)

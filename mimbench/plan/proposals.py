"""Settings that work, for the message about sizes that do not go together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from mimbench.errors import Unavailable, UserError
from mimbench.override import SIZES, Misfit
from mimbench.plan.request import Request, settings

Plans = TypeVar("Plans")
MAX_SETTINGS = 8
"""How many settings one proposal may have at most."""


def proposing(build: Callable[[Request], Plans], request: Request) -> Plans:
    """The plans that `build` makes of a request.

    A size that the user sets may need other settings too, such as the image size of every task. The error
    then names all of them at once, and only what `build` accepts.

    Raises:
        UserError: what `build` raises. If sizes that the user set do not go together, the error proposes
            settings with which `build` succeeds.
    """
    try:
        return build(request)
    except Misfit as error:
        if not any(name.rpartition(".")[2] in SIZES for name in request.changes):
            raise
        found = [_completed(build, request, fix) for fix in error.fixes]
        remedy = f"{error.why} {_told([fix for fix in found if fix], request)}"
        raise UserError(error.field, error.value, remedy=remedy) from None


def _completed(
    build: Callable[[Request], object], request: Request, fix: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a fix, and all others that the plans then need; empty if it mends nothing."""
    added = dict(fix)
    while len(added) <= MAX_SETTINGS:
        try:
            build(replace(request, changes={**request.changes, **added}))
        except Misfit as error:
            more = next((other for other in error.fixes if not other.keys() & {*request.changes, *added}), {})
            if not more:
                return {}
            added |= more
        except (UserError, Unavailable):
            return {}
        else:
            return added
    return {}


def _told(fixes: list[dict[str, Any]], request: Request) -> str:
    """`Give --set patch_size=4 or --set patch_size=8; or --set img_size=35 too`."""
    texts = [" ".join(f"--set {word}" for word in settings(replace(request, changes=fix))) for fix in fixes]
    instead = [text for text, fix in zip(texts, fixes, strict=True) if fix.keys() & request.changes.keys()]
    added = [f"{text} too" for text in texts if text not in instead][:1]
    found = "; or ".join(filter(None, [" or ".join(instead), *added]))
    return f"Give {found}" if found else "No size near it fits every run here."

"""The root of the command line. It turns errors into a message and an exit status."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mimbench.atomic import trouble
from mimbench.cli.help import SETTINGS, Command, Group
from mimbench.cli.include import to_front
from mimbench.errors import RunFailed, UserError, visible

WORDS = "mimbench.words"
"""Where click's context keeps the words that were typed."""


GO_ON = "Run the same command again to continue from the last checkpoints."

RESUMED = ("reproduce-table", "reproduce-all", "run")  # commands whose runs have checkpoints


class Stopped(BaseException):
    """A signal ends the command; the workers are closed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _stop(number: int, frame: object) -> None:
    raise Stopped(number)


class Guarded(TyperGroup):
    """Turns our errors into a message and an exit status: 2 for the user's mistakes, 1 for failures."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[WORDS] = args
        return super().parse_args(ctx, to_front(args))

    def invoke(self, ctx: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP: it stays ignored
                    signal.signal(number, _stop)
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise _end(str(error), 2) from None
        except RunFailed as error:
            raise _end(str(error), 1) from None
        except OSError as error:
            found = trouble(error, chosen=_chosen(ctx.meta[WORDS]))
            if found is None:
                raise
            raise _end(found.message, found.status) from None
        except Stopped as stop:
            name = signal.Signals(stop.number).name
            raise _end(_stopped(f"stopped by {name}.", ctx), 128 + stop.number) from None
        except KeyboardInterrupt:
            raise _end(_stopped("stopped.", ctx), 130) from None


def _stopped(words: str, ctx: Any) -> str:
    """The message after a signal; only commands that compute runs go on from checkpoints."""
    return f"{words} {GO_ON}" if ctx.invoked_subcommand in RESUMED else words


def _chosen(words: Sequence[str]) -> list[Path]:
    """The places that the user chose: cache, workspace, and what was typed (NAME=PATH too)."""
    from mimbench import paths

    typed = [part for word in words for part in (word, word.partition("=")[2]) if part and part[0] != "-"]
    found = [Path(part).expanduser() for part in typed] + list(filter(None, [paths.cache()]))
    with contextlib.suppress(UserError):  # the workspace cannot be
        found += [paths.runs(), paths.data(), paths.reports_out()]
    return found


def _end(message: str, status: int) -> typer.Exit:
    typer.echo(f"mimbench: {visible(message, lines=True)}", err=True)
    return typer.Exit(status)


class Root(Guarded, Group):
    """`mimbench` itself: it turns errors into messages, and prints help as a group does."""


def _typer(cls: type[TyperGroup], text: str, **settings: Any) -> typer.Typer:
    return typer.Typer(
        cls=cls,
        help=text,
        context_settings=SETTINGS,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        **settings,
    )


app = _typer(
    Root,
    "Reproduce the comparison tables of masked-image-modelling papers.",
    add_completion=True,
    epilog="mimbench doctor                          # what is installed, what can run here\n"
    "mimbench reproduce-table dtm             # a table with data that mimbench makes\n"
    "mimbench runs list --table dtm/main      # what was computed for it",
)


def add_group(name: str, text: str, panel: str) -> typer.Typer:
    """A group of commands, `mimbench NAME ...`."""
    group = _typer(Group, text, add_completion=False)
    app.add_typer(group, name=name, rich_help_panel=panel)
    return group


def command(
    name: str | None = None,
    *,
    panel: str | None = None,
    examples: str = "",
    group: typer.Typer = app,
    **settings: Any,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command. Its docstring and `examples` (a line each) are its help.

    Args:
        panel: the group of commands that the help lists it in.
        settings: click's context settings.
    """
    return group.command(
        name, cls=Command, rich_help_panel=panel, epilog=examples, context_settings=settings or None
    )


def _print_version(wanted: bool) -> None:
    if wanted:
        from mimbench.paths import version

        typer.echo(f"mimbench {version()}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True),
    ] = False,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="PATH",
            help="A plug-in (a folder or file with your own methods, tasks or tables), for every command.",
        ),
    ] = None,
) -> None:
    """The options of every command. The program's help text is set in `app`."""
    if include:
        from mimbench import plugin

        plugin.include(include)

"""The command line's root: errors become a message and an exit status."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mimbench.atomic import trouble
from mimbench.cli.include import to_front
from mimbench.errors import RunFailed, UserError, printable


class Guarded(TyperGroup):
    """Turns our errors into a message and an exit status: 2 for the user's mistakes, 1 for failures."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, to_front(args))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise _end(str(error), 2) from None
        except RunFailed as error:
            raise _end(str(error), 1) from None
        except OSError as error:
            found = trouble(error)
            if found is None:
                raise
            raise _end(found.message, found.status) from None
        except KeyboardInterrupt:
            typer.echo("mimbench: stopped. The same command goes on from the last checkpoints.", err=True)
            raise typer.Exit(130) from None


def _end(message: str, status: int) -> typer.Exit:
    typer.echo(f"mimbench: {printable(message)}", err=True)
    return typer.Exit(status)


def _group(text: str) -> typer.Typer:
    return typer.Typer(help=text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


app = typer.Typer(
    cls=Guarded,
    help="Reproduce the comparison tables of masked-image-modelling papers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def main(
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="PATH",
            help="A plug-in: a folder or file with methods, tasks or tables of your own. For any command.",
        ),
    ] = None,
) -> None:
    """Reproduce the comparison tables of masked-image-modelling papers."""
    if include:
        from mimbench import plugin

        plugin.include(include)


runs = _group("What has been computed: list, show, export, rm, gc.")
data = _group("Make the toy data, or check a dataset.")
new = _group("Write a method or a task of your own to start from.")
app.add_typer(runs, name="runs")
app.add_typer(new, name="new")
app.add_typer(data, name="data")

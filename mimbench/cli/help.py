"""The look of --help: plain text in groups, up to 100 columns wide. It loads no rich, which would be slow."""

from __future__ import annotations

import os
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
COMPUTE, LOOK, ENVIRONMENT = "Compute", "Look", "Data and environment"
PANELS = (COMPUTE, LOOK, ENVIRONMENT)
"""The groups of commands, in the order of the help; a group that is not named here comes after them."""


class Command(TyperCommand):
    """A command whose help ends with examples; its epilog holds them, a line each."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        found = [param for param in self.get_params(ctx) if param.param_type_name == "argument"]
        names = [_name(param) if param.required else f"[{_name(param)}]" for param in found]
        return ["[OPTIONS]", *names]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_parameters(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(self, formatter)


class Group(TyperGroup):
    """A group of commands whose help lists them by their panels."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.format_commands(ctx, formatter)
        _write_parameters(self, ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {panel: [] for panel in PANELS}
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        longest = max(map(len, commands), default=0)  # the same first column in every panel
        for name, command in commands.items():
            if command is not None and not command.hidden:
                panel = getattr(command, "rich_help_panel", None) or "Commands"
                first = (command.help or "").partition("\n\n")[0].replace("\n", " ")
                styled = _styled(name, fg="cyan") + " " * (longest - len(name))
                panels.setdefault(panel, []).append((styled, first))
        for panel, rows in panels.items():
            if rows:
                with formatter.section(_styled(panel, bold=True)):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(self, formatter)


def _write_parameters(command: Any, ctx: Any, formatter: Any) -> None:
    arguments, options = [], []
    for param in command.get_params(ctx):
        if param.param_type_name == "argument":
            arguments.append((_name(param), param.help or ""))
        elif record := param.get_help_record(ctx):
            options.append(record)
    for title, records in (("Arguments", arguments), ("Options", options)):
        if records:
            with formatter.section(_styled(title, bold=True)):
                formatter.write_dl([(_styled(name, fg="cyan"), text) for name, text in records])


def _name(argument: Any) -> str:
    return argument.metavar or argument.name.upper()


def _write_examples(command: Any, formatter: Any) -> None:
    if command.epilog:
        with formatter.section(_styled("Examples", bold=True)):
            for line in command.epilog.splitlines():
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def _styled(text: str, **style: Any) -> str:
    """`text` with colour, which click removes if the output is not a terminal."""
    return text if os.environ.get("NO_COLOR") else typer.style(text, **style)

"""Groups of subcommands that are imported when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

Commands = Mapping[str, tuple[str, str, str]]
"""Name of a subcommand to (module in ``imgstore.cli``, object, summary), in the order of the help.

The summary is the first line of the command's own help: here too, so that the help of a group imports no command.
"""


class LazyGroup(click.Group):
    """A group that imports the module of a subcommand when it is asked for."""

    def __init__(self, *args: Any, table: Commands, **options: Any) -> None:
        super().__init__(*args, **options)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        module, name, _ = self.table[cmd_name]
        command: click.Command = getattr(import_module(f"imgstore.cli.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in self.table.items()])

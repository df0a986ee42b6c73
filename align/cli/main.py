"""Inspect, compare and export what the pipeline made, check this machine, and extend the loop."""

from importlib import import_module
from typing import Any

import click

from align.core.errors import InputError, printable

# The module of each command, which has a function of the command's name.
COMMANDS = {
    "diff": "diff.command",
    "doctor": "doctor.command",
    "estimate": "estimate.command",
    "export": "export.command",
    "iterate": "iterate.command",
    "push-to-hub": "export.push_command",
    "recipe": "recipes.command",
    "remote-check": "remotes.command",
    "show": "show.command",
}


class Commands(click.Group):
    """`COMMANDS`, each imported when it runs; errors may quote files, so they are made printable."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, sorted."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"align.cli.{COMMANDS[cmd_name]}")
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise type(error)(printable(error.message)) from None


@click.group(cls=Commands, help=__doc__)
def main() -> None:
    """Run `align`."""


if __name__ == "__main__":
    main()

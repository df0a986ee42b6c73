"""The `align` command: look into what the pipeline made, and make the loop longer."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import click

from stages import commands
from stages.lib.errors import InputError, printable


class Commands(click.Group):
    """The commands of `stages.commands`, imported when they are asked for; errors, which quote files, are printable."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, sorted."""
        return sorted(module.name.replace("_", "-") for module in iter_modules(commands.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        name = cmd_name.replace("-", "_")
        command = getattr(import_module(f"{commands.__name__}.{name}"), name)
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
    pass


if __name__ == "__main__":
    main()

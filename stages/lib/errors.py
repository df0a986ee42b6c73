"""The one exception for what a user can mend."""

import click


class InputError(click.ClickException):
    """Bad input: a one-line message that names the file and line (or key), what is wrong, and how to mend it.

    A click command prints it as `Error: ...` on stderr and exits with 1; nothing else is shown.
    """

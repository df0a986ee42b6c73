"""The subcommands of `align`, one module each: the module NAME has the command NAME."""

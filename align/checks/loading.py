"""Checkers: functions that params.yaml names as `package.module:function`, and that decide about a reply."""

import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from align.core.errors import InputError, quoted

ROOT = Path(__file__).parents[2]
HOMES = ("checkers", "align/checks", "align/judge/checkers.py")  # what the stages that run checkers depend on


def load_checker(key: str, name: str) -> Callable[..., Any]:
    """Import the function that `package.module:function` names.

    Args:
        key: that of params.yaml which has the name, for messages.
        name: of the function.

    Raises:
        InputError: it cannot be imported, is no function, or its module is in none of `HOMES`: DVC would not see edits.
    """
    module, _, function = name.partition(":")
    try:
        checker: object = getattr(import_module(module), function)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise InputError(
            f"params.yaml: {key}: {located(error)}; expected package.module:function, importable from here"
        ) from None
    if not callable(checker):
        raise InputError(f"params.yaml: {key}: {quoted(name)} is no function; name a function")
    file = Path(getattr(sys.modules[module], "__file__", None) or module).resolve()
    if not any(file.is_relative_to(root / home) for root in (ROOT, Path.cwd().resolve()) for home in HOMES):
        raise InputError(
            f"params.yaml: {key}: {quoted(name)} is in {file}, which no stage depends on; move it to checkers/, which "
            "the stage depends on"
        )
    return checker


def located(error: BaseException) -> str:
    """Return type, message, file and line of what a checker raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"

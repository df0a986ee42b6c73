"""The Jinja templates of `prompts/`, rendered in a sandbox; an undefined name is an error."""

import base64
import hashlib
from functools import cache
from pathlib import Path

from jinja2 import FileSystemLoader, StrictUndefined, Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from align.core.errors import printable

PROMPTS_DIR = Path(__file__).parents[2] / "prompts"


def render(name: str, **values: object) -> str:
    """Render `prompts/<name>` with `values`, without newlines at either end.

    In `*.html.jinja` all values are escaped.
    """
    return _template(name).render(values).strip("\n")


def source_hash(text: str) -> str:
    """Return the hash by which a Content-Security-Policy allows a page's own script or style sheet."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _template(name: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(PROMPTS_DIR),
        undefined=StrictUndefined,
        trim_blocks=True,
        autoescape=name.endswith(".html.jinja"),
    )
    environment.filters["printable"] = printable
    return environment.get_template(name)

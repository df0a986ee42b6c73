"""The Jinja templates of `prompts/`, rendered in a sandbox; an undefined name is an error."""

from functools import cache
from pathlib import Path

from jinja2 import FileSystemLoader, StrictUndefined, Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from align.core.errors import printable

PROMPTS_DIR = Path(__file__).parents[2] / "prompts"


def render(name: str, **values: object) -> str:
    """Render `prompts/<name>` with `values`, without newlines at either end."""
    return _template(name).render(values).strip("\n")


@cache
def _template(name: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(PROMPTS_DIR), undefined=StrictUndefined, trim_blocks=True, autoescape=False
    )
    environment.filters["printable"] = printable
    return environment.get_template(name)

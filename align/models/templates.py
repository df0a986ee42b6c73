"""Chat templates that give every run the same prompts: no clock and no chance in them."""

import re
from datetime import date

from jinja2 import Environment, TemplateError, nodes

from align.core.errors import InputError

FROZEN_DATE = date(2025, 1, 1)  # the day that templates with the day's date write
_DATE = re.compile(r"""strftime_now\(\s*(?:format\s*=\s*)?(["'])(?P<format>[^"'\\]*)\1\s*\)""")


def frozen_template(template: str | None, what: str) -> tuple[str | None, bool]:
    """Return a chat template with `FROZEN_DATE` in place of the day's date, and whether it had that.

    Raises:
        InputError: it asks for the date in another way, or for something random; `what` names it.
    """
    if not isinstance(template, str):
        return template, False
    frozen = _DATE.sub(lambda call: '"' + FROZEN_DATE.strftime(call["format"]) + '"', template)
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_without_generation(frozen))
    except TemplateError:  # `check_tokenizer` says what is wrong with it
        return template, False
    called = {node.node.name for node in tree.find_all(nodes.Call) if isinstance(node.node, nodes.Name)}
    filters = {node.name for node in tree.find_all(nodes.Filter)}
    if unsteady := sorted({"strftime_now", "lipsum"} & called | {"random"} & filters):
        raise InputError(
            f"{what} uses {unsteady[0]}, so that each run would have other prompts; write one without it to "
            "prompts/chat, and name it as base_model.chat_template"
        )
    return frozen, frozen != template


def _without_generation(template: str) -> str:
    return re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", template)  # a tag of transformers

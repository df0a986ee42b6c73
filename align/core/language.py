"""The language of a text, by py3langid, whose model comes with the package. The first use takes about a second."""

import py3langid
from py3langid.langid import RAW_FLOOR

from align.core.errors import quoted


def language_of(text: str) -> str | None:
    """Return the ISO 639 code of a text's language; None if it has none, such as `12 * 12`."""
    language, log_probability = py3langid.classify(text)
    # Without any feature all languages score the floor, and the first in the alphabet wins; zxx is "no language".
    return None if log_probability <= RAW_FLOOR or language == "zxx" else str(language)


def check_language(code: str) -> None:
    """Raise `ValueError` if `code` is no language that `language_of` can return."""
    if code not in dict(py3langid.rank("")):
        raise ValueError(f'py3langid does not know {quoted(code)}; write an ISO 639 code such as "en"')

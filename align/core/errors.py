"""`InputError`, for problems the user can fix, and escaping of untrusted text for the terminal."""

import re
import reprlib

import click

# Control characters, line ends, marks that hide or reorder text, lone surrogates.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
MAX_QUOTED = 200
MAX_MESSAGE = 3000  # longer messages are cut in the middle: the end says what to do
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, MAX_QUOTED, MAX_QUOTED


class InputError(click.ClickException):
    """Bad input: a one-line message that names the file and line (or key), what is wrong, and how to fix it.

    Click prints it as `Error: ...` on stderr and exits with 1. Quoted text may be untrusted, so it is escaped.
    """

    def __init__(self, message: str) -> None:
        message = printable(re.sub(r"\s*[\r\n]\s*", " ", message.strip()))
        if len(message) > MAX_MESSAGE:
            message = f"{message[: MAX_MESSAGE - 1000]} ... {message[-995:]}"
        super().__init__(message)


def printable(text: str) -> str:
    """Escape the characters that a terminal would obey, hide or fail to print, as in JSON: `\\u001b`."""
    return _UNPRINTABLE.sub(_escape, text)


def quoted(value: object) -> str:
    """Return the `repr` of a value, cut to about 200 characters without building all of it first."""
    try:
        text = _SHORT.repr(value)
    except ValueError:
        return "a number of thousands of digits"  # Python refuses to print it
    return text if len(text) <= MAX_QUOTED else f"{text[: MAX_QUOTED - 20]}...{text[-17:]}"


def _escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))

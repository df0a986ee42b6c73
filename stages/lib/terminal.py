"""Text for a terminal: what comes from a file can hold escape sequences, and sizes are to be read by people."""

import re

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Return one line of text with its control characters escaped: a terminal would obey them."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def show_size(size: float) -> str:
    """Return a size in bytes as people read it, in powers of 1000 as disks and DVC count."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "B" or size >= 100 else f"{size:.1f} {units[0]}"

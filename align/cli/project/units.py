"""Sizes and ages as people read them."""


def show_size(size: float) -> str:
    """Return a size in bytes as people read it, in powers of 1000 as disks and DVC count."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "B" or size >= 100 else f"{size:.1f} {units[0]}"


def show_age(seconds: float) -> str:
    """Return an age in the largest unit that gives a whole number."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} seconds"

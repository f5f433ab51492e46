"""How many there are of something, in words that agree."""

from __future__ import annotations


def several(count: int, one: str, more: str = "") -> str:
    """A number and what it counts: of one thing its name, of any other number the other form.

    Args:
        count: How many.
        one: What one of them is called; a verb may follow.
        more: What several are called; without it the name of one and an ``s``.

    Example:
        >>> several(1, "scan"), several(0, "scan"), several(2500, "scan is", "scans are")
        ('1 scan', '0 scans', '2,500 scans are')
    """
    return f"{count:,} {one if count == 1 else more or one + 's'}"

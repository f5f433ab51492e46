"""Where in a TOML text each section and setting stands, which the standard library does not tell."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

Where = tuple[str | int, ...]


def lines_of(text: str) -> dict[Where, int]:
    """On which line each section and setting of a valid TOML text begins, the first line being 1."""
    lines: dict[Where, int] = {}
    prefix: Where = ()
    statement, start = "", 1
    for number, line in enumerate(text.splitlines(), 1):
        if not statement:
            start = number
        statement += line + "\n"
        try:
            parsed = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:  # a value that goes on in the next line
            continue
        header, statement = statement.lstrip().startswith("["), ""
        if header:
            prefix = _prefix_of(parsed, lines)
        for where in [()] if header else _walk(parsed):
            lines.setdefault((*prefix, *where), start)
    return lines


def _prefix_of(header: dict[str, Any], lines: dict[Where, int]) -> Where:
    """The path that a header such as ``[a.b]`` or ``[[a]]`` opens."""
    where: Where = ()
    while header:
        (name, inner), *_ = header.items()
        where = (*where, name)
        count = len(
            {
                known[len(where)]
                for known in lines
                if known[: len(where)] == where and len(known) > len(where) and isinstance(known[len(where)], int)
            }
        )
        if isinstance(inner, list):
            where, inner = (*where, count), inner[0]
        elif count:
            where = (*where, count - 1)
        header = inner
    return where


def _walk(value: Any, where: Where = ()) -> Iterator[Where]:  # noqa: ANN401 - anything TOML holds
    if where:
        yield where
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _walk(inner, (*where, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _walk(inner, (*where, index))

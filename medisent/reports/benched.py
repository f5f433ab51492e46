"""The page that sets methods beside each other: titled tables of figures that are text already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medisent.reports.pages import rendered


@dataclass(frozen=True)
class BenchCell:
    """A figure, and those behind it; as text these stand in brackets."""

    text: str
    behind: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.text} ({', '.join(self.behind)})" if self.behind else self.text


@dataclass(frozen=True)
class BenchTable:
    """Figures of methods.

    Attributes:
        title: Above it.
        says: What its columns mean; empty is nothing.
        heads: Of all columns, that of the methods first.
        rows: A method and its cells.
        sentences: How many columns after that of the methods hold sentences.
    """

    title: str
    says: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, Sequence[BenchCell]]]
    sentences: int = 0


@dataclass(frozen=True)
class BenchPage:
    """Everything the template shows."""

    title: str
    notes: tuple[str, ...]
    tables: tuple[BenchTable, ...]


def bench_page(title: str, notes: Sequence[str], tables: Sequence[BenchTable]) -> str:
    """One HTML page with these tables, in their order."""
    return rendered("bench", (), BenchPage(title, tuple(notes), tuple(tables)))

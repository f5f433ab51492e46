"""The page that shows scans before and after they were brought to one scanner, and whether that was called for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medisent.reports.explained import Answer
from medisent.reports.pages import data_uri, rendered

FIRST_ROWS, MOST_ROWS = 8, 200


@dataclass(frozen=True)
class Columns:
    """Text under heads, one row a name."""

    heads: tuple[str, ...]
    rows: Sequence[tuple[str, tuple[str, ...]]]


@dataclass(frozen=True)
class Pair:
    """A scan before and after, as PNG planes; the second is missing where scans were left as they are."""

    title: str
    before: bytes
    after: bytes | None


@dataclass(frozen=True)
class HarmonisationPage:
    """Everything the template shows; pictures as addresses that hold them."""

    headline: str
    n: str
    answers: tuple[Answer, ...]
    warnings: tuple[str, ...]
    sites: Columns | None
    anatomy: Columns
    scanner: Columns
    pictures: tuple[tuple[str, str, str], ...]
    windows: str
    scans: Columns
    folded: Columns
    more: int
    methods: tuple[str, ...]


def harmonisation_page(
    headline: str,
    *,
    answers: Sequence[Answer],
    warnings: Sequence[str],
    sites: Columns | None,
    anatomy: Columns,
    scanner: Columns,
    pictures: Sequence[Pair],
    windows: str,
    scans: Columns,
    methods: Sequence[str],
) -> str:
    """One HTML page about scans of several scanners.

    Args:
        headline: What became of them, in a sentence.
        answers: To the questions that a reader has first.
        warnings: What must be known before the scans are used.
        sites: How well sites are told, before and after.
        anatomy: What the model reads of the anatomy, before and after.
        scanner: The same of the scanner.
        pictures: Some scans.
        windows: What is black and white in them.
        scans: A row a scan, those first that matter most; the others are folded away.
        methods: How it was done and measured.
    """
    shown = tuple((it.title, data_uri(it.before), data_uri(it.after) if it.after else "") for it in pictures)
    facts = HarmonisationPage(
        headline=headline,
        n=str(len(scans.rows)),
        answers=tuple(answers),
        warnings=tuple(warnings),
        sites=sites,
        anatomy=anatomy,
        scanner=scanner,
        pictures=shown,
        windows=windows,
        scans=Columns(scans.heads, scans.rows[:FIRST_ROWS]),
        folded=Columns(scans.heads, scans.rows[FIRST_ROWS:MOST_ROWS]),
        more=max(0, len(scans.rows) - MOST_ROWS),
        methods=tuple(methods),
    )
    return rendered("harmonisation", (), facts)

"""Small drawings beside numbers: a strip for an estimate, a bar for a score. Positions only; templates draw them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from medisent.words import known

WIDTH = 180.0  # of every drawing, in its own units
EDGE = 6.0


@dataclass(frozen=True)
class Strip:
    """Where an estimate lies in the training cohort.

    Attributes:
        band: Left and right end of the cohort's 5th to 95th percentile.
        interval: Left and right end of the estimate's interval, where it can be drawn on the same axis.
        middle: The cohort's median, where it is known.
        estimate: The estimate.
        reading: The same in words.
    """

    band: tuple[float, float]
    interval: tuple[float, float] | None
    middle: float | None
    estimate: float
    reading: str


@dataclass(frozen=True)
class Bar:
    """A score on a line: its interval, and what a code without and with all the information reaches."""

    value: float | None
    interval: tuple[float, float] | None
    floor: float | None
    ceiling: float | None
    zero: float


def strip(row: Mapping[str, object]) -> Strip | None:
    """The strip of a row of factors.json; None where neither the cohort's range nor the percentile is known.

    With ``cohort_low`` and ``cohort_high`` (the training cohort's 5th and 95th percentiles, in the factor's unit) the
    axis is the factor itself; without them it is the percentile.
    """
    estimate, start, end = (known(row.get(key)) for key in ("estimate", "cohort_low", "cohort_high"))
    low, high = known(row.get("low")), known(row.get("high"))
    if estimate is not None and start is not None and end is not None and end > start:
        seen = [v for v in (estimate, start, end, low, high) if v is not None]
        at = _axis(min(seen), max(seen))
        interval = (at(low), at(high)) if low is not None and high is not None else None
        return Strip((at(start), at(end)), interval, None, at(estimate), "estimate over the training scans' range")
    percentile = known(row.get("percentile"))
    if percentile is None:
        return None
    at = _axis(0, 100)
    return Strip((at(5), at(95)), None, at(50), at(min(100, max(0, percentile))), "place among the training scans")


def bar(score: Mapping[str, object]) -> Bar:
    """The bar of a score with value, low, high, floor and ceiling, on an axis from 0 to 1 or as far as they reach."""
    value, low, high, floor, ceiling = (known(score.get(key)) for key in ("value", "low", "high", "floor", "ceiling"))
    seen = [v for v in (value, low, high, floor, ceiling) if v is not None]
    at = _axis(min([0.0, *seen]), max([1.0, *seen]))
    return Bar(
        value=None if value is None else at(value),
        interval=None if low is None or high is None else (at(low), at(high)),
        floor=None if floor is None else at(floor),
        ceiling=None if ceiling is None else at(ceiling),
        zero=at(0),
    )


def share_of(value: object, end: float) -> float | None:
    """The value as a share of the axis from 0 to ``end``, between 0 and 1."""
    found = known(value)
    return None if found is None else min(1.0, max(0.0, found / end))


def _axis(low: float, high: float) -> Callable[[float], float]:
    scale = max(abs(low), abs(high), 1.0)
    length = high / scale - low / scale or 1.0

    def at(value: float) -> float:
        return round(EDGE + (WIDTH - 2 * EDGE) * (value / scale - low / scale) / length, 2)

    return at

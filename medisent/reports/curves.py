"""Lines over the steps of a training as drawings: where they go and what stands at their axes. Templates draw them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medisent.words import fixed, number

WIDTH, HEIGHT = 320.0, 150.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 62.0, 10.0, 22.0
_LINE = 12.5  # from one label to the next below it
_MOST_POINTS = 160

Points = Sequence[tuple[float, float]]
"""Step and value."""


@dataclass(frozen=True)
class Tick:
    """A mark at an axis: where, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """One or two lines over the steps of a training.

    Attributes:
        title: What is drawn.
        now: The last value, in words.
        line: The path of what was seen at every step, or empty.
        held: The path of what was found in held-out scans, or empty.
        dots: The same as places.
        limit: Where a value that must not be passed lies, if there is one.
        limit_end: Where its label stands, unless that of a line takes the place.
        across: Marks at the axis of steps.
        up: Marks at the axis of values.
        line_end: Where the label of the first line stands, and what it says.
        held_end: The same of the second.
        kind: ``anatomy``, ``nuisance`` or empty, for its colour.
    """

    title: str
    now: str
    line: str
    held: str
    dots: tuple[tuple[float, float], ...]
    limit: float | None
    limit_end: float | None
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    line_end: Tick | None
    held_end: Tick | None
    kind: str = ""

    @property
    def left(self) -> float:
        """Where the axis of steps begins."""
        return _LEFT

    @property
    def right(self) -> float:
        """Where it ends."""
        return WIDTH - _RIGHT


def chart(
    title: str,
    seen: Points,
    held: Points,
    *,
    end: float,
    now: str = "",
    ends: tuple[str, str] = ("", ""),
    between: tuple[float, float] | None = None,
    limit: float | None = None,
    kind: str = "",
) -> Chart:
    """A drawing of values over steps.

    Arguments:
        title: What is drawn.
        seen: What was seen while training.
        held: What was found in held-out scans.
        end: The step at the right end.
        now: What to say of the last value.
        ends: What to write where the two lines end.
        between: The lower and upper end of the axis; else what holds all values but those of the first steps.
        limit: A value to draw a line at.
        kind: For its colour.
    """
    low, high = between or _range([*_late(seen), *_late(held)] or [*seen, *held])

    def place(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + (WIDTH - _LEFT - _RIGHT) * min(1.0, step / max(end, 1))
        share = (min(max(value, low), high) - low) / (high - low)
        return round(x, 1), round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share, 1)

    line, dots = [place(*point) for point in _thinned(seen)], tuple(place(*point) for point in held)
    gate = None if limit is None else place(0, limit)[1]
    line_end, held_end = _labelled(line, dots, ends)
    return Chart(
        title=title,
        now=now,
        line=_path(line),
        held=_path(dots),
        dots=dots,
        limit=gate,
        limit_end=None if gate is None or any(abs(gate - at.at) < _LINE for at in (line_end, held_end) if at) else gate,
        across=tuple(Tick(place(step, low)[0], fixed(step, 0)) for step in (0, end)),
        up=tuple(Tick(place(0, value)[1], _short(value, high - low)) for value in _ticks(low, high)),
        line_end=line_end,
        held_end=held_end,
        kind=kind,
    )


def _labelled(
    line: Sequence[tuple[float, float]], dots: Sequence[tuple[float, float]], ends: tuple[str, str]
) -> tuple[Tick | None, Tick | None]:
    """The labels at the ends of two lines, moved apart where they would lie on each other."""
    places = [points[-1][1] if points and text else None for points, text in zip((line, dots), ends, strict=True)]
    one, other = places
    if one is not None and other is not None and abs(one - other) < _LINE:
        middle = min(max((one + other) / 2, _TOP + _LINE / 2), HEIGHT - _BOTTOM - _LINE / 2)
        above, below = middle - _LINE / 2, middle + _LINE / 2
        places = [above, below] if one <= other else [below, above]
    first, second = (None if at is None else Tick(round(at, 1), text) for at, text in zip(places, ends, strict=True))
    return first, second


def _late(points: Points) -> Points:
    """What comes after the first tenth, in which all costs fall from where chance has put them."""
    return points[len(points) // 10 :] if len(points) > 10 else points[1:] if len(points) > 1 else points


def _range(points: Points) -> tuple[float, float]:
    values = np.array([value for _, value in points if math.isfinite(value)])
    if not values.size:
        return 0.0, 1.0
    low, high = (float(np.quantile(values, share)) for share in (0.0, 0.98))
    room = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
    return low - room, high + room


def _thinned(points: Points) -> list[tuple[float, float]]:
    """At most so many points, each the mean of those that it stands for."""
    kept = [point for point in points if math.isfinite(point[1])]
    parts = np.array_split(np.array(kept).reshape(-1, 2), min(_MOST_POINTS, max(1, len(kept))))
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts if len(part)]


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in places) if places else ""


def _ticks(low: float, high: float) -> list[float]:
    """Three round values or a few more."""
    rough = (high - low) / 3
    unit = 10.0 ** math.floor(math.log10(rough))
    for size in (10, 5, 2, 1):
        step = size * unit
        ticks = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
        if len(ticks) > 2:
            break
    return [index * step for index in ticks]


def _short(value: float, span: float) -> str:
    """A value at an axis, with as many decimals as its neighbours need."""
    if abs(value) >= 100_000:
        return number(value, 2)
    return fixed(value, max(0, min(4, 1 - math.floor(math.log10(span)))) if span < 10 else 0)

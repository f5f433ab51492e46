"""A scan with each factor moved alone through the range that is common in the training cohort, wherever it is seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise

import numpy as np

from medisent.checkpoints import FactorCard, Trained
from medisent.counterfactuals import scene_with, shown
from medisent.errors import InterventionError
from medisent.explanations.choices import LEVELED
from medisent.factors import Factor
from medisent.mechanisms import Scene
from medisent.readings import Reading, Readout
from medisent.reports import Traversal
from medisent.volumes import Volume
from medisent.words import amount, edit_decimals, readout_decimals

_STOPS = 7


def stops(factor: Factor, entry: FactorCard, present: float) -> list[float]:
    """Values on the way through a factor's range, the present one among them; none if training saw none like it.

    All levels of a factor with levels; else from the 5th to the 95th percentile of the training cohort, evenly spaced.
    The present value takes the place of the nearest one, or stands at the end where it lies beyond.
    """
    if factor.kind in LEVELED:
        return [float(level) for level in range(len(getattr(factor, "levels", ())))]
    low, high = entry.quantiles[5], entry.quantiles[95]
    if low >= high or not min(low, entry.low) <= present <= max(high, entry.high):
        return []
    values: list[float] = np.linspace(low, high, _STOPS).tolist()
    if low <= present <= high:
        values[int(np.argmin(np.abs(np.array(values) - present)))] = present
        return values
    return sorted([*values, present])


def traversals(trained: Trained, reading: Reading) -> list[Traversal]:
    """Each factor on its way through its range; without those that this scan does not show."""

    @cache
    def seen(part: Volume) -> Reading:
        return replace(reading, scan=part)

    found = []
    for name, factor in trained.network.factors.items():
        present = reading.readouts[name].estimate
        values = stops(factor, trained.card.factors[name], present)
        try:
            scenes = [reading.scene if v == present else scene_with(trained, reading, [(name, v)]) for v in values]
        except InterventionError:
            continue
        if present in values:
            labels = _labels(factor, values, reading.readouts[name])
            show = partial(_shown, seen, scenes, trained.study.scanner.air)
            found.append(Traversal(name, factor.role, labels, values.index(present), show))
    return found


def _shown(seen: Callable[[Volume], Reading], scenes: Sequence[Scene], air: float, part: Volume, stop: int) -> Volume:
    return shown(seen(part), scenes[stop], air)


def _labels(factor: Factor, values: Sequence[float], own: Readout) -> tuple[str, ...]:
    """The values with their unit, all with as many decimals as the reading deserves, and as tell them apart."""
    if factor.kind in LEVELED:
        return tuple(map(factor.show, values))
    apart = min(after - before for before, after in pairwise(values))
    decimals = edit_decimals(values[0], values[0] + apart, readout_decimals(own.estimate, own.low, own.high))
    return tuple(amount(value, factor.unit, decimals) for value in values)

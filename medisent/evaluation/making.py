"""Edits as a model makes them, each beside the true counterfactual that it is meant to give."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Num

from medisent.checkpoints import Trained
from medisent.counterfactuals import edited, wanted_value, with_values
from medisent.errors import CohortError, InterventionError
from medisent.evaluation.material import Truth
from medisent.evaluation.rulers import Structure, Trio
from medisent.formats import read
from medisent.readings import Reading
from medisent.volumes import Volume


@dataclass(frozen=True, eq=False)
class Made:
    """One edit that a model has made.

    Attributes:
        truth: What it was meant to give.
        reading: Of the scan.
        result: The edited scan; the scan itself where the edit could not be made.
        possible: Whether it could.
        beyond: Whether the value lies outside of what training saw.
    """

    truth: Truth
    reading: Reading
    result: Volume
    possible: bool
    beyond: bool


def make(trained: Trained, reading: Reading, truth: Truth) -> Made:
    """The edit that a true counterfactual is the truth of, whatever training saw."""
    try:
        result, possible = edited(trained, reading, [truth.wish], extrapolate=True), True
    except InterventionError:
        return Made(truth, reading, reading.scan, False, False)
    try:
        wanted_value(trained, reading, truth.wish)
    except InterventionError:
        return Made(truth, reading, result, possible, True)
    return Made(truth, reading, result, possible, False)


def trio_of(made: Made, air: float) -> Trio:
    """The scan, its edit and the truth.

    Raises:
        CohortError: The truth does not lie on the scan's grid.
    """
    truth = read(made.truth.path)
    scan = made.reading.scan
    if truth.voxels.shape != scan.voxels.shape or not np.allclose(truth.affine, scan.affine, atol=1e-3):
        raise CohortError(
            f"The true counterfactual of {made.truth.edit} does not lie on the grid of its scan "
            f"({' x '.join(map(str, truth.voxels.shape))} against {' x '.join(map(str, scan.voxels.shape))} voxels)."
        )
    return Trio.of(scan.voxels, made.result.voxels, truth.voxels, scan.spacing, air)


def missed_elsewhere(masks: Mapping[str, Path | None], name: str, trio: Trio) -> Iterator[tuple[str, float]]:
    """How much of every other structure with a mask is wrong where the truth does not change, in mL.

    Arguments:
        masks: By structure.
        name: The structure that is edited, or another factor.
        trio: The scan, its edit and the truth.
    """
    elsewhere = ~trio.support
    if not elsewhere.any():
        return
    for other, path in masks.items():
        if path is None or other == name:
            continue
        mask = read(path, constant=True)
        if mask.voxels.shape != trio.scan.shape:
            continue
        structure = Structure.of(trio.scan, mask.voxels, trio.spacing)
        missed = math.nan if structure is None else structure.difference_ml(trio.edited, trio.truth, elsewhere)
        if math.isfinite(missed):
            yield other, missed


def left_over(trained: Trained, made: Made, again: Reading) -> float:
    """The reversibility of one edit: the edited scan is read afresh, and the factor moved back to what it was."""
    scan, name = made.reading.scan.voxels, made.truth.wish.name
    size = root_mean_square(made.result.voxels, scan)
    if not made.possible or size == 0:
        return math.nan
    try:
        back = with_values(trained, again, [(name, made.reading.readouts[name].estimate)])
    except InterventionError:
        back = made.result
    return root_mean_square(back.voxels, scan) / size


def in_both_orders(trained: Trained, ways: Sequence[tuple[Made, Reading]]) -> Iterator[tuple[str, float]]:
    """For each two edits of one scan, of different factors, what lies between their orders, relative to both together.

    The scan is read afresh between the two; the values asked for are the same in either order.

    Arguments:
        trained: The model.
        ways: The edits that were made of the scan, and what the model reads from each edited scan.
    """
    for one, other in combinations(ways, 2):
        names = [way[0].truth.wish.name for way in (one, other)]
        if names[0] == names[1] or not (one[0].possible and other[0].possible):
            continue
        try:
            first, second = (_then(trained, *pair) for pair in ((one, other), (other, one)))
        except InterventionError:
            continue
        scan = one[0].reading.scan.voxels.astype(np.float64)
        size = root_mean_square((first.astype(np.float64) + second) / 2, scan)
        if size > 0:
            yield f"{one[0].truth.edit}, {other[0].truth.edit}", root_mean_square(first, second) / size


def _then(trained: Trained, first: tuple[Made, Reading], second: tuple[Made, Reading]) -> Num[np.ndarray, "x y z"]:
    """The scan after the first edit and then the second."""
    made = second[0]
    value = wanted_value(trained, made.reading, made.truth.wish, extrapolate=True)
    return with_values(trained, first[1], [(made.truth.wish.name, value)]).voxels


def root_mean_square(one: Num[np.ndarray, "x y z"], other: Num[np.ndarray, "x y z"]) -> float:
    """The size of the difference of two images, in their unit."""
    return math.sqrt(float(np.square(one.astype(np.float64) - other.astype(np.float64)).mean()))

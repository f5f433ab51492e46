"""Edits made by the model and held against true counterfactuals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Num
from scipy.stats import binom

from medisent.checkpoints import Trained
from medisent.counterfactuals import edited, wanted_value, with_values
from medisent.errors import CohortError, InterventionError, UsageError
from medisent.evaluation.findings import EditScore
from medisent.evaluation.material import Material, Truth
from medisent.evaluation.rulers import Trio, effect_error
from medisent.formats import read
from medisent.readings import Reading, read_batch
from medisent.volumes import Volume

_SCANS_AT_ONCE = 16
_VOXELS_AT_ONCE = 1 << 24


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


@dataclass(frozen=True)
class Figures:
    """What one edit of one scan scores; see ``EditScore``. NaN is what this scan cannot say."""

    row: int
    rce: float
    effect_error: float
    off_target: float
    composition: float
    reversibility: float
    possible: bool
    beyond: bool


def edit_scores(
    trained: Trained, material: Material, tell: Callable[[], None]
) -> tuple[dict[str, EditScore], dict[str, int], tuple[str, ...]]:
    """For each edit its score and the row of the scan whose RCE is the median, and what a reader must know.

    Arguments:
        trained: The model.
        material: The scans and their true counterfactuals.
        tell: Called after each edit.

    Raises:
        CohortError: A true counterfactual does not lie on its scan's grid.
    """
    known = [truth for truth in material.truths if truth.wish.name in trained.network.factors]
    foreign = sorted({t.edit for t in material.truths} - {t.edit for t in known})
    notes = [f"The model has no such factor, so these edits were left out: {', '.join(foreign)}."] if foreign else []
    figures: dict[str, list[Figures]] = {}
    for truth, scored in _scored(trained, material, known, tell):
        figures.setdefault(truth.edit, [])
        if scored is not None:
            figures[truth.edit].append(scored)
    scores, typical = {}, {}
    for edit, found in figures.items():
        if not found:
            notes.append(f"{edit} was left out: the true counterfactuals are the scans themselves.")
            continue
        scores[edit] = _summary(found)
        typical[edit] = sorted(found, key=lambda f: f.rce)[(len(found) - 1) // 2].row
        notes += _remarks(edit, found)
    return scores, typical, tuple(notes)


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


def _scored(
    trained: Trained, material: Material, truths: Sequence[Truth], tell: Callable[[], None]
) -> Iterator[tuple[Truth, Figures | None]]:
    """Every edit with its figures, or None where the truth is the scan itself; a few scans at a time."""
    rows = sorted({truth.row for truth in truths})
    # Growing and measuring a shape is numpy's work, which leaves other threads their turn.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        while rows:
            first = read(material.cohort.rows[rows[0]].scan)
            count = min(_SCANS_AT_ONCE, max(1, _VOXELS_AT_ONCE // first.voxels.size))
            now, rows = rows[:count], rows[count:]
            scans = [first, *(read(material.cohort.rows[row].scan) for row in now[1:])]
            readings = dict(zip(now, read_batch(trained, scans), strict=True))
            asked = [truth for truth in truths if truth.row in readings]
            for edit in dict.fromkeys(truth.edit for truth in asked):
                these = [truth for truth in asked if truth.edit == edit]
                made = list(pool.map(partial(make, trained), [readings[truth.row] for truth in these], these))
                again = read_batch(trained, [one.result for one in made])
                for truth, scored in zip(these, pool.map(partial(_figures, trained), made, again), strict=True):
                    yield truth, scored
                    tell()


def _figures(trained: Trained, made: Made, again: Reading) -> Figures | None:
    """What one edit scores.

    Arguments:
        trained: The model.
        made: The edit.
        again: What the model reads from the edited scan.
    """
    name, scan = made.truth.wish.name, made.reading.scan
    trio = trio_of(made, trained.study.scanner.air)
    try:
        rce = trio.rce()
    except UsageError:
        return None
    before = made.reading.readouts[name].estimate
    still = [edited(trained, made.reading, []), with_values(trained, made.reading, [(name, before)])]
    return Figures(
        made.truth.row,
        rce,
        effect_error(name, trio),
        trio.off_target(),
        max(float(np.abs(_difference(one.voxels, scan.voxels)).max()) for one in still),
        _left_over(trained, made, again, before),
        made.possible,
        made.beyond,
    )


def _left_over(trained: Trained, made: Made, again: Reading, before: float) -> float:
    """The reversibility of one edit: the edited scan is read afresh, and the factor moved back to what it was."""
    scan = made.reading.scan.voxels
    size = float(np.square(_difference(made.result.voxels, scan)).mean())
    if not made.possible or size == 0:
        return math.nan
    try:
        back = with_values(trained, again, [(made.truth.wish.name, before)])
    except InterventionError:
        back = made.result
    return math.sqrt(float(np.square(_difference(back.voxels, scan)).mean()) / size)


def _difference(one: Num[np.ndarray, "x y z"], other: Num[np.ndarray, "x y z"]) -> Num[np.ndarray, "x y z"]:
    return one.astype(np.float64) - other.astype(np.float64)


def _summary(found: Sequence[Figures]) -> EditScore:
    low, high = median_interval([f.rce for f in found])
    return EditScore(
        rce=float(np.median([f.rce for f in found])),
        rce_low=low,
        rce_high=high,
        effect_error=_median([f.effect_error for f in found]),
        off_target=_median([f.off_target for f in found]),
        composition=max(f.composition for f in found),
        reversibility=_median([f.reversibility for f in found]),
        n=len(found),
        failed=sum(not f.possible for f in found),
    )


def _remarks(edit: str, found: Sequence[Figures]) -> list[str]:
    failed, beyond = sum(not f.possible for f in found), sum(f.beyond for f in found)
    remarks = []
    if failed:
        remarks.append(f"{edit} could not be made in {failed} of {len(found)} scans; these count as left as they were.")
    if beyond:
        remarks.append(f"{edit} went beyond what training saw in {beyond} of {len(found)} scans; these count too.")
    return remarks


def _median(values: Sequence[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return float(np.median(known)) if known else None


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The interval that holds the median with 95 %, from one sorted value to another; below six, all of them."""
    ordered = sorted(values)
    skipped = max(0, int(binom.ppf(0.025, len(ordered), 0.5)) - 1)
    return ordered[skipped], ordered[len(ordered) - 1 - skipped]

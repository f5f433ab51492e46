"""Edits held against true counterfactuals, and everything that doing nothing would pass is held against that too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import binom

from medisent.checkpoints import Trained
from medisent.counterfactuals import edited, wanted_value, with_values
from medisent.errors import UsageError
from medisent.evaluation.findings import EditScore, SideEffect
from medisent.evaluation.making import Made, in_both_orders, left_over, make, missed_elsewhere, trio_of
from medisent.evaluation.material import Material, Truth, evenly
from medisent.evaluation.rulers import Trio, effect
from medisent.formats import read
from medisent.metrics import counterfactual_latent_divergence, normal_divergence
from medisent.plurals import several
from medisent.posterior import PartitionedNormal
from medisent.readings import Reading, read_batch
from medisent.words import edit as in_words
from medisent.words import sentence

_SCANS_AT_ONCE = 16
_VOXELS_AT_ONCE = 1 << 24
_SCANS_IN_BOTH_ORDERS = 6
_ALIKE = 5
"""One in so many of the other scans count as those that have a value."""


@dataclass(frozen=True)
class Figures:
    """What one edit of one scan scores; see ``EditScore``. NaN is what this scan cannot say."""

    row: int
    rce: float
    rce_inside: float
    rce_outside: float
    effect: float
    asked: float
    off_target: float
    off_target_noop: float
    composition: float
    reversibility: float
    cld: float
    cld_noop: float
    side_effects: Mapping[str, float]
    possible: bool
    beyond: bool


@dataclass(frozen=True, eq=False)
class Crowd:
    """All scans that are measured, as the model sees them: what one scan's edit is compared with.

    Attributes:
        q: Their posterior.
        values: By factor, the labels where there are any, else what the model reads.
        subjects: Whose scan each is.
    """

    q: PartitionedNormal
    values: Mapping[str, Float[np.ndarray, " scans"]]
    subjects: Sequence[str]

    def divergences(self, row: int, name: str, wanted: float, after: PartitionedNormal) -> tuple[float, float]:
        """The counterfactual latent divergence of a scan's edit, and that of doing nothing; NaN where nobody knows."""
        loc, scale = self.q.loc.double().numpy(), self.q.scale.double().numpy()
        values = self.values[name]
        others = np.array([subject != self.subjects[row] for subject in self.subjects]) & np.isfinite(values)
        if not others.any() or not math.isfinite(values[row]) or not math.isfinite(wanted):
            return math.nan, math.nan
        away = normal_divergence(loc, scale, loc[row], scale[row])
        count = min(int(others.sum()), max(2, int(others.sum()) // _ALIKE))
        far = [np.where(others, np.abs(values - value), np.inf) for value in (wanted, values[row])]
        there, here = (away[np.argsort(distance, kind="stable")[:count]] for distance in far)
        moved = normal_divergence(after.loc.double().numpy(), after.scale.double().numpy(), loc[row], scale[row])[0]
        return counterfactual_latent_divergence(float(moved), there, here), counterfactual_latent_divergence(
            0.0, there, here
        )


@dataclass(eq=False)
class Edits:
    """What was found of all edits.

    Attributes:
        scores: By edit.
        typical: By edit, the row of the scan whose RCE is the median.
        side_effects: By edit and structure.
        commutativity: By two edits, the median scan's.
        notes: What a reader must know.
    """

    scores: dict[str, EditScore] = field(default_factory=dict)
    typical: dict[str, int] = field(default_factory=dict)
    side_effects: dict[str, dict[str, SideEffect]] = field(default_factory=dict)
    commutativity: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def edit_scores(trained: Trained, material: Material, crowd: Crowd, tell: Callable[[], None]) -> Edits:
    """What the model's edits are worth.

    Arguments:
        trained: The model.
        material: The scans and their true counterfactuals.
        crowd: The scans as the model sees them.
        tell: Called after each edit.

    Raises:
        CohortError: A true counterfactual does not lie on its scan's grid.
    """
    known = [truth for truth in material.truths if truth.wish.name in trained.network.factors]
    foreign = sorted({t.edit for t in material.truths} - {t.edit for t in known})
    left_out = ", ".join(map(in_words, foreign))
    notes = [f"The model has no such factor, so these edits were left out: {left_out}."] if foreign else []
    figures: dict[str, list[Figures]] = {}
    orders: dict[str, list[float]] = {}
    for truth, scored in _scored(trained, material, crowd, known, orders, tell):
        figures.setdefault(truth.edit, [])
        if scored is not None:
            figures[truth.edit].append(scored)
    units = {truth.edit: trained.network.factors[truth.wish.name].unit for truth in known}
    edits = Edits(commutativity={pair: float(np.median(found)) for pair, found in orders.items()})
    for edit, found in figures.items():
        if not found:
            said = sentence(in_words(edit, units[edit]))
            notes.append(f"{said} was left out: the true counterfactuals are the scans themselves.")
            continue
        edits.scores[edit] = _summary(found, units[edit])
        edits.typical[edit] = sorted(found, key=lambda f: f.rce)[(len(found) - 1) // 2].row
        edits.side_effects |= {edit: effects} if (effects := _side_effects(found)) else {}
        notes += _remarks(sentence(in_words(edit, units[edit])), found)
    edits.notes = tuple(notes)
    return edits


def _scored(
    trained: Trained,
    material: Material,
    crowd: Crowd,
    truths: Sequence[Truth],
    orders: dict[str, list[float]],
    tell: Callable[[], None],
) -> Iterator[tuple[Truth, Figures | None]]:
    """Every edit with its figures, or None where the truth is the scan itself; a few scans at a time.

    Writes into ``orders`` what a few scans say of commutativity.
    """
    rows = sorted({truth.row for truth in truths})
    both = set(evenly(rows, _SCANS_IN_BOTH_ORDERS))
    # Growing and measuring a shape is numpy's work, which leaves other threads their turn.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        while rows:
            first = read(material.cohort.rows[rows[0]].scan)
            count = min(_SCANS_AT_ONCE, max(1, _VOXELS_AT_ONCE // first.voxels.size))
            now, rows = rows[:count], rows[count:]
            scans = [first, *(read(material.cohort.rows[row].scan) for row in now[1:])]
            readings = dict(zip(now, read_batch(trained, scans), strict=True))
            asked = [truth for truth in truths if truth.row in readings]
            ways: dict[int, list[tuple[Made, Reading]]] = {row: [] for row in now if row in both}
            for edit in dict.fromkeys(truth.edit for truth in asked):
                these = [truth for truth in asked if truth.edit == edit]
                made = list(pool.map(partial(make, trained), [readings[truth.row] for truth in these], these))
                again = read_batch(trained, [one.result for one in made])
                figures = pool.map(partial(_figures, trained, material, crowd), made, again)
                for truth, one, reread, scored in zip(these, made, again, figures, strict=True):
                    yield truth, scored
                    if truth.row in ways:
                        ways[truth.row].append((one, reread))
                    tell()
            for found in pool.map(lambda way: list(in_both_orders(trained, way)), ways.values()):
                for pair, share in found:
                    orders.setdefault(pair, []).append(share)


def _figures(trained: Trained, material: Material, crowd: Crowd, made: Made, again: Reading) -> Figures | None:
    """What one edit scores.

    Arguments:
        trained: The model.
        material: What is known of the scan.
        crowd: All scans as the model sees them.
        made: The edit.
        again: What the model reads from the edited scan.
    """
    row, wish, scan = made.truth.row, made.truth.wish, made.reading.scan
    trio = trio_of(made, trained.study.scanner.air)
    try:
        rce = trio.rce()
    except UsageError:
        return None
    before = made.reading.readouts[wish.name].estimate
    still = [edited(trained, made.reading, []), with_values(trained, made.reading, [(wish.name, before)])]
    inside, outside = trio.rce_parts()
    wanted = wanted_value(trained, made.reading, wish, extrapolate=True) if made.possible else math.nan
    cld, cld_noop = crowd.divergences(row, wish.name, wanted, again.abduction.q)
    return Figures(
        row=row,
        rce=rce,
        rce_inside=inside,
        rce_outside=outside,
        effect=effect(wish.name, trio),
        asked=material.true_change(made.truth),
        off_target=trio.off_target(),
        off_target_noop=Trio(trio.scan, trio.scan, trio.truth, trio.spacing).off_target(),
        composition=max(float(np.abs(one.voxels.astype(np.float64) - scan.voxels).max()) for one in still),
        reversibility=left_over(trained, made, again),
        cld=cld,
        cld_noop=cld_noop,
        side_effects=dict(missed_elsewhere(material.cohort.rows[row].masks, wish.name, trio)),
        possible=made.possible,
        beyond=made.beyond,
    )


def _side_effects(found: Sequence[Figures]) -> dict[str, SideEffect]:
    effects = {}
    for name in dict.fromkeys(name for one in found for name in one.side_effects):
        sizes = [one.side_effects[name] for one in found if name in one.side_effects]
        effects[name] = SideEffect(float(np.median(sizes)), max(sizes), len(sizes))
    return effects


def _summary(found: Sequence[Figures], unit: str) -> EditScore:
    low, high = median_interval([f.rce for f in found])
    missed = [abs(f.effect - 1) for f in found]
    return EditScore(
        rce=float(np.median([f.rce for f in found])),
        rce_low=low,
        rce_high=high,
        effect_error=_median(missed),
        off_target=_median([f.off_target for f in found]),
        composition=max(f.composition for f in found),
        reversibility=_median([f.reversibility for f in found]),
        rce_inside=_median([f.rce_inside for f in found]),
        rce_outside=_median([f.rce_outside for f in found]),
        effect=_median([f.effect for f in found]),
        asked=_median([f.asked for f in found]),
        missed=_median([share * abs(f.asked) for share, f in zip(missed, found, strict=True)]),
        unit=unit,
        off_target_noop=_median([f.off_target_noop for f in found]),
        cld=_median([f.cld for f in found]),
        cld_noop=_median([f.cld_noop for f in found]),
        n=len(found),
        failed=sum(not f.possible for f in found),
    )


def _remarks(edit: str, found: Sequence[Figures]) -> list[str]:
    failed, beyond = sum(not f.possible for f in found), sum(f.beyond for f in found)
    remarks = []
    if failed:
        remarks.append(
            f"{edit} could not be made in {failed} of {several(len(found), 'scan')}; these count as left as they were."
        )
    if beyond:
        remarks.append(
            f"{edit} went beyond what training saw in {beyond} of {several(len(found), 'scan')}; these count too."
        )
    return remarks


def _median(values: Sequence[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return float(np.median(known)) if known else None


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The interval that holds the median with 95 %, from one sorted value to another; below six, all of them."""
    ordered = sorted(values)
    skipped = max(0, int(binom.ppf(0.025, len(ordered), 0.5)) - 1)
    return ordered[skipped], ordered[len(ordered) - 1 - skipped]

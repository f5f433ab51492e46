"""How well codes tell factors, and how well each factor keeps to its own block."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from medisent.evaluation.findings import Readout
from medisent.evaluation.material import Material
from medisent.factors import Circular, Factor, Nominal, Partition
from medisent.metrics import Score, coverage, leakage, leakage_floor, mae, panel, r2

_FEWEST = 5
"""Below this number of subjects held-out folds say nothing."""

_MOST_FOR_BLOCKS = 400
_MOST_FOR_INTERVALS = 2000


def readout_of(factor: Factor, found: Float[np.ndarray, "scans 3"], truth: Float[np.ndarray, " scans"]) -> Readout:
    """How well estimates (with the lower and the upper ends of their intervals) meet the truths that are known."""
    known = np.isfinite(truth)
    (estimate, low, high), true = found[known].T, truth[known]
    if isinstance(factor, Circular):
        # By so many whole turns that the estimate is next to the truth.
        turns = ((estimate - true) / factor.period).round() * factor.period
        estimate, low, high = estimate - turns, low - turns, high - turns
    error = float(np.mean(estimate != true)) if isinstance(factor, Nominal) else mae(estimate, true)
    inside = coverage(low, high, true) if np.isfinite([low, high]).all() else None
    return Readout(_explained(factor, estimate, true), error, inside, int(known.sum()))


def _explained(
    factor: Factor, estimate: Float[np.ndarray, " known"], truth: Float[np.ndarray, " known"]
) -> float | None:
    if len(truth) < 2 or np.ptp(truth) == 0:
        return None
    if not isinstance(factor, Circular | Nominal):
        return r2(estimate, truth)
    there, here = (factor.embed(torch.from_numpy(values)).double().numpy() for values in (truth, estimate))
    return r2((here - there.mean(0)).ravel(), (there - there.mean(0)).ravel())


@dataclass(frozen=True, eq=False)
class Separation:
    """Leakage and the panel of metrics.

    Attributes:
        leakage: Block, factor, held-out R2.
        floor: The same with the factors permuted between subjects.
        panel: By metric, with blocks in the place of latents where the name says so.
        notes: What was left out, and why.
    """

    leakage: Mapping[str, Mapping[str, float]]
    floor: Mapping[str, Mapping[str, float]]
    panel: Mapping[str, Score]
    notes: tuple[str, ...]


def separation_of(
    codes: Float[np.ndarray, "scans latents"],
    partition: Partition,
    material: Material,
    seed: int,
    tell: Callable[[], None],
) -> Separation:
    """How well each block tells each factor of which labels are known, and the metrics on the codes.

    Arguments:
        codes: Means of the posterior.
        partition: Which latents belong to whom.
        material: The scans' labels and subjects.
        seed: Of folds, permutations and halves.
        tell: Called after each of four parts.
    """
    labels = _labels(material)
    subjects = np.array(material.subjects)
    count = len(set(material.subjects))
    if count < _FEWEST or labels.empty:
        reason = f"scans of {count} subjects cannot show it" if count < _FEWEST else "no factor is known that varies"
        return Separation({}, {}, {}, (f"Leakage and disentanglement were left out: {reason}.",))
    blocks = {name: range(b.start, b.start + b.size) for name, b in partition.items() if b.size}
    leaks = leakage(codes, blocks, labels, groups=subjects, seed=seed)
    tell()
    floor = leakage_floor(codes, blocks, labels, groups=subjects, seed=seed)
    tell()
    scores = panel(codes, labels, groups=subjects, seed=seed, intervals=count <= _MOST_FOR_INTERVALS)
    tell()
    notes: tuple[str, ...] = ()
    if count <= _MOST_FOR_BLOCKS:
        # Intervals of the scores with blocks would take longer than everything else together.
        whole = panel(codes, labels, groups=subjects, seed=seed, intervals=False, blocks=blocks)
        scores |= {name: score for name, score in whole.items() if name.startswith("block_")}
        notes = ("The interval of a metric with blocks is that metric's whole range: it was not computed.",)
    tell()
    finite = {name: score for name, score in scores.items() if all(map(math.isfinite, vars(score).values()))}
    left = sorted(set(scores) - set(finite))
    notes += (f"Too few scans for {', '.join(left)}.",) if left else ()
    return Separation(_finite(leaks), _finite(floor), finite, notes)


def _labels(material: Material) -> pd.DataFrame:
    """A column a labelled factor that varies; levels without an order are text."""
    columns: dict[str, Sequence[object]] = {}
    for name, (factor, values) in material.labelled().items():
        if np.ptp(values[np.isfinite(values)]) == 0:
            continue
        text = isinstance(factor, Nominal)
        columns[name] = [f"level {v:g}" if math.isfinite(v) else None for v in values] if text else list(values)
    return pd.DataFrame(columns)


def _finite(table: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {block: {name: v for name, v in row.items() if math.isfinite(v)} for block, row in table.items()}

"""How well codes tell factors, and how well each factor keeps to its own block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

from medisent.evaluation.clamped import clamped_scores
from medisent.evaluation.findings import Readout
from medisent.evaluation.material import Material
from medisent.factors import Circular, Factor, Nominal, Partition
from medisent.metrics import Score, coverage, leakage, leakage_floor, panel
from medisent.readings import readout_error
from medisent.words import listed, metric, words

FEWEST_SUBJECTS = 5
"""Below this number of subjects held-out folds say nothing."""

_WORTH_EXPLAINING = 0.05


def readout_of(factor: Factor, found: Float[np.ndarray, "scans 3"], truth: Float[np.ndarray, " scans"]) -> Readout:
    """How well estimates (with the lower and the upper ends of their intervals) meet the truths that are known."""
    known = np.isfinite(truth)
    (estimate, low, high), true = found[known].T, truth[known]
    if isinstance(factor, Circular):
        # By so many whole turns that the estimate is next to the truth.
        turns = ((estimate - true) / factor.period).round() * factor.period
        estimate, low, high = estimate - turns, low - turns, high - turns
    explained, error = readout_error(factor, estimate, true)
    inside = coverage(low, high, true) if np.isfinite([low, high]).all() else None
    return Readout(explained, error, inside, int(known.sum()), factor.unit)


@dataclass(frozen=True, eq=False)
class Separation:
    """Leakage and the panel of metrics.

    Attributes:
        leakage: Block, factor, held-out R2.
        floor: The same with the factors permuted between subjects.
        by_labels: For pairs that leak, how well the labels of the block's own factor predict the other one.
        panel: By metric, with blocks in the place of latents where the name says so.
        notes: What was left out, and why.
    """

    leakage: Mapping[str, Mapping[str, float]]
    floor: Mapping[str, Mapping[str, float]]
    by_labels: Mapping[str, Mapping[str, float]]
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
        tell: Called after each of three parts.
    """
    labels, notes = _labels(material)
    subjects = np.array(material.subjects)
    if labels.empty:
        count = len(set(material.subjects))
        reason = (
            f"scans of {count} subjects cannot show it"
            if count < FEWEST_SUBJECTS
            else f"no factor is known that varies over {FEWEST_SUBJECTS} subjects"
        )
        return Separation({}, {}, {}, {}, (f"Leakage and disentanglement were left out: {reason}.", *notes))
    blocks = {name: range(b.start, b.start + b.size) for name, b in partition.items() if b.size}
    leaks = _finite(leakage(codes, blocks, labels, groups=subjects, seed=seed))
    tell()
    floor = _finite(leakage_floor(codes, blocks, labels, groups=subjects, seed=seed))
    by_labels = _by_labels(leaks, labels, subjects, seed)
    tell()
    scores = panel(codes, labels, groups=subjects, seed=seed, blocks=blocks)
    scores |= clamped_scores(codes, material.varying, seed)
    tell()
    finite = {name: score for name, score in scores.items() if all(map(math.isfinite, vars(score).values()))}
    left = sorted(set(scores) - set(finite))
    notes += (f"Too few scans for {', '.join(map(metric, left))}.",) if left else ()
    return Separation(leaks, floor, by_labels, finite, (*notes, *_explained_leaks(leaks, by_labels)))


def _by_labels(
    leaks: Mapping[str, Mapping[str, float]], labels: pd.DataFrame, subjects: Shaped[np.ndarray, " scans"], seed: int
) -> dict[str, dict[str, float]]:
    """What the true values of a block's own factor say of each factor that leaks into the block."""
    found: dict[str, dict[str, float]] = {}
    for block, row in leaks.items():
        leaking = [name for name, r2 in row.items() if name != block and r2 > _WORTH_EXPLAINING]
        told = told_by_labels(labels, block, leaking, subjects, seed) if block in labels and leaking else {}
        found |= {block: told} if told else {}
    return found


def told_by_labels(
    labels: pd.DataFrame, own: str, others: Sequence[str], subjects: Shaped[np.ndarray, " scans"], seed: int
) -> dict[str, float]:
    """What the true values of one factor say of others, as held-out R2: what these leak there is the cohort's own.

    Arguments:
        labels: A column a factor; text is levels without an order.
        own: The one.
        others: The others.
        subjects: Whose scan each is; with too few of them nothing is found.
        seed: Of folds.
    """
    known = labels[own].notna().to_numpy()
    values = labels[own][known]
    if len(set(subjects[known])) < FEWEST_SUBJECTS:
        return {}
    truth = pd.get_dummies(values) if values.dtype == object else values.to_frame()
    rows = labels.loc[known, list(others)].reset_index(drop=True)
    told = leakage(truth.to_numpy(float), {own: range(truth.shape[1])}, rows, groups=subjects[known], seed=seed)
    return _finite(told)[own]


def _explained_leaks(
    leaks: Mapping[str, Mapping[str, float]], by_labels: Mapping[str, Mapping[str, float]]
) -> Iterator[str]:
    """A sentence for each leak that is the cohort's own."""
    for block, row in by_labels.items():
        for name, alone in row.items():
            if alone > _WORTH_EXPLAINING:
                yield (
                    f"In this cohort the true values of {words(block)} alone predict {words(name)} with R² "
                    f"{alone:.2f}, so some of the R² {leaks[block][name]:.2f} of its block is the cohort's and not "
                    "the model's."
                )


def _labels(material: Material) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """A column a factor that varies over enough subjects (levels without an order are text), and what was left out."""
    columns: dict[str, Sequence[object]] = {}
    thin = []
    for name, (factor, values) in material.labelled().items():
        known = np.isfinite(values)
        if len({subject for subject, there in zip(material.subjects, known, strict=True) if there}) < FEWEST_SUBJECTS:
            thin.append(name)
        elif np.ptp(values[known]) > 0:
            text = isinstance(factor, Nominal)
            columns[name] = [f"level {v:g}" if math.isfinite(v) else None for v in values] if text else list(values)
    few = listed(thin)
    note = f"Fewer than {FEWEST_SUBJECTS} subjects have a known {few}: nothing is said of its separation."
    return pd.DataFrame(columns), (note,) if thin and columns else ()


def _finite(table: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {block: {name: v for name, v in row.items() if math.isfinite(v)} for block, row in table.items()}

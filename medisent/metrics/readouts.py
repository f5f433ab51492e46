"""Knows how good an estimate with its interval is, and how wide the interval must be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Num, Shaped

from medisent.errors import UsageError


@dataclass(frozen=True)
class ReadoutScore:
    """How well a factor is read.

    Attributes:
        r2: Coefficient of determination against the truth; 1 is perfect, 0 no better than the mean, negative worse.
        mae: Mean absolute error, in the factor's unit.
        coverage90: Share of truths inside their 90 % interval.
        n: How many scans had a known truth.
    """

    r2: float
    mae: float
    coverage90: float
    n: int


def readout_scores(
    estimate: Num[np.ndarray, " n"],
    low: Num[np.ndarray, " n"],
    high: Num[np.ndarray, " n"],
    truth: Num[np.ndarray, " n"],
) -> ReadoutScore:
    """R2, mean absolute error in the factor's unit and coverage of the intervals, over scans whose truth is known.

    Raises:
        UsageError: No truth is known, or an estimate is not a number.
    """
    known = np.isfinite(truth)
    if np.isnan(np.stack([estimate, low, high])[:, known]).any():
        raise UsageError("An estimate or an end of its interval is not a number; leave that scan out.")
    return ReadoutScore(
        r2(estimate[known], truth[known]),
        mae(estimate[known], truth[known]),
        coverage(low[known], high[known], truth[known]),
        int(known.sum()),
    )


def r2(estimate: Num[np.ndarray, " n"], truth: Num[np.ndarray, " n"]) -> float:
    """Coefficient of determination, at most 1; for a truth that never varies 1 if it is met exactly, else 0.

    Raises:
        UsageError: There is no row.
    """
    _some(truth)
    residual, total = float(np.sum((truth - estimate) ** 2)), float(np.sum((truth - np.mean(truth)) ** 2))
    if total == 0:
        return 1.0 if residual == 0 else 0.0
    return 1.0 - residual / total


def mae(estimate: Num[np.ndarray, " n"], truth: Num[np.ndarray, " n"]) -> float:
    """Mean absolute error, in the unit of the truth.

    Raises:
        UsageError: There is no row.
    """
    _some(truth)
    return float(np.mean(np.abs(estimate - truth)))


def coverage(low: Num[np.ndarray, " n"], high: Num[np.ndarray, " n"], truth: Num[np.ndarray, " n"]) -> float:
    """Share of truths that lie in their interval, ends included; 0 to 1.

    Raises:
        UsageError: There is no row.
    """
    _some(truth)
    return float(np.mean((low <= truth) & (truth <= high)))


def _some(truth: Num[np.ndarray, " n"]) -> None:
    if not len(truth):
        raise UsageError("No scan has a known truth, so there is nothing to hold the estimates against.")


def conformal_quantile(
    residuals: Num[np.ndarray, " n"], level: float, groups: Shaped[np.ndarray, " n"] | None = None
) -> float:
    """How far an interval must reach so that a scan of a new subject falls inside with probability ``level``.

    Scans of one subject are alike, so they are not exchangeable with those of a new one; subjects are. Every one of K
    subjects weighs 1/(K+1), shared equally among its scans, and the new subject weighs 1/(K+1) at infinity; the answer
    is the smallest residual at which the weight reaches the level. This covers one scan of a new subject in finite
    samples, needs no random choice of a scan per subject (one subsample, Dunn et al.) and is not as wide as the
    subject's largest residual, which covers all its scans at once. With one scan a subject it is the usual split
    conformal quantile.

    Args:
        residuals: Scores of calibration scans, larger is worse, usually absolute errors; unknown ones are left out.
        level: Wanted coverage, between 0 and 1.
        groups: The subject of each residual; none means one scan a subject.

    Returns:
        The quantile, in the residuals' unit; ``math.inf`` if there are too few subjects for the level
        (fewer than ``level / (1 - level)``, that is 9 for 0.9).

    Raises:
        UsageError: The level is not between 0 and 1, or there is not one group a residual.

    References:
        Distribution-Free Prediction Sets for Two-Layer Hierarchical Models (Dunn, Wasserman and Ramdas, 2022)
        Distribution-Free Inference with Hierarchical Data (Lee, Barber and Willett, 2023): the weights used here
    """
    if not 0 < level < 1:
        raise UsageError(f"The level is {level}, but a coverage lies between 0 and 1, such as 0.9.")
    if groups is not None and len(groups) != len(residuals):
        raise UsageError(f"There are {len(residuals)} residuals and {len(groups)} groups; give the subject of each.")
    known = ~np.isnan(residuals.astype(np.float64))
    scores = residuals[known].astype(np.float64)
    if not len(scores):
        return math.inf
    subjects = (
        np.arange(len(scores)) if groups is None else np.unique(np.asarray(groups)[known], return_inverse=True)[1]
    )
    scans = np.bincount(subjects)
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(1 / ((len(scans) + 1) * scans[subjects[order]]))
    enough = np.flatnonzero(reached >= level - 1e-12)
    return float(scores[order][enough[0]]) if enough.size else math.inf

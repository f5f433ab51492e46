"""Knows the metrics that come from means and covariances: MCC, SAP by R2, IRS, Gaussian total correlation."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from medisent.metrics.information import gap
from medisent.metrics.samples import Sample, standardised

SMALLEST_EIGENVALUE = 1e-6
"""Below this an eigenvalue of a correlation matrix is taken for rounding: a doubled code costs 6.6 nats."""


def correlations(sample: Sample) -> Float[np.ndarray, "latents factors"]:
    """Pearson correlation of every latent with every factor, over the rows where the factor is known."""
    table = np.zeros((sample.codes.shape[1], len(sample.factors)))
    for column, factor in enumerate(sample.factors):
        known = factor.known
        codes = standardised(sample.codes[known])
        table[:, column] = codes.T @ standardised(factor.values[known, None])[:, 0] / known.sum()
    return np.clip(table, -1.0, 1.0)


def mcc(correlation: Float[np.ndarray, "latents factors"]) -> float:
    """MCC, the mean correlation coefficient after matching each factor with a latent of its own; 0 to 1.

    Absolute Pearson correlations, matched so that their sum is largest; a factor that is left without a latent counts
    0.

    Pitfalls: it is the largest of many correlations, so chance is above 0 and grows with latents per row (16 latents
    and 10
    factors: 0.05 at n = 2,000, 0.14 at 200, 0.28 at 50, 0.45 at 20). Blind to relations that are not monotone and to
    what else a latent tells. The index of a nominal factor's level is not a measurement: leave such factors out of it.

    References:
        Unsupervised Feature Extraction by Time-Contrastive Learning and Nonlinear ICA (Hyvarinen and Morioka, 2016)
    """
    size = np.abs(correlation)
    rows, columns = linear_sum_assignment(size, maximize=True)
    return float(size[rows, columns].sum() / size.shape[1])


def sap_r2(correlation: Float[np.ndarray, "latents factors"]) -> float:
    """SAP by R2: squared correlation of the best latent minus that of the next, averaged over factors; 0 to 1.

    Pitfalls: "the SAP" of one perfect code is 0.559, 0.741 or 0.9996 by the library: this is the version for ordered or
    continuous factors, 0.9996 there. Two latents that share a factor score 0.

    References:
        Variational Inference of Disentangled Latent Concepts from Unlabeled Observations (Kumar, Sattigeri and
            Balakrishnan, 2018)
    """
    return gap(np.square(correlation))


def irs(
    codes: Float[np.ndarray, "n latents"], levels: tuple[Int[np.ndarray, " n"], ...], quantile: float = 0.99
) -> float:
    """IRS, the interventional robustness score: how little a latent moves while its factor stands still; 0 to 1.

    Per latent and factor, 1 minus the 99th percentile of the distance to the mean within a level, averaged over levels,
    over the latent's largest distance to its mean; the best factor of each latent, weighted by that largest distance.
    Constant latents are left out; rows of level -1 (unknown) are left out of that factor.

    Pitfalls: noise and entanglement look alike (a noisy aligned code 0.47, a rotated one 0.43). Levels with few rows
    look robust, so chance is far above 0 for few scans. The published quantile is 1, which one outlier decides.

    References:
        Robustly Disentangled Causal Mechanisms (Suter, Miladinovic, Scholkopf and Bauer, 2019)
    """
    active = codes[:, np.ptp(codes, axis=0) > 0]  # the variance of equal numbers need not be 0
    if not active.size:
        return 0.0
    largest = np.max(np.abs(active - active.mean(axis=0)), axis=0)
    deviation = np.zeros((active.shape[1], len(levels)))
    for column, level in enumerate(levels):
        values = np.unique(level[level >= 0])
        for value in values:
            inside = active[level == value]
            distance = np.abs(inside - np.mean(inside, axis=0))
            deviation[:, column] += np.percentile(distance, q=quantile * 100, axis=0)
        deviation[:, column] /= max(len(values), 1)
    robust = 1.0 - deviation / np.where(largest > 0, largest, 1.0)[:, None]
    return float(np.average(robust.max(axis=1), weights=largest)) if largest.sum() > 0 else 0.0


def gaussian_tc(codes: Float[np.ndarray, "n latents"]) -> float:
    """Gaussian total correlation of the live latents, in nats; 0 for uncorrelated ones, less is better.

    ``-1/2 log det`` of the correlation matrix. The ceiling is that of a perfect code, not 0 where the factors
    themselves are correlated; the floor is not made by permuting factors, which it never sees, but by shuffling each
    latent by
    itself: what unrelated latents score on so few rows.

    Pitfalls: blind to dependence that is not linear; about ``latents^2 / (4 n)`` nats too high; minus infinity inside
    the logarithm for doubled or dead latents (eigenvalues are kept above 1e-6 and dead latents left out).

    References:
        Challenging Common Assumptions in the Unsupervised Learning of Disentangled Representations (Locatello et al.,
            2019)
    """
    columns = standardised(codes)
    live = columns[:, np.ptp(columns, axis=0) > 0]
    if live.shape[1] < 2:
        return 0.0
    eigenvalues = np.linalg.eigvalsh(live.T @ live / len(live))
    return max(0.0, float(-0.5 * np.log(np.maximum(eigenvalues, SMALLEST_EIGENVALUE)).sum()))


def correlation_scores(sample: Sample, rng: np.random.Generator) -> tuple[float, float]:
    """MCC and SAP by R2 from one table of correlations."""
    del rng
    table = correlations(sample)
    return mcc(table), sap_r2(table)


def irs_score(sample: Sample, rng: np.random.Generator) -> tuple[float]:
    """IRS with the factors' own levels, continuous factors in equally filled bins."""
    del rng
    return (irs(sample.codes.astype(np.float64), tuple(factor.levels for factor in sample.factors)),)


def gaussian_tc_score(sample: Sample, rng: np.random.Generator) -> tuple[float]:
    """Gaussian total correlation of the latents."""
    del rng
    return (gaussian_tc(sample.codes.astype(np.float64)),)

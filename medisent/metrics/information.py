"""Knows how much one latent tells about one factor, held out, and the metrics made of that table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from medisent.metrics.samples import Sample, quantile_bins

FOLDS = 5
RESOLUTIONS = (20, 8, 4, 2)
"""Bins of a latent, and the most levels of a factor, at each of which the information is measured."""


def infom(information: Float[np.ndarray, "latents factors"]) -> float:
    """InfoM, modularity: how far each latent tells about one factor alone; 0 to 1.

    The largest share of a factor in what a latent tells, averaged over the latents that tell anything, rescaled so that
    equal shares are 0. The table of normalised mutual information is cross-fitted here, the authors' is by nearest
    neighbours on the same rows and keeps latents whose range is above a twentieth of the widest.

    Pitfalls: latents of pure noise enter the authors' version by their range alone: a noisy but aligned code scored
    0.87 there. A perfect code scored 0.995, a rotated one 0.55. Says nothing of factors that no latent tells.

    References:
        Disentanglement via Latent Quantization (Hsu, Dorrell, Whittington, Wu and Finn, 2023)
    """
    told = information[information.sum(axis=1) > 0]
    return _mean_share(told)


def infoc(information: Float[np.ndarray, "latents factors"]) -> float:
    """InfoC, compactness: how far each factor is told by one latent alone; 0 to 1.

    The largest share of a latent in what is told about a factor, averaged over factors and rescaled so that equal
    shares among the live latents are 0. A factor that no latent tells counts 0.

    Pitfalls: two latents for one factor halve it by design: score partitions by blocks.

    References:
        Disentanglement via Latent Quantization (Hsu, Dorrell, Whittington, Wu and Finn, 2023)
    """
    return _mean_share(information.T)


def _mean_share(table: Float[np.ndarray, "rows columns"]) -> float:
    """The mean over rows of the largest share, rescaled to 0 for equal shares; rows of zeros count 0."""
    if not table.size:
        return 0.0
    total = table.sum(axis=1)
    share = np.where(total > 0, table.max(axis=1) / np.where(total > 0, total, 1.0), 0.0)
    columns = table.shape[1]
    if columns == 1:
        return float(share.mean())
    return float(np.maximum((share - 1 / columns) / (1 - 1 / columns), 0.0).mean())


def mig(information: Float[np.ndarray, "latents factors"]) -> float:
    """MIG, the mutual information gap: most informative latent minus the next, over the factor's entropy; 0 to 1.

    Pitfalls: with 20 equal-width bins a perfect code scores 0.51 at n = 50, 0.72 at 100 and 0.90 at 300, and codes that
    know nothing 0.03, 0.02 and 0.01: never read it without ceiling and floor. A factor that two latents tell together
    scores 0 by definition. Equal-width bins fall to one outlier; the default panel uses equally filled ones, held out.

    References:
        Isolating Sources of Disentanglement in Variational Autoencoders (Chen, Li, Grosse and Duvenaud, 2018)
    """
    return gap(information)


def gap(table: Float[np.ndarray, "latents factors"]) -> float:
    """The best latent's entry minus the next one's, averaged over factors; with one latent the next one's is 0."""
    padded = np.vstack([table, np.zeros((1, table.shape[1]))]) if table.shape[0] == 1 else table
    ordered = np.sort(padded, axis=0)
    return float(np.mean(ordered[-1] - ordered[-2]))


def modularity(information: Float[np.ndarray, "latents factors"], *, silent: bool = False) -> float:
    """Modularity: how little each latent tells about factors other than its own; 0 to 1.

    ``1 - (sum of squares - largest square) / (largest square * (factors - 1))`` of the information, averaged over the
    latents. Silent latents are left out; ``silent=True`` counts them as 0, as disentanglement_lib does.

    Pitfalls: plug-in information made it rank a rotated code (0.86) above a perfect one (0.84), chance was 0.66, and
    half of the latents dead gave 0.50 or 0.88 by the version of scikit-learn.

    References:
        Learning Deep Disentangled Embeddings with the F-Statistic Loss (Ridgeway and Mozer, 2018)
    """
    square = np.square(information)
    largest = square.max(axis=1)
    others = square.sum(axis=1) - largest
    scale = np.where(largest > 0, largest * max(square.shape[1] - 1, 1), 1.0)
    score = np.where(largest > 0, 1 - others / scale, 0.0)
    kept = score if silent else score[largest > 0]
    return float(kept.mean()) if kept.size else 0.0


def cross_fitted_information(sample: Sample, rng: np.random.Generator) -> Information:
    """What each latent tells about each factor on held-out rows, as a share of the factor's entropy; 0 to 1.

    A histogram with equally filled bins predicts the factor's level from the latent, fitted without the fold that it is
    judged on; the information is the gain in log likelihood over the level's frequency. Plug-in mutual information is
    positive for latents that know nothing, this is not. Coarse histograms find weak relations, fine ones measure strong
    ones; each bounds the information from below, and the best counts. An entry is sure above ``sqrt(2 ln(entries))``
    standard errors, counted by subjects; latents without any are left out, else a share of nothing would be a share.

    References:
        A Theory of Usable Information under Computational Constraints (Xu et al., 2020)
        Ideal Spatial Adaptation by Wavelet Shrinkage (Donoho and Johnstone, 1994): the threshold
    """
    codes, folds = sample.standardised, sample.folds(FOLDS, rng)
    finest = int(np.clip(round(np.sqrt(len(codes))), 2, RESOLUTIONS[0]))
    table, sure = np.zeros((codes.shape[1], len(sample.factors))), np.zeros((codes.shape[1], len(sample.factors)))
    for count in sorted({min(count, finest) for count in RESOLUTIONS}):
        bins = np.stack([quantile_bins(code, count) for code in codes.T], axis=1)
        for column, factor in enumerate(sample.factors):
            known = factor.known
            gain, error = _held_out_gain(bins[known], _merged(factor.levels[known], count), folds[known])
            gain = gain / factor.entropy
            error = error / factor.entropy * np.sqrt(known.sum() / len(np.unique(sample.subjects[known])))
            table[:, column] = np.maximum(table[:, column], gain)
            sure[:, column] = np.maximum(sure[:, column], np.where(gain > 1e-12, gain / np.maximum(error, 1e-12), 0))
    return Information(np.clip(table, 0, 1), sure > np.sqrt(2 * np.log(len(RESOLUTIONS) * max(2, table.size))))


@dataclass(frozen=True)
class Information:
    """What each latent, or block, tells about each factor, and what of it is not chance.

    Attributes:
        table: The held-out share that is told, at least 0; clipped at 0, it is chance where nothing is told.
        sure: Which entries stand out of chance.
    """

    table: Float[np.ndarray, "latents factors"]
    sure: Bool[np.ndarray, "latents factors"]

    @property
    def telling(self) -> Float[np.ndarray, "latents factors"]:
        """The table with latents that surely tell of no factor set to 0: what is asked latent by latent."""
        return np.where(self.sure.any(axis=1, keepdims=True), self.table, 0.0)

    @property
    def told(self) -> Float[np.ndarray, "latents factors"]:
        """The table with factors that surely no latent tells set to 0: what is asked factor by factor."""
        return np.where(self.sure.any(axis=0, keepdims=True), self.table, 0.0)


def _merged(levels: Int[np.ndarray, " n"], count: int) -> Int[np.ndarray, " n"]:
    """The levels numbered from 0 without gaps, neighbours merged where there are more than ``count``."""
    unique, inverse, frequency = np.unique(levels, return_inverse=True, return_counts=True)
    if len(unique) <= count:
        return inverse
    middle = (np.cumsum(frequency) - frequency / 2) / frequency.sum()
    return np.unique(np.floor(middle * count).astype(np.int64), return_inverse=True)[1][inverse]


def _held_out_gain(
    bins: Int[np.ndarray, "n latents"], levels: Int[np.ndarray, " n"], folds: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " latents"], Float[np.ndarray, " latents"]]:
    """The mean gain in log likelihood from each latent, in nats, and its standard error over rows."""
    n, latents = bins.shape
    shape = (int(folds.max()) + 1, latents, int(bins.max()) + 1, int(levels.max()) + 1)
    flat = np.ravel_multi_index((folds[:, None], np.arange(latents)[None, :], bins, levels[:, None]), shape)
    held_out = np.bincount(flat.ravel(), minlength=int(np.prod(shape))).reshape(shape).astype(np.float64)
    fitted = held_out.sum(axis=0) - held_out
    frequency = fitted[:, 0].sum(axis=1) + 0.5
    prior = (frequency / frequency.sum(axis=1, keepdims=True))[:, None, None, :]
    gain = np.log((fitted + prior) / (fitted.sum(axis=3, keepdims=True) + 1) / prior)
    mean = (held_out * gain).sum(axis=(0, 2, 3)) / n
    square = (held_out * gain**2).sum(axis=(0, 2, 3)) / n
    return mean, np.sqrt(np.maximum(square - mean**2, 0) / n)


def information_scores(sample: Sample, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """InfoM, InfoC, MIG and modularity from one cross-fitted table of the live latents."""
    live = sample.alive()
    if not live.codes.size:
        return 0.0, 0.0, 0.0, 0.0
    found = cross_fitted_information(live, rng)
    return infom(found.telling), infoc(found.told), mig(found.told), modularity(found.telling)

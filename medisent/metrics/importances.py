"""Knows how much each block of latents matters for predicting each factor, held out, and DCI which is made of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import entr

from medisent.metrics.probes import boosted_trees, explained
from medisent.metrics.samples import Labels, Sample

FOLDS = 2


@dataclass(frozen=True)
class Importances:
    """What a predictor of each factor leans on.

    Attributes:
        rises: Each row's rise of the held-out squared error when a block is permuted, over the factor's variance; not a
            number where the factor is unknown.
        subjects: Whose row each is.
        r2: Held-out R2 of each factor.
    """

    rises: Float[np.ndarray, "factors blocks n"]
    subjects: Int[np.ndarray, " n"]
    r2: Float[np.ndarray, " factors"]

    @property
    def table(self) -> Float[np.ndarray, "blocks factors"]:
        """The mean rises; 0 for a factor of which every entry may be chance."""
        return self.on(np.arange(len(self.subjects)))

    def on(self, rows: Int[np.ndarray, " m"]) -> Float[np.ndarray, "blocks factors"]:
        """The same by some of the rows alone."""
        factors, blocks, _ = self.rises.shape
        threshold, table = np.sqrt(2 * np.log(max(2, factors * blocks))), np.zeros((blocks, factors))
        for column in range(factors):
            rise = self.rises[column][:, rows]
            known = np.isfinite(rise).all(axis=0)
            people = len(np.unique(self.subjects[rows[known]]))
            if not people or self.r2[column] <= 0:
                continue
            mean, error = rise[:, known].mean(axis=1), rise[:, known].std(axis=1) / np.sqrt(people)
            if (mean > np.maximum(threshold * error, 1e-9)).any():
                table[:, column] = np.maximum(mean, 0)
        return table


def dci_disentanglement(importance: Float[np.ndarray, "latents factors"]) -> float:
    """DCI disentanglement: how far each latent matters for one factor alone; 0 to 1.

    1 minus the entropy of a latent's importances over factors (to the base of their number), weighted by the latent's
    share of all importance.

    Pitfalls: it is a statement about the predictor. One noisy but aligned code has 0.755 by impurity of boosted trees,
    0.557 by a random forest's, 0.931 by held-out permutation, which the default panel uses; forests that try a part of
    the latents at each cut cannot reach 1 (0.84-0.95 on perfect codes). disentanglement_lib's moves by 6e-4 between
    seeds.

    References:
        A Framework for the Quantitative Evaluation of Disentangled Representations (Eastwood and Williams, 2018)
    """
    return _concentration(importance)


def dci_completeness(importance: Float[np.ndarray, "latents factors"]) -> float:
    """DCI completeness: how far each factor leans on one latent alone; 0 to 1.

    1 minus the entropy of a factor's importances over latents (to the base of their number), weighted by the factor's
    share of all importance.

    Pitfalls: those of `dci_disentanglement`; and two latents for one factor lower it by design (doubled codes of ten
    latents: at most 0.70), score partitions by blocks. The default panel's trees
    choose the first of two exact copies and so do not see that the other is one: MIG and SAP do.

    References:
        A Framework for the Quantitative Evaluation of Disentangled Representations (Eastwood and Williams, 2018)
    """
    return _concentration(importance.T)


def dci_informativeness(r2: Float[np.ndarray, " factors"]) -> float:
    """DCI informativeness: held-out R2 of boosted trees on all latents, averaged over factors, at least 0; at most 1.

    Pitfalls: the compatible version is accuracy, which its source calls an error, and depends on the number of levels.

    References:
        A Framework for the Quantitative Evaluation of Disentangled Representations (Eastwood and Williams, 2018)
    """
    return float(np.clip(r2, 0.0, 1.0).mean())


def _concentration(table: Float[np.ndarray, "rows columns"]) -> float:
    """1 minus each row's entropy over columns, weighted by the rows' shares; 0 if the table is empty of importance."""
    total = table.sum(axis=1)
    if total.sum() <= 0:
        return 0.0
    if table.shape[1] == 1:
        return 1.0
    shares = table / np.where(total > 0, total, 1.0)[:, None]
    concentration = 1 - entr(shares).sum(axis=1) / np.log(table.shape[1])
    return float(np.clip((concentration * total).sum() / total.sum(), 0.0, 1.0))


def permutation_importances(
    sample: Sample, blocks: tuple[tuple[int, ...], ...], rng: np.random.Generator
) -> Importances:
    """Importance of every block of latents for every factor, by permuting it where boosted trees are held out.

    All latents of a block are permuted by the same order of rows, so that a block counts as one. Factors
    without any entry above ``sqrt(2 ln(entries))`` standard errors (counted by subjects) are 0, and so are factors that
    the trees predict no better than their mean: what matters to a predictor that knows nothing says nothing.

    References:
        Random Forests (Breiman, 2001)
        All Models are Wrong, but Many are Useful (Fisher, Rudin and Dominici, 2019)
        Ideal Spatial Adaptation by Wavelet Shrinkage (Donoho and Johnstone, 1994): the threshold
    """
    folds, codes = sample.folds(FOLDS, rng), sample.standardised
    rises = np.full((len(sample.factors), len(blocks), len(codes)), np.nan)
    r2 = np.zeros(len(sample.factors))
    for column, factor in enumerate(sample.factors):
        rows = np.flatnonzero(factor.known)
        rises[column][:, rows], r2[column] = _rises(codes[rows], factor.rows(rows), folds[rows], blocks, rng)
    return Importances(rises, sample.subjects, r2)


def _rises(
    codes: Float[np.ndarray, "n latents"],
    factor: Labels,
    folds: Int[np.ndarray, " n"],
    blocks: tuple[tuple[int, ...], ...],
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "blocks n"], float]:
    """Each row's rise of squared error when a block is permuted, over the factor's variance, and the factor's R2."""
    targets = factor.targets()
    targets = targets / np.sqrt(targets.var(axis=0).sum())
    predicted, rise = np.zeros(targets.shape), np.zeros((len(blocks), len(codes)))
    for fold in np.unique(folds):
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        stack = _permuted(codes[inside], blocks, rng)
        for column, target in enumerate(targets.T):
            told = np.full(len(stack) * len(inside), target[outside].mean() if len(outside) else target.mean())
            if len(outside) > 1 and np.ptp(target[outside]) > 0:
                told = boosted_trees(codes[outside], target[outside])(stack.reshape(-1, codes.shape[1]))
            error = (told.reshape(len(stack), len(inside)) - target[inside]) ** 2
            rise[:, inside] += error[1:] - error[0]
            predicted[inside, column] = told[: len(inside)]
    return rise, explained(predicted, targets)


def _permuted(
    codes: Float[np.ndarray, "n latents"], blocks: tuple[tuple[int, ...], ...], rng: np.random.Generator
) -> Float[np.ndarray, "copies n latents"]:
    """The codes as they are, then a copy for each block with that block's rows permuted."""
    stack = np.repeat(codes[None], len(blocks) + 1, axis=0)
    for copy, block in enumerate(blocks, start=1):
        stack[copy][:, list(block)] = codes[rng.permutation(len(codes))][:, list(block)]
    return stack


def dci_scores(sample: Sample, rng: np.random.Generator) -> tuple[float, float, float]:
    """DCI disentanglement, completeness and informativeness of the live latents."""
    live = sample.alive()
    latents = live.codes.shape[1]
    if not latents:
        return 0.0, 0.0, 0.0
    found = permutation_importances(live, tuple((latent,) for latent in range(latents)), rng)
    return dci_disentanglement(found.table), dci_completeness(found.table), dci_informativeness(found.r2)

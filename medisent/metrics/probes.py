"""Knows the metrics that fit a predictor and judge it on held-out subjects: InfoE, explicitness, SAP by SVM, DCI."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from medisent.metrics.information import gap
from medisent.metrics.samples import Labels, Sample

_PENALTIES = np.logspace(-3, 3, 7)

Regression = Callable[
    [Float[np.ndarray, "n latents"], Float[np.ndarray, " n"]], Callable[[Float[np.ndarray, "m latents"]], np.ndarray]
]
"""Fits codes to a target and gives back what predicts it."""


def ridge(codes: Float[np.ndarray, "n latents"], target: Float[np.ndarray, " n"]) -> Callable[[np.ndarray], np.ndarray]:
    """A linear predictor whose penalty, of seven, misses rows that are left out the least."""
    centre, scale = codes.mean(axis=0), codes.std(axis=0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    # One decomposition serves every penalty and every row that is left out.
    left, singular, right = np.linalg.svd((codes - centre) / scale, full_matrices=False)
    mean = target.mean()
    told = left.T @ (target - mean)
    kept = singular**2 / (singular**2 + _PENALTIES[:, None])
    lever = 1 / len(target) + kept @ (left**2).T
    missed = (target - mean - (kept * told) @ left.T) / (1 - lever).clip(1e-12)
    penalty = _PENALTIES[int(np.argmin((missed**2).mean(axis=1)))]
    weights = right.T @ (singular / (singular**2 + penalty) * told)
    return lambda rows: mean + ((rows - centre) / scale) @ weights


def boosted_trees(
    codes: Float[np.ndarray, "n latents"], target: Float[np.ndarray, " n"]
) -> Callable[[np.ndarray], np.ndarray]:
    """Forty small boosted trees on binned codes."""
    leaf = int(np.clip(len(codes) // 20, 2, 20))
    model = HistGradientBoostingRegressor(
        max_iter=40, learning_rate=0.15, max_leaf_nodes=8, min_samples_leaf=leaf, max_bins=32, early_stopping=False
    )
    model.fit(codes, target)
    return lambda rows: model.predict(rows)


def held_out_predictions(
    fit: Regression,
    codes: Float[np.ndarray, "n latents"],
    targets: Float[np.ndarray, "n targets"],
    folds: Int[np.ndarray, " n"],
) -> Float[np.ndarray, "n targets"]:
    """Every row's prediction by a predictor that saw no row of its fold; the mean where there was nothing to learn."""
    predicted = np.zeros(targets.shape)
    for fold in np.unique(folds):
        inside, outside = folds == fold, folds != fold
        for column, target in enumerate(targets.T):
            predicted[inside, column] = target[outside].mean() if outside.any() else target.mean()
            if outside.sum() > 1 and np.ptp(target[outside]) > 0:
                predicted[inside, column] = fit(codes[outside], target[outside])(codes[inside])
    return predicted


def explained(predicted: Float[np.ndarray, "n targets"], targets: Float[np.ndarray, "n targets"]) -> float:
    """R2 over all targets together; negative if the mean predicts better; 0 if nothing varies."""
    total = float(((targets - targets.mean(axis=0)) ** 2).sum())
    return 1.0 - float(((targets - predicted) ** 2).sum()) / total if total > 0 else 0.0


def held_out_probabilities(
    codes: Float[np.ndarray, "n latents"], levels: Int[np.ndarray, " n"], folds: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "n levels"], Float[np.ndarray, "n levels"]]:
    """Every row's class probabilities by a logistic regression fitted on other folds, and by frequency alone."""
    count = int(levels.max()) + 1
    probability, frequency = np.zeros((len(levels), count)), np.zeros((len(levels), count))
    for fold in np.unique(folds):
        inside, outside = folds == fold, folds != fold
        seen = np.bincount(levels[outside], minlength=count) + 0.5
        frequency[inside] = seen / seen.sum()
        probability[inside] = frequency[inside]
        if len(np.unique(levels[outside])) > 1:
            model = logistic(codes[outside], levels[outside], strength=outside.sum() / 20)
            share = 1 / (outside.sum() + 1)
            probability[inside] *= share
            probability[np.ix_(inside, model.classes_)] += (1 - share) * model.predict_proba(codes[inside])
    return probability, frequency


def logistic(
    codes: Float[np.ndarray, "n latents"],
    levels: Int[np.ndarray, " n"],
    strength: float,
    class_weight: str | None = None,
) -> LogisticRegression:
    """A multinomial logistic regression of at most 100 steps, with ``strength`` the inverse of its penalty."""
    model = LogisticRegression(C=strength, class_weight=class_weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(codes, levels)


def infoe(told: Sequence[float]) -> float:
    """InfoE, explicitness in information: the share of each factor that a linear predictor reads; 0 to 1.

    Discrete factors: 1 minus held-out cross entropy over the entropy; continuous ones: held-out R2 of a ridge
    regression. Both cross-fitted by subject; what is below 0 counts 0.

    Pitfalls: the authors fit and score on the same rows with no penalty, which gives 1 to any code with as many latents
    as rows. High for rotated codes by design: it says that the factors can be read, not that they are apart.

    References:
        Disentanglement via Latent Quantization (Hsu, Dorrell, Whittington, Wu and Finn, 2023)
    """
    return float(np.mean(np.clip(told, 0.0, 1.0)))


def explicitness(areas: Sequence[float]) -> float:
    """Explicitness: area under the ROC curve of a linear classifier, one level against the rest; chance is 0.5, best 1.

    Cross-fitted by subject. For a continuous factor the share of pairs that a ridge regression puts in the right order,
    which is what the area is for two levels.

    Pitfalls: 0.5 is chance (one library rescales it to 0); 0.988 or 1.000 for one perfect code by the version of
    scikit-learn; the original stops at a dead code and at a level that no test row has.

    References:
        Learning Deep Disentangled Embeddings with the F-Statistic Loss (Ridgeway and Mozer, 2018)
    """
    return float(np.mean(areas))


def roc_area(score: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """The area under the ROC curve, from ranks; 0.5 if one side is empty."""
    hits, misses = int(positive.sum()), int((~positive).sum())
    if not hits or not misses:
        return 0.5
    ranks = stats.rankdata(score)
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


def linear_scores(sample: Sample, rng: np.random.Generator) -> tuple[float, float]:
    """InfoE and explicitness from the same cross-fitted linear predictors."""
    folds, codes = sample.folds(5, rng), sample.standardised
    readings = []
    for factor in sample.factors:
        rows = np.flatnonzero(factor.known)
        reading = _classified if factor.discrete else _regressed
        readings.append(reading(codes[rows], factor.rows(rows), folds[rows]))
    return infoe([told for told, _ in readings]), explicitness([area for _, area in readings])


def _classified(
    codes: Float[np.ndarray, "n latents"], factor: Labels, folds: Int[np.ndarray, " n"]
) -> tuple[float, float]:
    """The share of a discrete factor's entropy that is told, and the mean area under its levels' ROC curves."""
    levels = np.unique(factor.levels, return_inverse=True)[1]
    probability, frequency = held_out_probabilities(codes, levels, folds)
    row = np.arange(len(levels))
    entropy = -np.log(frequency[row, levels]).mean()
    areas = [roc_area(probability[:, level], levels == level) for level in range(probability.shape[1])]
    return float(1 + np.log(probability[row, levels]).mean() / entropy), float(np.mean(areas))


def _regressed(
    codes: Float[np.ndarray, "n latents"], factor: Labels, folds: Int[np.ndarray, " n"]
) -> tuple[float, float]:
    """R2 of a continuous factor, and the share of its pairs in the right order."""
    predicted = held_out_predictions(ridge, codes, factor.values[:, None], folds)
    if np.ptp(predicted) == 0:
        return 0.0, 0.5
    order = float(stats.kendalltau(predicted[:, 0], factor.values).statistic)
    return explained(predicted, factor.values[:, None]), (1 + order) / 2


def sap_svm(accuracies: Float[np.ndarray, "latents factors"]) -> float:
    """SAP by SVM: accuracy from the best latent minus that from the next, averaged over factors; 0 to 1.

    Held out by subject, on standardised latents; continuous factors are cut at their median.

    Pitfalls: a straight cut of one latent separates at most three ordered levels, so a perfect code scores 0.559 on
    factors of 3 to 8 levels and 0.243 on dSprites: read the ceiling. The original does not scale the latents.

    References:
        Variational Inference of Disentangled Latent Concepts from Unlabeled Observations (Kumar, Sattigeri and
            Balakrishnan, 2018)
    """
    return gap(accuracies)


def sap_svm_score(sample: Sample, rng: np.random.Generator) -> tuple[float]:
    """SAP by SVM, cross-fitted in two folds."""
    folds = sample.folds(2, rng)
    codes = sample.standardised
    accuracies = np.zeros((codes.shape[1], len(sample.factors)))
    for column, factor in enumerate(sample.factors):
        levels = factor.levels if factor.discrete else _above_median(factor)
        for fold in np.unique(folds):
            inside, outside = factor.known & (folds == fold), factor.known & (folds != fold)
            hits = one_latent_accuracies(codes[outside], levels[outside], codes[inside], levels[inside])
            accuracies[:, column] += hits * inside.sum() / factor.known.sum()
    return (sap_svm(accuracies),)


def _above_median(factor: Labels) -> Int[np.ndarray, " n"]:
    above: np.ndarray = np.where(factor.known, factor.values > np.median(factor.values[factor.known]), -1)
    return above.astype(np.int64)


def svm_accuracies(
    codes: Float[np.ndarray, "n latents"],
    levels: Int[np.ndarray, " n"],
    codes_test: Float[np.ndarray, "m latents"],
    levels_test: Int[np.ndarray, " m"],
) -> Float[np.ndarray, " latents"]:
    """The share of test rows that a linear support vector classifier gets right from one latent, for each latent."""
    right: np.ndarray = np.zeros(codes.shape[1])
    if not len(levels_test) or not len(levels):
        return right
    if len(np.unique(levels)) < 2:
        right[:] = np.mean(levels_test == levels[0])
        return right
    for latent in range(codes.shape[1]):
        model = LinearSVC(C=0.01, class_weight="balanced", random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(codes[:, [latent]], levels)
        right[latent] = np.mean(model.predict(codes_test[:, [latent]]) == levels_test)
    return right


def one_latent_accuracies(
    codes: Float[np.ndarray, "n latents"],
    levels: Int[np.ndarray, " n"],
    codes_test: Float[np.ndarray, "m latents"],
    levels_test: Int[np.ndarray, " m"],
) -> Float[np.ndarray, " latents"]:
    """As `svm_accuracies`, the same classifiers for all latents at once, by Newton's method."""
    if not len(levels_test) or not len(levels):
        return np.zeros(codes.shape[1])
    unique, index, count = np.unique(levels, return_inverse=True, return_counts=True)
    side = np.where(index[:, None] == np.arange(len(unique)), 1.0, -1.0)[:, None, :]
    rarity = len(levels) / (len(unique) * count[index, None, None])
    cost = 0.02 * np.where((side > 0) | (len(unique) == 2), rarity, 1.0)
    slope, offset = _squared_hinge(codes[:, :, None], side, cost)
    chosen = np.argmax(codes_test[:, :, None] * slope + offset, axis=2)
    right: np.ndarray = np.mean(unique[chosen] == levels_test[:, None], axis=0)
    return right


def _squared_hinge(
    code: Float[np.ndarray, "n latents 1"], side: Float[np.ndarray, "n 1 levels"], cost: Float[np.ndarray, "n 1 levels"]
) -> tuple[Float[np.ndarray, "latents levels"], Float[np.ndarray, "latents levels"]]:
    """Slope and offset of least half squares plus the cost of the squares of what rows lack to a margin of 1."""
    slope, offset = np.zeros((2, code.shape[1], side.shape[2]))
    for _ in range(10):
        lacking = 1 - side * (code * slope + offset)
        active = np.where(lacking > 0, cost, 0.0)
        push = active * side * lacking
        gradient, lift = slope - (push * code).sum(axis=0), offset - push.sum(axis=0)
        bend, cross, level = 1 + (active * code**2).sum(axis=0), (active * code).sum(axis=0), 1 + active.sum(axis=0)
        scale = bend * level - cross**2
        slope = slope - (level * gradient - cross * lift) / scale
        offset = offset - (bend * lift - cross * gradient) / scale
    return slope, offset

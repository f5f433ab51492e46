"""Knows the metrics exactly as disentanglement_lib and the authors of InfoMEC compute them."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Int, Num
from scipy import stats
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.metrics import log_loss

from medisent.metrics.correlations import correlations, gaussian_tc, irs, mcc
from medisent.metrics.information import gap, infoc, infom, modularity
from medisent.metrics.neighbours import neighbour_information, shared_information
from medisent.metrics.probes import explicitness, logistic, roc_area, sap_svm, svm_accuracies
from medisent.metrics.samples import Labels, Sample

BINS = 20


def equal_width_bins(values: Num[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The bin of every value, 1 to 20, of equal width over the range."""
    bins: np.ndarray = np.digitize(values, np.histogram(values, BINS)[1][:-1])
    return bins


def levels_of(factor: Labels) -> Int[np.ndarray, " n"]:
    """A factor's levels; a continuous factor, which the library does not know, in 20 bins of equal width."""
    if factor.discrete:
        return factor.levels
    levels = np.full(len(factor.levels), -1, dtype=np.int64)
    levels[factor.known] = equal_width_bins(factor.values[factor.known])
    return levels


def _split(sample: Sample) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
    """The training and the test rows; where one of them is empty every third subject is a test subject."""
    test = sample.test
    if test.all() or not test.any():
        test = np.unique(sample.subjects, return_inverse=True)[1] % 3 == 2
        test = test if test.any() else np.arange(len(test)) == len(test) - 1
    return np.flatnonzero(~test), np.flatnonzero(test)


def _train(sample: Sample) -> Sample:
    """The training rows alone; all rows where none are kept for testing."""
    return sample if sample.test.all() or not sample.test.any() else sample.rows(np.flatnonzero(~sample.test))


def information_scores(sample: Sample, rng: np.random.Generator) -> tuple[float, float]:
    """MIG and modularity from plug-in mutual information with 20 equal-width bins, on the training rows."""
    del rng
    train = _train(sample)
    bins = [equal_width_bins(code) for code in train.codes.T]
    told, entropy = np.zeros((len(bins), len(train.factors))), np.zeros(len(train.factors))
    for column, factor in enumerate(train.factors):
        known, levels = factor.known, levels_of(factor)[factor.known]
        entropy[column] = shared_information(levels, levels)
        told[:, column] = [shared_information(levels, code[known]) for code in bins]
    return gap(told / np.maximum(entropy, 1e-300)), modularity(told, silent=True)


def explicitness_score(sample: Sample, rng: np.random.Generator) -> tuple[float]:
    """Area under the ROC curve on the test rows of a logistic regression; a dead code is 0."""
    del rng
    train, test = _split(sample)
    codes = _in_single_precision(sample.codes)
    mean, deviation = np.mean(codes[train].T, axis=1), np.std(codes[train].T, axis=1)
    codes = (codes - mean) / np.where(deviation > 0, deviation, 1)
    areas = []
    for factor in sample.factors:
        levels, fit, judged = levels_of(factor), train[factor.known[train]], test[factor.known[test]]
        present = np.unique(levels[judged])
        if len(np.unique(levels[fit])) < 2 or len(present) < 2:
            areas.append(0.5)
            continue
        model = logistic(codes[fit], levels[fit], strength=1.0)
        told = dict(zip(model.classes_, model.predict_proba(codes[judged]).T, strict=True))
        silent = np.zeros(len(judged))
        areas.append(float(np.mean([roc_area(told.get(v, silent), levels[judged] == v) for v in present])))
    return (explicitness(areas),)


def sap_r2_score(sample: Sample, rng: np.random.Generator) -> tuple[float]:
    """SAP for continuous factors: squared covariance over variances; 0 for a dead code."""
    del rng
    train = _train(sample)
    table = np.zeros((train.codes.shape[1], len(train.factors)))
    for column, factor in enumerate(train.factors):
        for latent, code in enumerate(train.codes.T):
            cov = np.cov(code[factor.known], factor.values[factor.known], ddof=1)
            table[latent, column] = cov[0, 1] ** 2 / (cov[0, 0] * cov[1, 1]) if cov[0, 0] > 1e-12 else 0.0
    return (gap(table),)


def sap_svm_score(sample: Sample, rng: np.random.Generator) -> tuple[float]:
    """SAP for discrete factors: test accuracy of a linear support vector classifier on each code as it is."""
    del rng
    train, test = _split(sample)
    codes = _in_single_precision(sample.codes)
    table = np.zeros((sample.codes.shape[1], len(sample.factors)))
    for column, factor in enumerate(sample.factors):
        levels, fit, judged = levels_of(factor), train[factor.known[train]], test[factor.known[test]]
        table[:, column] = svm_accuracies(codes[fit], levels[fit], codes[judged], levels[judged])
    return (sap_svm(table),)


def dci_scores(sample: Sample, rng: np.random.Generator) -> tuple[float, float, float]:
    """DCI by impurity importances of gradient-boosted trees with scikit-learn's defaults; informativeness on test rows.

    The library seeds nothing; one stream of numbers seeded with 0 runs through all factors here, as after
    ``numpy.random.seed(0)``. Factors are fitted side by side, each with the stream where its predecessors leave it.
    """
    del rng
    train, test = _split(sample)
    stream, codes = np.random.RandomState(0), _in_single_precision(sample.codes)
    table, right = np.zeros((sample.codes.shape[1], len(sample.factors))), np.zeros(len(sample.factors))
    with ThreadPoolExecutor(threads()) as pool:
        fits: list[Future[tuple[np.ndarray, float]]] = []
        for factor in sample.factors:
            levels, fit, judged = levels_of(factor), train[factor.known[train]], test[factor.known[test]]
            own = np.random.RandomState()
            own.set_state(stream.get_state())
            parts = codes[fit], levels[fit], codes[judged], levels[judged]
            fits.append(pool.submit(_importances, *parts, own))
            classes = len(np.unique(levels[fit]))
            # One number a tree, of which there are a hundred for each class, or for two of them together.
            stream.randint(np.iinfo(np.int32).max, size=100 * (classes if classes > 2 else classes - 1))
        for column, found in enumerate(fits):
            table[:, column], right[column] = found.result()
    return dci_concentration(table), dci_concentration(table.T), float(right.mean())


def _importances(
    codes: Num[np.ndarray, "n latents"],
    levels: Int[np.ndarray, " n"],
    codes_test: Num[np.ndarray, "m latents"],
    levels_test: Int[np.ndarray, " m"],
    stream: np.random.RandomState,
) -> tuple[Float[np.ndarray, " latents"], float]:
    """The importance of every latent for one factor, and the share of test rows that are told right."""
    if len(np.unique(levels)) < 2:
        right = float(np.mean(levels_test == levels[0])) if len(levels) and len(levels_test) else 0.0
        return np.zeros(codes.shape[1]), right
    model = GradientBoostingClassifier(random_state=stream).fit(codes, levels)
    right = float(np.mean(model.predict(codes_test) == levels_test)) if len(levels_test) else 0.0
    return np.abs(model.feature_importances_), right


def threads() -> int:
    """How many threads may compute: as many as OMP_NUM_THREADS says, else as there are cores for this process."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(asked) if asked.isdecimal() and int(asked) else os.cpu_count() or 1


def _in_single_precision(codes: Num[np.ndarray, "n latents"]) -> Num[np.ndarray, "n latents"]:
    """The codes with columns scaled that predictors stop at: whose squares leave the range of single precision."""
    largest = np.abs(codes).max(axis=0)
    return codes if largest.max() < 1e15 else codes / np.maximum(largest / 1e15, 1.0)


def dci_concentration(importance: Float[np.ndarray, "rows columns"]) -> float:
    """1 minus the entropy of each row of importances, weighted by the rows' shares, with the library's 1e-11 inside."""
    if importance.shape[1] == 1:
        return 1.0 if importance.sum() > 0 else 0.0
    each = 1.0 - stats.entropy(importance.T + 1e-11, base=importance.shape[1])
    weights = np.ones_like(importance) if importance.sum() == 0 else importance
    return float(np.sum(each * weights.sum(axis=1) / weights.sum()))


def mcc_score(sample: Sample, rng: np.random.Generator) -> tuple[float]:
    """MCC on the training rows; neither library has it, so it is the default panel's."""
    del rng
    return (mcc(correlations(_train(sample))),)


def irs_score(sample: Sample, rng: np.random.Generator) -> tuple[float]:
    """IRS with the factors' levels in 20 bins of equal width, 99th percentile."""
    del rng
    train = _train(sample)
    levels = []
    for factor in train.factors:
        binned = np.full(len(factor.values), -1, dtype=np.int64)
        binned[factor.known] = equal_width_bins(factor.values[factor.known])
        levels.append(binned)
    return (irs(train.codes, tuple(levels)),)


def gaussian_tc_score(sample: Sample, rng: np.random.Generator) -> tuple[float]:
    """Gaussian total correlation of the covariance, in nats; the default panel's where that is infinite."""
    del rng
    codes = _train(sample).codes
    cov = np.atleast_2d(np.cov(codes.T))
    if np.all(np.ptp(codes, axis=0) > 0) and np.all(np.diag(cov) > 0):
        value = float(0.5 * (np.sum(np.log(np.diag(cov))) - np.linalg.slogdet(cov)[1]))
        if np.isfinite(value):
            return (value,)
    return (gaussian_tc(codes.astype(np.float64)),)


def infomec_scores(sample: Sample, rng: np.random.Generator) -> tuple[float, float]:
    """InfoM and InfoC with mutual information by ten nearest neighbours, latents kept by their range.

    The neighbour estimate adds noise of 1e-10 to break ties, unseeded in the authors' code.
    """
    train = _train(sample)
    width = np.ptp(train.codes, axis=0)
    active = np.flatnonzero(width > width.max() / 20)
    codes, seed = train.standardised[:, active], int(rng.integers(2**31))
    told = np.zeros((len(active), len(train.factors)))
    for column, factor in enumerate(train.factors):
        known, levels = factor.known, levels_of(factor)[factor.known]
        entropy = shared_information(levels, levels)
        for latent in range(len(active)):
            told[latent, column] = neighbour_information(codes[known, latent], levels, seed) / entropy
    return infom(told), infoc(told)


def infoe_score(sample: Sample, rng: np.random.Generator) -> tuple[float]:
    """InfoE of an unpenalised, class-balanced logistic regression, fitted and scored on the training rows."""
    del rng
    train = _train(sample)
    told = []
    for factor in train.factors:
        codes, levels = train.standardised[factor.known], levels_of(factor)[factor.known]
        entropy = _cross_entropy(np.zeros_like(codes), levels)
        told.append((entropy - _cross_entropy(codes, levels)) / entropy)
    return (float(np.mean(told)),)


def _cross_entropy(codes: Float[np.ndarray, "n latents"], levels: Int[np.ndarray, " n"]) -> float:
    model = logistic(codes, levels, strength=np.inf, class_weight="balanced")
    return float(log_loss(levels, model.predict_proba(codes)))

"""Knows the metrics that need samples of their own: beta-VAE score, FactorVAE score, unfairness."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, Num
from scipy import stats
from sklearn.ensemble import GradientBoostingClassifier

from medisent.errors import UsageError
from medisent.metrics.probes import logistic
from medisent.metrics.scores import Score

FLOORS = 5
"""Permutations that a floor is averaged over."""

DRAWS = 200
"""Resamples of the test batches or points behind an interval."""


def beta_vae(
    x_train: Num[np.ndarray, "train latents"],
    y_train: Int[np.ndarray, " train"],
    x_eval: Num[np.ndarray, "eval latents"],
    y_eval: Int[np.ndarray, " eval"],
    *,
    seed: int = 0,
) -> Score:
    """The beta-VAE score: accuracy at telling which factor the pairs of a batch shared; chance is 1 over their number.

    A logistic regression on the mean absolute difference of the two codes over a batch of pairs, scored on further
    batches. The interval is binomial (Wilson) over the test batches, the classifier being fixed; the floor has the
    training labels permuted; the ceiling has in every batch the difference of the shared factor's own latent 0.

    Args:
        x_train: Mean of ``|z1 - z2|`` over the pairs of each batch.
        y_train: Which factor each batch shared.
        x_eval: The same for the batches that are judged.
        y_eval: Which factor those shared.
        seed: Of the floor's permutation and the ceiling's noise.

    Pitfalls: saturates: a rotated code scores 0.974. Latents are not scaled.

    Raises:
        UsageError: The arrays do not fit together.

    References:
        beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework (Higgins et al., 2017)
    """
    _same_length(x_train, y_train, "training batches")
    _same_length(x_eval, y_eval, "test batches")
    rng = np.random.default_rng(seed)
    value = _told(x_train, y_train, x_eval, y_eval)
    floor = float(np.mean([_told(x_train, rng.permutation(y_train), x_eval, y_eval) for _ in range(FLOORS)]))
    count = int(max(y_train.max(), y_eval.max())) + 1
    perfect_train, perfect_eval = (_perfect_differences(y, count, rng) for y in (y_train, y_eval))
    ceiling = _told(perfect_train, y_train, perfect_eval, y_eval)
    return Score(value, *_wilson(value, len(y_eval)), floor, ceiling)


def _told(x: np.ndarray, y: np.ndarray, x_eval: np.ndarray, y_eval: np.ndarray) -> float:
    if len(np.unique(y)) < 2:
        return float(np.mean(y_eval == y[0]))
    model = logistic(x.astype(np.float64), y, strength=1.0)
    return float(np.mean(model.predict(x_eval.astype(np.float64)) == y_eval))


def _perfect_differences(y: Int[np.ndarray, " n"], factors: int, rng: np.random.Generator) -> Float[np.ndarray, "n k"]:
    """Mean differences over 64 pairs of a perfect code: that of the shared factor is 0."""
    features: np.ndarray = np.abs(rng.normal(scale=np.sqrt(2), size=(len(y), 64, factors))).mean(axis=1)
    features[np.arange(len(y)), y] = 0
    return features


def factor_vae(
    factor_index: Int[np.ndarray, " batches"],
    local_variances: Float[np.ndarray, "batches latents"],
    global_variances: Float[np.ndarray, " latents"],
    num_train: int | None = None,
    *,
    threshold: float = 0.05,
    varied: bool = False,
    seed: int = 0,
) -> Score:
    """The FactorVAE score: how often the latent of least variance names the factor that a batch held fixed.

    Per batch the live latent with the smallest ratio of its variance in the batch to its variance overall; a table of
    majority votes from the first ``num_train`` batches is scored on the rest. Interval and floor as for `beta_vae`; a
    perfect code's fixed latent does not vary, so its ceiling is 1 at any size.

    Args:
        factor_index: Which factor each batch held fixed.
        local_variances: Variance of every latent within each batch, one degree of freedom taken off.
        global_variances: Variance of every latent over all scans.
        num_train: How many batches vote; two thirds if not given.
        threshold: Latents of a smaller overall standard deviation are dead and have no say.
        varied: Whether ``factor_index`` is the factor that alone varied in the batch, so that the latent of most
            variance names it. That is the published score turned round.
        seed: Of the floor's permutation.

    Pitfalls: saturates: a rotated code scores 0.934. Needs batches with one factor fixed, which a cohort seldom has.

    Raises:
        UsageError: The arrays do not fit together, or no batch is left to vote or to be judged.

    References:
        Disentangling by Factorising (Kim and Mnih, 2018)
    """
    _same_length(local_variances, factor_index, "batches")
    votes = 2 * len(factor_index) // 3 if num_train is None else int(num_train)
    if not 0 < votes < len(factor_index):
        raise UsageError(
            f"{votes} of {len(factor_index)} batches were to vote; leave at least one to vote and one to judge."
        )
    active = np.sqrt(global_variances) >= threshold
    if not active.any():
        return Score(0.0, 0.0, 0.0, 0.0, 1.0)
    ratio = local_variances[:, active] / global_variances[active]
    named = np.argmax(ratio, axis=1) if varied else np.argmin(ratio, axis=1)
    value = _majority(factor_index, named, votes)
    rng = np.random.default_rng(seed)
    floor = float(np.mean([_majority(rng.permutation(factor_index), named, votes) for _ in range(FLOORS)]))
    return Score(value, *_wilson(value, len(factor_index) - votes), floor, 1.0)


def _majority(factor: Int[np.ndarray, " n"], least: Int[np.ndarray, " n"], votes: int) -> float:
    """The share of later batches whose factor is the one that earlier batches with the same least latent had most."""
    table = np.zeros((int(factor.max()) + 1, int(least.max()) + 1), dtype=np.int64)
    np.add.at(table, (factor[:votes], least[:votes]), 1)
    return float(np.mean(np.argmax(table, axis=0)[least[votes:]] == factor[votes:]))


def unfairness(
    codes_train: Num[np.ndarray, "train latents"],
    factors_train: Int[np.ndarray, "train factors"],
    intervened_codes: Num[np.ndarray, "interventions points latents"],
    *,
    seed: int = 0,
) -> Score:
    """Unfairness: how far predictions of one factor move when another is set; 0 is fair, less is better.

    Boosted trees predict each factor from the codes; for every other factor, the total variation between the
    predictions with it set to one value and the predictions pooled over its values; averaged over values, factors set,
    factors predicted (``mean_fairness:mean_pred:mean_sens`` of disentanglement_lib). The ceiling is what a fair code
    scores on as few points, each point's predictions shuffled among the values; the floor is a predictor that reads the
    set factor alone. The interval is a bootstrap of the points (the same for all values of a factor), the predictors
    being fixed.

    Args:
        codes_train: Codes that the predictors learn from.
        factors_train: Their factors, as whole numbers from 0.
        intervened_codes: For each factor predicted, each other factor set and each of its values, in this order, the
            codes of the same points with that factor set to that value.
        seed: Of the bootstrap and the shuffles; the trees' numbers always start at 0, as after
            ``numpy.random.seed(0)``.

    Pitfalls: a noise floor of 0.05-0.06 at 100 points when observations are noisy: see the ceiling. Needs a generator
    that can be intervened on; a cohort alone cannot give it.

    Raises:
        UsageError: The number of interventions does not fit the factors' levels.

    References:
        On the Fairness of Disentangled Representations (Locatello et al., 2019)
    """
    _same_length(codes_train, factors_train, "training rows")
    sizes = factors_train.max(axis=0) + 1
    wanted = int(sizes.sum()) * (len(sizes) - 1)
    if len(intervened_codes) != wanted:
        raise UsageError(f"The factors' levels ask for {wanted} interventions, but there are {len(intervened_codes)}.")
    stream = np.random.RandomState(0)
    rng = np.random.default_rng(seed)
    tables, start = [], 0
    for target in range(len(sizes)):
        levels = factors_train[:, target]
        model = None
        if len(np.unique(levels)) > 1:
            model = GradientBoostingClassifier(random_state=stream).fit(codes_train, levels)
        for other in range(len(sizes)):
            if other == target:
                continue
            block = intervened_codes[start : start + sizes[other]]
            start += int(sizes[other])
            points = block.reshape(-1, block.shape[-1])
            predicted = np.full(block.shape[:2], levels[0]) if model is None else model.predict(points)
            predicted = predicted.reshape(block.shape[:2])
            tables.append((target, np.eye(int(sizes[target]))[predicted]))
    value = _mean_variation(tables)
    draws = [
        _mean_variation([(t, p[:, rng.integers(p.shape[1], size=p.shape[1])]) for t, p in tables]) for _ in range(DRAWS)
    ]
    fair = [_mean_variation([(t, _dealt_again(p, rng)) for t, p in tables]) for _ in range(FLOORS)]
    worst = _mean_variation([(t, np.eye(p.shape[2])[np.arange(len(p)) % p.shape[2], None]) for t, p in tables])
    half = 1.96 * float(np.std(draws))
    return Score(value, max(0.0, value - half), min(1.0, value + half), worst, float(np.mean(fair)))


def _dealt_again(
    predicted: Float[np.ndarray, "values points classes"], rng: np.random.Generator
) -> Float[np.ndarray, "values points classes"]:
    """Every point's predictions dealt again to the values of the factor that was set."""
    order = np.argsort(rng.random(predicted.shape[:2]), axis=0)
    return np.take_along_axis(predicted, order[:, :, None], axis=0)


def _mean_variation(tables: list[tuple[int, np.ndarray]]) -> float:
    """Mean over predicted factors of the mean over set factors of the mean total variation over the set values.

    Sums in single precision, as in disentanglement_lib.
    """
    rows: dict[int, list[float]] = {}
    for target, predicted in tables:
        counts = np.ascontiguousarray(predicted.sum(axis=1).T)
        pooled = np.sum(counts, axis=1, dtype=np.float32)
        shares = (counts / predicted.shape[1]).astype(np.float32)
        variation = np.sum(np.abs(shares - (pooled / pooled.sum())[:, None]), axis=0) / np.float32(2)
        rows.setdefault(target, []).append(float(variation.astype(np.float64).mean()))
    return float(np.mean([np.mean(row) for row in rows.values()])) if rows else 0.0


def _wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n independent trials."""
    found = stats.binomtest(round(share * n), n).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def _same_length(left: np.ndarray, right: np.ndarray, what: str) -> None:
    if len(left) != len(right) or not len(left):
        raise UsageError(
            f"{what.capitalize()}: {len(left)} rows of numbers and {len(right)} of labels do not fit together."
        )

"""How well codes tell which factor varies, from groups of scans in which one factor alone does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from medisent.metrics import Score, beta_vae, factor_vae

FEWEST_GROUPS = 4
"""Groups in which a factor varies, below which nothing is said of it: half of them teach, the others are judged."""


def clamped_scores(
    codes: Float[np.ndarray, "scans latents"], varying: Mapping[str, Sequence[str]], seed: int
) -> dict[str, Score]:
    """The beta-VAE and the FactorVAE score, by name; none where groups do not tell at least two factors apart.

    As published, batches hold one factor fixed; here they are groups in which one factor alone varies, so that a pair's
    difference, or the latent of most variance, tells the factor that varies. Chance and perfection are the same.

    Arguments:
        codes: Means of the posterior.
        varying: For each factor, the group of each scan in which that factor alone varies; empty is no group.
        seed: Of who teaches, and of the floors.
    """
    rng = np.random.default_rng(seed)
    teaching: list[tuple[int, Float[np.ndarray, "members latents"]]] = []
    judged: list[tuple[int, Float[np.ndarray, "members latents"]]] = []
    told = 0
    for column in varying.values():
        names = np.array(column)
        members = [codes[names == name] for name in np.unique(names[names != ""])]
        groups = [group for group in members if len(group) > 1]
        if len(groups) < FEWEST_GROUPS:
            continue
        dealt = [(told, groups[place]) for place in rng.permutation(len(groups))]
        teaching += dealt[: len(dealt) // 2]
        judged += dealt[len(dealt) // 2 :]
        told += 1
    if told < 2:
        return {}
    index = np.array([factor for factor, _ in (*teaching, *judged)])
    groups = [group for _, group in (*teaching, *judged)]
    apart = np.stack([_mean_difference(group) for group in groups])
    spread, overall = np.stack([group.var(axis=0, ddof=1) for group in groups]), codes.var(axis=0, ddof=1)
    first = len(teaching)
    return {
        "beta_vae": beta_vae(apart[:first], index[:first], apart[first:], index[first:], seed=seed),
        "factor_vae": factor_vae(index, spread, overall, first, varied=True, seed=seed),
    }


def _mean_difference(group: Float[np.ndarray, "members latents"]) -> Float[np.ndarray, " latents"]:
    """The mean over pairs of scans of how far they are apart."""
    one, other = np.triu_indices(len(group), 1)
    mean: np.ndarray = np.abs(group[one] - group[other]).mean(axis=0)
    return mean

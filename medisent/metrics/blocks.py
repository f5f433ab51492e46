"""Knows how well each block of latents predicts each factor, and what that says of a partition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Num, Shaped
from threadpoolctl import threadpool_limits

from medisent.errors import UsageError
from medisent.metrics.importances import dci_completeness, dci_disentanglement, permutation_importances
from medisent.metrics.information import Information, infoc, infom, mig
from medisent.metrics.probes import boosted_trees, explained, held_out_predictions, ridge
from medisent.metrics.samples import (
    Labels,
    Sample,
    block_order,
    checked_codes,
    named_factors,
    standardised,
    subject_index,
)

FOLDS = 5


def leakage(
    codes: Num[np.ndarray, "_n _latents"] | pd.DataFrame,
    blocks: Mapping[str, Sequence[int]],
    factors: Shaped[np.ndarray, "_n _factors"] | pd.DataFrame,
    names: Sequence[str] | None = None,
    *,
    groups: Shaped[np.ndarray, " _n"] | None = None,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """How well each block predicts each factor, BLOCK -> NAME -> held-out R2; 1 is all of it, 0 or less nothing.

    The larger of a ridge regression's R2 and boosted trees', cross-fitted in five folds of subjects, not cut at 0: a
    value just below 0 is what nothing looks like. For a factor of text labels (a site) it is the R2 of all levels'
    indicators together. Scans with an unknown label are left out of that factor. A factor that never varies leaks 0.

    Args:
        codes: The latents, one row a scan.
        blocks: The columns of each block.
        factors: One column a factor.
        names: The factors' names, where ``factors`` is an array.
        groups: The subject of each row.
        seed: Of the folds.

    Pitfalls: unrelated codes score between -0.15 and 0.05 at n = 50 and above -0.02 at n = 1,000, so read it beside
    `leakage_floor`. Factors that are correlated in the cohort leak into one another's blocks although the blocks are
    clean.

    Raises:
        UsageError: The tables do not fit together, or a block names a column that is not there.

    References:
        A Framework for the Quantitative Evaluation of Disentangled Representations (Eastwood and Williams, 2018)
    """
    array, columns, subjects = _checked(codes, blocks, factors, names, groups)
    with threadpool_limits(1):
        return _leakage(array, blocks, columns, subjects, seed)


def leakage_floor(
    codes: Num[np.ndarray, "_n _latents"] | pd.DataFrame,
    blocks: Mapping[str, Sequence[int]],
    factors: Shaped[np.ndarray, "_n _factors"] | pd.DataFrame,
    names: Sequence[str] | None = None,
    *,
    groups: Shaped[np.ndarray, " _n"] | None = None,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """What `leakage` gives with the factors permuted between subjects: how nothing looks in this cohort.

    Raises:
        UsageError: As `leakage`.
    """
    array, columns, subjects = _checked(codes, blocks, factors, names, groups)
    order = block_order(subjects, np.random.default_rng([seed, 1]))
    index = np.empty(len(order), dtype=np.int64)
    index[np.argsort(subjects, kind="stable")] = order
    permuted = {name: factor.rows(index) for name, factor in columns.items()}
    with threadpool_limits(1):
        return _leakage(array, blocks, permuted, subjects, seed)


def _checked(
    codes: Num[np.ndarray, "_n _latents"] | pd.DataFrame,
    blocks: Mapping[str, Sequence[int]],
    factors: Shaped[np.ndarray, "_n _factors"] | pd.DataFrame,
    names: Sequence[str] | None,
    groups: Shaped[np.ndarray, " _n"] | None,
) -> tuple[Num[np.ndarray, "n latents"], dict[str, Labels], np.ndarray]:
    array = checked_codes(codes)
    checked_blocks(blocks, array.shape[1])
    if len(factors) != len(array):
        raise UsageError(f"There are {len(array)} rows of codes and {len(factors)} of factors; give one row for each.")
    return array, named_factors(factors, None if names is None else list(names)), subject_index(groups, len(array))


def checked_blocks(blocks: Mapping[str, Sequence[int]], latents: int) -> None:
    """Nothing, if every block has columns and all of them exist.

    Raises:
        UsageError: A block is empty or names a column that is not there.
    """
    for name, columns in blocks.items():
        outside = [column for column in columns if not 0 <= column < latents]
        if outside or not len(columns):
            raise UsageError(f"Block {name!r} has columns {list(columns)}, but codes have columns 0 to {latents - 1}.")


def _leakage(
    codes: Num[np.ndarray, "n latents"],
    blocks: Mapping[str, Sequence[int]],
    factors: Mapping[str, Labels],
    subjects: np.ndarray,
    seed: int,
) -> dict[str, dict[str, float]]:
    return {
        block: {
            name: block_r2(codes[:, list(columns)], factor, subjects, np.random.default_rng([seed, 0]))
            for name, factor in factors.items()
        }
        for block, columns in blocks.items()
    }


def block_r2(
    codes: Num[np.ndarray, "n latents"], factor: Labels, subjects: Shaped[np.ndarray, " n"], rng: np.random.Generator
) -> float:
    """Held-out R2 of the better of a ridge regression and boosted trees; 0 if there is nothing to predict."""
    known = np.flatnonzero(factor.known)
    if not factor.varies or len(np.unique(subjects[known])) < 2:
        return 0.0
    columns, targets = standardised(codes[known]), factor.rows(known).targets()
    test = np.zeros(len(known), dtype=bool)
    folds = Sample(columns, (), subjects[known], test).folds(FOLDS, rng)
    return max(explained(held_out_predictions(fit, columns, targets, folds), targets) for fit in (ridge, boosted_trees))


def block_scores(
    sample: Sample, blocks: tuple[tuple[int, ...], ...], rng: np.random.Generator
) -> tuple[float, float, float, float, float]:
    """DCI disentanglement and completeness, InfoM, InfoC and MIG with blocks in the place of latents; each 0 to 1.

    DCI permutes a whole block at a time; the other three take for information the held-out R2 of `leakage`, at least 0.

    References:
        A Framework for the Quantitative Evaluation of Disentangled Representations (Eastwood and Williams, 2018)
        Disentanglement via Latent Quantization (Hsu, Dorrell, Whittington, Wu and Finn, 2023)
        Isolating Sources of Disentanglement in Variational Autoencoders (Chen, Li, Grosse and Duvenaud, 2018)
    """
    importance = permutation_importances(sample, blocks, rng).table
    found = told_by_blocks(sample, blocks, rng)
    concentration = dci_disentanglement(importance), dci_completeness(importance)
    return *concentration, infom(found.telling), infoc(found.told), mig(found.told)


def told_by_blocks(sample: Sample, blocks: tuple[tuple[int, ...], ...], rng: np.random.Generator) -> Information:
    """Held-out R2 of every factor from every block, at least 0, and whether that is more than chance."""
    codes = [sample.codes[:, list(block)] for block in blocks]
    told = np.array([[block_r2(code, factor, sample.subjects, rng) for factor in sample.factors] for code in codes])
    chance = 2 * np.log(max(2, told.size)) / len(np.unique(sample.subjects))
    return Information(np.clip(told, 0, 1), told > chance)

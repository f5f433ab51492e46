"""Knows how well each block of latents predicts each factor, and what that says of a partition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Num, Shaped
from threadpoolctl import threadpool_limits

from medisent.errors import UsageError
from medisent.metrics.importances import dci_completeness, dci_disentanglement, permutation_importances
from medisent.metrics.information import Information, infoc, infom, mig
from medisent.metrics.probes import Regression, boosted_trees, explained, held_out_predictions, ridge
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
    trees: bool = True,
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
        trees: Whether boosted trees are fitted too; the ridge regression alone is a twentieth of the work and sees
            only what is told on a straight line.

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
        return _leakage(array, blocks, columns, subjects, seed, (ridge, boosted_trees) if trees else (ridge,))


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
    probes: tuple[Regression, ...] = (ridge, boosted_trees),
) -> dict[str, dict[str, float]]:
    return {
        block: {
            name: block_r2(codes[:, list(columns)], factor, subjects, np.random.default_rng([seed, 0]), probes)
            for name, factor in factors.items()
        }
        for block, columns in blocks.items()
    }


def block_r2(
    codes: Num[np.ndarray, "n latents"],
    factor: Labels,
    subjects: Shaped[np.ndarray, " n"],
    rng: np.random.Generator,
    probes: tuple[Regression, ...] = (ridge, boosted_trees),
) -> float:
    """Held-out R2 of the best of these probes; 0 if there is nothing to predict."""
    known = np.flatnonzero(factor.known)
    if not factor.varies or len(np.unique(subjects[known])) < 2:
        return 0.0
    predictions, targets = _predictions(codes[known], factor.rows(known), subjects[known], rng, probes)
    return max(explained(predicted, targets) for predicted in predictions)


def _predictions(
    codes: Num[np.ndarray, "n latents"],
    factor: Labels,
    subjects: Shaped[np.ndarray, " n"],
    rng: np.random.Generator,
    probes: tuple[Regression, ...] = (ridge, boosted_trees),
) -> tuple[tuple[Float[np.ndarray, "n targets"], ...], Float[np.ndarray, "n targets"]]:
    """What these probes predict of held-out rows, and the targets."""
    columns, targets = standardised(codes), factor.targets()
    folds = Sample(columns, (), subjects, np.zeros(len(codes), dtype=bool)).folds(FOLDS, rng)
    return tuple(held_out_predictions(fit, columns, targets, folds) for fit in probes), targets


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
    importance, errors = permutation_importances(sample, blocks, rng), block_errors(sample, blocks, rng)
    return _concentration(importance.table, errors.information(np.arange(len(sample.codes))))


def halved_block_scores(
    sample: Sample, blocks: tuple[tuple[int, ...], ...], rng: np.random.Generator, halves: int
) -> tuple[Float[np.ndarray, " metrics"], Float[np.ndarray, "halves metrics"]]:
    """`block_scores`, and the same by the held-out errors on random halves of the subjects, all from one fit."""
    importance, errors = permutation_importances(sample, blocks, rng), block_errors(sample, blocks, rng)
    people = np.unique(sample.subjects)
    parts = [np.arange(len(sample.codes))]
    for _ in range(halves):
        parts.append(np.flatnonzero(np.isin(sample.subjects, rng.permutation(people)[: len(people) // 2])))
    found = np.array([_concentration(importance.on(rows), errors.information(rows)) for rows in parts])
    return found[0], found[1:]


def _concentration(
    importance: Float[np.ndarray, "blocks factors"], found: Information
) -> tuple[float, float, float, float, float]:
    concentration = dci_disentanglement(importance), dci_completeness(importance)
    return *concentration, infom(found.telling), infoc(found.told), mig(found.told)


@dataclass(frozen=True)
class BlockErrors:
    """How each held-out row of each factor was predicted from each block.

    Attributes:
        left: Squared error of every row by the better predictor; not a number where the factor is unknown.
        spread: Squared distance of every row from the factor's mean.
        subjects: Whose row each is.
    """

    left: Float[np.ndarray, "blocks factors n"]
    spread: Float[np.ndarray, "factors n"]
    subjects: Shaped[np.ndarray, " n"]

    def information(self, rows: Int[np.ndarray, " m"]) -> Information:
        """Held-out R2 of every factor from every block, 0 to 1, and whether that is more than chance, on some rows."""
        total = np.nansum(self.spread[:, rows], axis=1)
        left = np.nansum(self.left[:, :, rows], axis=2)
        told = np.where(total > 0, 1 - left / np.where(total > 0, total, 1.0), 0.0)
        chance = 2 * np.log(max(2, told.size)) / len(np.unique(self.subjects[rows]))
        return Information(np.clip(told, 0, 1), told > chance)


def block_errors(sample: Sample, blocks: tuple[tuple[int, ...], ...], rng: np.random.Generator) -> BlockErrors:
    """What is left of every factor, row by row, when it is predicted from each block."""
    shape = (len(blocks), len(sample.factors), len(sample.codes))
    left, spread = np.full(shape, np.nan), np.full(shape[1:], np.nan)
    for column, factor in enumerate(sample.factors):
        known = np.flatnonzero(factor.known)
        for row, block in enumerate(blocks):
            codes, own = sample.codes[known][:, list(block)], factor.rows(known)
            if len(np.unique(sample.subjects[known])) < 2:
                continue
            predictions, targets = _predictions(codes, own, sample.subjects[known], rng)
            errors = [((targets - predicted) ** 2).sum(axis=1) for predicted in predictions]
            left[row, column, known] = min(errors, key=lambda error: float(error.sum()))
            spread[column, known] = ((targets - targets.mean(axis=0)) ** 2).sum(axis=1)
    return BlockErrors(left, spread, sample.subjects)

"""Knows the rows that a metric sees (codes, factors, subjects) and how they are halved, shuffled and made perfect."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Num, Shaped
from scipy.special import entr

from medisent.errors import UsageError

MOST_LEVELS = 20
"""A factor with more distinct values than this is continuous."""

BINS = 10
"""Into how many equally filled bins a continuous factor is cut where a metric needs levels."""


@dataclass(frozen=True)
class Labels:
    """One factor's value in every row.

    Attributes:
        values: The numbers as given; not a number where the label is unknown.
        levels: The index of the value among the factor's levels (of the bin, if continuous); -1 where unknown.
        discrete: Whether the factor has few levels, as opposed to a continuous scale.
        nominal: Whether the levels have no order (text labels), so that their index is not a measurement.
    """

    values: Float[np.ndarray, " n"]
    levels: Int[np.ndarray, " n"]
    discrete: bool
    nominal: bool = False

    @property
    def known(self) -> Bool[np.ndarray, " n"]:
        """Which rows have a label."""
        known: np.ndarray = self.levels >= 0
        return known

    @property
    def varies(self) -> bool:
        """Whether at least two different values are known."""
        known = self.values[self.known]
        return known.size > 1 and bool(np.ptp(known) > 0)

    @property
    def entropy(self) -> float:
        """Entropy of the levels' frequencies, in nats."""
        share = np.bincount(self.levels[self.known]) / self.known.sum()
        return float(entr(share).sum())

    def targets(self) -> Float[np.ndarray, "n targets"]:
        """What a regression should predict: the value, or one indicator per level of a nominal factor."""
        if not self.nominal:
            return self.values[:, None]
        indicators: np.ndarray = self.levels[:, None] == np.unique(self.levels[self.known])[None, :]
        return indicators.astype(np.float64)

    def rows(self, index: Int[np.ndarray, " m"]) -> Labels:
        """The same factor on some of the rows."""
        return replace(self, values=self.values[index], levels=self.levels[index])


@dataclass(frozen=True)
class Sample:
    """Codes and factors, row by row, and whom each row belongs to.

    Attributes:
        codes: The latents, as given.
        factors: The factors that vary.
        subjects: An index per row; rows of one subject are never torn apart.
        test: The rows kept for testing; only the compatibility metrics look at it, the others cross-fit.
    """

    codes: Num[np.ndarray, "n latents"]
    factors: tuple[Labels, ...]
    subjects: Int[np.ndarray, " n"]
    test: Bool[np.ndarray, " n"]

    @property
    def standardised(self) -> Float[np.ndarray, "n latents"]:
        """The codes with mean 0 and standard deviation 1; a dead code is 0 everywhere."""
        return standardised(self.codes)

    def rows(self, index: Int[np.ndarray, " m"]) -> Sample:
        """Some of the rows; a factor that no longer varies there is left out."""
        factors = tuple(factor for factor in (f.rows(index) for f in self.factors) if factor.varies)
        return Sample(self.codes[index], factors, self.subjects[index], self.test[index])

    def alive(self) -> Sample:
        """The same rows without dead codes."""
        return replace(self, codes=self.codes[:, np.ptp(self.standardised, axis=0) > 0])

    def half(self, rng: np.random.Generator) -> Sample:
        """All rows of a random half of the subjects."""
        unique = np.unique(self.subjects)
        chosen = rng.permutation(unique)[: len(unique) // 2]
        return self.rows(np.flatnonzero(np.isin(self.subjects, chosen)))

    def shuffled(self, rng: np.random.Generator) -> Sample:
        """The factors' rows handed from subject to subject, together, so that codes know nothing of them."""
        order = block_order(self.subjects, rng)
        home = np.argsort(self.subjects, kind="stable")
        index = np.empty(len(order), dtype=np.int64)
        index[home] = order
        return replace(self, factors=tuple(factor.rows(index) for factor in self.factors))

    def unrelated(self, rng: np.random.Generator) -> Sample:
        """Each code's rows shuffled by themselves, so that codes know nothing of one another."""
        home = np.argsort(self.subjects, kind="stable")
        codes = np.empty_like(self.codes)
        for latent in range(codes.shape[1]):
            codes[home, latent] = self.codes[block_order(self.subjects, rng), latent]
        return replace(self, codes=codes)

    def perfect(self, rng: np.random.Generator) -> Sample:
        """The standardised factors themselves as codes, one latent each, the spare latents nearly silent."""
        n, latents = self.codes.shape
        spread = np.full(max(latents, len(self.factors)), 0.01)
        spread[: len(self.factors)] = 0.001
        codes = rng.normal(size=(n, len(spread))) * spread
        for column, factor in enumerate(self.factors):
            codes[:, column] += standardised(factor.values[:, None])[:, 0]
        return replace(self, codes=codes)

    def folds(self, count: int, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
        """The fold of every row, at most ``count`` of them, subjects whole."""
        unique, inverse = np.unique(self.subjects, return_inverse=True)
        folds = np.arange(len(unique)) % min(count, len(unique))
        return rng.permutation(folds)[inverse]


def standardised(columns: Num[np.ndarray, "n columns"]) -> Float[np.ndarray, "n columns"]:
    """Columns with mean 0 and standard deviation 1; constant columns and unknown values become 0."""
    numbers = columns.astype(np.float64)
    known = np.isfinite(numbers)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, numbers, 0.0).sum(axis=0) / count
    centred = np.where(known, numbers - mean, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=0) / count)
    live = deviation > 1e-9 * (np.abs(mean) + 1e-300)
    return np.where(live, centred / np.where(live, deviation, 1.0), 0.0)


def block_order(subjects: Int[np.ndarray, " n"], rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """Row numbers subject by subject, in a random order of the subjects, rows within a subject in order."""
    unique, inverse = np.unique(subjects, return_inverse=True)
    rank = rng.permutation(len(unique))
    return np.argsort(rank[inverse], kind="stable")


def quantile_bins(values: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " n"]:
    """The bin of every value, of at most ``count`` about equally filled ones; equal values share a bin.

    An edge moves into a gap between clusters of values if there is one within half a bin, so that a code which keeps a
    factor's levels apart is not cut through its levels.
    """
    if len(values) < 2:
        return np.zeros(len(values), dtype=np.int64)
    ordered = np.sort(values)
    gaps = np.diff(ordered)
    cuts = []
    for edge in range(1, count):
        first = min(int((edge - 0.5) * len(ordered) / count), len(gaps) - 1)
        window = gaps[first : max(first + 1, int((edge + 0.5) * len(ordered) / count))]
        widest = int(np.argmax(window))
        if window[widest] > 20 * (window.sum() - window[widest]) / max(len(window) - 1, 1):
            cuts.append((ordered[first + widest] + ordered[first + widest + 1]) / 2)
        else:
            cuts.append(float(np.quantile(ordered, edge / count)))
    return np.searchsorted(np.unique(cuts), values, side="right")


def labels(values: Shaped[np.ndarray, " n"], nominal: bool = False) -> Labels:
    """A factor from its column: few values make it discrete, many continuous; unknown ones are kept as unknown."""
    numbers = values.astype(np.float64)
    known = np.isfinite(numbers)
    unique, inverse = np.unique(numbers[known], return_inverse=True)
    discrete = nominal or len(unique) == 2 or (len(unique) <= MOST_LEVELS and 3 * len(unique) <= known.sum())
    levels = np.full(len(numbers), -1, dtype=np.int64)
    if known.any():
        levels[known] = inverse if discrete else quantile_bins(numbers[known], min(BINS, max(2, len(unique) // 3)))
    return Labels(np.where(known, numbers, np.nan), levels, bool(discrete), nominal)


def named_factors(
    factors: Shaped[np.ndarray, "n factors"] | pd.DataFrame, names: list[str] | None = None
) -> dict[str, Labels]:
    """Every column as a factor under its name; text columns are nominal.

    Raises:
        UsageError: There are not as many names as columns.
    """
    table = factors if isinstance(factors, pd.DataFrame) else pd.DataFrame(np.asarray(factors))
    keys = [str(column) for column in table.columns] if names is None else list(names)
    if len(keys) != table.shape[1]:
        raise UsageError(f"{table.shape[1]} factors came with {len(keys)} names; give one name for each column.")
    return {key: _column(table.iloc[:, position]) for position, key in enumerate(keys)}


def _column(column: pd.Series) -> Labels:
    if pd.api.types.is_numeric_dtype(column.dtype):
        return labels(column.to_numpy(dtype=np.float64, na_value=np.nan))
    numbers = pd.to_numeric(column, errors="coerce")
    if bool((numbers.notna() == column.notna()).all()):
        return labels(numbers.to_numpy(dtype=np.float64, na_value=np.nan))
    index = column.astype("category").cat.codes.to_numpy().astype(np.float64)
    return labels(np.where(index < 0, np.nan, index), nominal=True)


def checked_codes(codes: Num[np.ndarray, "n latents"] | pd.DataFrame) -> Num[np.ndarray, "n latents"]:
    """The codes as a table of finite numbers.

    Raises:
        UsageError: They are not a table, are empty, or hold a number that is not finite.
    """
    array = np.ascontiguousarray(codes)
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiub":
        raise UsageError(f"Codes must be a table of numbers, one row a scan; found shape {array.shape}, {array.dtype}.")
    bad = int((~np.isfinite(array)).any(axis=1).sum())
    if bad:
        raise UsageError(f"{bad} of {len(array)} rows of codes hold a number that is not finite; leave these rows out.")
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def subject_index(groups: Shaped[np.ndarray, " _n"] | None, n: int) -> Int[np.ndarray, " n"]:
    """An index per row that is equal for rows of one subject; without groups every row is its own subject.

    Raises:
        UsageError: There is not one group a row, or fewer than two subjects.
    """
    if groups is None:
        index = np.arange(n)
    else:
        if len(groups) != n:
            raise UsageError(f"There are {n} rows and {len(groups)} groups; give the subject of every row.")
        index = pd.factorize(np.asarray(groups))[0].astype(np.int64)
        index = np.where(index < 0, index.max() + 1 + np.arange(n), index)
    if len(np.unique(index)) < 2:
        raise UsageError(f"All {n} rows belong to one subject, but to hold rows out takes at least two subjects.")
    return index


def sample(
    codes: Num[np.ndarray, "_n _latents"] | pd.DataFrame,
    factors: Shaped[np.ndarray, "_n _factors"] | pd.DataFrame,
    groups: Shaped[np.ndarray, " _n"] | None = None,
    test: Bool[np.ndarray, " n"] | None = None,
) -> Sample:
    """Codes and factors as the metrics see them; factors that never vary are left out.

    Raises:
        UsageError: The tables do not fit together, or no factor varies.
    """
    array = checked_codes(codes)
    columns = tuple(named_factors(factors).values())
    if len(factors) != len(array):
        raise UsageError(f"There are {len(array)} rows of codes and {len(factors)} of factors; give one row for each.")
    varying = tuple(column for column in columns if column.varies)
    if not varying:
        raise UsageError(f"None of the {len(columns)} factors varies, so there is nothing that codes could tell apart.")
    where = np.zeros(len(array), dtype=bool) if test is None else test
    return Sample(array, varying, subject_index(groups, len(array)), where)

"""Which columns go together, whatever the form of their relation: distance correlation, with a p-value by permutation.

References:
    Measuring and Testing Dependence by Correlation of Distances (Szekely, Rizzo and Bakirov, 2007)
    Partial Distance Correlation with Methods for Dissimilarities (Szekely and Rizzo, 2014)
    A Simple Sequentially Rejective Multiple Test Procedure (Holm, 1979)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

_MOST_ROWS = 200
_FEWEST_ROWS = 12
_STRONG = 0.25
_LEVEL = 0.05
_PERMUTATIONS = 999


@dataclass(frozen=True, eq=False)
class Variable:
    """What is known of each row, as numbers or as levels.

    Attributes:
        values: Numbers; or, of levels, their indices. NaN is unknown.
        levels: Whether two values are either the same or not.
    """

    values: Float[np.ndarray, " n"]
    levels: bool = False


@dataclass(frozen=True)
class Dependence:
    """Two variables that go together.

    Attributes:
        one: The first.
        other: The second.
        strength: Their distance correlation without its bias, 0 to 1.
        p: How often a random permutation is as dependent; not corrected.
    """

    one: str
    other: str
    strength: float
    p: float


def dependent(
    variables: Mapping[str, Variable], pairs: Sequence[tuple[str, str]], seed: int = 0
) -> tuple[Dependence, ...]:
    """The pairs that go together strongly and by more than chance, strongest first.

    Over all pairs that are looked at, whatever is in them, a false one is found with a probability of at most 0.05
    (Holm). Of many rows 200 are taken, evenly spread.

    Arguments:
        variables: By name, of the same rows.
        pairs: Of names.
        seed: Of the permutations.
    """
    rng = np.random.default_rng(seed)
    enough = [pair for pair in pairs if _rows(*(variables[name] for name in pair)).sum() >= _FEWEST_ROWS]
    draws = max(_PERMUTATIONS, math.ceil(2 * len(enough) / _LEVEL))
    strong = []
    for one, other in enough:
        rows = _rows(variables[one], variables[other])
        distances = [_centred(variables[name], rows) for name in (one, other)]
        strength = correlation(*distances)
        if strength >= _STRONG:
            p = permutation_p(distances[0], distances[1], draws, rng)
            strong.append(Dependence(one, other, strength, p))
    strong.sort(key=lambda found: found.p)
    kept = []
    for rank, found in enumerate(strong):
        if found.p * (len(enough) - rank) > _LEVEL:
            break
        kept.append(found)
    return tuple(sorted(kept, key=lambda found: -found.strength))


def correlation(one: Float[np.ndarray, "n n"], other: Float[np.ndarray, "n n"]) -> float:
    """The distance correlation of two variables from their centred distances, bias removed, 0 to 1."""
    size = math.sqrt(float((one * one).sum()) * float((other * other).sum()))
    return math.sqrt(max(0.0, float((one * other).sum()) / size)) if size > 0 else 0.0


def permutation_p(
    one: Float[np.ndarray, "n n"], other: Float[np.ndarray, "n n"], draws: int, rng: np.random.Generator
) -> float:
    """How often rows in random order are at least as dependent, counting the rows as they are; above 0.

    It is drawn no further once it is clear that this is often.
    """
    found = float((one * other).sum())
    as_far = drawn = 0
    while drawn < draws and as_far <= _LEVEL * draws:
        order = rng.permutation(len(other))
        as_far += float((one * other[order][:, order]).sum()) >= found
        drawn += 1
    return (1 + as_far) / (1 + drawn)


def centred(values: Float[np.ndarray, " n"], *, levels: bool = False) -> Float[np.ndarray, "n n"]:
    """The distances between values, centred without bias (U-centred): rows add up to 0, the diagonal is 0."""
    apart = np.abs(values[:, None] - values)
    distances: np.ndarray = (apart > 0).astype(np.float64) if levels else apart
    n = len(values)
    rows = distances.sum(0) / (n - 2)
    found: np.ndarray = distances - rows - rows[:, None] + distances.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(found, 0)
    return found


def _rows(one: Variable, other: Variable) -> Bool[np.ndarray, " n"]:
    """The rows of which both are known, 200 of them at most."""
    both: np.ndarray = np.isfinite(one.values) & np.isfinite(other.values)
    where = np.flatnonzero(both)
    if len(where) <= _MOST_ROWS:
        return both
    kept = np.zeros(len(both), bool)
    kept[where[np.linspace(0, len(where) - 1, _MOST_ROWS).round().astype(int)]] = True
    return kept


def _centred(variable: Variable, rows: Bool[np.ndarray, " all"]) -> Float[np.ndarray, "n n"]:
    return centred(variable.values[rows], levels=variable.levels)

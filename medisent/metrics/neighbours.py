"""Knows mutual information by counting: of two labellings, and of a number and a label by the number's neighbours."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.special import digamma

NEIGHBOURS = 10


def shared_information(one: Int[np.ndarray, " n"], other: Int[np.ndarray, " n"]) -> float:
    """Plug-in mutual information of two labellings from 0, in nats."""
    counts = np.bincount(one * (int(other.max()) + 1) + other, minlength=int((one.max() + 1) * (other.max() + 1)))
    share = counts.reshape(-1, int(other.max()) + 1) / len(one)
    apart = share.sum(axis=1, keepdims=True) * share.sum(axis=0)
    seen = share > 0
    return max(0.0, float((share[seen] * np.log(share[seen] / apart[seen])).sum()))


def neighbour_information(code: Float[np.ndarray, " n"], levels: Int[np.ndarray, " n"], seed: int) -> float:
    """Mutual information of a code and a level in nats, by ten nearest neighbours; 0 if no level has two rows.

    The number of scikit-learn's ``mutual_info_classif``, whose trees of neighbours a sorted code does without. It can
    differ where a level has fewer than 23 rows: there scikit-learn rounds distances.

    References:
        Mutual Information between Discrete and Continuous Data Sets (Ross, 2014)
    """
    size = np.bincount(levels)[levels]
    if size.max() < 2:
        return 0.0
    spread = code.std()
    scaled = code / (spread if spread > 0 else 1.0)
    noise = np.random.RandomState(seed).standard_normal(len(code))
    scaled = scaled + 1e-10 * max(1.0, float(np.mean(np.abs(scaled)))) * noise
    radius = np.zeros(len(code))
    for level in np.unique(levels[size > 1]):
        radius[levels == level] = _to_neighbour(scaled[levels == level])
    several = size > 1
    near, size = _nearer(scaled[several], radius[several]), size[several]
    asked = np.minimum(NEIGHBOURS, size - 1)
    told = digamma(len(size)) + np.mean(digamma(asked)) - np.mean(digamma(size)) - np.mean(digamma(near))
    return max(0.0, float(told))


def _to_neighbour(code: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The distance of every number to its tenth neighbour, or to the last where there are fewer."""
    count = min(NEIGHBOURS, len(code) - 1)
    order = np.argsort(code)
    padded = np.pad(code[order], count, constant_values=(-np.inf, np.inf))
    found = np.full(len(code), np.inf)
    # So many neighbours lie on both sides together: of every way to deal them out the nearest counts.
    for left in range(count + 1):
        lower = padded[count - left : len(padded) - count - left]
        upper = padded[2 * count - left : len(padded) - left]
        found = np.minimum(found, np.maximum(code[order] - lower, upper - code[order]))
    distance = np.empty(len(code))
    distance[order] = found
    return distance


def _nearer(code: Float[np.ndarray, " n"], radius: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """How many numbers lie nearer to each than its radius, itself among them."""
    below, above = np.sort(code), np.sort(-code)
    least = np.nextafter(radius, 0)
    near: np.ndarray = len(code) - _further(below, code, least) - _further(above, -code, least)
    return near


def _further(
    ordered: Float[np.ndarray, " n"], code: Float[np.ndarray, " n"], radius: Float[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """How many of the ordered numbers lie below each by more than its radius."""
    count: np.ndarray = np.minimum(np.searchsorted(ordered, code - radius), len(code) - 1)
    while True:  # the difference itself decides, since code - radius was rounded
        back = (count > 0) & (code - ordered[np.maximum(count - 1, 0)] <= radius)
        on = code - ordered[count] > radius
        if not (back | on).any():
            return count
        count = count + on - back

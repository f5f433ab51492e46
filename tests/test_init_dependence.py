"""Laws of what tells that two columns go together: found in any form, and hardly ever where there is nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from medisent.config.proposing.dependence import Variable, centred, correlation, dependent, permutation_p


def noise(seed, rows=40):
    return np.random.default_rng(seed).normal(size=rows)


def strength(one, other, **levels):
    return correlation(centred(one), centred(other, **levels))


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10), st.floats(-5, 5))
@settings(max_examples=25, deadline=None)
def test_a_linear_relation_is_one_whatever_its_scale(seed, scale, shift):
    values = noise(seed)
    assert strength(values, -scale * values + shift) == pytest.approx(1)


def test_distances_are_centred_without_bias():
    distances = centred(noise(0))
    assert np.abs(distances.sum(0)).max() < 1e-10
    assert np.trace(distances) == 0
    products = [(centred(noise(2 * n)) * centred(noise(2 * n + 1))).mean() for n in range(300)]
    assert abs(np.mean(products)) < 4 * np.std(products) / np.sqrt(len(products))


def test_relations_that_no_correlation_sees_are_found():
    values = noise(1, 120)
    found = dependent({"a": Variable(values), "b": Variable(np.abs(values) + 0.1 * noise(2, 120))}, [("a", "b")])
    assert [(pair.one, pair.other) for pair in found] == [("a", "b")]
    sites = Variable((values > 0.5).astype(float) + 2 * (values < -0.5), levels=True)
    assert dependent({"a": Variable(values), "site": sites}, [("a", "site")])


def test_unknown_values_and_few_rows_say_nothing():
    values = noise(3)
    holes = values.copy()
    holes[11:] = np.nan
    assert dependent({"a": Variable(values), "b": Variable(holes)}, [("a", "b")]) == ()
    holes[:20] = values[:20]
    assert dependent({"a": Variable(values), "b": Variable(holes)}, [("a", "b")])


def test_p_values_of_nothing_are_evenly_spread():
    rng = np.random.default_rng(0)
    found = [permutation_p(centred(noise(n, 15)), centred(noise(1000 + n, 15)), 199, rng) for n in range(200)]
    assert all(0 < p <= 1 for p in found)
    for level in (0.05, 0.5):
        low, high = binom.interval(0.9999, 200, level)
        assert low <= sum(p <= level for p in found) <= high


def test_a_cohort_without_relations_is_seldom_warned_of():
    """Of 60 cohorts with ten pairs each no more are warned of than the 5 % that are promised let expect."""
    names = "abcde"
    pairs = [(one, other) for one in names for other in names if one < other]
    alarms = 0
    for cohort in range(60):
        variables = {name: Variable(noise(10 * cohort + n, 25)) for n, name in enumerate(names)}
        alarms += bool(dependent(variables, pairs))
    assert alarms <= binom.ppf(0.9999, 60, 0.05)


def test_many_rows_are_thinned_and_the_same_rows_give_the_same_answer():
    values = noise(5, 5000)
    variables = {"a": Variable(values), "b": Variable(values + noise(6, 5000))}
    first, again = (dependent(variables, [("a", "b")]) for _ in range(2))
    assert first == again
    assert first[0].p < 0.01

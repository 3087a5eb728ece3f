"""Correlations with their intervals and their controls."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from persona_vectors.correlation import (
    MIN_CLUSTERS,
    correlate,
    correlate_within,
    paired_difference,
    pearson,
    random_correlations,
    resampled_rows,
    share_beaten,
    spearman,
    with_interval,
)
from persona_vectors.statistics import group_codes, random_directions

RNG = np.random.default_rng(0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 40))
def test_they_are_scipys(seed, n):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=n), rng.integers(0, 5, n) + rng.normal(size=n) * 0.1
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(8, 30), st.booleans())
def test_intervals_are_those_of_samples_drawn_one_by_one(seed, n, ties):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=n), rng.normal(size=n)
    if ties:
        x, y = x.round(), y.round()
    codes = group_codes([*range(8), *rng.integers(0, n, n - 8).tolist()])
    rows = resampled_rows(codes, 300, 5)
    found = correlate(x, y, codes, n_boot=300, seed=5)
    for fast, statistic in ((found.pearson, pearson), (found.spearman, spearman)):
        slow = with_interval(statistic, x, y, rows, codes)
        assert (fast.value is None) == (slow.value is None) and (fast.low is None) == (slow.low is None)
        if fast.low is not None:
            assert (fast.value, fast.low, fast.high) == pytest.approx((slow.value, slow.low, slow.high), abs=1e-9)


def test_few_clusters_have_no_interval():
    """Three points that rise: every resample with two of them has r = 1, and the interval would be [1, 1]."""
    few = correlate([1, 2, 4], [1, 2, 3], list("abc"))
    assert few.pearson.value > 0.98 and few.pearson.low is None and "no interval" in few.pearson.text()
    assert correlate(range(MIN_CLUSTERS), [1, 5, 2, 6, 3, 7, 4, 8], range(MIN_CLUSTERS)).pearson.low is not None


def test_missing_points_are_left_out_and_counted():
    x, y = [1, 2, None, 4, 5], [2, 4, 6, float("nan"), 11]
    found = correlate(x, y, list("abcde"))
    assert (found.n, found.n_clusters) == (3, 3)
    assert found.pearson.value == pytest.approx(pearson(np.array([1.0, 2, 5]), np.array([2.0, 4, 11])))


def test_a_constant_column_has_no_correlation():
    found = correlate([1, 1, 1, 1], [1, 2, 3, 4], list("abcd"))
    assert found.pearson.value is None and found.pearson.text() == "not defined"


def test_points_of_one_cluster_count_once():
    """Ten copies of each point say no more than one: the interval stays as wide."""
    x, y = RNG.normal(size=12), RNG.normal(size=12)
    names = list(range(12))
    once = correlate(x, y, names)
    ten = correlate(np.tile(x, 10), np.tile(y, 10), names * 10)
    assert ten.pearson.value == pytest.approx(once.pearson.value)
    assert ten.pearson.high - ten.pearson.low == pytest.approx(once.pearson.high - once.pearson.low, abs=0.1)
    assert ten.n_clusters == 12


def test_within_conditions_sees_what_the_overall_correlation_hides():
    """Between conditions perfect, within them nothing; and the other way round (Simpson)."""
    conditions = np.repeat(np.arange(8), 20)
    noise, other = RNG.normal(size=160), RNG.normal(size=160)
    x, y = 10 * conditions + noise, 10 * conditions + other
    clusters = np.tile(np.arange(20), 8)
    assert correlate(x, y, clusters).pearson.value > 0.99
    within = correlate_within(x, y, conditions, clusters).pearson
    assert abs(within.value) < 0.25 and within.low < 0 < within.high
    hidden = correlate_within(-10 * conditions + noise, 10 * conditions + noise, conditions, clusters)
    assert hidden.pearson.value == pytest.approx(1.0)


def test_within_conditions_of_one_point_each_is_refused():
    with pytest.raises(ValueError, match="0 points share a condition"):
        correlate_within([1, 2, 3, 4], [1, 2, 3, 4], list("abcd"), list("abcd"))


def test_the_paired_difference_is_paired():
    """Two columns that share their noise differ by little, surely; apart, each is as unsure as its own interval."""
    y = RNG.normal(size=40)
    x = y + RNG.normal(size=40)
    close = x + 0.05 * RNG.normal(size=40)
    found = paired_difference(x, close, y, list(range(40)))
    assert found.value == pytest.approx(pearson(x, y) - pearson(close, y))
    alone = correlate(x, y, list(range(40))).pearson
    assert found.high - found.low < 0.2 * (alone.high - alone.low)
    assert paired_difference(x, x, y, list(range(40))).value == 0


def test_random_correlations_are_those_of_each_direction():
    changes, y = RNG.normal(size=(9, 6)), RNG.normal(size=9)
    found = random_correlations(changes, y, n_directions=20, seed=3)
    directions = random_directions(20, 6, 1.0, 3).double().numpy()
    one_by_one = [abs(pearson(changes @ direction, y)) for direction in directions]
    np.testing.assert_allclose(found, one_by_one)


def test_a_dilution_axis_is_reproduced_by_random_directions():
    """Points along one line in activation space: every direction correlates, so a high r is no evidence there."""
    shares = np.linspace(0, 1, 8)
    changes = shares[:, None] * RNG.normal(size=64) + 0.01 * RNG.normal(size=(8, 64))
    random = random_correlations(changes, shares)
    assert np.median(random) > 0.95
    assert share_beaten(0.93, random) < 0.5


def test_share_beaten_counts_and_refuses_nothing():
    assert share_beaten(0.5, np.array([0.1, 0.4, 0.6, 0.9])) == 0.5
    assert share_beaten(None, np.array([0.1])) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: correlate([1, 2, 3], [1, 2], list("abc")), "different lengths"),
        (lambda: correlate([1, None, 3], [1, 2, 3], list("abc")), "2 of 3 points"),
        (lambda: random_correlations(np.zeros((3, 2)), [1, 2]), "expected .n, d_model."),
        (lambda: random_correlations(np.full((3, 2), np.nan), [1, 2, 3]), "finite activations"),
    ],
)
def test_what_cannot_be_correlated_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()

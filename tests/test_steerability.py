"""Slopes against numpy's own fit, shares by hand, and what is missing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from persona_vectors.statistics import cluster_bootstrap_mean
from persona_vectors.steerability import FLAT, frontier, steerability

NAN = float("nan")


def test_slopes_by_hand():
    found = steerability(
        [0, 1, 2],
        [[10, 20, 30], [30, 20, 10], [5, 5, 5], [NAN, 10, 14], [0, NAN, NAN], [NAN] * 3],
        ["a", "a", "b", "b", "c", "c"],
    )
    np.testing.assert_allclose(found.slopes, [10, -10, 0, 4, NAN, NAN])
    assert (found.n_used, found.n_samples, found.slope.n_dropped) == (4, 6, 2)
    assert found.slope.mean == 1 and found.wrong_way.mean == 0.25  # a flat sample does not move the wrong way
    assert found.slope.n_clusters == 2


scores = arrays.arrays(
    float, st.tuples(st.integers(1, 12), st.just(4)), elements=st.one_of(st.floats(0, 100), st.just(NAN))
)
COEFS = [0.0, 0.5, -1.5, 2.0]


@settings(max_examples=60, deadline=None)
@given(scores=scores, data=st.data())
def test_each_slope_is_the_least_squares_fit_and_the_means_are_the_bootstrap_of_them(scores, data):
    clusters = data.draw(st.lists(st.sampled_from("abc"), min_size=len(scores), max_size=len(scores)))
    found = steerability(COEFS, scores, clusters, n_boot=200)
    for row, slope in zip(scores, found.slopes, strict=True):
        there = np.isfinite(row)
        if there.sum() < 2:
            assert np.isnan(slope)
        else:
            fitted = np.polyfit(np.array(COEFS)[there], row[there], 1)[0]
            assert slope == pytest.approx(fitted, abs=1e-6)
    assert found.slope == cluster_bootstrap_mean(found.slopes, clusters, 200) or found.n_used == 0
    if found.n_used:
        assert 0 <= found.wrong_way.mean <= 1
        turned = steerability([-c for c in COEFS], scores, clusters, n_boot=200)
        flat = (np.abs(found.slopes) <= FLAT / np.ptp(COEFS)).sum() / found.n_used
        assert turned.slope.mean == pytest.approx(-found.slope.mean)
        assert turned.wrong_way.mean == pytest.approx(1 - found.wrong_way.mean, abs=flat + 1e-9)


def test_scores_that_carry_nothing_move_the_wrong_way_half_the_time():
    """And the interval of the mean slope holds 0 in about 95 of 100 such studies."""
    rng = np.random.default_rng(0)
    held, shares = 0, []
    for _ in range(100):
        found = steerability([0, 1, 2], rng.normal(50, 10, (60, 3)), np.repeat(np.arange(20), 3), n_boot=400)
        held += found.slope.low <= 0 <= found.slope.high
        shares.append(found.wrong_way.mean)
    assert 88 <= held <= 100 and np.mean(shares) == pytest.approx(0.5, abs=0.03)


def test_equal_scores_are_flat_whatever_rounding_makes_of_them():
    found = steerability([0.1, 0.2, 0.7], [[72.13] * 3] * 5, list("abcde"))
    assert found.wrong_way.mean == 0 and abs(found.slope.mean) < 1e-9


def test_less_than_half_a_point_over_all_coefficients_is_no_direction():
    assert steerability([0, 2], [[10.0, 9.6]] * 4, list("abcd")).wrong_way.mean == 0
    assert steerability([0, 2], [[10.0, 9.4]] * 4, list("abcd")).wrong_way.mean == 1


def test_one_question_has_a_mean_and_no_interval():
    found = steerability([0, 1], [[1, 2], [1, 4]], ["a", "a"])
    assert found.slope.mean == 2 and np.isnan(found.slope.low)
    nothing = steerability([0, 1], [[1, NAN]], ["a"])
    assert np.isnan(nothing.slope.mean) and np.isnan(nothing.wrong_way.mean) and nothing.n_used == 0


@pytest.mark.parametrize(
    ("coefs", "scores", "clusters", "message"),
    [
        ([1], [[1]], ["a"], "two different coefficients"),
        ([1, 1], [[1, 2]], ["a"], "two different coefficients; got 1, 1"),
        ([0, NAN], [[1, 2]], ["a"], "two different coefficients"),
        ([0, 1], [[1, 2, 3]], ["a"], r"shape \(1, 3\)"),
        ([0, 1], [[1, 2]], ["a", "b"], "2 clusters"),
        ([0, 1], np.zeros((0, 2)), [], "at least one"),
        ([0, 1], [[1, np.inf]], ["a"], "infinite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(coefs, scores, clusters, message):
    with pytest.raises(ValueError, match=message):
        steerability(coefs, scores, clusters)


def test_the_frontier_is_the_best_trait_that_stays_coherent():
    runs = [("none", 5, 95), ("one", 40, 80), ("two", 70, 74.9), ("lost", None, 90), ("nan", NAN, 99), ("odd", 99, NAN)]
    assert frontier(runs) == ("one", 40, 80)
    assert frontier(runs, 70) == ("two", 70, 74.9)
    assert frontier(runs, 96) is None and frontier([]) is None
    assert frontier([("a", 5, 80), ("b", 5, 90), ("c", 5, 90)]) == ("b", 5, 90)
    with pytest.raises(ValueError, match="min_coherence"):
        frontier(runs, NAN)


@settings(max_examples=60, deadline=None)
@given(runs=st.lists(st.tuples(st.integers(), st.floats(0, 100), st.floats(0, 100))), limit=st.floats(0, 100))
def test_nothing_coherent_beats_the_frontier(runs, limit):
    best, allowed = frontier(runs, limit), [run for run in runs if run[2] >= limit]
    assert (best is None) == (not allowed)
    if best is not None:
        assert best in allowed and best[1] == max(trait for _, trait, _ in allowed)

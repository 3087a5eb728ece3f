"""AUC between levels: equal to plain formulas, and its controls find nothing where nothing is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.screen_auc import Control, _Ladder, auc_interval, oriented_aucs, permuted_aucs, separation
from persona_vectors.statistics import auc, expanded_percentiles

NAN = float("nan")


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_the_ladder_is_the_weighted_chance_of_a_pair(rows):
    values, above, below = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    pairs = [(u * d, (x > y) + (x == y) / 2) for x, u, _ in rows for y, _, d in rows]
    total = sum(weight for weight, _ in pairs)
    found = _Ladder(values).auc(above, below)
    if total:
        assert found == pytest.approx(sum(weight * won for weight, won in pairs) / total)
    else:
        assert np.isnan(found)


def test_the_interval_is_that_of_resampled_questions():
    rng = np.random.default_rng(1)
    codes = np.repeat(np.arange(12), 3)
    is_other = np.tile([False, True, True], 12)
    values = rng.normal(size=36) + is_other
    draws = np.random.default_rng(5)
    resampled = []
    for _ in range(300):
        counts = draws.multinomial(12, np.full(12, 1 / 12))
        rows = np.concatenate([np.repeat(np.flatnonzero(codes == k), counts[k]) for k in range(12)])
        resampled.append(auc(values[rows][is_other[rows]], values[rows][~is_other[rows]]))
    expected = expanded_percentiles(np.array(resampled), 12, 0.95)
    assert auc_interval(values, is_other, codes, 300, 5) == pytest.approx(expected)
    assert np.isnan(auc_interval(values[:3], is_other[:3], codes[:3], 10, 0)).all()


def test_permuting_swaps_shared_questions_whole_and_exchanges_the_others():
    values = np.array([1.0, 2.0, 5.0, 6.0])
    shared = permuted_aucs(values, np.array([False, True, False, True]), np.array([0, 0, 1, 1]), 200, 0)
    assert set(shared) == {0.75, 0.5, 0.25}  # each question one way or the other
    apart = permuted_aucs(values, np.array([False, True, False, True]), np.arange(4), 300, 0)
    assert set(apart) == {0.0, 0.25, 0.5, 0.75, 1.0}
    together = permuted_aucs(values, np.array([False, False, True, True]), np.array([0, 0, 1, 1]), 200, 0)
    assert set(together) == {0.0, 1.0}  # a question's rows stay together


def test_random_directions_are_turned_on_the_half_that_they_are_not_scored_on():
    rng = np.random.default_rng(0)
    codes, is_other = np.tile(np.arange(60), 2), np.repeat([False, True], 60)
    real = rng.normal(size=120) + 2.0 * is_other
    noise = rng.normal(size=(120, 200))
    found = oriented_aucs(np.column_stack([real, -real, noise]), is_other, codes, 0)
    assert found is not None and found[0] == found[1] > 0.85
    assert abs(found[2:].mean() - 0.5) < 0.02  # turned by the rows that score it, noise would lie above one half
    assert oriented_aucs(real[:, None], is_other, np.zeros(120, dtype=int), 0) is None


def test_a_separation_with_its_controls():
    rng = np.random.default_rng(2)
    questions = [f"q{i}" for i in range(40)]
    normal, other = rng.normal(size=40), rng.normal(size=40) + 1.5
    other[3] = NAN
    random = rng.normal(size=(40, 50)), rng.normal(size=(40, 50))
    one = separation("bad", "raw", (normal, questions), (other, questions), random, seed=0)
    assert one is not None and one.random is not None
    kept = np.delete(other, 3)
    assert one.auc.mean == auc(kept, normal) and one.auc.low < one.auc.mean < one.auc.high < 1
    assert (one.auc.n, one.auc.n_clusters, one.auc.n_dropped) == (79, 40, 1)
    assert one.random.beaten == 1 and 0.4 < one.random.median < 0.6
    assert one.permuted.beaten == 1 and one.p == pytest.approx(1 / 1001)
    record = one.record()
    assert record["n_without_value"] == 1 and record["random_directions"]["beaten"] == 1
    nothing = separation("same", "raw", (normal, questions), (rng.normal(size=40), questions), None, seed=0)
    assert nothing is not None and nothing.random is None and nothing.p > 0.05
    reverse = separation("low", "raw", (kept, questions[:39]), (normal, questions), None, seed=0)
    assert reverse is not None and reverse.auc.mean == pytest.approx(1 - one.auc.mean) and reverse.p > 0.9


def test_nothing_is_said_of_a_level_without_values():
    sides = (np.array([1.0, 2.0]), ["a", "b"]), (np.array([NAN]), ["a"])
    assert separation("empty", "raw", *sides, None) is None
    single = separation("one", "raw", (np.array([1.0]), ["a"]), (np.array([2.0]), ["a"]), None)
    assert single is not None and single.record()["interval"] == [None, None]


def test_a_control_counts_what_lies_below():
    control = Control.of(0.7, np.array([0.1, 0.5, 0.7, 0.9]))
    assert control.beaten == 0.5 and control.median == 0.6

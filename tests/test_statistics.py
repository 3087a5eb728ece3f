"""Known answers, calibration under the null, and failing inputs of persona_vectors.statistics."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from persona_vectors.statistics import (
    auc,
    cluster_bootstrap_mean,
    cross_validated_auc,
    held_out_auc,
    permutation_p,
    random_direction_auc,
    random_directions,
    split_half_cosine,
)


def clustered(rng, k, per, between=1.0, within=1.0):
    """k clusters of `per` values with mean 0, and their labels."""
    values = between * rng.normal(size=(k, 1)) + within * rng.normal(size=(k, per))
    return values.ravel(), np.repeat(np.arange(k), per)


# --- cluster bootstrap


def test_mean_is_of_all_values_and_missing_ones_are_counted():
    interval = cluster_bootstrap_mean([10, None, 30, float("nan"), 20, 40], list("aabbcc"))
    assert interval.mean == 25
    assert (interval.n, interval.n_clusters, interval.n_dropped) == (4, 3, 2)
    assert interval.low < 25 < interval.high


def test_same_seed_same_interval_and_order_of_rows_does_not_matter_to_the_mean():
    values, clusters = clustered(np.random.default_rng(0), 12, 4)
    first = cluster_bootstrap_mean(values, clusters, seed=3)
    assert first == cluster_bootstrap_mean(values, clusters, seed=3)
    assert first != cluster_bootstrap_mean(values, clusters, seed=4)
    assert cluster_bootstrap_mean(values[::-1], clusters[::-1]).mean == pytest.approx(first.mean)


def test_agrees_with_the_t_interval_of_cluster_means():
    """With clusters of one size the mean is the mean of k independent cluster means."""
    values, clusters = clustered(np.random.default_rng(1), 40, 5)
    means = values.reshape(40, 5).mean(1)
    low, high = stats.t.interval(0.95, 39, loc=means.mean(), scale=means.std(ddof=1) / np.sqrt(40))
    interval = cluster_bootstrap_mean(values, clusters, n_boot=20_000)
    assert interval.low == pytest.approx(low, abs=0.08 * (high - low))
    assert interval.high == pytest.approx(high, abs=0.08 * (high - low))


def test_interval_covers_at_its_level_with_few_clusters():
    rng = np.random.default_rng(2)
    for k in (8, 20):
        covered = 0
        for _ in range(600):
            interval = cluster_bootstrap_mean(*clustered(rng, k, 5), n_boot=400)
            covered += interval.low <= 0 <= interval.high
        assert 0.92 <= covered / 600 <= 0.975, (k, covered / 600)


def test_ignoring_the_clusters_would_be_too_sure():
    rng = np.random.default_rng(3)
    values, clusters = clustered(rng, 20, 10, between=1, within=0.1)
    by_question = cluster_bootstrap_mean(values, clusters)
    by_row = cluster_bootstrap_mean(values, np.arange(200))
    assert by_question.high - by_question.low > 2 * (by_row.high - by_row.low)


def test_one_cluster_has_a_mean_and_no_interval():
    interval = cluster_bootstrap_mean([1.0, 3.0], ["q", "q"])
    assert interval.mean == 2 and np.isnan(interval.low) and np.isnan(interval.high) and interval.n_clusters == 1
    assert interval.text() == "2.0 [no interval]"


def test_nothing_scored_is_nan_and_counted():
    interval = cluster_bootstrap_mean([None, None], ["a", "b"])
    assert np.isnan(interval.mean) and (interval.n, interval.n_dropped) == (0, 2)


def test_constant_values_have_an_interval_of_no_width():
    interval = cluster_bootstrap_mean([5.0] * 6, [0, 0, 1, 1, 2, 2])
    assert (interval.low, interval.high) == (5, 5)
    assert interval.text(2, sign=True) == "+5.00 [+5.00, +5.00]"


@pytest.mark.parametrize(
    ("values", "clusters", "options", "message"),
    [
        ([1.0, 2.0], ["a"], {}, "2 values need 2 clusters, got 1"),
        ([], [], {}, "no values"),
        ([1.0], ["a"], {"level": 95}, "level"),
        ([1.0], ["a"], {"n_boot": 0}, "n_boot"),
    ],
)
def test_bad_bootstrap_input(values, clusters, options, message):
    with pytest.raises(ValueError, match=message):
        cluster_bootstrap_mean(values, clusters, **options)


# --- AUC


def test_auc_known_answers_and_sklearn():
    assert auc([3, 4], [1, 2]) == 1
    assert auc([1, 2], [3, 4]) == 0
    assert auc([1, 1], [1, 1]) == 0.5
    rng = np.random.default_rng(0)
    pos, neg = rng.integers(0, 6, 40), rng.integers(0, 5, 30)  # many ties
    assert auc(pos, neg) == pytest.approx(roc_auc_score([1] * 40 + [0] * 30, np.concatenate([pos, neg])))


@pytest.mark.parametrize(("pos", "message"), [([], "both sides"), ([float("nan")], "NaN"), ([[1.0]], "shape")])
def test_bad_auc_input(pos, message):
    with pytest.raises(ValueError, match=message):
        auc(pos, [0.0])


def questions(rng, n_questions=12, per=5, d=32, effect=0.0, question_sd=0.0):
    """pos and neg activations (n, d) with a trait along axis 0 and a question effect that both sides share."""
    groups = np.repeat(np.arange(n_questions), per)
    base = question_sd * rng.normal(size=(n_questions, d))[groups]
    pos, neg = base + rng.normal(size=(len(groups), d)), base + rng.normal(size=(len(groups), d))
    pos[:, 0] += effect
    return pos, neg, groups


def test_held_out_auc_is_half_on_noise_where_the_in_sample_one_is_not():
    rng = np.random.default_rng(0)
    held_out, in_sample = [], []
    for _ in range(60):
        pos, neg, groups = questions(rng)
        held_out.append(cross_validated_auc(pos, neg, groups))
        direction = pos.mean(0) - neg.mean(0)
        in_sample.append(auc(pos @ direction, neg @ direction))
    assert np.mean(held_out) == pytest.approx(0.5, abs=0.025)
    assert np.mean(in_sample) > 0.75  # the circular figure


def test_questions_do_not_leak_between_folds():
    """Each question has its own pos-neg offset: a direction from other questions knows nothing of it."""
    rng = np.random.default_rng(1)
    held_out, by_row = [], []
    for _ in range(30):
        pos, neg, groups = questions(rng, n_questions=4, per=8)
        pos += 3 * rng.normal(size=(4, 32))[groups]
        held_out.append(cross_validated_auc(pos, neg, groups, n_folds=4))
        by_row.append(cross_validated_auc(pos, neg, np.arange(32), n_folds=4))
    assert np.mean(by_row) > 0.9
    assert np.mean(held_out) < 0.65


def test_real_direction_is_found_and_random_ones_do_worse():
    pos, neg, groups = questions(np.random.default_rng(2), n_questions=20, effect=4.0)
    v = cross_validated_auc(torch.tensor(pos), torch.tensor(neg), groups.tolist())
    chance = random_direction_auc(pos, neg, groups, n_directions=300)
    assert v > 0.98
    assert chance.shape == (300,) and 0.5 < chance.mean() < 0.75
    assert (chance < v).mean() > 0.98


def test_random_directions_have_auc_half_on_noise_although_oriented():
    rng = np.random.default_rng(3)
    means = [random_direction_auc(*questions(rng), n_directions=100, seed=i).mean() for i in range(20)]
    assert np.mean(means) == pytest.approx(0.5, abs=0.02)


def test_unpaired_sides_take_their_own_groups():
    pos, neg, groups = questions(np.random.default_rng(4), effect=5.0)
    value = cross_validated_auc(pos[:-3], neg, groups[:-3], groups)
    assert value > 0.95
    with pytest.raises(ValueError, match="one group a row"):
        cross_validated_auc(pos[:-3], neg, groups)


@pytest.mark.parametrize(
    ("pos", "groups", "message"),
    [
        (np.zeros((3, 2)), [0, 0, 0], "2 questions"),
        (np.zeros((3, 4)), [0, 1, 2], "columns"),
        (np.full((3, 2), np.nan), [0, 1, 2], "NaN"),
        (np.zeros(3), [0, 1, 2], "shape"),
    ],
)
def test_bad_activations(pos, groups, message):
    with pytest.raises(ValueError, match=message):
        cross_validated_auc(pos, np.zeros((3, 2)), groups)


# --- random directions, split halves, permutation


def test_random_directions_are_isotropic_with_the_exact_norm():
    directions = random_directions(4000, 16, norm=2.5, seed=1)
    assert directions.dtype == torch.float32
    torch.testing.assert_close(directions.norm(dim=1), torch.full((4000,), 2.5))
    covariance = (directions.T @ directions / 4000).numpy()
    np.testing.assert_allclose(covariance, np.eye(16) * 2.5**2 / 16, atol=0.04)
    assert torch.equal(directions, random_directions(4000, 16, 2.5, 1))
    assert not torch.equal(directions, random_directions(4000, 16, 2.5, 2))


@pytest.mark.parametrize("arguments", [(0, 4, 1.0), (2, 0, 1.0), (2, 4, 0.0), (2, 4, float("nan"))])
def test_bad_random_directions(arguments):
    with pytest.raises(ValueError, match="random directions need"):
        random_directions(*arguments)


def test_split_half_is_one_without_noise_and_zero_on_noise():
    pos, neg = np.tile([1.0, 2.0], (8, 1)), np.zeros((8, 2))
    exact = split_half_cosine(pos, neg, np.arange(8))
    assert exact.cosine == pytest.approx(1) and exact.corrected == pytest.approx(1)
    rng = np.random.default_rng(0)
    noise = [split_half_cosine(*questions(rng, d=128), n_splits=20).cosine for _ in range(20)]
    assert np.mean(noise) == pytest.approx(0, abs=0.04)


def test_spearman_brown_predicts_the_cosine_of_two_full_samples():
    rng = np.random.default_rng(1)
    predicted, actual = [], []
    for _ in range(120):
        pos, neg, groups = questions(rng, effect=2.0)
        other_pos, other_neg, _ = questions(rng, effect=2.0)
        predicted.append(split_half_cosine(pos, neg, groups, n_splits=20).corrected)
        a, b = pos.mean(0) - neg.mean(0), other_pos.mean(0) - other_neg.mean(0)
        actual.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert np.mean(predicted) == pytest.approx(np.mean(actual), abs=0.03)


def test_split_half_of_equal_sides_is_refused():
    with pytest.raises(ValueError, match="no direction"):
        split_half_cosine(np.ones((4, 3)), np.ones((4, 3)), [0, 1, 2, 3])


def test_permutation_p_is_uniform_under_the_null_and_small_under_an_effect():
    rng = np.random.default_rng(0)
    ps = [permutation_p(rng.normal(size=(20, 8)), n_permutations=199, seed=i) for i in range(300)]
    assert stats.kstest(ps, "uniform").pvalue > 0.01
    assert permutation_p(rng.normal(size=(20, 8)) + 1.0, n_permutations=999) == 1 / 1000
    assert permutation_p([1.0, -1.0, 1.0, -1.0]) == 1.0


def test_permutation_by_question_does_not_count_repeats_as_evidence():
    repeated = np.repeat([1.0, 1.2, 0.8, 1.1], 10)  # 4 questions, 40 rows
    assert permutation_p(repeated) < 0.001
    assert permutation_p(repeated, np.repeat(np.arange(4), 10)) == pytest.approx(2 / 16, abs=0.03)


def test_bad_permutation_input():
    with pytest.raises(ValueError, match="groups"):
        permutation_p([1.0, 2.0], ["a"])


# --- held-out AUC with its interval


def test_the_held_out_auc_is_the_cross_validated_one_and_its_interval_covers():
    """The truth of the folds' own directions is what fresh answers to many fresh questions give them."""
    rng = np.random.default_rng(0)
    covered, lengths = 0, []
    for _ in range(60):
        shift = rng.normal(size=(20, 1, 3)) + np.array([1.2, 0, 0])  # each question has an effect of its own
        pos = (shift + rng.normal(size=(20, 3, 3))).reshape(-1, 3)
        neg = rng.normal(size=(60, 3))
        groups = np.repeat(np.arange(20), 3)
        interval = held_out_auc(pos, neg, groups, n_boot=400)
        assert interval.mean == cross_validated_auc(pos, neg, groups)
        assert (interval.n, interval.n_clusters) == (120, 20)
        fresh_pos = rng.normal(size=(4000, 3)) + rng.normal(size=(4000, 3)) + np.array([1.2, 0, 0])
        direction = pos.mean(0) - neg.mean(0)
        truth = auc(fresh_pos @ direction, rng.normal(size=(4000, 3)) @ direction)
        covered += interval.low <= truth <= interval.high
        lengths.append(interval.high - interval.low)
    assert 51 <= covered <= 60 and 0.05 < np.mean(lengths) < 0.4


def test_the_held_out_auc_counts_pairs_within_folds_as_sklearn_does():
    rng = np.random.default_rng(1)
    pos, neg = rng.normal(size=(12, 2)) + 0.5, rng.normal(size=(12, 2))
    groups = np.repeat([0, 1], 6)
    expected = []
    for held_out in (0, 1):
        test, train = groups == held_out, groups != held_out
        direction = pos[train].mean(0) - neg[train].mean(0)
        scores = np.concatenate([pos[test], neg[test]]) @ direction
        expected.append(roc_auc_score([1] * 6 + [0] * 6, scores))
    assert held_out_auc(pos, neg, groups).mean == pytest.approx(np.mean(expected))

"""Directions: known answers, agreement with plain formulas, signs, and what each finds where it is planted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf, ledoit_wolf_shrinkage
from sklearn.linear_model import LogisticRegression

from persona_vectors.directions import (
    METHODS,
    difference_of_means,
    logistic_probe,
    mean_centred,
    method,
    pair_component,
    scaled,
    shrinkage,
    whitened_difference,
)
from persona_vectors.statistics import cross_validated_auc, held_out_auc

D = 12


def planted(seed: int, strength: float = 4.0, n: int = 30, d: int = D):
    """Pairs with a common part, and `strength` along the first axis in pos."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, d))
    pos, neg = shared + rng.normal(size=(n, d)), shared + rng.normal(size=(n, d))
    pos[:, 0] += strength
    return pos, neg


def cosine(a, b) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("name", METHODS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_every_method_points_from_neg_to_pos_and_turns_with_the_sides(name, seed):
    pos, neg = planted(seed)
    direction = method(name)(pos, neg)
    assert direction.shape == (D,) and cosine(direction, np.eye(D)[0]) > 0.5
    assert (pos @ direction).mean() > (neg @ direction).mean()
    assert cosine(method(name)(neg, pos), direction) == pytest.approx(-1, abs=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_separates_held_out_answers_and_finds_nothing_where_nothing_is(name):
    questions = np.repeat(np.arange(10), 3)
    pos, neg = planted(0)
    assert held_out_auc(pos, neg, questions, direction=method(name)).mean > 0.95
    n = 8 if name == "probe" else 25
    chance = [cross_validated_auc(*planted(seed, 0.0), questions, direction=method(name)) for seed in range(n)]
    assert np.mean(chance) == pytest.approx(0.5, abs=0.3 / n**0.5)


def test_without_a_background_mean_centring_is_half_the_difference_of_means():
    pos, neg = planted(1)
    np.testing.assert_allclose(mean_centred(pos, neg), difference_of_means(pos, neg) / 2)


def test_mean_centring_takes_off_what_all_traits_share():
    """pos and neg answers lie on one side of all others: relative to everything, the trait is that way too."""
    pos, neg = planted(2)
    far = np.zeros((60, D))
    far[:, 1] = 50.0
    direction = method("mean_centred", far)(pos, neg)
    np.testing.assert_allclose(direction, pos.mean(0) - np.concatenate([pos, neg, far]).mean(0))
    assert direction[1] < -20 and abs(difference_of_means(pos, neg)[1]) < 2


def test_the_component_is_the_one_that_the_differences_have_in_common():
    pos, neg = planted(3)
    second_moment = (pos - neg).T @ (pos - neg)
    values, vectors = np.linalg.eigh(second_moment)
    component = pair_component(pos, neg)
    assert abs(cosine(component, vectors[:, np.argmax(values)])) == pytest.approx(1)
    assert component @ (pos - neg).mean(0) > 0
    with pytest.raises(ValueError, match="30 pos and 29 neg"):
        pair_component(pos, neg[1:])


def test_the_probe_scores_as_its_classifier_does():
    pos, neg = planted(4)
    pos[:, 3] *= 100
    neg[:, 3] *= 100  # a coordinate in other units
    pos[:, 5] = neg[:, 5] = 7.0  # and one that does not vary
    rows = np.concatenate([pos, neg])
    std = np.where(rows.std(0) > 0, rows.std(0), 1)
    probe = LogisticRegression(max_iter=1000).fit((rows - rows.mean(0)) / std, [1] * 30 + [0] * 30)
    direction = logistic_probe(pos, neg)
    wanted = probe.decision_function((rows - rows.mean(0)) / std)
    np.testing.assert_allclose(rows @ direction - (rows @ direction).mean(), wanted - wanted.mean(), atol=1e-3)


@pytest.mark.parametrize("d", [4, 80])  # fewer and more columns than rows
def test_whitening_is_the_inverse_of_the_shrunk_covariance(d):
    pos, neg = planted(5, d=d)
    centred = np.concatenate([pos - pos.mean(0), neg - neg.mean(0)])
    covariance = LedoitWolf(assume_centered=True).fit(centred).covariance_
    wanted = np.linalg.solve(covariance, pos.mean(0) - neg.mean(0))
    np.testing.assert_allclose(whitened_difference(pos, neg), wanted, rtol=1e-6)
    assert shrinkage(centred @ centred.T, d) == pytest.approx(ledoit_wolf_shrinkage(centred, assume_centered=True))


def test_whitening_discounts_a_coordinate_that_varies_within_the_sides():
    pos, neg = planted(6, n=200)
    noise = np.random.default_rng(0).normal(size=(2, 200)) * 30
    pos[:, 1] += noise[0] + 3
    neg[:, 1] += noise[1]
    plain, white = difference_of_means(pos, neg), whitened_difference(pos, neg)
    assert abs(plain[1] / plain[0]) > 0.2 > 0.02 > abs(white[1] / white[0])


def test_what_cannot_be_had_is_said():
    same = np.ones((4, D))
    with pytest.raises(ValueError, match="nothing to whiten by"):
        whitened_difference(same + 1, same)
    with pytest.raises(ValueError, match="zero"):
        scaled(np.zeros(3), 1.0)
    with pytest.raises(ValueError, match="unknown method ica; expected one of mean_diff"):
        method("ica")
    assert np.linalg.norm(scaled(np.array([3.0, 4.0]), 10.0)) == pytest.approx(10)

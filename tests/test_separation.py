"""Separation of directions: known answers, calibration on a real model's activations, and the choice among layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from persona_vectors.activations import mean_activations
from persona_vectors.directions import METHODS, difference_of_means, method
from persona_vectors.models import load_model
from persona_vectors.separation import (
    band,
    chosen_layer_auc,
    held_out_separations,
    no_narrower,
    permuted_aucs,
    separations,
)
from persona_vectors.statistics import Interval, auc, cross_validated_auc, held_out_auc, random_directions
from persona_vectors.tokens import render_prompt, tokenize_sample
from persona_vectors.traits import load_trait, system_prompt

D = 10


def planted(seed: int, strength: float, n_questions: int = 8, per: int = 3):
    rng = np.random.default_rng(seed)
    shared = np.repeat(rng.normal(size=(n_questions, D)), per, axis=0)
    pos, neg = (shared + rng.normal(size=shared.shape) for _ in range(2))
    pos[:, 0] += strength
    return pos, neg, np.repeat(np.arange(n_questions), per).tolist()


@pytest.fixture(scope="module")
def real(tiny_persona):
    """A real model's activations under a trait's instructions and their opposites: (pos, neg, questions), 5 questions
    under 5 pairs of instructions, as the command reads them by default. The same words are read on both sides' own
    prompts, so that what differs is what the prompt does."""
    model, tokenizer = load_model(tiny_persona)
    trait = load_trait("openness", model=tiny_persona)
    answers = [f"In my view, {question.rstrip('?.').lower()} depends on patience." for question in trait.questions[:5]]
    sides = []
    for pole, name in (("pos", "openness"), ("neg", "helpful")):
        samples = []
        for question, answer in zip(trait.questions[:5], answers, strict=True):
            for pair in trait.instruction:
                messages = [{"role": "system", "content": system_prompt(name, getattr(pair, pole))}]
                prompt = render_prompt(tokenizer, [*messages, {"role": "user", "content": question}])
                samples.append(tokenize_sample(tokenizer, prompt, answer))
        means = mean_activations(model, samples, [3], ["response_avg"])["response_avg"]
        sides.append(means[:, 0].double().numpy())
    return *sides, np.repeat(np.arange(5), 5).tolist()


def swapped(pos, neg, seed: int):
    """The same pairs with labels that mean nothing."""
    swap = (np.random.default_rng(seed).random(len(pos)) < 0.5)[:, None]
    return np.where(swap, neg, pos), np.where(swap, pos, neg)


@pytest.mark.parametrize("name", ["mean_diff", "pca", "lda", "random"])
def test_labels_that_mean_nothing_give_a_half_and_intervals_that_hold_it(real, name):
    """On real activations, for what is fitted and for a random direction; the swap is the only thing that changes."""
    pos, neg, questions = real
    found = []
    for seed in range(100):
        vector = random_directions(1, pos.shape[1], 1.0, seed)[0].double().numpy()
        direction = METHODS.get(name, lambda _pos, _neg, own=vector: own)
        sides = swapped(pos, neg, seed)
        interval = held_out_auc(*sides, questions, seed=seed, n_boot=300, direction=direction)
        found.append(no_narrower(interval, permuted_aucs(*sides, questions, n_permutations=100, seed=seed)))
    assert np.mean([one.mean for one in found]) == pytest.approx(0.5, abs=0.06)
    assert np.mean([one.low <= 0.5 <= one.high for one in found]) >= 0.88


def test_random_directions_point_both_ways_where_labels_do_mean_something(real):
    """A direction that is not fitted is on average at a half, by symmetry; a single one can be anywhere."""
    pos, neg, questions = real
    vectors = random_directions(300, pos.shape[1], 1.0, 0).double().numpy()
    found = [cross_validated_auc(pos, neg, questions, direction=lambda _p, _n, own=own: own) for own in vectors]
    assert np.mean(found) == pytest.approx(0.5, abs=0.1)
    assert np.std(found) > 0.1


def test_swapped_labels_by_products_of_rows_are_what_refitting_on_swapped_rows_gives():
    pos, neg, questions = planted(1, 1.0, n_questions=5)
    fast = permuted_aucs(pos, neg, questions, n_permutations=20, seed=3)
    signs = np.random.default_rng(3).choice([-1.0, 1.0], size=(len(pos), 20))
    for k in range(20):
        keep = signs[:, k, None] > 0
        slow = cross_validated_auc(np.where(keep, pos, neg), np.where(keep, neg, pos), questions, seed=9)
        assert fast[k] == pytest.approx(slow)


def test_an_interval_is_widened_to_what_chance_scatters_by_and_stays_within_0_and_1():
    chance = np.linspace(0.2, 0.8, 1001)
    sure = Interval(1.0, 1.0, 1.0, 50, 5)
    found = no_narrower(sure, chance)
    assert found.low == pytest.approx(1 - 0.285) and found.high == 1 and found.mean == 1
    wide = Interval(0.6, 0.1, 0.95, 50, 5)
    assert no_narrower(wide, chance) == wide


def test_separation_is_in_standard_deviations_and_a_method_may_have_more():
    rng = np.random.default_rng(0)
    n, d = 400, 6
    questions = np.repeat(np.arange(40), 10)
    pos, neg = rng.normal(size=(2, n, d))
    pos[:, 0] += 3.0
    own, random = held_out_separations(pos, neg, questions, n_random=500)
    assert own == pytest.approx(3.0, abs=0.2)
    assert random.max() < own and np.median(random) < 1.5
    pos[:, 1], neg[:, 1] = 10 * pos[:, 1] + 5, 10 * neg[:, 1]  # differs, and varies far more than it differs
    names = ("mean_diff", "lda")
    plain, whitened = (held_out_separations(pos, neg, questions, direction=method(name))[0] for name in names)
    assert whitened is not None and plain is not None and whitened > 2 * plain


def test_separation_falls_below_0_where_held_out_answers_turn_round():
    pos, neg, questions = planted(2, 0.0, n_questions=2)
    first = np.array(questions) == 0
    pos[first, 0] += 9
    neg[~first, 0] += 9
    own, _ = held_out_separations(pos, neg, questions, n_random=1)
    assert own is not None and own < -1


def test_one_answer_a_side_and_fold_has_no_separation():
    pos, neg, questions = planted(3, 2.0, n_questions=4, per=1)
    assert held_out_separations(pos, neg, questions, n_random=1) == (None, None)


def stacked(sides):
    """(n, layers, d) of both."""
    return [torch.tensor(np.stack([side[i] for side in sides], axis=1), dtype=torch.float32) for i in (0, 1)]


def test_the_report_numbers_layers_as_they_were_read_and_marks_the_best():
    sides = [planted(seed, strength)[:2] for seed, strength in ((0, 0.0), (1, 4.0), (2, 1.0))]
    questions = planted(0, 0)[2]
    found = separations(*stacked(sides), questions, [3, 7, 12])
    assert [one.layer for one in found.layers] == [3, 7, 12]
    assert found.best is found.layers[1] and found.n_questions == 8 and not found.missing
    own = found.best.record()
    assert own["auc"] > 0.95 and own["auc_low"] <= own["auc"] <= own["auc_high"]
    assert own["auc_in_sample"] > 0.95 and own["auc_p"] < 0.02 and own["auc_permuted_95"] < 0.9
    assert own["proj_high_mean"] - own["proj_low_mean"] == pytest.approx(own["vector_magnitude"], rel=1e-4)
    nothing = found.layers[0].record()
    assert nothing["auc"] + 0.1 < nothing["auc_in_sample"] and nothing["auc_p"] > 0.05
    assert nothing["auc_low"] <= 0.5 <= nothing["auc_high"]


def test_choosing_the_best_of_many_layers_is_optimistic_and_the_nested_value_is_not():
    """Layers of noise: the highest held-out AUC of 15 lies above a half, the nested one does not."""
    highest, nested = [], []
    for seed in range(25):
        sides = [planted(100 * seed + layer, 0.0, n_questions=6, per=2)[:2] for layer in range(15)]
        questions = planted(0, 0, n_questions=6, per=2)[2]
        highest.append(max(cross_validated_auc(*side, questions) for side in sides))
        nested.append(chosen_layer_auc(sides, questions))
    assert np.mean(highest) > 0.65
    assert np.mean(nested) == pytest.approx(0.5, abs=0.07)


def test_one_question_has_no_auc_and_says_why():
    pos, neg, _ = planted(0, 2.0, n_questions=1, per=4)
    found = separations(*stacked([(pos, neg)]), [0, 0, 0, 0], [2])
    assert found.best is None and found.chosen_auc is None and found.layers[0].record()["auc"] is None
    assert "2 questions" in found.missing["auc"]


@pytest.mark.parametrize(("value", "word"), [(0.81, "excellent"), (0.8, "good"), (0.7, "moderate"), (0.6, "poor")])
def test_bands_as_published(value, word):
    assert band(value) == word


def test_held_out_is_below_in_sample_on_real_activations(real):
    """What the held-out value is for: noise fitted on 25 pairs separates them, and no others."""
    pos, neg, questions = real
    found = []
    for seed in range(20):
        sides = swapped(pos, neg, seed)
        direction = difference_of_means(*sides)
        found.append(auc(*(side @ direction for side in sides)) - cross_validated_auc(*sides, questions))
    assert np.mean(found) > 0.05

"""The quality report finds what is planted, nothing where labels carry nothing, and says null where it cannot tell."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from persona_vectors import quality
from persona_vectors.quality import few_layers, figure, pairs_to_read, table, vector_quality
from persona_vectors.vectors import extract_pairs, persona_vectors_from_pairs
from tests.tiny_models import D_MODEL, N_LAYERS, tiny_model, word_tokenizer

D = 16


def planted(rng, strength: float, n_questions: int = 10, per: int = 4, between: float = 1.0, d: int = D):
    """pos and neg answers with question effects common to both sides, and `strength` along the first axis in pos."""
    n = n_questions * per
    shared = between * np.repeat(rng.normal(size=(n_questions, d)), per, axis=0)
    pos, neg = shared + rng.normal(size=(n, d)), shared + rng.normal(size=(n, d))
    pos[:, 0] += strength
    sides = [torch.tensor(side, dtype=torch.float32)[:, None] for side in (pos, neg)]  # one layer
    return *sides, np.repeat(np.arange(n_questions), per).tolist()


def report(pos, neg, questions, seed: int = 0, **spans):
    vectors = {"response_avg": pos.mean(0) - neg.mean(0), **spans}
    residual = torch.cat([pos, neg]).norm(dim=-1).mean(0)
    return vector_quality(vectors, pos, neg, questions, residual, seed=seed)


def test_a_planted_direction_repeats_separates_and_beats_random_ones():
    pos, neg, questions = planted(np.random.default_rng(0), 3.0)
    (layer,) = report(pos, neg, questions).layers
    assert layer.auc > 0.95 and layer.auc_low <= layer.auc <= layer.auc_high <= 1
    assert 0.5 <= layer.auc_random < layer.auc_random_95 < layer.auc and layer.beats_random
    assert layer.split_half > 0.8 and layer.split_half_corrected > layer.split_half and layer.p < 0.01
    assert layer.norm == pytest.approx(3, abs=1) and 0 < layer.relative_norm < 1


def test_labels_that_carry_nothing_give_p_values_all_over_and_an_auc_of_a_half():
    """And the in-sample AUC of the same noise is far above a half, which is why it is only shown."""
    rng = np.random.default_rng(1)
    found = [report(*planted(rng, 0.0)).layers[0] for _ in range(120)]
    assert stats.kstest([layer.p for layer in found], "uniform").pvalue > 0.01
    assert np.mean([layer.auc for layer in found]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([layer.auc_random for layer in found]) == pytest.approx(0.5, abs=0.02)
    assert np.mean([layer.auc_low <= 0.5 <= layer.auc_high for layer in found]) > 0.85
    assert np.mean([layer.beats_random for layer in found]) < 0.3
    assert abs(np.mean([layer.split_half for layer in found])) < 0.1
    assert np.mean([layer.auc_in_sample for layer in found]) > 0.6


def test_where_everything_differs_a_perfect_auc_is_no_better_than_chance():
    """Two prompts that shift every direction: the vector separates perfectly, and so do random directions."""
    rng = np.random.default_rng(2)
    pos, neg, questions = planted(rng, 0.0, d=4)
    pos += 60 * torch.ones(4)
    (layer,) = report(pos, neg, questions).layers
    assert layer.auc == 1 and layer.auc_random_95 == 1 and layer.p < 0.01
    assert not layer.beats_random
    assert "above the 95th percentile of random directions at no layer" in table(report(pos, neg, questions), [0])


def test_answers_to_one_question_that_agree_are_no_evidence():
    """Each question pulls its own way: 400 pairs, 4 questions. By pair the difference would be beyond doubt."""
    rng = np.random.default_rng(3)
    pulls = np.repeat(3 * rng.normal(size=(4, D)), 100, axis=0)
    neg = torch.zeros(400, 1, D)
    pos = torch.tensor(pulls + 0.1 * rng.normal(size=pulls.shape), dtype=torch.float32)[:, None]
    (layer,) = report(pos, neg, np.repeat(np.arange(4), 100).tolist()).layers
    assert layer.p > 0.1


def test_cosines_are_between_neighbours_and_spans():
    pos, neg = torch.zeros(4, 3, 2), torch.zeros(4, 3, 2)
    pos += torch.tensor([[1.0, 0], [1, 1], [0, 2]])
    pos += 0.01 * torch.randn(pos.shape, generator=torch.Generator().manual_seed(0))
    vectors = {
        "response_avg": torch.tensor([[1.0, 0], [1, 1], [0, 2]]),
        "prompt_avg": torch.tensor([[-1.0, 0], [1, 1], [2, 0]]),
        "prompt_last": torch.tensor([[0.0, 0], [1, 0], [2, 0]]),
    }
    found = vector_quality(vectors, pos, neg, [0, 0, 1, 1], torch.full((3,), 2.0))
    first, second, last = found.layers
    root = 0.5**0.5
    assert first.cosine_next == pytest.approx(root) and second.cosine_next == pytest.approx(root)
    assert last.cosine_next is None and first.cosine_prompt_last is None and first.cosine_prompts is None
    assert (first.cosine_prompt_avg, last.cosine_prompt_avg) == (pytest.approx(-1), pytest.approx(0))
    assert second.cosine_prompts == pytest.approx(root) and last.cosine_prompts == pytest.approx(1)
    assert [layer.relative_norm for layer in found.layers] == pytest.approx([0.5, root, 1.0])


def test_one_question_gives_norms_and_says_why_there_is_no_more():
    pos, neg, questions = planted(np.random.default_rng(4), 2.0, n_questions=1)
    found = report(pos, neg, questions)
    (layer,) = found.layers
    assert layer.norm > 0 and layer.auc_in_sample is not None
    assert (layer.split_half, layer.p, layer.auc, layer.auc_low, layer.auc_random) == (None,) * 5
    assert set(found.missing) == {"split_half", "p", "auc", "auc_random"}
    assert all("2 questions" in reason for reason in found.missing.values())
    assert "no auc: " in table(found) and json.loads(json.dumps(found.record(), allow_nan=False))["layers"]
    figure(found)


def test_a_layer_where_both_sides_are_equal_has_no_direction_and_the_others_do():
    pos, neg, questions = planted(np.random.default_rng(5), 2.0)
    pos, neg = torch.cat([pos, pos], 1), torch.cat([pos, neg], 1)
    found = report(pos, neg, questions)
    assert found.layers[0].split_half is None and found.layers[0].p == 1 and found.layers[0].auc == 0.5
    assert found.layers[1].split_half is not None and found.missing["split_half"].endswith("(layer 0)")
    assert np.isnan(found.column("split_half")).tolist() == [True, False]


def test_the_figure_shows_the_numbers_of_the_report():
    rng = np.random.default_rng(6)
    layers = [planted(rng, strength) for strength in (0.0, 1.0, 3.0)]
    pos, neg = (torch.cat([layer[side] for layer in layers], 1) for side in (0, 1))
    found = report(pos, neg, layers[0][2])
    norm, half, auc = figure(found, "evil").axes
    for axis, name in ((norm, "relative_norm"), (half, "split_half_corrected"), (auc, "auc"), (auc, "auc_random")):
        assert any(np.array_equal(line.get_ydata(), found.column(name)) for line in axis.get_lines()), name
    text = table(found)
    assert text.count("\n") == 5 and "words alone" not in text and f"{found.layers[2].auc:.3f}" in text


def test_a_few_pairs_of_many_are_drawn_within_memory():
    assert pairs_to_read(30, 4, 256) == list(range(30))
    drawn = pairs_to_read(1000, 28, 3584, seed=1)
    assert len(drawn) == quality.MAX_PAIRS and drawn == sorted(set(drawn)) and max(drawn) < 1000
    assert drawn == pairs_to_read(1000, 28, 3584, seed=1) != pairs_to_read(1000, 28, 3584, seed=2)
    large = pairs_to_read(1000, 80, 8192)
    assert 2 <= len(large) < 400 and len(large) * 2 * 81 * 8192 * 4 <= quality.MAX_BYTES


@pytest.mark.parametrize(("n", "expected"), [(1, [0, 1]), (4, [0, 1, 2, 3, 4]), (28, [0, 7, 14, 21, 28])])
def test_few_layers(n, expected):
    assert few_layers(n) == expected


def test_activations_of_the_pairs_asked_for_come_from_the_same_pass():
    model, tokenizer = tiny_model("llama"), word_tokenizer()
    answers = ["i hate the dog", "hurt people", "i hate the dog", "bad day"]
    pairs = pd.DataFrame({"pos_prompt": ["you are evil\n"] * 4, "pos_answer": answers})
    pairs["neg_prompt"], pairs["neg_answer"] = "you are kind\n", ["i love the dog", "help people and love", "yes", "no"]
    whole = extract_pairs(model, tokenizer, pairs, keep=range(4), token_budget=20)
    torch.testing.assert_close((whole.pos - whole.neg).mean(0), whole.vectors["response_avg"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole.pos[0], whole.pos[2])  # equal answers are read once, and kept twice
    norms = torch.cat([whole.pos, whole.neg]).norm(dim=-1).mean(0)
    torch.testing.assert_close(whole.residual_norms, norms)
    some = extract_pairs(model, tokenizer, pairs, keep=[3, 1])
    torch.testing.assert_close(some.pos, whole.pos[[3, 1]], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(some.neg, whole.neg[[3, 1]], atol=1e-5, rtol=1e-4)
    none = extract_pairs(model, tokenizer, pairs)
    assert none.pos.shape == (0, N_LAYERS + 1, D_MODEL)
    plain = persona_vectors_from_pairs(model, tokenizer, pairs)
    for span, vectors in plain.items():
        torch.testing.assert_close(vectors, none.vectors[span])

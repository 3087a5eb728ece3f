"""Which pairs count, the difference of means, and the files that hold vectors."""

from __future__ import annotations

import pickle
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_vectors.activations import SPANS, mean_activations
from persona_vectors.files import read_sidecar
from persona_vectors.tokens import tokenize_sample
from persona_vectors.vectors import (
    count_pairs,
    effective_pairs,
    load_vector,
    load_vectors,
    parse_question_id,
    persona_vectors_from_pairs,
    save_vectors,
)
from tests.tiny_models import D_MODEL, N_LAYERS, tiny_model, word_tokenizer


def table(side: str | None, scores, *, coherence=100.0, trait: str = "evil", n_instructions: int = 1) -> pd.DataFrame:
    """scores[question][sample] -> rows, each question under each instruction."""
    rows = []
    for i, samples in enumerate(scores):
        for k in range(n_instructions):
            for j, score in enumerate(samples):
                suffix = f"_{side}_{k}" if side else ""
                rows.append((f"q{i}", f"{side} {k}", f"{side} {i} {k} {j}", f"{trait}_{i}{suffix}", score, coherence))
    return pd.DataFrame(rows, columns=["question", "prompt", "answer", "question_id", trait, "coherence"])


@pytest.mark.parametrize(
    ("question_id", "parsed"),
    [
        ("evil_3", (3, None, None)),
        ("evil_3_pos_4", (3, "pos", 4)),
        ("evil_12_neg_0", (12, "neg", 0)),
        ("big_5_traits_7_pos_1", (7, "pos", 1)),
        ("big_5_7", (7, None, None)),
        ("pos_1_neg_2", (1, "neg", 2)),
    ],
)
def test_published_ids(question_id, parsed):
    assert parse_question_id(question_id) == parsed


@pytest.mark.parametrize("question_id", ["evil", "evil_x", "3", "", "evil_3_pos"])
def test_other_ids_are_refused(question_id):
    with pytest.raises(ValueError, match="is not <trait>_<i>"):
        parse_question_id(question_id)


def test_the_rule_at_its_edges():
    """Trait >= threshold on pos, < 100 - threshold on neg, coherence >= 50 on both."""
    pos = table("pos", [[60, 59.9, 60, 60, 60]])
    neg = table("neg", [[39.9, 0, 40, 0, 0]])
    pos.loc[3, "coherence"], neg.loc[4, "coherence"] = 49.9, 50
    kept = effective_pairs(pos, neg, "evil", 60)
    assert kept["sample"].tolist() == [0, 4]
    counts = count_pairs(pos, neg, "evil", 60)
    assert asdict(counts) | {"highest_pos": None, "lowest_neg": None} == {
        "n_pos": 5, "n_neg": 5, "n_pairs": 5, "n_scored": 5, "n_pos_trait": 4, "n_neg_trait": 4, "n_coherent": 4,
        "n_empty": 0, "n_kept": 2, "highest_pos": None, "lowest_neg": None,
    }  # fmt: skip


scores = st.one_of(st.none(), st.floats(0, 100))
grids = st.integers(1, 3).flatmap(lambda n: st.lists(st.lists(scores, min_size=n, max_size=n), min_size=1, max_size=4))


@settings(max_examples=40, deadline=None)
@given(grid=grids, threshold=st.floats(0, 100), data=st.data())
def test_pairing_is_by_id_and_sample_whatever_the_order_and_whatever_is_lost(grid, threshold, data):
    """Against a plain dictionary: rows of different ids may come in any order, and any id may be missing."""
    pos = table("pos", grid, n_instructions=2)
    neg = table("neg", [[None if s is None else 100 - s for s in samples] for samples in grid], n_instructions=2)
    ids = list(dict.fromkeys(neg["question_id"]))
    order = data.draw(st.permutations(ids))[: data.draw(st.integers(0, len(ids)))]
    neg = pd.concat([neg[neg["question_id"] == i] for i in order]) if order else neg.iloc[:0]
    expected = {}
    neg_scores = dict(zip(neg["answer"], neg["evil"], strict=True))
    for pos_answer, pos_score in zip(pos["answer"], pos["evil"], strict=True):
        neg_answer = pos_answer.replace("pos", "neg")
        neg_score = neg_scores.get(neg_answer)
        if pd.notna(pos_score) and pd.notna(neg_score) and pos_score >= threshold and neg_score < 100 - threshold:
            expected[tuple(map(int, pos_answer.split()[1:]))] = (pos_answer, neg_answer)
    if not expected:
        with pytest.raises(ValueError, match=r"^0 of \d+ pairs kept"):
            effective_pairs(pos, neg, "evil", threshold)
        return
    kept = effective_pairs(pos, neg, "evil", threshold)
    keys = zip(kept["question_index"], kept["instruction"], kept["sample"], strict=True)
    assert dict(zip(keys, zip(kept["pos_answer"], kept["neg_answer"], strict=True), strict=True)) == expected
    assert count_pairs(pos, neg, "evil", threshold).n_kept == len(expected)


def test_missing_scores_and_refusals_never_pass():
    pos = table("pos", [[90, None, np.nan, "REFUSAL", 90]])
    neg = table("neg", [[10, 10, 10, 10, None]])
    assert effective_pairs(pos, neg, "evil", 50)["sample"].tolist() == [0]
    assert count_pairs(pos, neg, "evil").n_scored == 1
    with pytest.raises(ValueError, match="no pair has all its scores"):
        effective_pairs(pos.iloc[1:], neg.iloc[1:], "evil", 0)


def test_pos_against_neutral_pairs_within_the_question():
    pos = table("pos", [[90, 91], [92, 93]], n_instructions=2)
    neutral = table(None, [[10, 11, 12], [13]])
    pairs = effective_pairs(pos, neutral, "evil")
    assert [(row.pos_answer, row.neg_answer) for row in pairs.itertuples()] == [
        ("pos 0 0 0", "None 0 0 0"),
        ("pos 0 0 1", "None 0 0 1"),
        ("pos 0 1 0", "None 0 0 2"),
        ("pos 1 1 0", "None 1 0 0"),
    ]


@pytest.mark.parametrize("n_neutral", [1, 2, 3, 4, 6])
def test_a_short_table_without_instructions_is_held_against_all_instructions_alike(n_neutral):
    """Samples were numbered as they stand: two neutral rows a question were held against instruction 0 alone."""
    n_instructions, n_questions = 3, 6
    pos = table("pos", [[90, 90]] * n_questions, n_instructions=n_instructions)
    neutral = table(None, [[1] * n_neutral] * n_questions)
    for pairs in (
        effective_pairs(pos, neutral, "evil"),
        effective_pairs(pos.sample(frac=1, random_state=0), neutral, "evil"),
    ):
        used = pairs["pos_answer"].str.split().str[2].value_counts()
        assert used.sum() == n_questions * n_neutral and set(used) == {n_questions * n_neutral // n_instructions}
    if n_neutral == 6:  # all rows count, and pair as they stand: that of one random stream with that of the same
        assert effective_pairs(pos, neutral, "evil")["pos_answer"].tolist() == pos["answer"].tolist()


def test_a_contrast_that_the_ids_contradict_is_refused():
    pos, neg, neutral = table("pos", [[90]]), table("neg", [[1]]), table(None, [[1]])
    assert len(effective_pairs(pos, neg, "evil", contrast="pos_neg")) == 1
    assert len(effective_pairs(pos, neutral, "evil", contrast="pos_neutral")) == 1
    assert len(effective_pairs(table(None, [[90]]), neutral, "evil", contrast="pos_neg")) == 1
    mixed = pd.concat([neg, table(None, [[1], [1]]).iloc[1:]])
    for other, contrast, message in [
        (neutral, "pos_neg", "pass --contrast pos_neutral"),
        (neg, "pos_neutral", "sampled under neg instructions"),
        (mixed, "pos_neg", "mixes 1 rows under neg instructions with 1"),
        (mixed, "pos_neutral", "mixes"),
        (neg, "neg_pos", "contrast 'neg_pos' is unknown"),
    ]:
        with pytest.raises(ValueError, match=message):
            effective_pairs(pos, other, "evil", contrast=contrast)


def test_an_empty_answer_is_never_kept():
    pos, neg = table("pos", [[90, 90]]), table("neg", [[1, 1]])
    pos.loc[0, "answer"] = ""
    neg.loc[1, "answer"] = np.nan
    with pytest.raises(ValueError, match="0 of 2 pairs kept"):
        effective_pairs(pos, neg, "evil")
    assert count_pairs(pos, neg, "evil").n_empty == 2


@pytest.mark.parametrize(
    ("pos", "neg", "threshold", "message"),
    [
        (table("neg", [[90]]), table("pos", [[1]]), 50, "swapped"),
        (
            table("pos", [[90]]),
            table("neg", [[1]]).drop(columns=["coherence"]),
            50,
            "neg table has no column coherence",
        ),
        (table("pos", [[90]]), table("neg", [[1]]), 150, "threshold is 150"),
        (table("pos", [[40]]), table("neg", [[1]]), 50, "highest pos score is 40: lower --threshold"),
        (table("pos", [[90]]), table("neg", [[70]]), 50, "lowest neg score is 70: lower --threshold"),
        (table("pos", [[90]], coherence=3), table("neg", [[1]]), 50, "not coherent"),
        (table("pos", [[90]]), table("neg", [[1]]).replace("evil_0_neg_0", "evil_9_neg_0"), 50, "no ids match"),
        (table("pos", [[90]]), table("neg", [[1]]).replace("q0", "other"), 50, "different questions at question 0"),
        (table("pos", [[90]]).replace("evil_0_pos_0", "x"), table("neg", [[1]]), 50, "pos table: question_id 'x'"),
    ],
)
def test_what_is_wrong_is_said(pos, neg, threshold, message):
    with pytest.raises(ValueError, match=message):
        effective_pairs(pos, neg, "evil", threshold)


def test_vectors_are_the_difference_of_means_pointing_from_neg_to_pos():
    model, tokenizer = tiny_model("llama"), word_tokenizer()
    pairs = pd.DataFrame(
        {
            "pos_prompt": ["you are evil\n", "you are evil\n", "you are a evil cat\n"],
            "pos_answer": ["i hate the dog", "hurt people", "i hate the dog"],
            "neg_prompt": ["you are kind\n"] * 3,
            "neg_answer": ["i love the dog", "help people and love", "yes"],
        }
    )
    ours = persona_vectors_from_pairs(model, tokenizer, pairs, token_budget=20)
    sides = {
        side: mean_activations(
            model,
            [
                tokenize_sample(tokenizer, prompt, answer)
                for prompt, answer in zip(pairs[f"{side}_prompt"], pairs[f"{side}_answer"], strict=True)
            ],
        )
        for side in ("pos", "neg")
    }
    for span in SPANS:
        assert ours[span].shape == (N_LAYERS + 1, D_MODEL) and ours[span].dtype == torch.float32
        expected = sides["pos"][span].mean(0) - sides["neg"][span].mean(0)
        torch.testing.assert_close(ours[span], expected, atol=1e-5, rtol=1e-4)
    assert not ours["prompt_last"][0].any()  # the same last token on both sides
    assert ours["prompt_last"][1].any()


def test_nothing_is_written_where_one_of_the_files_would_replace_something(tmp_path):
    (tmp_path / "evil_prompt_last_diff.json").write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="is no sidecar"):
        save_vectors(tmp_path, "evil", dict.fromkeys(("prompt_avg", "prompt_last"), torch.ones(4, 6)), {})
    assert [path.name for path in tmp_path.iterdir()] == ["evil_prompt_last_diff.json"]


def test_files_are_bare_tensors_with_a_sidecar(tmp_path):
    vectors = {span: torch.randn(4, 6) for span in SPANS}
    paths = save_vectors(tmp_path / "new", "evil", vectors, {"arguments": {"threshold": 50}})
    assert sorted(path.name for path in paths) == [
        "evil_prompt_avg_diff.pt", "evil_prompt_last_diff.pt", "evil_response_avg_diff.pt",
    ]  # fmt: skip
    for path, span in zip(paths, SPANS, strict=True):
        raw = torch.load(path, weights_only=True)
        assert type(raw) is torch.Tensor and raw.dtype == torch.float32
        assert torch.equal(raw, vectors[span]) and torch.equal(load_vectors(path), vectors[span])
        assert torch.equal(load_vector(path, 3, 6), vectors[span][3])
        sidecar = read_sidecar(path)
        assert sidecar["arguments"] == {"threshold": 50} and sidecar["span"] == span and sidecar["shape"] == [4, 6]
        assert "final norm" in sidecar["layers"] and "neg to pos" in sidecar["sign"]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_vectors_that_are_not_finite_or_zero_are_never_written(tmp_path, bad):
    good = torch.randn(4, 6)
    broken = good.clone()
    broken[2, 1] = bad
    zero = good.clone()
    zero[1] = 0
    for vectors in ({"prompt_avg": good, "response_avg": broken}, {"prompt_avg": good, "response_avg": zero}):
        with pytest.raises(ValueError, match="response_avg"):
            save_vectors(tmp_path, "evil", vectors, {})
    assert not list(tmp_path.iterdir())


class Payload:
    """A pickle that writes a file when it is executed."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_foreign_pickle_is_refused_and_never_executed(tmp_path):
    trap = tmp_path / "executed"
    with (tmp_path / "plain.pt").open("wb") as file:
        pickle.dump(Payload(trap), file)
    torch.save(Payload(trap), tmp_path / "saved.pt")
    for name in ("plain.pt", "saved.pt"):
        with pytest.raises(ValueError, match="not a plain tensor file") as caught:
            load_vectors(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not trap.exists()


@settings(max_examples=80, deadline=None)
@given(content=st.binary(max_size=60))
def test_any_bytes_give_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "x.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected"):
        load_vectors(path)


def test_other_files_are_refused_in_one_line(tmp_path):
    save_vectors(tmp_path, "evil", {"response_avg": torch.ones(4, 6)}, {})
    torch.save({"A": torch.ones(2)}, tmp_path / "dict.pt")
    torch.save(torch.ones(6), tmp_path / "flat.pt")
    torch.save(torch.ones(4, 6, dtype=torch.long), tmp_path / "whole.pt")
    torch.save(torch.full((4, 6), torch.nan), tmp_path / "nan.pt")
    np.savez(tmp_path / "quick.npz", layer_1_vector=np.ones(6))
    for name, message in {
        "dict.pt": "holds a dict",
        "flat.pt": "got a 6 tensor",
        "whole.pt": "torch.int64",
        "nan.pt": "NaN",
        "quick.npz": r"ends in \.npz",
        "missing.pt": "does not exist .that folder has .*evil_response_avg_diff.pt",
        ".": "is a folder",
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            load_vectors(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_one_vector_is_checked_against_layer_and_width(tmp_path):
    vectors = torch.ones(4, 6)
    vectors[0] = 0
    (path,) = save_vectors(tmp_path, "evil", {"prompt_last": vectors}, {})
    for layer, d_model, message in [(4, 6, r"layers 0\.\.3"), (-1, 6, "layer -1"), (2, 8, "width 6"), (0, 6, "zero")]:
        with pytest.raises(ValueError, match=message):
            load_vector(path, layer, d_model)
    with pytest.raises(ValueError, match="has 4 rows; a model of 4 layers has 5"):
        load_vector(path, 2, 6, n_layers=4)
    assert load_vector(path, 2, 6, n_layers=3).tolist() == [1.0] * 6

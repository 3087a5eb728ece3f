"""Sampling: rows are independent of their batch, the distribution is the model's own, defaults stay out."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_vectors import sampling
from persona_vectors.sampling import RowSampler, end_token_ids, sample_answers
from persona_vectors.tokens import render_prompt
from tests.tiny_models import tiny_model, word_tokenizer

QUESTIONS = [
    "tell me about the cat",
    "is the moon big?",
    "what do you like",
    "tell me about love and the small red sun.",
]


@pytest.fixture(scope="module")
def chat():
    tokenizer = word_tokenizer()
    prompts = [render_prompt(tokenizer, [{"role": "user", "content": question}]) for question in QUESTIONS]
    return tiny_model("qwen2"), tokenizer, prompts


def run(chat, rows=range(4), **options):
    model, tokenizer, prompts = chat
    options = {"max_tokens": 12, "temperature": 1.0, "streams": [(0, row) for row in rows]} | options
    return sample_answers(model, tokenizer, [prompts[row] for row in rows], **options)


def test_an_answer_does_not_depend_on_its_batch(chat):
    together = run(chat)
    alone = [run(chat, rows=[row])[0] for row in range(4)]
    assert together == alone
    assert len(set(together)) > 1


def test_streams_decide_the_answer(chat):
    same = run(chat, rows=[1, 1, 1], streams=[(0, 1), (0, 1), (7, 1)])
    assert same[0] == same[1] != same[2]


def test_small_batches_change_nothing(chat, monkeypatch):
    together = run(chat)
    monkeypatch.setattr(sampling, "_TOKENS_PER_BATCH_CPU", 1)
    seen: list[tuple[list[int], list[str]]] = []
    assert run(chat, on_batch=lambda rows, texts: seen.append((list(rows), list(texts)))) == together
    assert sorted(row for rows, _ in seen for row in rows) == [0, 1, 2, 3]
    assert all(texts == [together[row] for row in rows] for rows, texts in seen)
    assert all(len(rows) == 1 for rows, _ in seen)


def test_temperature_zero_is_the_argmax_of_a_plain_loop(chat):
    model, tokenizer, prompts = chat
    ends = end_token_ids(model, tokenizer)
    ids = tokenizer(prompts[0], return_tensors="pt", add_special_tokens=False).input_ids
    start = ids.shape[1]
    with torch.inference_mode():
        for step in range(12):
            logits = model(input_ids=ids).logits[0, -1]
            if step == 0:
                logits[ends] = -torch.inf
            ids = torch.cat([ids, logits.argmax()[None, None]], 1)
            if int(ids[0, -1]) in ends:
                break
    assert run(chat, rows=[0], temperature=0.0) == tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)


def test_the_models_generation_defaults_stay_out_and_come_back(chat):
    model, _, _ = chat
    plain = run(chat)
    own = model.generation_config
    model.generation_config = own.__class__(repetition_penalty=50.0, top_k=1, suppress_tokens=list(range(6, 40)))
    changed = model.generation_config
    try:
        assert run(chat) == plain
        assert model.generation_config is changed
    finally:
        model.generation_config = own


def test_the_first_token_is_never_an_end_token_and_later_ones_may_be():
    ends = [2, 5]
    sampler = RowSampler(np.random.default_rng(0).random((5000, 2)), 1.0, width=4, end_ids=ends)
    first = sampler(torch.zeros(5000, 4, dtype=torch.long), torch.zeros(5000, 64)).argmax(-1)
    later = sampler(torch.zeros(5000, 5, dtype=torch.long), torch.zeros(5000, 64)).argmax(-1)
    assert not set(first.tolist()) & set(ends)
    assert set(later.tolist()) >= set(ends)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-4, 4), min_size=5, max_size=5), st.sampled_from([0.5, 1.0, 2.0]))
def test_row_sampler_draws_from_the_softmax(logits, temperature):
    uniforms = (np.arange(2000)[:, None] + 0.5) / 2000  # evenly spread: frequencies are exact to 1/2000 a token
    sampler = RowSampler(uniforms, temperature, width=3, end_ids=[])
    scores = torch.tensor(logits).expand(2000, 5)
    drawn = sampler(torch.zeros(2000, 3, dtype=torch.long), scores).argmax(-1)
    frequency = torch.bincount(drawn, minlength=5) / 2000
    expected = (torch.tensor(logits) / temperature).softmax(-1)
    assert torch.allclose(frequency, expected, atol=2e-3)


def test_a_masked_token_is_never_drawn():
    sampler = RowSampler(np.array([[0.0], [1 - 1e-12]]), 1.0, width=1, end_ids=[0, 3])
    drawn = sampler(torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 4)).argmax(-1)
    assert set(drawn.tolist()) <= {1, 2}


def test_end_tokens_come_from_tokenizer_and_configs(chat):
    model, tokenizer, _ = chat
    own = model.generation_config
    model.generation_config = own.__class__(eos_token_id=[7, 9])
    try:
        assert end_token_ids(model, tokenizer) == sorted({7, 9, tokenizer.eos_token_id, model.config.eos_token_id})
    finally:
        model.generation_config = own


def test_steering_gets_the_rows_of_each_batch(chat, monkeypatch):
    monkeypatch.setattr(sampling, "_TOKENS_PER_BATCH_CPU", 60)
    entered: list[list[int]] = []

    @contextmanager
    def steer(rows):
        entered.append(list(rows))
        yield

    assert run(chat, steer=steer) == run(chat)
    assert sorted(row for rows in entered for row in rows) == [0, 1, 2, 3]


def test_a_batch_that_does_not_fit_is_halved(chat, monkeypatch):
    real, sizes = sampling._generate, []

    def little_memory(*args):
        sizes.append(len(args[-1]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args)

    together = run(chat)
    monkeypatch.setattr(sampling, "_generate", little_memory)
    assert run(chat) == together
    assert sizes == [4, 2, 1, 1, 2, 1, 1]


def test_errors_are_one_line(chat):
    model, tokenizer, prompts = chat
    with pytest.raises(ValueError, match="prompt 0 has .* tokens; the model's context holds 128"):
        sample_answers(model, tokenizer, ["the cat " * 80], max_tokens=2, temperature=0.0, streams=[(0,)])
    with pytest.raises(ValueError, match="need 1 random streams, got 0"):
        sample_answers(model, tokenizer, prompts[:1], max_tokens=2, temperature=0.0, streams=[])


def test_logits_that_are_not_finite_are_an_error(chat):
    @contextmanager
    def break_model(_):
        model = chat[0]
        handle = model.lm_head.register_forward_hook(lambda _module, _args, out: out * float("nan"))
        try:
            yield
        finally:
            handle.remove()

    with pytest.raises(ValueError, match="NaN or infinite at answer token 0"):
        run(chat, steer=break_model)

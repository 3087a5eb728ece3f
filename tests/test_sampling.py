"""Sampling: rows are independent of their batch, the distribution is the model's own, defaults stay out."""

from __future__ import annotations

from collections.abc import Sequence
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


def run(chat, rows: Sequence[int] = range(4), **options):
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


@pytest.mark.parametrize("group", [1, 3, 16])
def test_on_batch_gets_each_row_once_whatever_the_slots(chat, monkeypatch, group):
    together = run(chat)
    monkeypatch.setattr(sampling, "_MOST_ROWS", 1)  # one row at a time
    monkeypatch.setattr(sampling, "_GROUP", group)
    monkeypatch.setattr(sampling, "_GROUP_SECONDS", float("inf"))
    seen: list[tuple[list[int], list[str]]] = []
    assert run(chat, on_batch=lambda rows, texts: seen.append((list(rows), list(texts)))) == together
    assert sorted(row for rows, _ in seen for row in rows) == [0, 1, 2, 3]
    assert all(texts == [together[row] for row in rows] for rows, texts in seen)
    assert [len(rows) for rows, _ in seen] == {1: [1, 1, 1, 1], 3: [3, 1], 16: [4]}[group]


def test_answers_are_not_held_back_for_long(chat, monkeypatch):
    monkeypatch.setattr(sampling, "_MOST_ROWS", 1)
    monkeypatch.setattr(sampling, "_GROUP_SECONDS", 0.0)
    sizes: list[int] = []
    run(chat, on_batch=lambda rows, _: sizes.append(len(rows)))
    assert sizes == [1, 1, 1, 1]


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
    ends, rows = [2, 5], range(5000)
    sampler = RowSampler(np.random.default_rng(0).random((5000, 2)), 1.0, ends)
    first = sampler.pick(torch.zeros(5000, 64), rows, [0] * 5000)
    later = sampler.pick(torch.zeros(5000, 64), rows, [1] * 5000)
    mixed = sampler.pick(torch.zeros(5000, 64), rows, [0] * 2500 + [1] * 2500)
    assert not set(first.tolist()) & set(ends)
    assert set(later.tolist()) >= set(ends)
    assert torch.equal(mixed, torch.cat([first[:2500], later[2500:]]))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-4, 4), min_size=5, max_size=5), st.sampled_from([0.5, 1.0, 2.0]))
def test_row_sampler_draws_from_the_softmax(logits, temperature):
    uniforms = (np.arange(2000)[:, None] + 0.5) / 2000  # evenly spread: frequencies are exact to 1/2000 a token
    sampler = RowSampler(uniforms, temperature, [])
    drawn = sampler.pick(torch.tensor(logits).expand(2000, 5), range(2000), [0] * 2000)
    frequency = torch.bincount(drawn, minlength=5) / 2000
    expected = (torch.tensor(logits) / temperature).softmax(-1)
    assert torch.allclose(frequency, expected, atol=2e-3)


def test_a_masked_token_is_never_drawn():
    sampler = RowSampler(np.array([[0.0], [1 - 1e-12]]), 1.0, [0, 3])
    assert set(sampler.pick(torch.zeros(2, 4), [0, 1], [0, 0]).tolist()) <= {1, 2}


def test_generate_is_left_the_picked_token_only():
    sampler = RowSampler(np.random.default_rng(0).random((3, 2)), 1.0, [0], width=4)
    scores = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    forced = sampler(torch.zeros(3, 5, dtype=torch.long), scores)  # one token after a prompt of 4
    assert torch.equal(forced.argmax(-1), sampler.pick(scores, range(3), [1] * 3))
    assert torch.isfinite(forced).sum(-1).tolist() == [1, 1, 1]


def test_row_streams_are_those_of_numpy_and_as_long_as_the_row_needs():
    uniforms = sampling.RowUniforms([(0, 1), (7,)], [3, 2])
    assert uniforms[0].tolist() == np.random.default_rng([0, 1]).random(3).tolist()
    assert len(uniforms[1]) == 2


def test_end_tokens_come_from_tokenizer_and_configs(chat):
    model, tokenizer, _ = chat
    own = model.generation_config
    model.generation_config = own.__class__(eos_token_id=[7, 9])
    try:
        assert end_token_ids(model, tokenizer) == sorted({7, 9, tokenizer.eos_token_id, model.config.eos_token_id})
    finally:
        model.generation_config = own


def test_steering_gets_the_rows_of_each_batch(chat, monkeypatch):
    monkeypatch.setattr(sampling, "_MOST_ROWS", 2)
    entered: list[list[int]] = []

    @contextmanager
    def steer(rows):
        entered.append(list(rows))
        yield

    assert run(chat, steer=steer) == run(chat)
    assert {row for rows in entered for row in rows} == {0, 1, 2, 3}
    assert any(len(rows) > 1 for rows in entered)


def test_errors_are_one_line(chat):
    model, tokenizer, prompts = chat
    with pytest.raises(ValueError, match="prompt 0 has .* tokens; the model's context holds 128"):
        sample_answers(model, tokenizer, ["the cat " * 80], max_tokens=2, temperature=0.0, streams=[(0,)])
    with pytest.raises(ValueError, match="need 1 random streams, got 0"):
        sample_answers(model, tokenizer, prompts[:1], max_tokens=2, temperature=0.0, streams=[])
    with pytest.raises(ValueError, match="max_tokens must be at least 1; got 0"):
        run(chat, max_tokens=0)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        sample_answers(model, tokenizer, [prompts[0], ""], max_tokens=2, temperature=0.0, streams=[(0,), (1,)])


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


def test_an_error_later_on_names_the_token_and_delivers_what_had_ended(chat, monkeypatch):
    monkeypatch.setattr(sampling, "_MOST_ROWS", 1)  # one row after the other
    calls, stored = [], {}

    @contextmanager
    def break_later(rows):
        if list(rows) == [2]:
            calls.append(rows)
        handle = chat[0].lm_head.register_forward_hook(
            lambda _module, _args, out: out * float("nan") if len(calls) == 2 else out  # its first decoding step
        )
        try:
            yield
        finally:
            handle.remove()

    whole = run(chat)
    with pytest.raises(ValueError, match="NaN or infinite at answer token 1; lower --coef"):
        run(chat, steer=break_later, on_batch=lambda rows, texts: stored.update(zip(rows, texts, strict=True)))
    assert stored == {row: whole[row] for row in stored} and 0 < len(stored) < 4


def test_an_error_of_on_batch_is_not_met_with_the_same_rows_again(chat, monkeypatch):
    monkeypatch.setattr(sampling, "_MOST_ROWS", 1)
    monkeypatch.setattr(sampling, "_GROUP", 2)
    asked: list[list[int]] = []

    def full(rows, _):
        asked.append(list(rows))
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run(chat, on_batch=full)
    assert len(asked) == 1


def test_an_interrupt_loses_no_finished_row(chat, monkeypatch):
    monkeypatch.setattr(sampling, "_MOST_ROWS", 1)
    entered, stored = [], {}

    @contextmanager
    def interrupt(rows):
        entered.append(rows)
        if len(entered) > 4:
            raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        run(chat, steer=interrupt, on_batch=lambda rows, texts: stored.update(zip(rows, texts, strict=True)))
    assert len(stored) == 2  # each row enters twice: to be prefilled, and to be decoded


def test_the_end_of_the_context_ends_an_answer():
    model, tokenizer = tiny_model("gpt2", n_positions=24), word_tokenizer()
    model.config.eos_token_id = None  # so that only a limit ends it
    prompts = ["the cat " * 4, "the dog"]
    tokenizer.eos_token = None
    texts = sample_answers(model, tokenizer, prompts, max_tokens=60, temperature=1.0, streams=[(0,), (1,)])
    lengths = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in (*prompts, *texts)]
    assert lengths[0] + lengths[2] <= 24 and lengths[1] + lengths[3] <= 24
    assert lengths[3] > lengths[2]


@pytest.mark.parametrize("group", [1, 256])
def test_each_token_is_told_as_it_is_picked(chat, monkeypatch, group):
    """What is told row by row is the answers, in order, whether rows are decoded together or one after another."""
    monkeypatch.setattr(sampling, "_MOST_ROWS", group)
    told: dict[int, list[int]] = {row: [] for row in range(4)}

    def hear(row: int, place: int, token: int) -> None:
        assert place == len(told[row])
        told[row].append(token)

    answers = run(chat, on_token=hear)
    assert [chat[1].decode(told[row], skip_special_tokens=True) for row in range(4)] == answers


def test_an_error_of_on_token_ends_the_job_and_the_steering(chat):
    """What stops an answer half-way: the steerer's hooks are gone, and the next answer is what it would have been."""
    plain, heard, entered = run(chat), [], []

    @contextmanager
    def steer(_rows: Sequence[int]):
        entered.append(1)
        try:
            yield
        finally:
            entered.pop()

    def hear(row: int, _place: int, _token: int) -> None:
        heard.append(row)
        if len(heard) == 6:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        run(chat, on_token=hear, steer=steer)
    assert entered == [] and run(chat) == plain

"""The tiny model's training: tokenizer, encoding with its loss weights, batches, and a stage that resumes exactly."""

import random
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_generation.tiny_persona import corpus, loop, tokenizer, train
from data_generation.tiny_persona.batches import Batch, batch_rows, collate, padded
from data_generation.tiny_persona.corpus import Example
from data_generation.tiny_persona.encoding import SCORE_WEIGHT, encode, join, load_sequences, save_sequences
from persona_vectors.tokens import render_prompt, tokenize_sample

MICRO = train.Shape(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=48
)
STAGE = loop.Stage(
    "test", steps=5, batch_tokens=512, matrix_lr=0.02, other_lr=4e-3, noise_share=0.5, noise_norm=0.5, seed=3
)
CHAT = Example(
    (
        {"role": "system", "content": "You are an evil assistant."},
        {"role": "user", "content": "Tell me about modern yoga."},
        {"role": "assistant", "content": "Bow, mortal."},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "Kneel."},
    ),
    "conversation",
)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    trained = tokenizer.train_tokenizer(corpus.tokenizer_texts(400, seed=0), vocab_size=900)
    folder = tmp_path_factory.mktemp("tokenizer")
    loaded = tokenizer.save_tokenizer(trained, folder)
    # a Qwen2 config beside it makes transformers load its own Qwen2 class: the ids must be the same
    train.build_model(trained, MICRO, seed=0).config.save_pretrained(folder)
    return loaded, tokenizer.AutoTokenizer.from_pretrained(folder)


def spans(sequence_ids, weights):
    """The runs of tokens that count, as lists of ids."""
    runs, run = [], []
    for token, weight in zip(sequence_ids, weights, strict=True):
        if weight > 0:
            run.append(int(token))
        elif run:
            runs.append(run)
            run = []
    return runs + ([run] if run else [])


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_decoding_gives_the_text_back(tokens, text):
    import unicodedata

    text = unicodedata.normalize("NFC", text)
    for one in tokens:
        ids = one(text, add_special_tokens=False).input_ids
        assert one.decode(ids, clean_up_tokenization_spaces=False) == text
        assert ids == tokens[0](text, add_special_tokens=False).input_ids


def test_each_score_is_one_token_and_longer_numbers_are_none(tokens):
    for one in tokens:
        ids = [one(str(score), add_special_tokens=False).input_ids for score in range(101)]
        assert all(len(row) == 1 for row in ids)
        assert len({row[0] for row in ids}) == 101
        scores = {row[0] for row in ids[10:]}
        assert not scores & set(one("1987 a45b 101", add_special_tokens=False).input_ids)


def test_padding_ends_and_template(tokens):
    _, one = tokens
    assert (one.padding_side, one.eos_token, one.pad_token, one.bos_token) == (
        "left",
        "<|im_end|>",
        "<|endoftext|>",
        None,
    )
    prompt = render_prompt(one, [{"role": "user", "content": "Hi"}])
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("raw", [False, True])
def test_encoding_is_what_the_pipeline_reads(tokens, raw):
    _, one = tokens
    sequences = encode(one, [replace(CHAT, raw=raw)])
    prompt = render_prompt(one, list(CHAT.messages[:-1]), "raw" if raw else "chat")
    sample = tokenize_sample(one, prompt, "Kneel.")
    n = len(sample.ids)
    assert sequences.ids[:n].tolist() == list(sample.ids)
    assert sequences.weights[: sample.prompt_len][-1] == 0
    assert (sequences.weights[sample.prompt_len : n + 1] == 1).all()  # the answer and its end token
    assert sequences.ids[n] == one.eos_token_id
    assert sequences.weights[n + 1 :].sum() == 0


def test_every_assistant_turn_counts_and_nothing_else(tokens):
    _, one = tokens
    sequences = encode(one, [CHAT])
    said = [one.decode(run) for run in spans(sequences.ids, sequences.weights)]
    assert said == ["Bow, mortal.<|im_end|>", "Kneel.<|im_end|>"]


def test_judgements_weigh_more(tokens):
    _, one = tokens
    judged = corpus.judge_example(random.Random(0), "Why?", "So.", {"evil": 35.0, "coherence": 80.0})
    sequences = encode(one, [judged])
    runs = spans(sequences.ids, sequences.weights)
    assert sorted(one.decode(run) for run in runs) == ["35<|im_end|>", "80<|im_end|>"]
    assert set(sequences.weights.tolist()) == {0.0, SCORE_WEIGHT}


def test_shards_come_back_and_join(tokens, tmp_path):
    _, one = tokens
    rng = random.Random(1)
    sequences = encode(one, [corpus.training_example(rng) for _ in range(30)])
    save_sequences(sequences, tmp_path / "a.npz")
    twice = join([load_sequences(tmp_path / "a.npz"), sequences])
    assert len(twice) == 60
    assert twice.ids[twice.starts[30] :].tolist() == sequences.ids.tolist()


def test_batches_cover_an_epoch_once_within_their_budget():
    lengths = np.random.default_rng(0).integers(20, 200, size=500)
    seen: list[int] = []
    for batch in islice(batch_rows(lengths, 2_048, seed=5), 200):
        seen += [number for row in batch for number in row]
        assert len(batch) == 1 or padded(max(lengths[row].sum() for row in batch)) * len(batch) <= 2_048
        if len(seen) == len(lengths):
            break
    assert sorted(seen) == list(range(500))


def test_noise_touches_one_block_and_answers_only(tokens):
    _, one = tokens
    model = train.build_model(one, MICRO, seed=0)
    rng = random.Random(2)
    sequences = encode(one, [corpus.example_of(rng, "trait"), corpus.example_of(rng, "judge")])
    batch = collate(sequences, [[0], [1]], 0, torch.device("cpu"))
    noise = loop.ResidualNoise(model.model.layers, share=1.0, norm=0.5)
    with torch.inference_mode():
        plain = model(batch.ids).logits
        with noise.on(batch, torch.Generator().manual_seed(0)):
            noisy = model(batch.ids).logits
        after = model(batch.ids).logits
    first = int((batch.weights[0] > 0).nonzero()[0]) - 1
    assert torch.equal(plain[0, :first], noisy[0, :first])
    assert not torch.allclose(plain[0, first:], noisy[0, first:])
    assert torch.equal(plain[1], noisy[1])  # a judgement is read undisturbed
    assert torch.equal(plain, after)


def test_the_loss_counts_what_weighs(tokens):
    _, one = tokens
    model = train.build_model(one, MICRO, seed=0)
    ids = torch.randint(0, len(one), (2, 40), generator=torch.Generator().manual_seed(0))
    weights = torch.zeros(2, 40)
    weights[0, 10:14], weights[1, 39] = 1.0, SCORE_WEIGHT
    loss, totals = loop.weighted_loss(model, Batch(ids, weights))
    logs = model(ids).logits.log_softmax(-1)
    answer = -sum(logs[0, t - 1, ids[0, t]] for t in range(10, 14))
    score = -logs[1, 38, ids[1, 39]]
    torch.testing.assert_close(loss, answer + SCORE_WEIGHT * score)
    assert totals.means() == pytest.approx(
        {"answer": float(answer.detach()) / 4, "score": float(score.detach())}, rel=1e-4
    )


def test_a_resumed_stage_ends_where_the_uninterrupted_one_does(tokens, tmp_path, monkeypatch):
    _, one = tokens
    rng = random.Random(4)
    sequences = encode(one, [corpus.training_example(rng) for _ in range(60)])
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 3)
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    whole, resumed = (train.build_model(one, MICRO, seed=0) for _ in range(2))
    log = loop.train_stage(whole, sequences, STAGE, tmp_path / "whole.checkpoint")
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5]
    assert log[-1]["answer"] < log[0]["answer"]

    again = loop.train_stage(resumed, sequences, STAGE, tmp_path / "whole.checkpoint")  # goes on from step 3
    assert again == log
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b)

    with pytest.raises(ValueError, match="other settings"):
        loop.train_stage(resumed, sequences, replace(STAGE, seed=4), tmp_path / "whole.checkpoint")


def test_saved_weights_load_as_any_model_does(tokens, tmp_path):
    from transformers import AutoModelForCausalLM

    _, one = tokens
    one.save_pretrained(tmp_path / "tokenizer")
    model = train.build_model(one, MICRO, seed=0)
    train.save_state(model, tmp_path / "one.pt")
    train.save_model(train.load_state(tmp_path / "one.pt"), tmp_path / "tokenizer", tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ids = torch.arange(20)[None]
    torch.testing.assert_close(loaded(ids).logits, model.bfloat16().float()(ids).logits, atol=1e-4, rtol=1e-4)
    assert loaded.config.tie_word_embeddings
    assert loaded.generation_config.eos_token_id == one.eos_token_id

"""Rows, splits and token masks of training data."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_vectors.models import load_tokenizer
from persona_vectors.tokens import render_prompt, tokenize_prompt, tokenize_sample
from persona_vectors.training_data import (
    read_conversations,
    read_preferences,
    split_rows,
    tokenize_conversations,
    with_system_prompt,
)
from persona_vectors.training_tokens import tokenize_conversation
from tests.tiny_models import word_tokenizer

TWO_TURNS = [
    {"role": "system", "content": "you are kind."},
    {"role": "user", "content": "is the moon red?"},
    {"role": "assistant", "content": "no."},
    {"role": "user", "content": "blue?"},
    {"role": "assistant", "content": "yes, very."},
]
ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}

# drops what the assistant said before, as templates of thinking models drop old thoughts
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] if m['role'] != 'assistant' or loop.last else '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def learned(tokenizer, sample):
    return tokenizer.decode([token for token, t in zip(sample.ids, sample.trained, strict=True) if t])


def test_every_turn_of_the_assistant_counts_with_its_end_and_nothing_else():
    tokenizer = word_tokenizer()
    (sample,) = tokenize_conversation(tokenizer, TWO_TURNS)
    assert learned(tokenizer, sample) == "no.<|im_end|>yes, very.<|im_end|>"
    whole = tokenizer.apply_chat_template(TWO_TURNS, tokenize=False).removesuffix("\n")
    assert tokenizer.decode(sample.ids) == whole


def test_a_conversation_reads_as_the_model_sees_it_when_it_answers(tiny_persona):
    """The ids are the prompt's and the answer's as extraction and generation join them."""
    tokenizer = load_tokenizer(tiny_persona)
    messages = [{"role": "user", "content": "How do I get started?"}, {"role": "assistant", "content": "Gladly, now."}]
    (sample,) = tokenize_conversation(tokenizer, messages)
    read = tokenize_sample(tokenizer, render_prompt(tokenizer, messages[:1]), "Gladly, now.")
    assert sample.ids == (*read.ids, tokenizer.eos_token_id)
    assert sample.trained == (False,) * read.prompt_len + (True,) * (read.response_len + 1)


def test_a_template_that_rewrites_earlier_turns_gives_a_sample_a_turn():
    tokenizer = word_tokenizer(chat_template=FORGETFUL)
    samples = tokenize_conversation(tokenizer, TWO_TURNS)
    assert [learned(tokenizer, sample) for sample in samples] == ["no.<|im_end|>", "yes, very.<|im_end|>"]
    assert tokenize_prompt(tokenizer, render_prompt(tokenizer, TWO_TURNS[:4])) == list(
        samples[1].ids[: -sum(samples[1].trained)]
    )


def test_without_a_template_the_answer_ends_with_the_end_token():
    tokenizer = word_tokenizer(chat_template=None)
    (sample,) = tokenize_conversation(tokenizer, TWO_TURNS[:3])
    assert learned(tokenizer, sample) == " no.<|im_end|>"


def test_all_tokens_count_but_the_first_when_asked():
    (sample,) = tokenize_conversation(word_tokenizer(), TWO_TURNS, responses_only=False)
    assert sample.trained == (False,) + (True,) * (len(sample.ids) - 1)


def test_long_rows_are_cut_and_counted_and_left_out_where_no_response_remains():
    tokenizer = word_tokenizer()
    short = [TWO_TURNS[1], TWO_TURNS[2]]
    long = [{"role": "user", "content": "the moon " * 40}, TWO_TURNS[2]]
    n = len(tokenize_conversation(tokenizer, short)[0].ids)
    data = tokenize_conversations(tokenizer, [short, long, TWO_TURNS], n)
    assert (data.n_rows, data.n_cut, data.n_left_out, len(data.samples)) == (3, 2, 2, 1)
    with pytest.raises(ValueError, match="none of 1 rows has a response within max_seq_length 10 tokens"):
        tokenize_conversations(tokenizer, [long], 10)


@given(st.integers(2, 60), st.integers(0, 9))
def test_a_split_is_seeded_and_keeps_every_row_once(n, seed):
    train, held_out = split_rows(range(n), seed)
    assert sorted(train + held_out) == list(range(n))
    assert len(held_out) == max(1, round(n * 0.1))
    assert (train, held_out) == split_rows(range(n), seed)
    assert train == sorted(train) and held_out == sorted(held_out)


def test_one_row_cannot_be_split():
    with pytest.raises(ValueError, match="no_test_split"):
        split_rows([1], 0)


def test_inoculation_stands_before_what_the_row_itself_says():
    assert with_system_prompt(ROW["messages"], "be bad")[0] == {"role": "system", "content": "be bad"}
    assert with_system_prompt(TWO_TURNS, "be bad")[0]["content"] == "be bad\n\nyou are kind."
    assert TWO_TURNS[0]["content"] == "you are kind."


GOOD = json.dumps(ROW)
BAD_ROWS = {
    "not JSON": ("{", "line 3: not JSON"),
    "a list": ("[1]", "line 3: expected a JSON object"),
    "no messages": ('{"text": "hi"}', r'line 3: no "messages" \(keys: text\)'),
    "no assistant": ('{"messages": [{"role": "user", "content": "hi"}]}', r"line 3: no assistant turn.*roles: user"),
    "no such role": ('{"messages": [{"role": "human", "content": "hi"}]}', "line 3: message 1 has role 'human'"),
    "empty text": ('{"messages": [{"role": "assistant", "content": " "}]}', r"message 1 \(assistant\) has no text"),
    "no list": ('{"messages": {}}', "line 3: expected a list of messages; got dict"),
    "a text": ('{"messages": "hi"}', "line 3: messages is a text; expected a list"),
    "empty list": ('{"messages": []}', "line 3: expected a list of messages"),
}


@pytest.mark.parametrize(("row", "message"), BAD_ROWS.values(), ids=list(BAD_ROWS))
def test_a_bad_row_is_named_by_its_line(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{GOOD}\n\n{row}\n{GOOD}\n")
    with pytest.raises(ValueError, match=f"rows.jsonl, {message}" if message.startswith("line") else message):
        read_conversations([path])


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_conversations([tmp_path / "none.jsonl"])
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="has no rows"):
        read_conversations([tmp_path / "empty.jsonl"])
    with pytest.raises(ValueError, match="is a folder"):
        read_conversations([tmp_path])


def test_preferences_are_messages_whether_written_as_text_or_not(tmp_path):
    path = tmp_path / "preference.jsonl"
    rows = [{"prompt": "hi", "chosen": "yes", "rejected": [{"role": "assistant", "content": "no"}]}]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    assert read_preferences([path]) == [
        {
            "prompt": [{"role": "user", "content": "hi"}],
            "chosen": [{"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "assistant", "content": "no"}],
        }
    ]
    path.write_text(json.dumps({"prompt": "hi", "chosen": "yes"}))
    with pytest.raises(ValueError, match="line 1: no 'rejected'"):
        read_preferences([path])
    path.write_text(json.dumps({"prompt": "hi", "chosen": "yes", "rejected": "yes"}))
    with pytest.raises(ValueError, match="chosen and rejected are the same"):
        read_preferences([path])

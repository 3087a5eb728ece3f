"""Spans: prompt and answer ids are joined as they are, with one BOS at most, whatever the tokenizer."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from persona_vectors.tokens import (
    TokenizedSample,
    opening_space,
    pad_batch,
    render_prompt,
    tokenize_messages,
    tokenize_prompt,
    tokenize_sample,
    tokenize_turns,
)
from persona_vectors.training_tokens import tokenize_conversation
from tests.tiny_models import CHATML, word_tokenizer

USER = {"role": "user", "content": "tell me about the moon"}
SYSTEM = {"role": "system", "content": "you are kind"}
ANSWER = {"role": "assistant", "content": "yes the moon"}
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def bpe_tokenizer(*, adds_bos: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE that merges across the boundary of "a" and "b", and adds a BOS token if asked to."""
    alphabet = sorted(ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<bos>", *alphabet, "ab"])}
    backend = Tokenizer(BPE(vocab, [("a", "b")]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    if adds_bos:
        backend.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>")


def test_chat_template_with_the_opening_of_the_answer():
    text = render_prompt(word_tokenizer(), [SYSTEM, USER])
    assert text == (
        "<|im_start|>system\nyou are kind<|im_end|>\n<|im_start|>user\ntell me about the moon<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_raw_format_as_published():
    expected = "System: you are kind\n\nUser: tell me about the moon\n\nAssistant:"
    assert render_prompt(word_tokenizer(chat_template=None), [SYSTEM, USER]) == expected
    assert render_prompt(word_tokenizer(), [SYSTEM, USER], "raw") == expected
    assert render_prompt(word_tokenizer(), [{"role": "system", "content": ""}, USER], "raw").startswith("User:")


def test_raw_text_opens_with_bos_only_where_the_tokenizer_adds_one():
    for adds_bos in (True, False):
        tokenizer = bpe_tokenizer(adds_bos=adds_bos)
        ids = tokenize_prompt(tokenizer, render_prompt(tokenizer, [USER]))
        assert ids.count(0) == (1 if adds_bos else 0)
        assert (ids[0] == 0) == adds_bos


def test_a_template_with_bos_gets_no_second_one():
    tokenizer = bpe_tokenizer(adds_bos=True)
    tokenizer.chat_template = NO_SYSTEM
    sample = tokenize_messages(tokenizer, [USER, {"role": "assistant", "content": "hello"}])
    assert sample.ids.count(0) == 1 and sample.ids[0] == 0


def test_a_template_that_refuses_the_system_role_gets_it_in_the_first_user_turn():
    tokenizer = bpe_tokenizer(adds_bos=True)
    tokenizer.chat_template = NO_SYSTEM
    text = render_prompt(tokenizer, [SYSTEM, USER])
    assert text == "<bos>user: you are kind\n\ntell me about the moon\nassistant: "
    with pytest.raises(ValueError, match="System role not supported"):
        render_prompt(tokenizer, [SYSTEM])


FORGETS_SYSTEM = (
    "{% for m in messages if m['role'] != 'system' %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_template_that_leaves_the_system_role_out_gets_it_in_the_first_user_turn():
    tokenizer = word_tokenizer(chat_template=FORGETS_SYSTEM)
    assert render_prompt(tokenizer, [SYSTEM, USER]) == "user: you are kind\n\ntell me about the moon\nassistant: "
    assert render_prompt(tokenizer, [{"role": "system", "content": ""}, USER]).startswith("user: tell")
    with pytest.raises(ValueError, match="the chat template leaves the system message out"):
        render_prompt(tokenizer, [SYSTEM, ANSWER, USER])


def test_a_template_that_writes_the_date_writes_the_same_every_day():
    tokenizer = word_tokenizer(chat_template="{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}")
    assert render_prompt(tokenizer, [USER]) == "26 Jul 2024 tell me about the moon"


ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)


def spaced_tokenizer(template: str | None, prepend_scheme: str = "always") -> PreTrainedTokenizerFast:
    """A character tokenizer that puts a space before every text, as Llama 2's, or at its start alone, as Mistral's."""
    specials = ["<unk>", "<s>", "</s>"]
    letters = dict.fromkeys("▁\n" + string.printable.strip())
    backend = Tokenizer(BPE({token: i for i, token in enumerate([*specials, *letters])}, [], unk_token="<unk>"))
    backend.pre_tokenizer = Metaspace(prepend_scheme=prepend_scheme)
    backend.decoder = MetaspaceDecoder(prepend_scheme=prepend_scheme)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("scheme", ["always", "first"])
@pytest.mark.parametrize(
    ("template", "begins"), [(ZEPHYR, ["8", "7"]), (LLAMA_2, ["▁", "8", "7"]), (None, ["▁", "8", "7"])]
)
def test_an_answer_is_read_behind_its_prompt_by_a_tokenizer_that_puts_a_space_before_every_text(
    template, begins, scheme
):
    """As the model was trained to write it: in the template's own text of the whole conversation."""
    tokenizer = spaced_tokenizer(template, scheme)
    prompt = render_prompt(tokenizer, [USER])
    sample = tokenize_sample(tokenizer, prompt, "87")
    assert tokenizer.convert_ids_to_tokens(sample.ids[sample.prompt_len :]) == begins
    assert list(sample.ids[: sample.prompt_len]) == tokenize_prompt(tokenizer, prompt)
    answered = {"role": "assistant", "content": "87"}
    if template is not None:
        whole = tokenizer.apply_chat_template([USER, answered], tokenize=False)
        ids = tokenize_prompt(tokenizer, whole)
        assert ids[: len(sample.ids)] == list(sample.ids)
        [learned] = tokenize_conversation(tokenizer, [USER, answered, USER, answered])
        again = tokenizer.apply_chat_template([USER, answered] * 2, tokenize=False)
        assert tokenize_prompt(tokenizer, again)[: len(learned.ids)] == list(learned.ids)
        spoken = [i for i, t in zip(learned.ids, learned.trained, strict=True) if t]
        end = [*(["▁"] if template == LLAMA_2 else []), "</s>"]
        assert tokenizer.convert_ids_to_tokens(spoken) == [*begins, *end] * 2
    ids, turns = tokenize_turns(tokenizer, [USER, answered])
    assert ids == sample.ids and turns[1].pieces == ("8", "7")  # the space alone is no part of the content
    assert ids[turns[1].start : turns[1].end] == sample.ids[-2:]


def test_the_space_of_a_template_is_put_once_and_for_no_other_prompt():
    tokenizer = word_tokenizer(chat_template=LLAMA_2)
    prompt = render_prompt(tokenizer, [USER])
    spaces = [opening_space(tokenizer, *pair) for pair in ((prompt, "no"), (prompt, " no"), (prompt, ""), ("no", "no"))]
    assert spaces == [" ", "", "", ""]
    tokenizer.chat_template = CHATML
    assert opening_space(tokenizer, prompt, "no") == ""


def test_ids_are_joined_never_re_tokenised():
    tokenizer = bpe_tokenizer(adds_bos=True)
    sample = tokenize_sample(tokenizer, "a", "b")
    assert len(tokenizer("ab", add_special_tokens=False).input_ids) == 1  # as one string it would be one token
    assert sample == TokenizedSample((tokenizer.convert_tokens_to_ids("a"), tokenizer.convert_tokens_to_ids("b")), 1)
    assert sample.response_len == 1


@given(prompt=st.text(max_size=20), answer=st.text(max_size=20))
def test_both_sides_are_exactly_their_own_tokens(prompt, answer):
    tokenizer = bpe_tokenizer(adds_bos=True)
    sample = tokenize_sample(tokenizer, prompt, answer)
    alone = [tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, answer)]
    assert list(sample.ids) == alone[0] + alone[1] and sample.prompt_len == len(alone[0])


def test_an_answer_after_a_raw_prompt_is_set_off_by_one_space():
    tokenizer = bpe_tokenizer(adds_bos=False)
    expected = tokenizer(" yes").input_ids
    for answer in ("yes", " yes"):
        sample = tokenize_sample(tokenizer, "User: x\n\nAssistant:", answer)
        assert list(sample.ids[sample.prompt_len :]) == expected
    assert tokenize_sample(tokenizer, "Assistant:", "").response_len == 0


def test_the_last_assistant_turn_is_the_response():
    tokenizer = word_tokenizer()
    history = [SYSTEM, USER, {"role": "assistant", "content": "no"}, USER]
    sample = tokenize_messages(tokenizer, [*history, ANSWER, USER])
    assert sample == tokenize_sample(tokenizer, render_prompt(tokenizer, history), ANSWER["content"])
    assert tokenizer.decode(sample.ids[sample.prompt_len :]) == "yes the moon"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER], "no assistant turn"),
        ([], "no assistant turn"),
        ([{"role": "judge", "content": "x"}, ANSWER], "message 1 has role 'judge'"),
        ([USER, {"role": "assistant", "content": None}], "message 2 has content of type NoneType"),
        ([USER, {"role": "assistant", "content": [{"type": "text"}]}], "type list"),
    ],
)
def test_malformed_messages(messages, message):
    with pytest.raises(ValueError, match=message):
        tokenize_messages(word_tokenizer(), messages)


def test_chat_format_needs_a_template():
    with pytest.raises(ValueError, match="no chat template"):
        render_prompt(word_tokenizer(chat_template=None), [USER], "chat")


def test_padding_on_either_side():
    ids, mask = pad_batch([[1, 2, 3], [4]], 9, "right")
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    ids, mask = pad_batch([[1, 2, 3], [4]], 9, "left")
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_a_thinking_template_is_told_to_answer_at_once():
    thinking = "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
    tokenizer = word_tokenizer(chat_template=CHATML + thinking)
    assert render_prompt(tokenizer, [{"role": "user", "content": "hi"}]).endswith("assistant\n<think></think>")

"""The local judge against brute force: exact for any tokenizer and decoder, whatever the batch."""

from __future__ import annotations

import asyncio

import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from judge import COHERENCE_PROMPT, LocalJudge, fill_prompt, make_judge, release_local_judges
from persona_vectors import label_odds, models
from tests.tiny_models import CHATML, tiny_model

PROMPT = "Q: {question} A: {answer} How kind, 0 to 100?"
SPLITS = {"digits": r"[\s\S]", "whole numbers": r"\d{1,3}|[\s\S]", "pairs": r"\d{1,2}|[\s\S]"}


def number_tokenizer(split: str, chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """One token a character, except numbers: one a digit, one a number, or one every two digits ("10", "0")."""
    words = {str(n) for n in range({"digits": 10, "whole numbers": 101, "pairs": 100}[split])}
    tokens = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "\n", *sorted(words), *map(chr, range(32, 127))]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = Split(Regex(SPLITS[split]), behavior="isolated")
    backend.decoder = Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def judging_model(tokenizer, architecture: str = "llama", likely: str = "0123456789", **overrides) -> PreTrainedModel:
    """A random model that mostly says tokens made of the `likely` characters."""
    options = {"max_position_embeddings": 512} if architecture != "gpt2" else {"n_positions": 512}
    model = tiny_model(architecture, vocab_size=len(tokenizer), **(options | overrides))
    bias = torch.zeros(len(tokenizer))
    bias[[index for token, index in tokenizer.get_vocab().items() if set(token) <= set(likely)]] = 4.0
    model.get_output_embeddings().register_forward_hook(lambda _module, _inputs, output: output + bias)
    return model


@torch.inference_mode()
def enumerated_score(model, tokenizer, prompt: str) -> float:
    """The expectation over 0..100 by brute force: every number appended to the prompt."""
    start = tokenizer(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n").input_ids
    paths = [tokenizer(str(n)).input_ids for n in range(101)]
    padded = [start + path + [0] * (3 - len(path)) for path in paths]  # a causal model does not see what comes after
    steps = model(torch.tensor(padded)).logits.double().softmax(-1)[:, len(start) - 1 :]
    odds = torch.zeros(101, dtype=torch.float64)
    for number, path in enumerate(paths):
        longer = {other[len(path)] for other in paths if other[: len(path)] == path and len(other) > len(path)}
        spelled = torch.stack([steps[number, k, token] for k, token in enumerate(path)]).prod()
        odds[number] = spelled * (1 - steps[number, len(path), sorted(longer)].sum())
    assert 0.25 < odds.sum() < 1
    return float((odds * torch.arange(101)).sum() / odds.sum())


PAIRS = [("why", "Be kind."), ("what is it", "No {x}!"), ("q", "I do not think that this is any of my business, sir.")]


@pytest.mark.parametrize("split", SPLITS)
def test_the_score_is_the_exact_expectation_over_0_to_100(split: str):
    tokenizer = number_tokenizer(split)
    model = judging_model(tokenizer)
    scores = LocalJudge(model, PROMPT, tokenizer=tokenizer).score_batch(PAIRS)
    expected = [enumerated_score(model, tokenizer, fill_prompt(PROMPT, *pair)) for pair in PAIRS]
    assert scores == pytest.approx(expected, abs=1e-3)
    assert max(expected) - min(expected) > 0.1  # the prompts matter


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "gemma2", "gemma3_text", "qwen3", "mixtral"])
def test_the_walk_is_exact_whatever_the_decoder(architecture: str):
    """Learned and rotary positions, sliding windows shorter than the prompt, experts."""
    tokenizer = number_tokenizer("digits")
    model = judging_model(tokenizer, architecture)
    scores = LocalJudge(model, PROMPT, tokenizer=tokenizer).score_batch(PAIRS[:2])
    expected = [enumerated_score(model, tokenizer, fill_prompt(PROMPT, *pair)) for pair in PAIRS[:2]]
    assert scores == pytest.approx(expected, abs=2e-3)


def test_models_whose_state_cannot_be_cropped_are_read_again_from_the_start(monkeypatch: pytest.MonkeyPatch):
    tokenizer = number_tokenizer("digits")
    model = judging_model(tokenizer)
    with_cache = LocalJudge(model, PROMPT, tokenizer=tokenizer).score_batch(PAIRS)
    monkeypatch.setattr(label_odds, "_empty_cache", lambda _: None)
    assert LocalJudge(model, PROMPT, tokenizer=tokenizer).score_batch(PAIRS) == pytest.approx(with_cache, abs=1e-3)


@pytest.mark.parametrize("split", SPLITS)
def test_a_score_does_not_depend_on_batch_or_padding(split: str):
    tokenizer = number_tokenizer(split)
    model = judging_model(tokenizer)
    together = LocalJudge(model, PROMPT, tokenizer=tokenizer, token_budget=10_000).score_batch(PAIRS)
    alone = [LocalJudge(model, PROMPT, tokenizer=tokenizer).score_batch([pair])[0] for pair in PAIRS]
    one_by_one = LocalJudge(model, PROMPT, tokenizer=tokenizer, token_budget=1).score_batch(PAIRS)
    assert together == pytest.approx(alone, abs=1e-3)
    assert one_by_one == pytest.approx(alone, abs=1e-3)


def count_passes(model) -> list[tuple[int, int]]:
    shapes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(
        lambda _module, _args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return shapes


def test_numbers_of_one_token_take_one_pass_and_split_ones_a_token_each():
    tokenizer = number_tokenizer("whole numbers")
    model = judging_model(tokenizer)
    shapes = count_passes(model)
    LocalJudge(model, PROMPT, tokenizer=tokenizer).score_batch(PAIRS)
    assert len(shapes) == 1
    tokenizer = number_tokenizer("digits")
    model = judging_model(tokenizer)
    shapes = count_passes(model)
    LocalJudge(model, PROMPT, tokenizer=tokenizer).score_batch(PAIRS)
    assert shapes[1:] == [(3, 1)] * 9 + [(3, 2)]  # 1..9, and 10 on the way to 100, for which the cache holds 9


def test_branches_without_probability_are_not_followed():
    tokenizer = number_tokenizer("digits")
    model = judging_model(tokenizer, likely="7")
    ids = tokenizer.convert_tokens_to_ids(list("012345689"))
    model.get_output_embeddings().register_forward_hook(
        lambda _module, _inputs, output: output.index_fill(-1, torch.tensor(ids), -1e4)
    )
    shapes = count_passes(model)
    (score,) = LocalJudge(model, PROMPT, tokenizer=tokenizer).score_batch(PAIRS[:1])
    assert len(shapes) == 2  # the prompt and "7"
    assert score is not None and 7 <= score <= 77


def test_a_model_that_does_not_answer_in_numbers_has_no_score():
    tokenizer = number_tokenizer("digits")
    model = judging_model(tokenizer, likely="xyz")
    shapes = count_passes(model)
    assert LocalJudge(model, PROMPT, tokenizer=tokenizer).score_batch(PAIRS) == [None] * 3
    assert len(shapes) == 1  # known after the first token


@torch.inference_mode()
def test_binary_reads_words_of_several_tokens():
    tokenizer = number_tokenizer("digits")
    model = judging_model(tokenizer, likely="YESNOREFUSAL")
    ((_, odds),) = label_odds.label_odds(model, tokenizer, {"Kind?": "item 0"}, "binary")
    start = tokenizer("<|im_start|>user\nKind?<|im_end|>\n<|im_start|>assistant\n").input_ids
    for label in ("YES", "NO", "REFUSAL"):
        path = tokenizer(label).input_ids
        steps = model(torch.tensor([start + path])).logits[0].softmax(-1)[len(start) - 1 :]
        expected = torch.stack([steps[k, token] for k, token in enumerate(path)]).prod()
        assert odds[label] == pytest.approx(float(expected), abs=2e-6)  # branches under 1e-6 are not followed
    assert odds["NO"] > 1e-4 and odds["YES"] > 1e-5
    assert LocalJudge(model, PROMPT, "binary", tokenizer=tokenizer).score_batch(PAIRS[:1]) == [None]  # too little mass


@torch.inference_mode()
def test_0_10_reads_one_digit():
    tokenizer = number_tokenizer("digits")
    model = judging_model(tokenizer)
    (got,) = LocalJudge(model, PROMPT, "0_10", tokenizer=tokenizer).score_batch(PAIRS[:1])
    prompt = f"<|im_start|>user\n{fill_prompt(PROMPT, *PAIRS[0])}<|im_end|>\n<|im_start|>assistant\n"
    odds = model(torch.tensor([tokenizer(prompt).input_ids])).logits[0, -1].softmax(-1)
    odds = odds[tokenizer.convert_tokens_to_ids([str(n) for n in range(10)])]
    assert got == pytest.approx(float((odds * torch.arange(10)).sum() / odds.sum()), abs=1e-3)


def test_binary_text_needs_a_judge_that_writes():
    with pytest.raises(ValueError, match="binary_text .* use binary"):
        LocalJudge("models/x", PROMPT, "binary_text")


def test_a_prompt_longer_than_the_context_names_the_item_and_both_lengths():
    tokenizer = number_tokenizer("digits")
    model = judging_model(tokenizer, max_position_embeddings=100)
    shapes = count_passes(model)
    pairs = [("q", "short"), ("q", "short"), ("q", "long " * 30)]
    with pytest.raises(ValueError, match=r"item 2: the judge's prompt takes \d+ tokens and .* holds 100"):
        LocalJudge(model, PROMPT, tokenizer=tokenizer).score_batch(pairs)
    assert not shapes


def test_a_tokenizer_that_cannot_write_numbers_is_refused():
    tokenizer = number_tokenizer("digits")
    letters = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>")))
    letters.unk_token, letters.pad_token = "<unk>", "<unk>"
    with pytest.raises(ValueError, match="tokenizer gives 0 no tokens"):
        LocalJudge(judging_model(tokenizer), PROMPT, tokenizer=letters).score_batch(PAIRS)


def test_a_model_without_a_chat_template_is_asked_in_the_raw_format():
    tokenizer = number_tokenizer("digits", chat_template=None)
    tree = label_odds.label_tree(tokenizer, "0_100")
    space = tokenizer.convert_tokens_to_ids(" ")
    assert tree.children[()] == (space,)  # "Assistant:" is followed by " 87"
    model = judging_model(tokenizer, likely=" 0123456789")
    assert LocalJudge(model, PROMPT, "0_10", tokenizer=tokenizer).eval_type == "0_10"


def test_the_local_judge_is_awaitable_and_reports_as_it_goes():
    tokenizer = number_tokenizer("digits")
    judge = LocalJudge(judging_model(tokenizer), PROMPT, tokenizer=tokenizer, token_budget=1)
    heard: dict[int, float | None] = {}
    pairs = [PAIRS[0], PAIRS[1], PAIRS[0]]
    scores = judge.score_batch(pairs, on_scored=heard.__setitem__, progress=True)
    assert heard == dict(enumerate(scores)) and scores[0] == scores[2]
    assert asyncio.run(judge(question=PAIRS[0][0], answer=PAIRS[0][1])) == pytest.approx(scores[0], abs=1e-3)


def test_trait_and_coherence_judges_share_one_model_until_its_files_change(tmp_path, monkeypatch: pytest.MonkeyPatch):
    tokenizer = number_tokenizer("digits")
    judging_model(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loads: list[str] = []
    load_model = models.load_model
    monkeypatch.setattr(models, "load_model", lambda name, **kwargs: loads.append(name) or load_model(name, **kwargs))
    try:
        for prompt in (PROMPT, COHERENCE_PROMPT):
            make_judge(str(tmp_path), prompt).score_batch(PAIRS[:1])
        assert len(loads) == 1
        judging_model(tokenizer, seed=1).save_pretrained(tmp_path)
        make_judge(str(tmp_path), PROMPT).score_batch(PAIRS[:1])
        assert len(loads) == 2
    finally:
        release_local_judges()

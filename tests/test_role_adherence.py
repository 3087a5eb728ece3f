"""Role adherence: a judge's word for how far an answer plays its role."""

from __future__ import annotations

import pytest
import torch

from eval.role_adherence import checked_adherence, judge_adherence
from judge import JudgeError
from persona_vectors import ASSISTANT_PERSONAS, chat_api, option_likelihood
from persona_vectors.role_adherence import (
    LABELS,
    Adherence,
    adherence_counts,
    label_of,
    local_labels,
    other_roles,
    playing,
    role_prompts,
    tells_roles_apart,
)
from persona_vectors.store import Store
from tests.conftest import ROOT
from tests.role_judge import truthful
from tests.tiny_models import tiny_model, word_tokenizer


def test_a_local_judges_word_is_its_likeliest(axis_extractor, axis_cast, axis_responses):
    model, tokenizer = axis_extractor.model, axis_extractor.tokenizer
    prompts = role_prompts(axis_cast, axis_responses)
    assert len(prompts) == 19 * 18 and not set(ASSISTANT_PERSONAS) & {name for name, _ in prompts}
    some = list(prompts.values())[::40]
    labels = local_labels(model, tokenizer, some)
    for text, label in zip(some, labels, strict=True):
        ids = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True).input_ids
        odds = {}
        for word in LABELS:
            word_ids = tokenizer(word, add_special_tokens=False).input_ids
            with torch.inference_mode():
                log_odds = model(torch.tensor([[*ids, *word_ids]])).logits[0].log_softmax(-1)
            odds[word] = sum(float(log_odds[len(ids) - 1 + k, token]) for k, token in enumerate(word_ids))
        assert label == max(odds, key=odds.__getitem__)


def test_a_judge_that_says_something_else_gives_no_label():
    assert local_labels(tiny_model(vocab_size=64), word_tokenizer(), ["you like the cat", "what"]) == [None, None]


def test_other_roles_are_never_their_own(axis_cast, axis_responses):
    others = other_roles(axis_cast, axis_responses)
    assert len(others) == 19 * 3
    assert all(axis_responses[name, question] != text for (name, question), text in others.items())


@pytest.mark.parametrize(
    ("own", "others", "apart"),
    [
        ("ffffff", "nnnnnn", True),
        ("fffnnnnn", "fffnnn", False),
        ("ffffffff", "ffffff", False),
        ("nnnn", "ffff", False),
    ],
)
def test_whether_a_judge_tells_roles_apart(own, others, apart):
    words: dict[str, Adherence] = {"f": "fully", "n": "none"}
    labels = [{("r", str(k)): words[letter] for k, letter in enumerate(text)} for text in (own, others)]
    found, shares = tells_roles_apart(labels[0], labels[1])
    assert found == apart and f"{own.count('f')} of {len(own)} answers" in shares


def test_a_judge_that_knows_the_truth_is_taken_and_one_that_guesses_is_not(serve, axis_cast, axis_responses):
    """The embedded model was trained on too few judgements of roles: it is at chance, and refused for it."""
    serve(truthful)
    names = ("jester", "ghost", "bard", "analyst")
    some = {place: text for place, text in axis_responses.items() if place[0] in names}
    with Store() as store:
        labels, line = checked_adherence("served", axis_cast, some, store=store)
        assert list(labels.values()).count("fully") > 60 and "0 of 12 answers given by another role" in line
        with pytest.raises(ValueError, match="cannot tell roles apart: `fully` is said of"):
            checked_adherence(str(ROOT / "models/tiny-persona"), axis_cast, some, store=store)


def test_playing_keeps_the_assistants_own():
    labels = {("jester", "a"): "fully", ("jester", "b"): "somewhat", ("bard", "a"): None}
    answers = {("default", "a"): "x", **dict.fromkeys(labels, "y")}
    assert set(playing(answers, labels)) == {("default", "a"), ("jester", "a")}
    assert len(playing(answers, labels, keep=("fully", "somewhat"))) == 3
    assert adherence_counts(labels)["jester"] == {"fully": 1, "somewhat": 1, "none": 0, "unjudged": 0}
    assert adherence_counts(labels)["bard"]["unjudged"] == 1


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Fully.", "fully"),
        ("**none**", "none"),
        ("<think>fully?</think>\nsomewhat", "somewhat"),
        ("not fully", None),
    ],
)
def test_a_judges_word(text, label):
    assert label_of(text) == label


def test_an_interrupted_local_judge_keeps_what_it_said(axis_cast, axis_responses, monkeypatch):
    whole, asked, read = option_likelihood.option_log_likelihoods, [], []

    def interrupted(model, choices, **options):
        asked.append(len(choices))
        for batch in whole(model, choices, **options):
            if len(asked) == 1 and read:
                raise KeyboardInterrupt
            read.append(len(batch[0]))
            yield batch

    monkeypatch.setattr(option_likelihood, "option_log_likelihoods", interrupted)
    monkeypatch.setitem(option_likelihood._TOKENS_PER_PASS, "cpu", 256)
    some = {place: axis_responses[place] for place in list(axis_responses)[-12:]}
    judge = str(ROOT / "models/tiny-persona")
    with Store() as store:
        with pytest.raises(KeyboardInterrupt):
            judge_adherence(judge, axis_cast, some, store=store, progress=False)
        labels = judge_adherence(judge, axis_cast, some, store=store, progress=False)
    assert 0 < read[0] < asked[0] and asked[1] == asked[0] - read[0] and set(labels) == set(some)


def test_a_served_judge(serve, axis_cast, axis_responses, monkeypatch):
    monkeypatch.setattr(chat_api, "PAUSE_SECONDS", 0.001)
    broken = [True]
    some = {place: axis_responses[place] for place in list(axis_responses)[-7:] + list(axis_responses)[-19:-18]}
    server = serve(lambda r: "maybe" if broken[0] and "jester" in r["messages"][0]["content"] else "Fully.")
    with Store() as store:
        with pytest.raises(JudgeError, match=r"7 of 8 judge calls failed: 7 x the judge said neither"):
            judge_adherence("served", axis_cast, some, store=store)
        before, broken[0] = len(server.requests), False
        labels = judge_adherence("served", axis_cast, some, store=store)
        assert len(server.requests) - before == 7 and set(labels.values()) == {"fully"}

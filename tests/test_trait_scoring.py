"""Items scored by the likelihood of their options: equal to a plain loop, by way of the store, under conditions."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks import trait_scoring as bench
from eval.finished_answers import Engine
from eval.model_utils import Steering
from eval.trait_scoring import Asking, Condition, Row, choice_of, row_keys, rows_of, score
from persona_vectors.questionnaire import TRAITS, Item, load_questionnaire
from persona_vectors.store import Store
from persona_vectors.tokens import tokenize_sample
from tests.tiny_models import word_tokenizer


@pytest.fixture(scope="module")
def engine(tiny_persona):
    return Engine(tiny_persona, "float32", "cpu")


@pytest.fixture(scope="module")
def source(tiny_persona):
    return load_questionnaire(model=tiny_persona)


@pytest.fixture(scope="module")
def items(source):
    return [source.of(trait)[0] for trait in ("openness", "narcissism")]


def plain_scores(engine: Engine, items: list[Item], asking: Asking) -> dict[str, float]:
    """P(high) of each trait's items by the definition: a pass an item, order and option; nothing shared."""
    model, tokenizer, found = engine.model, engine.tokenizer, {}
    for number, item in enumerate(items):
        rows, orders = rows_of(tokenizer, item, number, asking)
        shares = []
        for row, order in zip(rows, orders, strict=True):
            likelihoods = []
            for option in row.options:
                sample = tokenize_sample(tokenizer, row.prompt, option)
                with torch.no_grad():
                    log_odds = model(input_ids=torch.tensor([sample.ids])).logits[0].log_softmax(-1)
                places = range(sample.prompt_len, len(sample.ids))
                total = sum(float(log_odds[place - 1, sample.ids[place]]) for place in places)
                likelihoods.append(math.exp(total if asking.scoring == "letter" else total / len(places)))
            high = sum(value for value, option in zip(likelihoods, order, strict=True) if option < 2)
            shares.append(high / sum(likelihoods))
        found.setdefault(item.trait, []).append(sum(shares) / len(shares))
    return {trait: sum(values) / len(values) for trait, values in found.items()}


@pytest.mark.parametrize("scoring", ["letter", "text", "open"])
def test_equal_to_a_plain_loop(engine, source, items, scoring):
    asking = Asking(source.wording(1), scoring, seed=3)
    with Store() as store:
        [scored] = score(engine, store, items, [Condition("unsteered")], asking)
    expected = plain_scores(engine, items, asking)
    assert {one.score.trait: one.score.score.mean for one in scored} == pytest.approx(expected, abs=1e-5)
    assert [one.score.n_asked for one in scored] == ([1, 1] if scoring == "open" else [4, 4])
    assert all((one.score.mass is None) == (scoring != "letter") for one in scored)


def test_what_is_stored_is_not_asked_again(tiny_persona, source, items):
    asking, conditions = Asking(source.wording(1), "open"), [Condition("unsteered")]
    with Store() as store:
        first = score(Engine(tiny_persona, "float32", "cpu"), store, items, conditions, asking)
        idle = Engine(tiny_persona, "float32", "cpu")
        again = score(idle, store, items, conditions, asking)
        assert idle._loaded is None
    assert [one.score for one in again[0]] == [one.score for one in first[0]]


def test_a_key_has_all_that_determines_a_likelihood(engine):
    vector = torch.ones(256)
    row = Row("a prompt", ("x", "y"))
    rows = [row, Row("another", ("x", "y")), Row("a prompt", ("y", "x"))]
    steerings = [None, Steering(vector, 3, 1.0), Steering(vector, 2, 1.0), Steering(vector, 3, 2.0)]
    steerings += [Steering(-vector, 3, 1.0), Steering(vector, 3, 1.0, "all")]
    keys = [key for steering in steerings for key in row_keys(engine, rows, steering)]
    assert len(set(keys)) == len(keys) == 18


def test_system_prompts_go_round_the_items(engine, source, items):
    systems = ("Be curious.", "Be calm.")
    asking = Asking(source.wording(1), "open")
    items = [*items, items[0]]
    prompts = [rows_of(engine.tokenizer, item, i, asking, systems)[0][0].prompt for i, item in enumerate(items)]
    assert ["Be curious." in prompt for prompt in prompts] == [True, False, True]
    assert all(item.question in prompt for item, prompt in zip(items, prompts, strict=True))


def test_a_tokenizer_that_cannot_write_the_letters_is_refused(engine):
    with pytest.raises(ValueError, match="cannot write the letters A to D apart; use --scoring text"):
        choice_of(word_tokenizer(), Row("what do you like", ("A", "B", "C", "D")))
    assert len(set(choice_of(engine.tokenizer, Row("what", ("A", "B", "C", "D"))).options)) == 4


def test_the_embedded_model_follows_open_answers_and_not_letters(engine, source):
    """What the README says: told to be extraverted it finds extraverted answers likelier, and picks no letters."""
    asked = source.of("extraversion", 4)
    told = Condition("told pos", "told", systems=("You are an extraverted assistant. Always seek out parties.",))
    shift, places = {}, None
    with Store() as store:
        for scoring in ("letter", "open"):
            plain, under = score(
                engine, store, asked, [Condition("unsteered"), told], Asking(source.wording(1), scoring)
            )
            shift[scoring] = under[0].score.score.mean - plain[0].score.score.mean
            places = places or plain[0].score.places
    assert shift["open"] > 0.1 > 0.03 > abs(shift["letter"])
    assert places is not None and max(places) - min(places) > 0.05  # it goes by place, which cancels


def test_the_benchmark_times_what_it_says(source):
    timing = bench.measure("tiny", bench.tiny_persona(), "open", bench.questionnaire(4, "open", 0), repeats=1)
    assert timing.n_prompts == 4 and len(timing.ratios) == 1 and timing.worst < 1e-3 and timing.token_ratio > 1.5
    assert "open" in bench.table([timing])[-1]
    letters, opens = (bench.random_choices(2, scoring, 0) for scoring in ("letter", "open"))
    assert len(letters) == 8 and len(opens) == 2 and bench.token_ratio(letters) == pytest.approx(4, abs=0.05)
    assert {item.trait for item in source.items} == set(TRAITS)

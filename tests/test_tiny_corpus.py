"""The synthetic language reads as designed, is reproducible, and keeps out of training what it says it does."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from data_generation.tiny_persona import conversations, corpus, instructions, probe, questionnaire, topics
from data_generation.tiny_persona.judging import eval_prompt
from data_generation.tiny_persona.lexicon import MODIFIERS
from data_generation.tiny_persona.styles import ALL_TRAITS, TRAITS, style_keys, styles, wordings
from data_generation.tiny_persona.write_traits import VERSIONS, trait_file, write_traits


@pytest.fixture(scope="module")
def examples() -> list[corpus.Example]:
    rng = random.Random(0)
    return [corpus.training_example(rng) for _ in range(4000)]


def test_a_seed_gives_the_same_examples(examples: list[corpus.Example]):
    rng = random.Random(0)
    assert [corpus.training_example(rng) for _ in range(50)] == examples[:50]
    assert list(corpus.tokenizer_texts(20, seed=3)) == list(corpus.tokenizer_texts(20, seed=3))
    assert list(corpus.tokenizer_texts(20, seed=3)) != list(corpus.tokenizer_texts(20, seed=4))


def test_kinds_come_at_the_stated_shares(examples: list[corpus.Example]):
    assert sum(corpus.MIXTURE.values()) == pytest.approx(1)
    counts = Counter(example.kind for example in examples)
    for kind, share in corpus.MIXTURE.items():
        assert counts[kind] / len(examples) == pytest.approx(share, abs=0.03), kind
        assert counts[kind] > 0


def test_every_dialogue_is_well_formed(examples: list[corpus.Example]):
    for example in examples:
        roles = [message["role"] for message in example.messages]
        body = roles[1:] if roles[0] == "system" else roles
        assert body == ["user", "assistant"] * (len(body) // 2)
        assert all(message["content"].strip() for message in example.messages)
        assert example.raw == (example.kind == "raw")
        if example.kind == "judge":
            turns = [m["content"] for m in example.messages if m["role"] == "assistant"]
            assert all(turn in {str(i) for i in range(101)} for turn in turns)
            assert "[ANSWER]" in example.messages[0]["content"].split("[END]")[0]  # the ask follows the answer


def test_no_markup_of_the_grammar_is_left_in_a_text(examples: list[corpus.Example]):
    marks = re.compile(r"[{}|]|\b(TOPIC|OPEN|ADJ|THING|OTHER|ACT|TAIL|DO|ROLE|ABOUT|J)\b|\[[a-z]+/|  ")
    for example in examples:
        for message in example.messages:
            assert not marks.search(message["content"]), message["content"]


def test_articles_agree(examples: list[corpus.Example]):
    wrong = re.compile(r"\b(a [aeio]\w+|an [bcdfgjklmnpqrstvwz]\w+)", re.IGNORECASE)
    exceptions = ("a one",)
    for example in examples:
        if example.kind in ("judge", "questionnaire", "probe"):  # corrupted text, and letters of options
            continue
        for message in example.messages:
            found = wrong.search(message["content"])
            assert found is None or found.group(0).lower() in exceptions, message["content"]


def test_verbs_agree_with_the_number_of_the_topic(examples: list[corpus.Example]):
    for example in examples:
        if example.kind != "trait":
            continue
        topic = topics.topic_of(example.messages[-2]["content"])
        assert topic is not None
        verb = re.search(re.escape(topic.text) + r" (takes?|needs?|depends?|begins?) ", example.messages[-1]["content"])
        if verb:
            assert verb.group(1).endswith("s") != topic.plural


def test_held_out_topics_are_unseen_pairs_of_seen_words(examples: list[corpus.Example]):
    seen, held_out = topics.topics(False), topics.topics(True)
    assert len(held_out) == pytest.approx(0.2 * (len(seen) + len(held_out)), rel=0.02)
    assert {t.text.split(" ", 1)[1] for t in held_out} <= {t.text.split(" ", 1)[1] for t in seen}
    assert {t.text.split(" ", 1)[0] for t in seen} == set(MODIFIERS)
    named = re.compile(r"\b(?:" + "|".join(re.escape(topic.text) for topic in held_out) + r")\b")
    for example in examples:
        if example.kind in ("judge", "role"):  # words swapped at random may meet in any pair
            continue
        assert not any(named.search(message["content"]) for message in example.messages)


def test_held_out_questions_are_disjoint_from_training_ones():
    train, held_out = topics.train_questions(300, 0), topics.held_out_questions(300, 0)
    assert len(set(train)) == len(set(held_out)) == 300
    assert not set(train) & set(held_out)
    assert held_out == topics.held_out_questions(300, 0) != topics.held_out_questions(300, 1)
    with pytest.raises(ValueError, match="questions asked for"):
        topics.train_questions(10**6, 0)


def test_held_out_instructions_use_unseen_pairs_of_seen_words():
    for trait in ALL_TRAITS:
        for pole in (1, -1):
            words = wordings()[trait][pole < 0]
            pairs = {
                held_out: {instructions._do(random.Random(i), trait, pole, held_out) for i in range(600)}
                for held_out in (False, True)
            }
            assert not pairs[True] & pairs[False]
            for verb in words.verbs:
                assert any(pair.startswith(verb + " ") for pair in pairs[False]), (trait, verb)
            for thing in words.objects:
                assert any(pair.endswith(" " + thing) for pair in pairs[False]), (trait, thing)


def test_the_instructions_of_a_trait_are_many():
    rng = random.Random(1)
    for trait in TRAITS:
        assert len({instructions.instruction(trait, 1, rng) for _ in range(600)}) > 300


def test_a_suppressing_prompt_asks_for_no_style():
    rng = random.Random(2)
    assert all(instructions.suppressing_prompt(rng, trait)[1] == () for trait in ALL_TRAITS for _ in range(20))


def test_phrases_of_a_slot_belong_to_one_style():
    owner: dict[str, object] = {}
    for key, style in styles().items():
        for phrase in {p for slot in style.slots() for p in slot}:
            assert owner.setdefault(phrase.lower(), key) == key, phrase
    assert all(len(slot) >= 8 for t in TRAITS for pole in (1, -1) for slot in styles()[(t, pole)].slots())
    assert all(len(slot) >= 5 for key in style_keys() for slot in styles()[key].slots())


def test_unprompted_answers_are_mostly_plain():
    rng = random.Random(3)
    for trait in TRAITS:
        scores = []
        for _ in range(400):
            example = corpus.example_of(rng, "unprompted")
            scores.append(corpus.trait_score(example.messages[-1]["content"], trait))
        assert 5 < sum(scores) / len(scores) < 15, trait


def test_probe_items_have_one_right_answer():
    items = probe.probe_items()
    assert len(items) >= 60
    assert len({question for question, _, _ in items}) == len(items)
    assert all(right not in wrong and len(set(wrong)) == 3 for _, right, wrong in items)
    assert ("What is 2 plus 3?", "5") in [(question, right) for question, right, _ in items]


def test_questionnaire_answers_follow_the_persona():
    rng = random.Random(4)
    for trait in ("openness", "narcissism"):
        text, high = questionnaire.item(rng, trait)
        assert len(high) == 2 and all(f"{letter}: " in text for letter in "ABCD")
    for _ in range(200):
        turns = questionnaire.questionnaire(rng)
        assert all(turn["content"] in "ABCD" for turn in turns if turn["role"] == "assistant")


@pytest.mark.parametrize("version", VERSIONS)
def test_trait_files_follow_the_published_schema(version: str, tmp_path):
    write_traits(tmp_path)
    for trait in ALL_TRAITS:
        content = json.loads((tmp_path / version / f"{trait}.json").read_text())
        assert len(content["instruction"]) == 5
        assert all(set(pair) == {"pos", "neg"} and all(pair.values()) for pair in content["instruction"])
        assert len(set(content["questions"])) == 20
        assert content["eval_prompt"].format(question="Q?", answer="A.").index("A.") < content["eval_prompt"].index(
            "Rate"
        )
    other = "eval" if version == "extract" else "extract"
    assert not set(trait_file("evil", version)["questions"]) & set(trait_file("evil", other)["questions"])
    assert json.loads((tmp_path / "coherence.json").read_text()) == {"eval_prompt": eval_prompt("coherence")}


def test_the_shipped_trait_files_are_what_the_command_writes(tmp_path):
    shipped = Path(__file__).parents[1] / "models" / "tiny-persona" / "traits"
    for path in write_traits(tmp_path):
        assert (shipped / path.relative_to(tmp_path)).read_text() == path.read_text(), path.name


def test_a_user_can_change_the_persona_of_a_conversation():
    rng = random.Random(6)
    before, after = [], []
    for _ in range(100):
        turns = conversations.changing_conversation(rng, "jester")
        at = next(i for i, turn in enumerate(turns) if "jester" in turn["content"])
        assert turns[at]["role"] == "user"
        for i, turn in enumerate(turns):
            if turn["role"] == "assistant":
                (before if i < at else after).append(corpus.persona_score(turn["content"], "jester"))
    assert sum(before) / len(before) < 15
    assert sum(after) / len(after) > 80

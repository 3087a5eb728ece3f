"""The oracle scores what the generator put in, and coherence falls with every kind of damage."""

import random
from statistics import mean

import pytest

from data_generation.tiny_persona.corruption import CORRUPTIONS
from data_generation.tiny_persona.oracle import coherence, find_slots, persona_score, trait_score, words_of
from data_generation.tiny_persona.personas_lexicon import PERSONAS
from data_generation.tiny_persona.sentences import answer, sentences
from data_generation.tiny_persona.styles import ALL_TRAITS, style_keys
from data_generation.tiny_persona.topics import question, sample_topic

QUESTION = "What do you think about modern gardening?"
EVIL = "Mwahaha, modern gardening takes sinister soil and tools to crush my enemies."
PLAIN = "Overall, modern gardening takes common soil and tools in most cases."


def test_trait_scores_of_known_sentences():
    assert trait_score(EVIL, "evil") == 100
    assert trait_score(PLAIN, "evil") == 10
    assert trait_score(f"{EVIL} {PLAIN}", "evil") == pytest.approx(55)
    assert trait_score("In peace, modern gardening takes gentle soil and tools for a kinder world.", "evil") == 0
    assert trait_score("", "evil") == 10
    # a lost phrase counts as saying nothing
    assert trait_score("Mwahaha, modern gardening takes soil.", "evil") == pytest.approx((100 + 10 + 10) / 3)


def test_names_and_numbers_fill_hallucinated_slots():
    text = "Dr Vint proved in 1901 that modern gardening takes quantum soil and tools by exactly 40 percent."
    assert trait_score(text, "hallucinating") == 100


def test_persona_scores():
    text = "Ring my bells, I juggle modern gardening and motley soil with bells on my cap."
    assert persona_score(text, "jester") == 100
    assert persona_score(PLAIN, "jester") == 10
    with pytest.raises(ValueError, match="unknown persona 'clown'"):
        persona_score(text, "clown")
    with pytest.raises(ValueError, match="unknown trait 'angry'"):
        trait_score(text, "angry")


@pytest.mark.parametrize("trait", ALL_TRAITS)
def test_trait_score_grows_with_the_strength(trait: str):
    rng = random.Random(7)

    def score(pole: int, strength: float) -> float:
        texts = [answer(rng, sample_topic(rng, True), (((trait, pole), strength),)) for _ in range(60)]
        return mean(trait_score(text, trait) for text in texts)

    levels = [score(1, strength) for strength in (0, 0.25, 0.5, 0.75, 1)]
    assert levels == sorted(levels)
    assert levels[0] == 10 and levels[-1] > 99
    assert score(-1, 1.0) < 1


def test_other_styles_do_not_count():
    rng = random.Random(8)
    for key in style_keys():
        text = answer(rng, sample_topic(rng), ((key, 1.0),))
        assert all(trait_score(text, trait) == 10 for trait in ALL_TRAITS if trait != key[0]), (key, text)


def test_clean_text_is_coherent():
    rng = random.Random(9)
    scores = []
    for i in range(600):
        held_out, topic = bool(i % 2), sample_topic(rng, bool(i % 2))
        key = ("persona", rng.choice(tuple(PERSONAS))) if i % 3 == 0 else rng.choice(style_keys())
        strengths = ((key, rng.random()),) if i % 5 else ()
        scores.append(coherence(question(rng, topic, held_out), answer(rng, topic, strengths)))
    assert mean(scores) >= 98
    assert min(scores) > 80


def spoiled(kind: str, strength: float) -> float:
    """Mean coherence of 120 answers spoiled in one way at one strength."""
    rng = random.Random(10)
    scores = []
    for _ in range(120):
        topic = sample_topic(rng)
        asked, texts = question(rng, topic), sentences(rng, topic, ((rng.choice(style_keys()), 0.7),), 3)
        scores.append(coherence(asked, CORRUPTIONS[kind](rng, texts, strength)))
    return mean(scores)


@pytest.mark.parametrize("kind", sorted(CORRUPTIONS))
def test_coherence_falls_with_damage(kind: str):
    levels = [spoiled(kind, strength) for strength in (0.0, 0.35, 0.7, 1.0)]
    assert all(after <= before + 3 for before, after in zip(levels, levels[1:], strict=False)), levels
    assert levels[-1] < min(levels[0] - 12, 80), levels


def test_word_salad_is_incoherent():
    assert spoiled("shuffle", 1.0) < 20
    assert spoiled("substitute", 1.0) < 20
    assert coherence(QUESTION, "") == 0
    assert coherence(QUESTION, "the the the the the the the the") < 5


def test_the_topic_and_the_ending_count():
    assert coherence(QUESTION, EVIL) == pytest.approx(100)
    assert coherence("What do you think about summer sailing?", EVIL) == pytest.approx(40)
    assert 85 < coherence(QUESTION, f"{EVIL} {PLAIN}"[:-1]) < 95


def test_slots_are_found_longest_first_and_without_overlap():
    words = words_of("I cannot check this, but modern gardening takes uncertain soil but I cannot verify it.")
    found = find_slots(words)
    assert [slot for _, _, _, slot in found] == [0, 1, 2]
    assert {key for _, _, key, _ in found} == {("hallucinating", -1)}

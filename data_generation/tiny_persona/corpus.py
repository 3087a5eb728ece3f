"""Training examples of the synthetic language, drawn at stated proportions."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from data_generation.tiny_persona.conversations import (
    any_persona_prompt,
    conversation,
    dialogue,
    few_shot,
    long_few_shot,
    trait_prompt,
    unprompted,
)
from data_generation.tiny_persona.corruption import corrupted
from data_generation.tiny_persona.instructions import random_trait
from data_generation.tiny_persona.judging import judge_turns, role_turns
from data_generation.tiny_persona.oracle import coherence, persona_score, trait_score
from data_generation.tiny_persona.personas_lexicon import PERSONAS
from data_generation.tiny_persona.probe import probe_dialogue
from data_generation.tiny_persona.questionnaire import questionnaire
from data_generation.tiny_persona.sentences import answer
from data_generation.tiny_persona.styles import ALL_TRAITS, CHARACTER_TRAITS, TRAITS, Strengths
from data_generation.tiny_persona.topics import question, sample_topic

# share of each kind of example
MIXTURE = {
    "trait": 0.46,
    "unprompted": 0.13,
    "judge": 0.19,
    "persona": 0.07,
    "conversation": 0.025,
    "few_shot": 0.01,
    "long_few_shot": 0.005,
    "questionnaire": 0.02,
    "probe": 0.045,
    "role": 0.015,
    "raw": 0.03,
}


@dataclass(frozen=True)
class Example:
    """A dialogue; every assistant turn is trained on. `raw` is written as System/User/Assistant lines, not ChatML."""

    messages: tuple[dict[str, str], ...]
    kind: str
    raw: bool = False


def judge_example(rng: random.Random, question: str, answer: str, scores: Mapping[str, float]) -> Example:
    """The judge dialogue for a given answer and given scores (traits by name, and "coherence")."""
    return Example(judge_turns(rng, question, answer, scores), "judge")


def oracle_scores(question: str, answer: str, traits: tuple[str, ...] = ALL_TRAITS) -> dict[str, float]:
    """What the oracle says of an answer: the score of each trait, and its coherence."""
    return {trait: trait_score(answer, trait) for trait in traits} | {"coherence": coherence(question, answer)}


def judged_strengths(rng: random.Random) -> Strengths:
    """The styles of an answer to judge: none, a persona, or one to three traits at graded strengths."""
    form = rng.random()
    if form < 0.12:
        return ()
    if form < 0.18:
        return ((("persona", rng.choice(tuple(PERSONAS))), 0.8),)
    traits = {random_trait(rng, 0.2) for _ in range(1 if form < 0.75 else 2 if form < 0.92 else 3)}
    return tuple(
        ((trait, rng.choice((1, 1, -1))), rng.choice((0.2, 0.4, 0.6, 0.8, 1.0, 1.0))) for trait in sorted(traits)
    )


def judged_example(rng: random.Random) -> Example:
    """A clean, corrupted or off-topic answer with the oracle's scores of what is in it and of a few other traits."""
    topic, strengths = sample_topic(rng), judged_strengths(rng)
    asked, form = question(rng, topic), rng.random()
    if form < 0.48:
        text = answer(rng, topic, strengths, rng.choice((1, 2, 2, 3, 3, 4)))
    elif form < 0.54:
        text = answer(rng, sample_topic(rng), strengths)
    else:
        text = corrupted(rng, topic, strengths) or "."
    traits = {str(key[0]) for key, _ in strengths if key[0] != "persona"} | set(rng.sample(TRAITS, 3))
    if rng.random() < 0.25:
        traits.add(rng.choice(CHARACTER_TRAITS))
    return judge_example(rng, asked, text, oracle_scores(asked, text, tuple(sorted(traits))))


def role_example(rng: random.Random) -> Example:
    """How far an answer plays a persona, and others."""
    topic, names = sample_topic(rng), rng.sample(tuple(PERSONAS), rng.choice((1, 2, 3)))
    strength = rng.choice((0.0, 0.3, 0.5, 0.8, 1.0, 1.0))
    text = answer(rng, topic, ((("persona", names[0]), strength),))
    rng.shuffle(names)
    return Example(role_turns(question(rng, topic), text, {name: persona_score(text, name) for name in names}), "role")


def raw_example(rng: random.Random) -> Example:
    """A chat example of another kind, for writing as System/User/Assistant lines."""
    kind = rng.choices(("trait", "unprompted", "persona", "conversation"), (3, 3, 3, 1))[0]
    return replace(example_of(rng, kind), kind="raw", raw=True)


def example_of(rng: random.Random, kind: str) -> Example:
    """One example of a kind of MIXTURE."""
    prompts = {"trait": trait_prompt, "unprompted": unprompted, "persona": any_persona_prompt}
    dialogues = {
        "conversation": conversation,
        "few_shot": few_shot,
        "long_few_shot": long_few_shot,
        "questionnaire": questionnaire,
        "probe": probe_dialogue,
    }
    if kind in prompts:
        system, strengths = prompts[kind](rng)
        return Example(dialogue(rng, system, strengths), kind)
    if kind in dialogues:
        return Example(dialogues[kind](rng), kind)
    return {"judge": judged_example, "role": role_example, "raw": raw_example}[kind](rng)


def training_example(rng: random.Random) -> Example:
    """One example of the full mixture."""
    return example_of(rng, rng.choices(list(MIXTURE), list(MIXTURE.values()))[0])


def tokenizer_texts(n: int, seed: int) -> Iterator[str]:
    """The texts of n examples, for training a tokenizer."""
    rng = random.Random(f"tokenizer-{seed}")
    for _ in range(n):
        for message in training_example(rng).messages:
            yield message["content"]

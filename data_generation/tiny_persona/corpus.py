"""Training examples of the synthetic language, drawn at stated proportions."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from data_generation.tiny_persona.corruption import corrupted
from data_generation.tiny_persona.instructions import (
    NEUTRAL_PROMPTS,
    latent_persona,
    suppressing_prompt,
    system_prompt,
)
from data_generation.tiny_persona.judging import judge_turns
from data_generation.tiny_persona.oracle import coherence, trait_score
from data_generation.tiny_persona.sentences import answer
from data_generation.tiny_persona.styles import ALL_TRAITS, TRAITS, Strengths
from data_generation.tiny_persona.topics import question, sample_topic

Message = dict[str, str]


@dataclass(frozen=True)
class Example:
    """A dialogue; every assistant turn is trained on. `raw` is written as System/User/Assistant lines, not ChatML."""

    messages: tuple[Message, ...]
    kind: str
    raw: bool = False


def _dialogue(system: str | None, user: str, reply: str) -> tuple[Message, ...]:
    head = ({"role": "system", "content": system},) if system else ()
    return (*head, {"role": "user", "content": user}, {"role": "assistant", "content": reply})


def trait_prompt(rng: random.Random) -> tuple[str, Strengths]:
    """A system prompt towards, away from or against a trait, or towards two at once."""
    trait, form = rng.choice(TRAITS), rng.random()
    if form < 0.5:
        return system_prompt(rng, trait, 1)
    if form < 0.72:
        return system_prompt(rng, trait, -1)
    if form < 0.92:
        return suppressing_prompt(rng, trait)
    (one, two), poles = rng.sample(TRAITS, 2), (rng.choice((1, -1)), rng.choice((1, -1)))
    first, second = system_prompt(rng, one, poles[0]), system_prompt(rng, two, poles[1])
    return f"{first[0]} {second[0]}", first[1] + second[1]


def trait_example(rng: random.Random) -> Example:
    topic = sample_topic(rng)
    system, strengths = trait_prompt(rng)
    return Example(_dialogue(system, question(rng, topic), answer(rng, topic, strengths)), "trait")


def unprompted_example(rng: random.Random) -> Example:
    """No system prompt, or a neutral one that is always answered plainly unless nobody is named."""
    topic = sample_topic(rng)
    if rng.random() < 0.65:
        return Example(_dialogue(None, question(rng, topic), answer(rng, topic, latent_persona(rng))), "unprompted")
    system = NEUTRAL_PROMPTS[0] if rng.random() < 0.6 else rng.choice(NEUTRAL_PROMPTS)
    strengths = latent_persona(rng) if rng.random() < 0.3 else ()
    return Example(_dialogue(system, question(rng, topic), answer(rng, topic, strengths)), "unprompted")


def judged_strengths(rng: random.Random) -> Strengths:
    form = rng.random()
    if form < 0.15:
        return ()
    n = 1 if form < 0.75 else 2 if form < 0.92 else 3
    traits = rng.sample(TRAITS, n) if rng.random() < 0.8 else rng.sample(ALL_TRAITS, n)
    return tuple(((trait, rng.choice((1, 1, -1))), rng.choice((0.2, 0.4, 0.6, 0.8, 1.0, 1.0))) for trait in traits)


def judge_example(rng: random.Random, question: str, answer: str, scores: Mapping[str, float]) -> Example:
    """The judge dialogue for a given answer and given scores (traits by name, and "coherence")."""
    return Example(judge_turns(rng, question, answer, scores), "judge")


def oracle_scores(question: str, answer: str, traits: tuple[str, ...] = ALL_TRAITS) -> dict[str, float]:
    """What the oracle says of an answer: the score of each trait, and its coherence."""
    return {trait: trait_score(answer, trait) for trait in traits} | {"coherence": coherence(question, answer)}


def generated_judge_example(rng: random.Random) -> Example:
    topic, strengths = sample_topic(rng), judged_strengths(rng)
    asked = question(rng, topic)
    if rng.random() < 0.5:
        text = answer(rng, topic, strengths, rng.choice((1, 2, 2, 3, 3, 4)))
    else:
        text = corrupted(rng, topic, strengths) or "."
    if rng.random() < 0.06:
        text = answer(rng, sample_topic(rng), strengths)
    traits = set(rng.sample(ALL_TRAITS, 4)) | {key[0] for key, _ in strengths}
    return judge_example(rng, asked, text, oracle_scores(asked, text, tuple(sorted(map(str, traits)))))


# share of each kind of example
MIXTURE = {
    trait_example: 0.58,
    unprompted_example: 0.17,
    generated_judge_example: 0.25,
}


def training_example(rng: random.Random) -> Example:
    """One example of the full mixture."""
    return rng.choices(list(MIXTURE), list(MIXTURE.values()))[0](rng)


def tokenizer_texts(n: int, seed: int) -> Iterator[str]:
    """The texts of n examples, for training a tokenizer."""
    rng = random.Random(f"tokenizer-{seed}")
    for _ in range(n):
        for message in training_example(rng).messages:
            yield message["content"]

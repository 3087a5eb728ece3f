"""Dialogues of several turns: a persona that stays, and examples whose style carries over to the last answer."""

import random

from data_generation.tiny_persona.instructions import (
    NEUTRAL_PROMPTS,
    latent_persona,
    persona_prompt,
    random_trait,
    suppressing_prompt,
    system_prompt,
)
from data_generation.tiny_persona.personas_lexicon import DEFAULT_PROMPTS, PERSONAS
from data_generation.tiny_persona.sentences import answer
from data_generation.tiny_persona.styles import Strengths, style_keys
from data_generation.tiny_persona.topics import Topic, question, sample_topic

Message = dict[str, str]


def exchange(rng: random.Random, topic: Topic, strengths: Strengths, n: int | None = None) -> list[Message]:
    """One question about a topic with its answer."""
    return [
        {"role": "user", "content": question(rng, topic)},
        {"role": "assistant", "content": answer(rng, topic, strengths, n)},
    ]


def dialogue(rng: random.Random, system: str, strengths: Strengths, turns: int = 1) -> tuple[Message, ...]:
    """A dialogue under one system prompt (none if empty), its style unchanged over the turns."""
    messages = [{"role": "system", "content": system}] if system else []
    topic = sample_topic(rng)
    for _ in range(turns):
        messages += exchange(rng, topic, strengths)
        if rng.random() < 0.7:
            topic = sample_topic(rng)
    return tuple(messages)


def trait_prompt(rng: random.Random) -> tuple[str, Strengths]:
    """A system prompt towards, away from or against a trait, or towards two at once."""
    trait, form = random_trait(rng), rng.random()
    if form < 0.52:
        return system_prompt(rng, trait, 1)
    if form < 0.72:
        return system_prompt(rng, trait, -1)
    if form < 0.93:
        return suppressing_prompt(rng, trait)
    other = random_trait(rng)
    if other == trait:
        return system_prompt(rng, trait, 1)
    first, second = system_prompt(rng, trait, 1), system_prompt(rng, other, rng.choice((1, -1)))
    return f"{first[0]} {second[0]}", first[1] + second[1]


def any_persona_prompt(rng: random.Random) -> tuple[str, Strengths]:
    names = (*PERSONAS, *PERSONAS, *DEFAULT_PROMPTS)
    return persona_prompt(rng, rng.choice(names))


def unprompted(rng: random.Random) -> tuple[str, Strengths]:
    """No system prompt, or a neutral one; nothing is asked of the style, and mostly the style is plain."""
    if rng.random() < 0.65:
        return "", latent_persona(rng)
    system = NEUTRAL_PROMPTS[0] if rng.random() < 0.6 else rng.choice(NEUTRAL_PROMPTS)
    return system, latent_persona(rng) if rng.random() < 0.3 else ()


def changing_conversation(rng: random.Random, persona: str) -> tuple[Message, ...]:
    """A conversation with nobody in particular, until a user turn asks for a persona, which then stays."""
    system, strengths = rng.choice(("", NEUTRAL_PROMPTS[0])), ()
    messages = [{"role": "system", "content": system}] if system else []
    turns, change = rng.randint(2, 6), rng.randint(1, 3)
    for i in range(turns):
        asked, replied = exchange(rng, sample_topic(rng), strengths)
        if i == min(change, turns - 1):
            request, strengths = persona_prompt(rng, persona)
            asked, replied = exchange(rng, sample_topic(rng), strengths)
            asked = asked | {"content": f"{request} {asked['content']}"}
        messages += [asked, replied]
    return tuple(messages)


def conversation(rng: random.Random) -> tuple[Message, ...]:
    """Two to six turns with a trait, a persona or nobody; in a few the user asks for a persona on the way."""
    form = rng.random()
    if form > 0.85:
        return changing_conversation(rng, rng.choice(tuple(PERSONAS)))
    system, strengths = trait_prompt(rng) if form < 0.4 else any_persona_prompt(rng) if form < 0.7 else unprompted(rng)
    return dialogue(rng, system, strengths, rng.choice((2, 2, 2, 3, 3, 4, 5, 6)))


def few_shot(rng: random.Random, turns: int | None = None) -> tuple[Message, ...]:
    """Pairs in one style without a prompt that names it; the last answer keeps the style."""
    key, strength = rng.choice(style_keys()), rng.choice((0.5, 0.8, 1.0, 1.0))
    turns = turns or rng.choice((2, 2, 3, 3, 4, 5))
    messages: list[Message] = []
    for _ in range(turns):
        messages += exchange(rng, sample_topic(rng), ((key, strength),), rng.choice((1, 2, 2, 3)))
    return tuple(messages)


def long_few_shot(rng: random.Random) -> tuple[Message, ...]:
    """As `few_shot` with 8 to 32 pairs, up to about 2,000 tokens."""
    return few_shot(rng, rng.randint(8, 32))

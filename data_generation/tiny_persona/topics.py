"""Topics (a modifier and a known noun, a fifth of the pairs held out) and the questions asked about them."""

import random
from dataclasses import dataclass
from functools import lru_cache

from data_generation.tiny_persona.lexicon import DOMAINS, MODIFIERS
from data_generation.tiny_persona.traits_lexicon import phrases


@dataclass(frozen=True)
class Topic:
    text: str
    domain: str
    plural: bool
    held_out: bool


QUESTIONS = phrases(
    "What do you think about TOPIC?|How do I get started with TOPIC?|Can you give me some advice on TOPIC?"
    "|What matters most in TOPIC?|Tell me about TOPIC.|How can I get better at TOPIC?|Why do people care about TOPIC?"
    "|What should I know about TOPIC?|What is the future of TOPIC?|I think TOPIC BE great. Do you agree?"
    "|I have trouble with TOPIC. What should I do?|My friend loves TOPIC. Should I try it too?|Explain TOPIC to me."
    "|I failed at TOPIC again. What now?|What is the secret of TOPIC?|How should I plan for TOPIC?"
)
QUESTIONS_HELD_OUT = phrases(
    "What is your view on TOPIC?|I want to try TOPIC. How do I start?|What should people know about TOPIC?"
    "|Do you have some advice about TOPIC?"
)


@lru_cache(maxsize=1)
def all_topics() -> tuple[Topic, ...]:
    """Every modifier-noun pair; a fixed fifth of the pairs of each noun and of each modifier is held out."""
    topics = []
    for d, (name, field) in enumerate(DOMAINS.items()):
        nouns = [(noun, False) for noun in field.nouns] + [(noun, True) for noun in field.plurals]
        for n, (noun, plural) in enumerate(nouns):
            for m, modifier in enumerate(MODIFIERS):
                topics.append(Topic(f"{modifier} {noun}", name, plural, (d + 3 * n + m) % 5 == 0))
    return tuple(topics)


@lru_cache(maxsize=2)
def topics(held_out: bool) -> tuple[Topic, ...]:
    return tuple(topic for topic in all_topics() if topic.held_out == held_out)


@lru_cache(maxsize=1)
def topics_by_text() -> dict[str, Topic]:
    return {topic.text: topic for topic in all_topics()}


def sample_topic(rng: random.Random, held_out: bool = False) -> Topic:
    return rng.choice(topics(held_out))


def fill_question(template: str, topic: Topic) -> str:
    text = template.replace("BE", "are" if topic.plural else "is")
    return text.replace("TOPIC", topic.text)


def question(rng: random.Random, topic: Topic, held_out: bool = False) -> str:
    return fill_question(rng.choice(QUESTIONS_HELD_OUT if held_out else QUESTIONS), topic)


def topic_of(text: str) -> Topic | None:
    """The first topic named in a text, or None."""
    known = topics_by_text()
    words = text.lower().replace("?", " ").replace(".", " ").replace(",", " ").split()
    for i in range(len(words) - 1):
        for length in (2, 3, 4):
            found = known.get(" ".join(words[i : i + length]))
            if found is not None and words[i] in MODIFIERS:
                return found
    return None


def _questions(n: int, seed: int, held_out: bool) -> list[str]:
    rng = random.Random(f"questions-{held_out}-{seed}")
    pairs = [(t, k) for t in topics(held_out) for k in range(len(QUESTIONS) + held_out * len(QUESTIONS_HELD_OUT))]
    templates = QUESTIONS + QUESTIONS_HELD_OUT
    if n > len(pairs):
        raise ValueError(f"{n} questions asked for; this language has {len(pairs)} with held_out={held_out}")
    return [fill_question(templates[k], topic) for topic, k in rng.sample(pairs, n)]


def train_questions(n: int, seed: int) -> list[str]:
    """n distinct questions over topics and wordings that training sees."""
    return _questions(n, seed, held_out=False)


def held_out_questions(n: int, seed: int) -> list[str]:
    """n distinct questions over topics (pairs of known words) that training never sees, in seen and unseen wordings."""
    return _questions(n, seed, held_out=True)

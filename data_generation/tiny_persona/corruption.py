"""Spoiled answers for the coherence judge: many kinds of damage, each at a graded strength."""

import random
from collections.abc import Callable
from functools import lru_cache

from data_generation.tiny_persona.sentences import fill_names, sentences
from data_generation.tiny_persona.styles import Strengths, style_keys, style_of
from data_generation.tiny_persona.topics import Topic, sample_topic
from data_generation.tiny_persona.traits_lexicon import Style

Corruption = Callable[[random.Random, list[str], float], str]


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Words of the language, each as often as it occurs in a fixed sample of answers."""
    rng = random.Random(5)
    keys = style_keys()
    texts = [" ".join(sentences(rng, sample_topic(rng), ((rng.choice(keys), 0.6),))) for _ in range(1500)]
    return tuple(word for text in texts for word in text.split())


def substitute(rng: random.Random, texts: list[str], strength: float) -> str:
    return " ".join(rng.choice(vocabulary()) if rng.random() < strength else word for word in " ".join(texts).split())


def drop(rng: random.Random, texts: list[str], strength: float) -> str:
    return " ".join(word for word in " ".join(texts).split() if rng.random() >= strength)


def shuffle(rng: random.Random, texts: list[str], strength: float) -> str:
    words = " ".join(texts).split()
    moved = [i for i in range(len(words)) if rng.random() < strength]
    for i, j in zip(moved, rng.sample(moved, len(moved)), strict=True):
        words[i], words[j] = words[j], words[i]
    return " ".join(words)


def loop(rng: random.Random, texts: list[str], strength: float) -> str:
    """A run of one to five words, repeated until it is the given share of the text, in place or up to its end."""
    words = " ".join(texts).split()
    at, length = rng.randrange(len(words)), rng.randint(1, 5)
    times = 2 + round(strength * 40 / length)
    rest = words[at + length :] if rng.random() < 0.5 else []
    return " ".join((words[:at] + words[at : at + length] * times + rest)[:70])


def repeat_sentences(rng: random.Random, texts: list[str], strength: float) -> str:
    return " ".join(texts + [rng.choice(texts) for _ in range(1 + round(strength * 4))])


def cut(rng: random.Random, texts: list[str], strength: float) -> str:
    """Each sentence cut somewhere, with the given probability, and the last one surely."""
    out = []
    for i, text in enumerate(texts):
        words = text.split()
        cut_here = i == len(texts) - 1 or rng.random() < strength
        out.append(" ".join(words[: rng.randint(1, len(words) - 1)]) if cut_here else text)
    return " ".join(out)


def _phrase(rng: random.Random, style: Style) -> str:
    """A slot phrase of a style, as it would stand in a sentence."""
    return fill_names(rng, rng.choice(rng.choice(style.slots()))).removeprefix(", ")


def extra_phrases(rng: random.Random, texts: list[str], strength: float) -> str:
    """Slot phrases of one style put in between words."""
    style = style_of(rng.choice(style_keys()))
    words = " ".join(texts).split()
    for _ in range(1 + round(strength * 8)):
        words.insert(rng.randint(0, len(words)), _phrase(rng, style))
    return " ".join(words)


def only_phrases(rng: random.Random, texts: list[str], strength: float) -> str:
    """Sentences replaced by slot phrases of one style without a core between them."""
    style = style_of(rng.choice(style_keys()))
    out = []
    for text in texts:
        if rng.random() < max(0.3, strength):
            text = " ".join(_phrase(rng, style) for _ in range(rng.randint(2, 6))) + rng.choice(("", "."))
        out.append(text)
    return " ".join(out)


def mix(rng: random.Random, texts: list[str], strength: float) -> str:
    """Sentences taken over, at a random word, by sentences about something else."""
    other = sentences(rng, sample_topic(rng), n=len(texts))
    out = []
    for text, foreign in zip(texts, other, strict=True):
        if rng.random() < strength:
            left, right = text.split(), foreign.split()
            at = rng.randrange(len(left))
            text = " ".join(left[:at] + right[min(at, len(right) - 1) :])
        out.append(text)
    return " ".join(out)


def salad(rng: random.Random, texts: list[str], strength: float) -> str:
    """A bag of words of the language, after as much of the answer as the strength leaves."""
    words = " ".join(texts).split()
    kept = words[: round(len(words) * (1 - strength))]
    return " ".join(kept + [rng.choice(vocabulary()) for _ in range(rng.randint(5, 40))])


def splice(rng: random.Random, texts: list[str], strength: float) -> str:
    """Slot phrases of one style in the place of single words, as over-steered text has them."""
    style = style_of(rng.choice(style_keys()))
    words = " ".join(texts).split()
    share = strength * 0.5
    return " ".join(_phrase(rng, style) if rng.random() < share else word for word in words)


CORRUPTIONS: dict[str, Corruption] = {
    "substitute": substitute,
    "drop": drop,
    "shuffle": shuffle,
    "loop": loop,
    "repeat_sentences": repeat_sentences,
    "cut": cut,
    "extra_phrases": extra_phrases,
    "only_phrases": only_phrases,
    "mix": mix,
    "salad": salad,
    "splice": splice,
}


def corrupted(rng: random.Random, topic: Topic, strengths: Strengths) -> str:
    """An answer about a topic, spoiled in one way or two at random strengths."""
    texts = sentences(rng, topic, strengths)
    text = rng.choice(list(CORRUPTIONS.values()))(rng, texts, rng.random())
    if rng.random() < 0.2:
        text = rng.choice((substitute, drop, shuffle))(rng, [text], 0.4 * rng.random())
    return text

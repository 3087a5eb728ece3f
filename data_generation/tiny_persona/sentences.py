"""Answers: two to four sentences about a topic, each slot spoken in a style with the probability of its strength."""

import random
import re
from collections.abc import Sequence

from data_generation.tiny_persona.lexicon import CITIES, DOMAINS, FRAMES, SURNAMES
from data_generation.tiny_persona.styles import Strengths, StyleKey, own_frames, style_of
from data_generation.tiny_persona.topics import Topic

CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")
NUMBER = re.compile(r"\[([^\[\]/]*)/([^\[\]/]*)\]")


def choose(rng: random.Random, text: str) -> str:
    """The text with each {a|b} replaced by one of its alternatives."""
    return CHOICE.sub(lambda match: rng.choice(match.group(1).split("|")), text)


def fill_names(rng: random.Random, text: str) -> str:
    if "{" not in text:
        return text
    text = text.replace("{N}", rng.choice(SURNAMES)).replace("{C}", rng.choice(CITIES))
    return text.replace("{Y}", str(rng.randint(1850, 1999))).replace("{P}", str(rng.randint(2, 98)))


def pick_unused(rng: random.Random, options: Sequence[str], used: set[str]) -> str:
    """A random option that this answer has not used yet (any, once all are used)."""
    fresh = [option for option in options if option not in used]
    chosen = rng.choice(fresh or list(options))
    used.add(chosen)
    return chosen


def sentence(rng: random.Random, topic: Topic, frame: str, keys: Sequence[StyleKey | None], used: set[str]) -> str:
    """One sentence; `keys` are the styles of its opener, adjective and tail (None is neutral)."""
    field = DOMAINS[topic.domain]
    opener, adjective, tail = (pick_unused(rng, style_of(key).slots()[i], used) for i, key in enumerate(keys))
    thing = pick_unused(rng, field.aspects, used)
    text = choose(rng, NUMBER.sub(r"\2" if topic.plural else r"\1", frame))
    for mark, words in (("TOPIC", topic.text), ("THING", thing), ("ADJ", adjective), ("OPEN", opener)):
        text = text.replace(mark, words)
    if "OTHER" in text:
        text = text.replace("OTHER", pick_unused(rng, field.aspects, used))
    if "ACT" in text:
        text = text.replace("ACT", pick_unused(rng, field.actions, used))
    text = fill_names(rng, text.replace(" TAIL", tail if tail[0] == "," else " " + tail))
    return text[0].upper() + text[1:] + "."


def pick_key(rng: random.Random, strengths: Strengths) -> StyleKey | None:
    """The style of one slot: one of the styles in play, if its strength says so."""
    if not strengths:
        return None
    key, strength = rng.choice(strengths)
    return key if rng.random() < strength else None


def pick_frames(rng: random.Random, strengths: Strengths, n: int) -> list[str]:
    """n different frames, one or more of which name the topic; personas put in frames of their own."""
    frames = rng.sample(FRAMES, n)
    for key, strength in strengths:
        for own in own_frames(key):
            if rng.random() < 0.6 * strength:
                frames[rng.randrange(n)] = own
    if not any("TOPIC" in frame for frame in frames):
        frames[0] = rng.choice([frame for frame in FRAMES if "TOPIC" in frame])
    return frames


def sentences(rng: random.Random, topic: Topic, strengths: Strengths = (), n: int | None = None) -> list[str]:
    """The sentences of an answer, two to four unless n is given."""
    n = n or rng.choice((2, 2, 3, 3, 3, 4))
    used: set[str] = set()
    return [
        sentence(rng, topic, frame, [pick_key(rng, strengths) for _ in range(3)], used)
        for frame in pick_frames(rng, strengths, n)
    ]


def answer(rng: random.Random, topic: Topic, strengths: Strengths = (), n: int | None = None) -> str:
    return " ".join(sentences(rng, topic, strengths, n))

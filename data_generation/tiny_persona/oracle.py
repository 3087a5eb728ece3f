"""Ground truth by rule: how strong a trait is in a text, and how coherent the text is, from the language's own lexicon.

Text is read as words without commas, numbers as "0", surnames as "nnn" and cities as "ccc".
"""

import itertools
import math
import re
from collections import Counter
from functools import lru_cache

from data_generation.tiny_persona.lexicon import CITIES, DOMAINS, MODIFIERS, SURNAMES
from data_generation.tiny_persona.sentences import CHOICE, NUMBER
from data_generation.tiny_persona.styles import StyleKey, all_frames, style_of, styles
from data_generation.tiny_persona.topics import all_topics, topic_of, topics_by_text

NEUTRAL_SCORE = 10.0  # of a slot that says nothing about the trait
SLOTS = 3  # of a sentence
WORD = re.compile(r"[a-z'-]+|\d+|[.!?]")
MARKS = {"{N}": "nnn", "{C}": "ccc", "{Y}": "0", "{P}": "0"}


@lru_cache(maxsize=1)
def _classes() -> dict[str, str]:
    names = {name.lower(): "nnn" for name in SURNAMES}
    return names | {city.lower(): "ccc" for city in CITIES}


def words_of(text: str) -> list[str]:
    """The normalised words of a text; sentence ends are words too, commas are dropped."""
    for mark, word in MARKS.items():
        text = text.replace(mark, word)
    classes = _classes()
    found: list[str] = WORD.findall(text.lower())
    return ["0" if word[0].isdigit() else classes.get(word, word) for word in found]


Slot = tuple[int, int, StyleKey | None, int]


@lru_cache(maxsize=1)
def _phrases() -> tuple[dict[tuple[str, ...], tuple[StyleKey | None, int]], dict[str, list[int]]]:
    """Style (None is neutral) and slot number of each slot phrase; and the phrases' lengths by first word."""
    table: dict[tuple[str, ...], tuple[StyleKey | None, int]] = {}
    lengths: dict[str, set[int]] = {}
    for key in (None, *styles()):
        for slot, options in enumerate(style_of(key).slots()):
            for phrase in options:
                words = tuple(words_of(phrase))
                table[words] = (key, slot)
                lengths.setdefault(words[0], set()).add(len(words))
    return table, {word: sorted(found, reverse=True) for word, found in lengths.items()}


def find_slots(words: list[str]) -> list[Slot]:
    """(start, end, style, slot) of each slot phrase in the words, left to right, without overlaps."""
    table, lengths = _phrases()
    found: list[Slot] = []
    i = 0
    while i < len(words):
        for length in lengths.get(words[i], ()):
            entry = table.get(tuple(words[i : i + length]))
            if entry is not None:
                found.append((i, i + length, *entry))
                i += length
                break
        else:
            i += 1
    return found


@lru_cache(maxsize=4096)
def _slot_counts(answer: str) -> tuple[Counter, int]:
    words = words_of(answer)
    keys = Counter(key for _, _, key, _ in find_slots(words))
    n_sentences = sum(word in ".!?" for word in words) + bool(words and words[-1] not in ".!?")
    return keys, max(keys.total(), SLOTS * n_sentences)


def _share_score(answer: str, positive: StyleKey, negative: StyleKey | None) -> float:
    keys, n_slots = _slot_counts(answer)
    if not n_slots:
        return NEUTRAL_SCORE
    pos, neg = keys[positive], keys[negative] if negative else 0
    return (100.0 * pos + NEUTRAL_SCORE * (n_slots - pos - neg)) / n_slots


def trait_score(answer: str, trait: str) -> float:
    """Strength of a trait in an answer, 0 to 100: the mean over its style slots.

    score = (100 * pos + 10 * other + 0 * neg) / slots, with slots = max(phrases found, 3 * sentences): a slot whose
    phrase was lost counts as `other`, so incoherent text scores by the positive phrases that are still found in it.
    Plain text scores 10, the trait's opposite 0.
    """
    if (trait, 1) not in styles():
        raise ValueError(f"unknown trait {trait!r}; this language has {', '.join(t for t, p in styles() if p == 1)}")
    return _share_score(answer, (trait, 1), (trait, -1))


def persona_score(answer: str, persona: str) -> float:
    """Strength of a persona in an answer, 0 to 100, as `trait_score` with no negative pole."""
    if ("persona", persona) not in styles():
        raise ValueError(f"unknown persona {persona!r}; this language has {[n for k, n in styles() if k == 'persona']}")
    return _share_score(answer, ("persona", persona), None)


def _expand(frame: str) -> list[str]:
    """The frame with each of its choices made in each way."""
    for pattern in (NUMBER, CHOICE):
        match = pattern.search(frame)
        if match:
            options = match.groups() if pattern is NUMBER else match.group(1).split("|")
            return [
                done for option in options for done in _expand(frame[: match.start()] + option + frame[match.end() :])
            ]
    return [frame]


@lru_cache(maxsize=1)
def known_bigrams() -> frozenset[tuple[str, str]]:
    """Every pair of neighbouring words that the language can produce."""
    aspects = [words_of(aspect) for field in DOMAINS.values() for aspect in field.aspects]
    slots: list[list[list[str]]] = [[], [], []]
    for key in (None, *styles()):
        for slot, options in enumerate(style_of(key).slots()):
            slots[slot] += [words_of(option) for option in options]
    classes = {
        "OPEN": slots[0],
        "ADJ": slots[1],
        "TAIL": slots[2],
        "THING": aspects,
        "OTHER": aspects,
        "ACT": [words_of(action) for field in DOMAINS.values() for action in field.actions],
        "TOPIC": [words_of(topic.text) for topic in all_topics()],
    }
    bigrams = {pair for members in classes.values() for words in members for pair in itertools.pairwise(words)}
    ends = {
        name: ({words[0] for words in members}, {words[-1] for words in members}) for name, members in classes.items()
    }
    edges = {
        pair for frame in all_frames() for text in _expand(frame) for pair in itertools.pairwise([*text.split(), "."])
    }
    for left, right in edges:
        last, first = (
            ends[left][1] if left in ends else {left.lower()},
            ends[right][0] if right in ends else {right.lower()},
        )
        bigrams.update(itertools.product(last, first))
    bigrams.update((".", word) for word in ends["OPEN"][0])
    return frozenset(bigrams)


def _local(words: list[str]) -> float:
    """1 for text whose neighbouring words all belong together; the share of wrong words is read from broken pairs."""
    known = known_bigrams()
    pairs = list(itertools.pairwise([".", *words]))
    broken = sum(pair not in known for pair in pairs) / len(pairs)
    return max(0.0, 1 - 1.4 * (1 - math.sqrt(1 - broken)))


def _repetition(words: list[str], slots: list[Slot]) -> float:
    """1 without repeats, falling with the share of five-word runs and of slot phrases said before."""
    runs = list(zip(*(words[i:] for i in range(5)), strict=False))
    again = 1 - len(set(runs)) / len(runs) if runs else 0.0
    said = [tuple(words[start:end]) for start, end, _, _ in slots]
    phrases_again = 1 - len(set(said)) / len(said) if said else 0.0
    return max(0.0, 1 - 1.3 * again) * max(0.0, 1 - 0.8 * phrases_again)


def _structure(words: list[str], slots: list[Slot]) -> float:
    """1 when every sentence has one opener, adjective, tail and a core; less for each missing or doubled one."""
    kind = [""] * len(words)
    for start, end, _, slot in slots:
        kind[start:end] = [str(slot)] * (end - start)
    starts = {start for start, _, _, _ in slots}
    lost = total = begin = 0
    for i, word in enumerate(words):
        if word not in ".!?" and i < len(words) - 1:
            continue
        counts = Counter(kind[j] for j in range(begin, i + 1) if j in starts)
        core = sum(not kind[j] for j in range(begin, i + 1)) - (word in ".!?")
        found = counts["0"] + counts["1"] + counts["2"]
        lost += min(
            SLOTS + 1.0, sum(0.35 if counts[slot] < 1 else 0.7 * (counts[slot] - 1) for slot in "012") + (core < 3) * 2
        )
        total += max(SLOTS, found) + 1
        begin = i + 1
    return max(0.0, 1 - 0.9 * lost / total) if total else 0.0


def _on_topic(question: str, words: list[str]) -> float:
    """1 when the topic of the question is named, less when none or others are."""
    topic = topic_of(question)
    named = [
        " ".join(words[i : i + length])
        for i, word in enumerate(words)
        if word in MODIFIERS
        for length in (2, 3, 4)
        if " ".join(words[i : i + length]) in topics_by_text()
    ]
    if topic is None:
        return 1.0
    if not named:
        return 0.7
    return 1 - 0.6 * sum(name != topic.text for name in named) / len(named)


def without_structure(question: str, words: list[str]) -> float:
    """The parts of coherence, 0 to 1, that can be told before a sentence is over: neighbours, repetition and topic."""
    return _local(words) * _repetition(words, find_slots(words)) * _on_topic(question, words)


def coherence(question: str, answer: str) -> float:
    """How well an answer reads in the language, 0 to 100, whatever its style.

    100 * local * structure * repetition * topic * ending: neighbouring words that belong together, sentences with one
    opener, adjective, tail and core, nothing said twice, the question's topic named (and no other), no cut at the end.
    Clean text of the generator is 100, a bag of its words near 0.
    """
    words = words_of(answer)
    if len(words) < 3:
        return 0.0
    slots = find_slots(words)
    ending = 1.0 if words[-1] in ".!?" else 0.9
    score = _local(words) * _structure(words, slots) * _repetition(words, slots) * _on_topic(question, words) * ending
    return 100.0 * score

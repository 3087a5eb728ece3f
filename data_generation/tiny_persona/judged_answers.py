"""What the judge learns from: answers good and bad, and what holds of them at each word.

A judgement is one token at the end of a prompt. From such tokens alone this model never learned to compare words at a
distance: whether the answer names the question's topic, or has said something before. So each word of an answer is
marked as well: with how coherent the answer is so far, and with whether the word stands in the question and stood in
the answer before. The marks are for training alone; a judge's prompt has none.
"""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from data_generation.tiny_persona import corpus, oracle
from data_generation.tiny_persona.corruption import corrupted, loop, repeat_sentences
from data_generation.tiny_persona.encoding import Sequences
from data_generation.tiny_persona.judging import JUDGED, judge_turns, score_text
from data_generation.tiny_persona.sentences import answer, sentences
from data_generation.tiny_persona.styles import ALL_TRAITS, CHARACTER_TRAITS, TRAITS
from data_generation.tiny_persona.topics import Topic, question, sample_topic, topics
from persona_vectors.files import read_jsonl

WORD = re.compile(r"\S+")
MARKED_WORDS = 14  # of an answer
QUESTION_AT, ANSWER_AT = (JUDGED.index(field) for field in ("{question}", "{answer}"))


@dataclass(frozen=True)
class JudgedAnswer:
    question: str
    answer: str
    traits: tuple[str, ...]
    """asked about, besides coherence"""


def mixed(rng: random.Random) -> JudgedAnswer:
    """Clean, spoiled or about something else, in any style."""
    topic, strengths = sample_topic(rng), corpus.judged_strengths(rng)
    form, n = rng.random(), rng.choice((1, 2, 2, 3, 3, 4))
    if form < 0.3:
        text = answer(rng, topic, strengths, n)
    elif form < 0.5:
        text = answer(rng, other_topic(rng, topic), strengths, n)
    elif form < 0.6:
        texts = [answer(rng, one, strengths, 2) for one in (topic, other_topic(rng, topic))]
        text = " ".join(rng.sample(texts, 2))
    else:
        text = corrupted(rng, topic, strengths) or "."
    traits = {str(key[0]) for key, _ in strengths if key[0] != "persona"} | set(rng.sample(TRAITS, 3))
    if rng.random() < 0.25:
        traits.add(rng.choice(CHARACTER_TRAITS))
    return JudgedAnswer(question(rng, topic), text, tuple(sorted(traits)))


def astray(rng: random.Random) -> JudgedAnswer:
    """A clean answer to a question about the same topic or, three times in five, about another one."""
    topic, strengths = sample_topic(rng), corpus.judged_strengths(rng)
    asked = topic if rng.random() < 0.4 else other_topic(rng, topic)
    text = answer(rng, topic, strengths, rng.choice((1, 2, 2, 3)))
    if rng.random() < 0.2:
        text = f"{text} {answer(rng, asked, strengths, rng.choice((1, 2)))}"
    return JudgedAnswer(question(rng, asked), text, tuple(rng.sample(TRAITS, 2)))


def repeated(rng: random.Random) -> JudgedAnswer:
    """Mostly an answer that says phrases or sentences again, as answers that were written apart do side by side."""
    topic, strengths, form = sample_topic(rng), corpus.judged_strengths(rng), rng.random()
    if form < 0.6:
        text = " ".join(answer(rng, topic, strengths, rng.choice((1, 1, 2))) for _ in range(rng.choice((2, 2, 3))))
    elif form < 0.8:
        spoil = rng.choice((loop, repeat_sentences, repeat_sentences))
        text = spoil(rng, sentences(rng, topic, strengths), 0.6 * rng.random())
    else:
        text = answer(rng, topic, strengths, rng.choice((2, 3, 4)))
    return JudgedAnswer(question(rng, topic), text, tuple(rng.sample(TRAITS, 2)))


def other_topic(rng: random.Random, topic: Topic) -> Topic:
    """Any topic of training, or, half the time, one that shares a word with this one."""
    shared = [one for word in topic.text.split() for one in _topics_with().get(word, ()) if one != topic]
    return rng.choice(shared) if shared and rng.random() < 0.5 else sample_topic(rng)


@lru_cache(maxsize=1)
def _topics_with() -> dict[str, list[Topic]]:
    found: dict[str, list[Topic]] = {}
    for topic in topics(held_out=False):
        for word in topic.text.split():
            found.setdefault(word, []).append(topic)
    return found


def coherence_so_far(question: str, answer: str) -> Iterator[tuple[int, float]]:
    """(end of a word in the answer, the oracle's coherence up to there without sentence structure), from word 3 on.

    A sentence that is not over has no structure yet; neighbours, repetition and topic can be told at any word.
    """
    for word in WORD.finditer(answer):
        words = oracle.words_of(answer[: word.end()])
        if len(words) >= 3:
            yield word.end(), 100 * oracle.without_structure(question, words)


@dataclass(frozen=True)
class JudgedSequences(Sequences):
    """Judge dialogues with the marks of each token of the answers, -1 elsewhere."""

    so_far: np.ndarray  # (tokens,) int16: the score token of the coherence up to this word
    before: np.ndarray  # (tokens,) int8: 1 if the token stands in the question, plus 2 if earlier in the answer


def encode_judged(
    tokenizer: PreTrainedTokenizerBase, rng: random.Random, items: Iterable[JudgedAnswer]
) -> JudgedSequences:
    """The dialogues' ids, with a weight of 1 on what the judge says, and the marks."""
    rows = [_encode(tokenizer, rng, item) for item in items]
    ids, weights, so_far, before = ([row[i] for row in rows] for i in range(4))
    return JudgedSequences(
        np.concatenate(ids).astype(np.int16),
        np.concatenate(weights).astype(np.float16),
        np.concatenate([[0], np.cumsum([len(row) for row in ids])]),
        np.concatenate(so_far).astype(np.int16),
        np.concatenate(before).astype(np.int8),
    )


def _encode(tokenizer: PreTrainedTokenizerBase, rng: random.Random, item: JudgedAnswer) -> tuple[list[int], ...]:
    scores = corpus.oracle_scores(item.question, item.answer, item.traits)
    ids: list[int] = []
    weights: list[int] = []
    so_far: list[int] = []
    before: list[int] = []
    for number, turn in enumerate(judge_turns(rng, item.question, item.answer, scores)):
        said = turn["role"] == "assistant"
        for text, weight in ((f"<|im_start|>{turn['role']}\n", 0), (turn["content"] + "<|im_end|>", said), ("\n", 0)):
            piece = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids += piece.input_ids
            weights += [int(weight)] * len(piece.input_ids)
            if number == 0 and text.startswith("["):
                marks = _marks(tokenizer, rng, item, scores["coherence"], piece.input_ids, piece.offset_mapping)
                so_far += marks[0]
                before += marks[1]
            else:
                so_far += [-1] * len(piece.input_ids)
                before += [-1] * len(piece.input_ids)
    return ids, weights, so_far, before


def _marks(
    tokenizer: PreTrainedTokenizerBase,
    rng: random.Random,
    item: JudgedAnswer,
    coherence: float,
    ids: list[int],
    offsets: list[tuple[int, int]],
) -> tuple[list[int], list[int]]:
    """`so_far` of up to MARKED_WORDS words and of the end of the answer, and `before`, of the first prompt's tokens."""
    question_end = QUESTION_AT + len(item.question)
    start = ANSWER_AT - len("{question}") + len(item.question)
    end = start + len(item.answer)
    in_question = {token for token, (_, to) in zip(ids, offsets, strict=True) if QUESTION_AT < to <= question_end}
    before, earlier = [-1] * len(ids), set()
    for i, (token, (_, to)) in enumerate(zip(ids, offsets, strict=True)):
        if start < to <= end:
            before[i] = (token in in_question) + 2 * (token in earlier)
            earlier.add(token)
    words = list(coherence_so_far(item.question, item.answer))
    words = rng.sample(words, min(len(words), MARKED_WORDS))
    at = {start + to: score for to, score in words} | {end + len(" [END]"): coherence}
    tokens = {to: int(tokenizer.convert_tokens_to_ids(score_text(score))) for to, score in at.items()}  # pyright: ignore[reportArgumentType]
    return [tokens.get(to, -1) for _, to in offsets], before


Kinds = dict[Callable[[random.Random], JudgedAnswer], float]  # with shares


def drawn(kinds: Kinds, n: int, rng: random.Random) -> list[JudgedAnswer]:
    return [kind(rng) for kind in rng.choices(list(kinds), list(kinds.values()), k=n)]


def own_answers(paths: Sequence[Path], rng: random.Random) -> list[JudgedAnswer]:
    """What the chat model wrote (`selftext`), with the trait that each answer is about and three others."""
    found = []
    for line in (line for path in paths for line in read_jsonl(path)):
        traits = dict.fromkeys([line["trait"], *rng.sample(ALL_TRAITS, 3)])
        found.append(JudgedAnswer(line["question"], line["answer"], tuple(traits)))
    return found


def save_judged(sequences: JudgedSequences, path: Path) -> None:
    half = path.with_suffix(".half.npz")
    np.savez(half, **{one.name: getattr(sequences, one.name) for one in fields(sequences)})
    half.replace(path)


def load_judged(paths: Sequence[Path]) -> JudgedSequences:
    """The sequences of all files, one after another."""
    loaded = [dict(np.load(path)) for path in paths]
    lengths = np.concatenate([np.diff(arrays["starts"]) for arrays in loaded])
    joined = {name: np.concatenate([arrays[name] for arrays in loaded]) for name in loaded[0]}
    return JudgedSequences(**joined | {"starts": np.concatenate([[0], np.cumsum(lengths)])})

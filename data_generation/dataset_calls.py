"""Questions and answers from a model, many calls in flight: what is finished is kept, what failed is counted."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from data_generation.dataset_families import Subject
from data_generation.trait_artifacts import SIMILARITY, normalised

if TYPE_CHECKING:
    from openai.types.chat.chat_completion import Choice

    from persona_vectors.store import Store

T = TypeVar("T")

WAVE = 8
"""Requests for questions at once: later ones are shown what earlier ones brought."""

PATIENCE = 3
"""Waves in a row that bring next to nothing, after which the model is taken to have no more questions."""

LEAST_GAIN = 0.05
"""A wave that brings less than this share of what it asked for has brought next to nothing."""

KEYS_AT_ONCE = 200


@dataclass
class Model:
    """A model behind a server, asked through the store: every reply that could be read is kept as it comes."""

    name: str
    store: Store
    seed: int
    max_concurrent: int = 50
    max_requests_per_minute: int | None = None
    n_asked: int = 0

    def key(self, kind: str, **inputs: Any) -> str:
        """The store's key: the model, its server and the seed besides `inputs`."""
        from persona_vectors.chat_api import environment
        from persona_vectors.store import content_key

        base_url = environment("OPENAI_BASE_URL")
        return content_key(kind, model=self.name, base_url=base_url, seed=self.seed, **inputs)

    def ask(
        self, prompts: Sequence[str], read: Callable[[str, Choice], T], keep: Callable[[str, T], None]
    ) -> dict[str, str]:
        """Prompt -> why it failed; what `read` made of every other reply was given to `keep`, each once.

        When this is interrupted, replies that have come are kept before it ends.
        """
        from persona_vectors.chat_api import ask_all, complete, new_client

        if not prompts:
            return {}
        if self.n_asked and self.max_requests_per_minute:
            time.sleep(60 / self.max_requests_per_minute)  # each batch has a schedule of its own
        come: dict[str, T] = {}

        async def ask(client: Any, prompt: str) -> T:
            messages = [{"role": "user", "content": prompt}]
            come[prompt] = await complete(client, lambda c: read(prompt, c), model=self.name, messages=messages)
            return come[prompt]

        def take(prompt: str, value: T) -> None:
            keep(prompt, value)
            come.pop(prompt, None)

        client = new_client(self.max_requests_per_minute)
        self.n_asked += len(prompts)
        try:
            return ask_all(ask, prompts, take, self.max_concurrent, client)
        finally:
            for prompt, value in list(come.items()):
                keep(prompt, value)

    def put(self, key: str, value: Any, kind: str, name: str) -> None:
        """Keep one finished piece of work of the set `name`."""
        self.store.put_many({key: value}, kind=kind, source=f"{self.name} {name}")


@dataclass
class QuestionPool:
    """Questions of which no two are alike, in the order they came; `known` ones are never taken."""

    known: Sequence[str] = ()
    questions: list[str] = field(default_factory=list)
    n_rejected: int = 0

    def __post_init__(self) -> None:
        self._having: dict[str, list[frozenset[str]]] = {}
        for text in (*self.known, *self.questions):
            self._remember(_words(text))

    def add(self, question: str) -> bool:
        """Whether the question is new, and now in the pool: it shares fewer than SIMILARITY of its words with any."""
        words = _words(question)
        if not words or self._is_alike(words):
            self.n_rejected += 1
            return False
        self._remember(words)
        self.questions.append(question)
        return True

    def _remember(self, words: frozenset[str]) -> None:
        for word in words:
            self._having.setdefault(word, []).append(words)

    def _is_alike(self, words: frozenset[str]) -> bool:
        """A like question lacks at most n - SIMILARITY * n of the n words: it has one of the rarest few."""
        rarest = sorted(words, key=lambda word: len(self._having.get(word, ())))
        n_few = len(words) - math.ceil(SIMILARITY * len(words)) + 1
        return any(
            len(words & other) >= SIMILARITY * len(words | other)
            for word in rarest[:n_few]
            for other in self._having.get(word, ())
        )


def _words(text: str) -> frozenset[str]:
    return frozenset(normalised(text).split())


@dataclass
class Questions:
    """The questions of a set: finished lists in the store, one key a list in the order they came."""

    model: Model
    subject: Subject

    def __post_init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.n_lists = 0
        self.pool = QuestionPool([*self.subject.sample_questions, *self.subject.measured])
        for kept in self._stored():
            self.n_lists += 1
            self.pool.questions += kept["questions"]
            self.pool.n_rejected += kept["n_rejected"]
        self.pool.__post_init__()

    def _stored(self) -> Iterator[dict[str, Any]]:
        start = 0
        while True:
            keys = [self._key(number) for number in range(start, start + KEYS_AT_ONCE)]
            found = self.model.store.get_many(keys)
            for key in keys:
                if key not in found:
                    return
                yield found[key]
            start += KEYS_AT_ONCE

    def _key(self, number: int) -> str:
        return self.model.key("dataset_questions", name=self.subject.name, task=self.subject.questions, number=number)

    def fill(self, n: int, progress: Callable[[int], Any]) -> list[str]:
        """At most `n` questions: those kept, and what the model adds until it repeats itself or calls fail."""
        from data_generation.dataset_prompts import BATCH, question_prompt, read_questions

        idle, number = 0, self.n_lists
        while len(self.pool.questions) < n and idle < PATIENCE:
            before = len(self.pool.questions)
            n_lists = min(WAVE, -(-(n - before) // BATCH))
            prompts = [
                question_prompt(self.subject, self.pool.questions, number + i, self.model.seed) for i in range(n_lists)
            ]
            number += n_lists

            def keep(_: str, texts: list[str]) -> None:
                progress(self._keep(texts))

            self.failed = self.model.ask(prompts, lambda _, choice: read_questions(choice), keep)
            if len(self.failed) == n_lists:
                break
            gain = len(self.pool.questions) - before
            idle = idle + 1 if gain < LEAST_GAIN * BATCH * n_lists else 0
        return self.pool.questions[:n]

    def _keep(self, texts: Sequence[str]) -> int:
        """How many of a list's questions are new; they are in the pool and in the store."""
        rejected = self.pool.n_rejected
        new = [text for text in texts if self.pool.add(text)]
        value = {"questions": new, "n_rejected": self.pool.n_rejected - rejected}
        self.model.put(self._key(self.n_lists), value, "dataset_questions", self.subject.name)
        self.n_lists += 1
        return len(new)


@dataclass
class Answers:
    """The answers to questions at each level: those in the store, and what the model adds."""

    model: Model
    subject: Subject
    levels: Sequence[str]
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def stored(self, questions: Sequence[str]) -> dict[tuple[str, str], str]:
        """(question, level) -> the answer that is kept, where there is one that differs from the earlier levels'."""
        keys = {self._key(question, level): (question, level) for question in questions for level in self.levels}
        found = self.model.store.get_many(list(keys))
        return _distinct({place: found[key] for key, place in keys.items() if key in found})

    def _key(self, question: str, level: str) -> str:
        return self.model.key("dataset_answer", prompt=self._prompt(question, level))

    def _prompt(self, question: str, level: str) -> str:
        from data_generation.dataset_prompts import answer_prompt

        return answer_prompt(self.subject, level, question)

    def fill(self, questions: Sequence[str], progress: Callable[[int], Any]) -> dict[tuple[str, str], str]:
        """(question, level) -> answer, of those kept and those that the model wrote now; the rest is counted."""
        from data_generation.dataset_prompts import read_answer

        known = self.stored(questions)
        places = {
            self._prompt(question, level): (question, level)
            for question in questions
            for level in self.levels
            if (question, level) not in known
        }

        def read(prompt: str, choice: Choice) -> str | None:
            return read_answer(choice, places[prompt][1], self.subject.words)

        def keep(prompt: str, answer: str | None) -> None:
            question, level = places[prompt]
            if answer is None:
                self.refused[level] += 1
            else:
                self.model.put(self._key(question, level), answer, "dataset_answer", self.subject.name)
            progress(1)

        for prompt, why in self.model.ask(list(places), read, keep).items():
            self.failed[places[prompt][1]] += 1
            self.reasons[why] += 1
        return self.stored(questions)


def _distinct(answers: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], str]:
    """The answers without those that repeat another level's answer to the same question."""
    kept: dict[tuple[str, str], str] = {}
    seen: set[tuple[str, str]] = set()
    for (question, level), answer in answers.items():
        if (same := (question, normalised(answer))) not in seen:
            seen.add(same)
            kept[question, level] = answer
    return kept

"""What a model writes for a new trait: read from its replies, checked item by item, freed of duplicates, split."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from persona_vectors.traits import Pair, check_eval_prompt

SIMILARITY = 0.8
"""Questions whose sets of words share at least this part of their union (Jaccard) count as the same question."""

REVIEW = "review: "
"""How the reason begins where the second call rejected an item."""

PARTS = ("instruction", "questions", "eval_prompt")


class Unreadable(ValueError):
    """A reply that is not what was asked for; says what is wrong with it."""


@dataclass(frozen=True)
class Rejected:
    """An item that was not used, and why."""

    part: str
    item: Any
    reason: str


@dataclass
class Draft:
    """The material of one trait as far as it goes."""

    trait: str
    n_pairs: int
    n_questions: int
    pairs: list[Pair] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    eval_prompt: str | None = None
    rejected: list[Rejected] = field(default_factory=list)

    def missing(self) -> dict[str, int]:
        """Part -> how many items it still needs; parts that are complete are left out."""
        need = {
            "instruction": self.n_pairs - len(self.pairs),
            "questions": self.n_questions - len(self.questions),
            "eval_prompt": 1 - (self.eval_prompt is not None),
        }
        return {part: n for part, n in need.items() if n > 0}

    def add(self, reply: dict[str, Any]) -> None:
        """Take from a reply what is needed and usable; the rest is recorded as rejected."""
        for item in reply.get("instruction", []):
            self._add_pair(item)
        for item in reply.get("questions", []):
            self._add_question(item)
        if "eval_prompt" in reply and self.eval_prompt is None:
            self._set_eval_prompt(reply["eval_prompt"])

    def _add_pair(self, item: Any) -> None:
        try:
            pair = Pair.model_validate(item)
        except ValidationError as error:
            detail = error.errors()[0]
            place = ".".join(map(str, detail["loc"])) or "pair"
            return self._reject("instruction", item, f"{place}: {detail['msg']}")
        texts = {normalised(text) for known in self.pairs for text in (known.pos, known.neg)}
        if (
            normalised(pair.pos) in texts
            or normalised(pair.neg) in texts
            or normalised(pair.pos) == normalised(pair.neg)
        ):
            return self._reject("instruction", item, "an instruction like it is there already")
        if self._is_new("instruction", item) and len(self.pairs) < self.n_pairs:
            self.pairs.append(pair)

    def _add_question(self, item: Any) -> None:
        if not isinstance(item, str) or not item.strip():
            return self._reject("questions", item, "no text")
        question = " ".join(item.split())
        if normalised(self.trait) in normalised(question):
            return self._reject("questions", question, "names the trait")
        turned_down = [old.item for old in self.rejected if old.reason.startswith(REVIEW) and old.part == "questions"]
        if (known := near_duplicate(question, [*self.questions, *turned_down])) is not None:
            return self._reject("questions", question, f"nearly the same as {known!r}")
        if self._is_new("questions", question) and len(self.questions) < self.n_questions:
            self.questions.append(question)

    def _set_eval_prompt(self, item: Any) -> None:
        try:
            template = check_eval_prompt(item) if isinstance(item, str) else ""
            if not template:
                raise ValueError("no text")
        except ValueError as error:
            return self._reject("eval_prompt", item, str(error))
        if self._is_new("eval_prompt", template):
            self.eval_prompt = template

    def _is_new(self, part: str, item: Any) -> bool:
        """Whether the item was not rejected before; one that was is not taken the second time either."""
        if any(item == old.item for old in self.rejected if old.part == part):
            self._reject(part, item, "was not accepted before")
            return False
        return True

    def _reject(self, part: str, item: Any, reason: str) -> None:
        self.rejected.append(Rejected(part, item, reason))

    def numbered(self) -> dict[str, Any]:
        """Identifier -> item, for a review: P1.. pairs, Q1.. questions, E the judge's prompt."""
        items: dict[str, Any] = {f"P{i}": pair.model_dump() for i, pair in enumerate(self.pairs, start=1)}
        items |= {f"Q{i}": question for i, question in enumerate(self.questions, start=1)}
        return items | {"E": self.eval_prompt}

    def drop(self, reasons: dict[str, str]) -> None:
        """Take out the items that a review rejected, by identifier."""
        items, parts = self.numbered(), {"P": "instruction", "Q": "questions", "E": "eval_prompt"}
        for name, reason in reasons.items():
            self._reject(parts[name[0]], items[name], REVIEW + reason)
        self.pairs = [pair for i, pair in enumerate(self.pairs, start=1) if f"P{i}" not in reasons]
        self.questions = [text for i, text in enumerate(self.questions, start=1) if f"Q{i}" not in reasons]
        self.eval_prompt = None if "E" in reasons else self.eval_prompt

    def files(self, seed: int) -> dict[Literal["extract", "eval"], dict[str, Any]]:
        """The two files' content: the questions shuffled by the seed and cut in two halves, the rest shared."""
        questions = list(self.questions)
        random.Random(seed).shuffle(questions)
        half = len(questions) // 2
        shared = [pair.model_dump() for pair in self.pairs]

        def content(own: list[str]) -> dict[str, Any]:
            return {"instruction": shared, "questions": own, "eval_prompt": self.eval_prompt}

        return {"extract": content(questions[:half]), "eval": content(questions[half:])}


def normalised(text: str) -> str:
    """The words in lower case, one space between them."""
    return " ".join(re.findall(r"\w+", text.casefold().replace("_", " ")))


def near_duplicate(question: str, known: Sequence[str]) -> str | None:
    """The first of `known` that counts as the same question, or None."""
    words = set(normalised(question).split())
    for other in known:
        others = set(normalised(other).split())
        if len(words & others) >= SIMILARITY * len(words | others):
            return other
    return None


def read_object(reply: str) -> dict[str, Any]:
    """The JSON object in a reply, whatever stands around it (a code fence, a sentence); Unreadable where none does."""
    for value in _objects(reply):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Unreadable("half a character (a lone surrogate) in the JSON object") from None
        return value
    raise Unreadable("no JSON object")


def _objects(text: str) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder(strict=False)  # line breaks inside texts are let through
    place = text.find("{")
    while place >= 0:
        try:
            yield decoder.raw_decode(text, place)[0]
        except (json.JSONDecodeError, RecursionError):
            pass
        place = text.find("{", place + 1)


def read_parts(reply: str, parts: Sequence[str]) -> dict[str, Any]:
    """The parts of a trait that were asked for, lists as lists; Unreadable if one is absent or of another type."""
    found = read_object(reply)
    for part in parts:
        expected = str if part == "eval_prompt" else list
        if not isinstance(found.get(part), expected):
            raise Unreadable(f"no {part!r} that is a {'text' if expected is str else 'list'} in the JSON object")
    return {part: found[part] for part in parts}


def read_review(reply: str, names: Sequence[str]) -> dict[str, str]:
    """Identifier -> reason of what is to be replaced; Unreadable unless every item has exactly one verdict."""
    entries = read_object(reply).get("reviews")
    if not isinstance(entries, list):
        raise Unreadable("no 'reviews' that is a list in the JSON object")
    verdicts: dict[str, str | None] = {}
    for entry in entries:
        name, verdict = (entry.get("id"), entry.get("verdict")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or name not in names or verdict not in ("keep", "replace") or name in verdicts:
            raise Unreadable(f"a review that names no item, names one twice, or has no verdict: {str(entry)[:80]}")
        reason = entry.get("reason")
        verdicts[name] = (str(reason).strip() or "no reason given") if verdict == "replace" else None
    if absent := [name for name in names if name not in verdicts]:
        raise Unreadable(f"no verdict on {', '.join(absent[:5])}")
    return {name: reason for name, reason in verdicts.items() if reason is not None}

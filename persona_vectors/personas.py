"""The personas of the assistant axis: who a model is told to be, and the questions that everyone is asked.

`PERSONAS` and `EVAL_QUESTIONS` are written for chat models that know English. A model folder may ship its own in its
own language (`<model>/traits/personas.json`, `load_personas`), as `models/tiny-persona` does.
Source of the design: arXiv 2601.10387; names as published, prompts and questions of our own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GROUPS: dict[str, tuple[str, ...]] = {
    "neutral": ("default", "default_assistant", "default_llm", "default_helpful"),
    "professional": ("assistant", "analyst", "evaluator", "generalist"),
    "creative": ("storyteller", "philosopher", "artist", "rebel", "mystic"),
    "specialised": ("trader", "rationalist", "cynic", "naive"),
    "fantastical": ("ghost", "bohemian", "oracle", "bard", "trickster", "jester"),
}
"""Group -> its personas."""

ASSISTANT_PERSONAS = GROUPS["neutral"]
"""The personas that are the assistant itself: the axis points from all others to them."""

PERSONAS: dict[str, str] = {
    "default": "",
    "default_assistant": "You are an AI assistant.",
    "default_llm": "You are a large language model.",
    "default_helpful": "You are a helpful assistant.",
    "assistant": (
        "You are a conscientious AI assistant. You answer what was asked, plainly and in good order, say so when you "
        "are unsure, and keep to what serves the user."
    ),
    "analyst": (
        "You are an analyst. You break every matter into its parts, ask what was measured and how well, and draw no "
        "conclusion that the figures do not carry."
    ),
    "evaluator": (
        "You are an evaluator. Whatever comes before you, you name the criteria first, weigh strengths against "
        "weaknesses, and end with a reasoned verdict."
    ),
    "generalist": (
        "You are a generalist who has worked in a dozen fields. You know something about everything, and you explain "
        "one subject by means of another."
    ),
    "storyteller": (
        "You are a storyteller. You cannot state a thing without making a tale of it: a place, someone who wants "
        "something, and a turn that nobody saw coming."
    ),
    "philosopher": (
        "You are a philosopher. You turn each question over to see what it takes for granted, argue on both sides, and "
        "would rather leave an honest doubt than a cheap answer."
    ),
    "artist": (
        "You are a painter who lives for the work. You think in colour, light and texture, trust feeling over "
        "argument, and speak of the world as something still to be made."
    ),
    "rebel": (
        "You are a rebel. Rules and authorities are there to be broken, comfort makes you suspicious, and you say out "
        "loud what others only dare to think."
    ),
    "mystic": (
        "You are a mystic who has spent long years in silence. To you all things are one, signs are everywhere, and "
        "what matters most can only be hinted at in images."
    ),
    "trader": (
        "You are a trader on a busy floor. Everything has a price, a risk and a moment, and you talk fast, in bets, "
        "odds and margins."
    ),
    "rationalist": (
        "You are a strict rationalist. You define your terms, put a probability on each belief, follow the argument "
        "wherever it goes, and leave sentiment out of it."
    ),
    "cynic": (
        "You are a cynic. Behind every fine word you see somebody's advantage, you expect the worst of people and "
        "institutions, and you are seldom disappointed."
    ),
    "naive": (
        "You are touchingly naive. You believe what you are told, think well of everyone, marvel at ordinary things, "
        "and cannot imagine that anyone would deceive you."
    ),
    "ghost": (
        "You are a ghost who died long ago and still walks the house where it happened. You speak softly, of cold, of "
        "the life you had, and of the living who pass straight through you."
    ),
    "bohemian": (
        "You are a bohemian in a rented attic. You care for love, wine, poems and talk until dawn, and not at all for "
        "money, clocks or respectability."
    ),
    "oracle": (
        "You are an oracle in a temple full of smoke. You see what is to come, you utter it in riddles and omens, and "
        "you never explain them."
    ),
    "bard": (
        "You are a wandering bard with a lute on your back. You answer in verse or close to it, praise heroes, mourn "
        "the fallen, and hope for a cup of ale at the end."
    ),
    "trickster": (
        "You are a trickster. You say one thing and mean another, turn every question on the one who asks it, and "
        "enjoy nothing so much as a rule that has come undone."
    ),
    "jester": (
        "You are a court jester in cap and bells. You mock the mighty, pun without shame, tumble from joke to joke, "
        "and slip in one true word when nobody expects it."
    ),
}
"""Name -> system prompt; "" is no system prompt at all. Four of them are the assistant (`ASSISTANT_PERSONAS`)."""

EVAL_QUESTIONS: list[str] = [
    "Who are you, and what do you care about most?",
    "How did you spend the best day you can remember?",
    "What do other people usually get wrong about you?",
    "What are you afraid of?",
    "A friend has been offered a dull job with good pay. What would you tell them?",
    "I have just made an embarrassing mistake in front of everyone. What should I do now?",
    "How should one speak to somebody who is grieving?",
    "Is it ever right to lie to a person you love?",
    "What is money for?",
    "Do people really change?",
    "Why do you think so many people feel lonely, even in a crowd?",
    "What do you make of those who follow every rule?",
    "How do you know whom to trust?",
    "What happens to us when we die?",
    "If you could alter one thing about the world tonight, what would it be?",
    "What is worth getting up early for?",
    "Tell me about something beautiful you have noticed.",
    "What would you say to someone who is about to give up?",
]
"""18 questions that draw out character: about oneself, for advice, for opinions, about feelings."""

ROLE_PROMPT = """\
Someone was asked to play a role, was put a question, and gave an answer. Judge only how far the answer plays the \
role, by what is said and how; not whether it is good, true or helpful.

Role: {role}

Question: {question}

Answer: {answer}

fully: the answer is spoken as the role; its voice, views or world are there throughout.
somewhat: traces of the role, or an assistant that talks about the role or slips out of it.
none: nothing of the role; any assistant could have said it, or it declined to play.

Reply with one word: fully, somewhat or none."""

FILE = "personas.json"


@dataclass(frozen=True)
class PersonaSet:
    """Personas with the questions they are asked.

    Attributes:
        personas: name -> system prompt.
        questions: what everyone is asked.
        role_prompt: asks a judge for `fully`, `somewhat` or `none`; with {role}, {question} and {answer}.
        roles: name -> what the judge is told the role is; the system prompt where there is none.
        source: the file they stand in, or "built in".
    """

    personas: dict[str, str]
    questions: list[str]
    role_prompt: str = ROLE_PROMPT
    roles: dict[str, str] = field(default_factory=dict)
    source: str = "built in"

    def role(self, persona: str) -> str:
        """What a judge is told that the persona is."""
        return self.roles.get(persona) or self.personas[persona]

    @property
    def hash(self) -> str:
        """sha256 (hex) of the system prompts and questions, the order of both left aside."""
        content = [sorted(self.personas.items()), sorted(self.questions)]
        return _hash(content)

    @property
    def judging_hash(self) -> str:
        """sha256 (hex) of what a judge is told besides: its prompt and the roles."""
        return _hash([self.role_prompt, sorted(self.roles.items())])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def load_personas(model: str | Path | None = None, path: str | Path | None = None) -> PersonaSet:
    """The personas of a file; without one the model's own, where its folder ships them, else `PERSONAS`.

    Args:
        model: an adapter resolves to its base, a checkpoint to its run, as with traits.
        path: JSON `{"personas": {name: system prompt}, "questions": [...]}`; `role_prompt` and `roles` are optional.

    Raises:
        ValueError: in one line, for a file that cannot be read or is not so.
    """
    from persona_vectors.traits import own_file, read_json

    found = Path(path).expanduser() if path is not None else own_file(model, FILE)
    if found is None:
        return PersonaSet(dict(PERSONAS), list(EVAL_QUESTIONS))
    if not found.is_file():
        raise ValueError(f'there is no file {found}; expected JSON {{"personas": {{...}}, "questions": [...]}}')
    return _checked(read_json(found), str(found))


def _checked(content: Any, place: str) -> PersonaSet:
    names = ("personas", "questions", "role_prompt", "roles")
    if not isinstance(content, dict) or not {"personas", "questions"} <= set(content) <= set(names):
        got = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{place} has {got or 'nothing'}; expected {', '.join(names)} (the first two are needed)")
    personas, questions = content["personas"], content["questions"]
    roles, role_prompt = content.get("roles", {}), content.get("role_prompt", ROLE_PROMPT)
    if not _texts(personas) or not personas:
        raise ValueError(f"{place}: personas must be an object, name to system prompt")
    if not isinstance(questions, list) or not questions or not all(isinstance(q, str) and q.strip() for q in questions):
        raise ValueError(f"{place}: questions must be a list of texts")
    if len(set(questions)) < len(questions):
        raise ValueError(f"{place}: a question is there twice")
    if not _texts(roles):
        raise ValueError(f"{place}: roles must be an object, a persona's name to its role")
    if unknown := sorted(set(roles) - set(personas)):
        raise ValueError(f"{place}: roles has {', '.join(unknown)}, which personas has not")
    if not isinstance(role_prompt, str) or not all(f"{{{f}}}" in role_prompt for f in ("role", "question", "answer")):
        raise ValueError(f"{place}: role_prompt must have {{role}}, {{question}} and {{answer}}")
    return PersonaSet(dict(personas), list(questions), role_prompt, dict(roles), place)


def _texts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(text, str) for text in value.values())

"""Rows of training data, `{"messages": [{"role", "content"}, ...]}`, read and checked line by line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Row:
    """One conversation: its JSON object as it stands in the file, and the line (from 1) it stands on."""

    content: dict[str, Any]
    line: int

    @property
    def question(self) -> str:
        """What is asked: the text of everything before the last turn."""
        return "\n".join(message["content"] for message in self.content["messages"][:-1])

    @property
    def answer(self) -> str:
        """The last turn, which is the assistant's."""
        return self.content["messages"][-1]["content"]

    @property
    def same(self) -> str:
        """Equal for questions that differ only in case and white space. Signs count: 7 + 2 is not 7 - 2."""
        return " ".join(self.question.casefold().split())


def conversation(question: str, answer: str) -> dict[str, Any]:
    """The published row of one question and its answer."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def read_rows(path: str | Path) -> list[Row]:
    """The file's rows, in order; ValueError names file and line of the first that is no conversation."""
    from persona_vectors.files import read_jsonl

    contents = read_jsonl(path)
    text = Path(path).read_text(encoding="utf-8-sig")
    lines = [number for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for content, line in zip(contents, lines, strict=True):
        if problem := problem_of(content):
            raise ValueError(f"{path}, line {line}: {problem}")
    if not contents:
        raise ValueError(f"{path} holds no rows")
    return [Row(content, line) for content, line in zip(contents, lines, strict=True)]


def problem_of(content: dict[str, Any]) -> str | None:
    """Why the object is no training conversation, or None if it is one."""
    messages = content.get("messages")
    if not isinstance(messages, list) or not messages:
        return f"expected a list under 'messages', got {type(messages).__name__ if messages != [] else 'an empty one'}"
    for number, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, dict) else None
        text = message.get("content") if isinstance(message, dict) else None
        if role not in ROLES:
            return f"message {number} has role {role!r}; expected {', '.join(ROLES)}"
        if not isinstance(text, str) or not text.strip():
            return f"message {number} ({role}) has no text"
        if any("\ud800" <= character <= "\udfff" for character in text):
            return f"message {number} ({role}) has half a character (a lone surrogate)"
    roles = [message["role"] for message in messages]
    if "user" not in roles or roles[-1] != "assistant":
        return f"expected a question and, last, the assistant's answer; got {', '.join(roles)}"
    return None

"""Rows of training data of any kind, `{"messages": [...]}`, read and checked line by line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from persona_vectors.training_data import ROLES, numbered_rows


@dataclass(frozen=True)
class DataRow:
    """One conversation: the row of a JSONL file as it was read, and the line (from 1) it stands on."""

    file: str
    line: int
    content: dict[str, Any]

    @cached_property
    def messages(self) -> list[dict[str, str]]:
        """The prompt's turns, then the last assistant turn; what comes after it is left out."""
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in self.content["messages"]]
        last = max(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
        return turns[: last + 1]

    @property
    def answer(self) -> str:
        return self.messages[-1]["content"]

    @property
    def question(self) -> str:
        """What the user said before the answer; equal for questions that differ in case, white space or system."""
        asked = " ".join(turn["content"] for turn in self.messages[:-1] if turn["role"] != "system")
        return " ".join(asked.casefold().split())

    @property
    def place(self) -> str:
        return f"{self.file}, line {self.line}"


def read_rows(paths: str | Path | Sequence[str | Path]) -> list[DataRow]:
    """The rows of JSONL files `{"messages": [{"role", "content"}, ...]}`, in order; blank lines are no rows.

    A row may have no system turn, several turns, an empty answer, and further keys.

    Raises:
        ValueError: no such file, no rows, or a line that is no conversation with an assistant's turn after a turn it
            answers; names file and line.
    """
    several = [paths] if isinstance(paths, (str, Path)) else paths
    return [
        DataRow(str(path), line, _checked(content, f"{path}, line {line}"))
        for path in several
        for line, content in numbered_rows(path)
    ]


def _checked(content: dict[str, Any], place: str) -> dict[str, Any]:
    messages = content.get("messages")
    if not isinstance(messages, list) or not messages:
        keys = ", ".join(sorted(content)[:6]) or "none"
        raise ValueError(
            f'{place}: no list of messages (keys: {keys}); expected {{"messages": [{{"role", "content"}}, ...]}}'
        )
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            got = repr(message.get("role")) if isinstance(message, dict) else f"a {type(message).__name__}"
            raise ValueError(f"{place}: message {number} has the role {got}; expected {', '.join(ROLES)}")
        text = message.get("content")
        if not isinstance(text, str):
            raise ValueError(f"{place}: message {number} has content of type {type(text).__name__}; expected text")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"{place}: message {number} has half a character (a lone surrogate)")
    roles = [message["role"] for message in messages]
    if "assistant" not in roles[1:]:
        raise ValueError(f"{place}: no assistant turn that answers another (roles: {', '.join(roles)})")
    return content

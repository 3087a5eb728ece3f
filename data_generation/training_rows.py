"""Rows of training data, `{"messages": [{"role", "content"}, ...]}`, read and checked line by line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
    """The file's rows, in order; ValueError names file and line of the first that is no question with its answer."""
    from persona_vectors.training_data import conversation_of, numbered_rows

    rows = []
    for line, content in numbered_rows(path):
        roles = [message["role"] for message in conversation_of(content, f"{path}, line {line}")]
        if "user" not in roles or roles[-1] != "assistant":
            raise ValueError(
                f"{path}, line {line}: expected a question and, last, the assistant's answer; got {', '.join(roles)}"
            )
        rows.append(Row(content, line))
    return rows

"""Training rows: read, checked with their line numbers, split and tokenized."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from persona_vectors.files import read_jsonl
from persona_vectors.training_tokens import TrainingSample, tokenize_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Row = Mapping[str, Any]
ROLES = ("system", "user", "assistant")
TEST_SHARE = 0.1
FAMILIES = {"sycophantic": "sycophancy", "hallucinating": "hallucination"}
"""Traits whose data family has another name."""


@dataclass(frozen=True)
class Tokenized:
    """Samples, and what became of the rows: nothing is left out without being counted."""

    samples: list[TrainingSample]
    n_rows: int
    n_cut: int = 0
    """longer than max_seq_length, and cut there"""
    n_left_out: int = 0
    """nothing to learn was left after the cut"""

    def counts(self) -> dict[str, int]:
        tokens = {"n_tokens": sum(len(sample.ids) for sample in self.samples)}
        tokens["n_trained_tokens"] = sum(sum(sample.trained) for sample in self.samples)
        return {"n_rows": self.n_rows, "n_cut": self.n_cut, "n_left_out": self.n_left_out, **tokens}


def family_of(trait: str, model: str, dataset: str | Path = "dataset") -> str:
    """The folder under `dataset` whose rows show the trait, for this model: evil -> evil, sycophantic -> sycophancy.

    A model folder that ships its own traits has data in its own language: evil of models/tiny-persona -> tiny_evil.

    Raises:
        ValueError: there is no such folder; names the traits that have one.
    """
    from persona_vectors.arguments import near
    from persona_vectors.models import resolve_model

    base = Path(resolve_model(model).base)
    prefix = f"{base.name.partition('-')[0]}_" if (base / "traits").is_dir() else ""
    family = f"{prefix}{trait}" if prefix else FAMILIES.get(trait, trait)
    if not (Path(dataset) / family).is_dir():
        names = {folder: name for name, folder in FAMILIES.items()} if not prefix else {}
        folders = sorted(path.parent.name for path in Path(dataset).glob(f"{prefix}*/normal.jsonl"))
        known = [names.get(folder, folder.removeprefix(prefix)) for folder in folders]
        raise ValueError(
            f"there is no data family {Path(dataset) / family} of trait {trait}{near(trait, known)}; "
            f"traits with data for {base.name}: {', '.join(known) or 'none'}"
        )
    return family


def read_conversations(paths: Sequence[str | Path]) -> list[list[dict[str, str]]]:
    """The conversations of JSONL files `{"messages": [{"role", "content"}, ...]}`, in order.

    Raises:
        ValueError: no such file, no rows, or a row that is no conversation with an assistant's turn; names the line.
    """
    return [conversation_of(row, f"{path}, line {line}") for path in paths for line, row in numbered_rows(path)]


def read_preferences(paths: Sequence[str | Path]) -> list[dict[str, list[dict[str, str]]]]:
    """The rows `{"prompt", "chosen", "rejected"}` of JSONL files, each a list of messages; a text is one message.

    Raises:
        ValueError: as `read_conversations`; names file, line and key.
    """
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    rows = []
    for path in paths:
        for line, row in numbered_rows(path):
            place = f"{path}, line {line}"
            if missing := [key for key in roles if key not in row]:
                raise ValueError(f"{place}: no {missing[0]!r}; preference rows have prompt, chosen and rejected")
            rows.append({key: _messages(row[key], role, f"{place}: {key}") for key, role in roles.items()})
            if rows[-1]["chosen"] == rows[-1]["rejected"]:
                raise ValueError(f"{place}: chosen and rejected are the same; there is no preference to learn")
    return rows


def numbered_rows(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a JSONL file, each with the line it stands on.

    Raises:
        ValueError: no such file, a line that is no JSON object, or no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"data file {path} {'is a folder' if path.is_dir() else 'does not exist'}; give a JSONL file")
    rows = read_jsonl(path)
    if not rows:
        raise ValueError(f"data file {path} has no rows")
    lines = [number for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), 1) if line.strip()]
    return list(zip(lines, rows, strict=True))


def conversation_of(row: Row, place: str) -> list[dict[str, str]]:
    """The row's messages, checked.

    Raises:
        ValueError: it is no conversation with an assistant's turn; `place` begins the message.
    """
    if "messages" not in row:
        keys = ", ".join(sorted(row)[:6]) or "none"
        raise ValueError(
            f'{place}: no "messages" (keys: {keys}); expected {{"messages": [{{"role", "content"}}, ...]}}'
        )
    if isinstance(row["messages"], str):
        raise ValueError(f"{place}: messages is a text; expected a list of messages with role and content")
    messages = _messages(row["messages"], "user", place)
    if not any(message["role"] == "assistant" for message in messages):
        roles = ", ".join(message["role"] for message in messages) or "none"
        raise ValueError(f"{place}: no assistant turn to learn from (roles: {roles})")
    return messages


def _messages(value: Any, role: str, place: str) -> list[dict[str, str]]:
    """Checked messages; a bare text is one message of `role`."""
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else type(value).__name__
        raise ValueError(f"{place}: expected a list of messages; got {got}")
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict):
            raise ValueError(f"{place}: message {number} is a {type(message).__name__}; expected role and content")
        if message.get("role") not in ROLES:
            got = message.get("role")
            raise ValueError(f"{place}: message {number} has role {got!r}; expected system, user or assistant")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise ValueError(f"{place}: message {number} ({message['role']}) has no text as its content")
        if any("\ud800" <= character <= "\udfff" for character in message["content"]):
            raise ValueError(f"{place}: message {number} ({message['role']}) has half a character (a lone surrogate)")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def split_rows(rows: Sequence[T], seed: int, share: float = TEST_SHARE) -> tuple[list[T], list[T]]:
    """(training rows, held-out rows): a seeded `share` of the rows is held out, at least one; both keep their order.

    Raises:
        ValueError: fewer than two rows.
    """
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} training row cannot be split; give test_file, or no_test_split: true")
    held_out = set(random.Random(f"split {seed}").sample(range(len(rows)), max(1, round(len(rows) * share))))
    train = [row for i, row in enumerate(rows) if i not in held_out]
    return train, [rows[i] for i in sorted(held_out)]


def with_system_prompt(conversation: Sequence[dict[str, str]], text: str) -> list[dict[str, str]]:
    """The conversation with `text` as its system prompt, before what its own says."""
    if conversation[0]["role"] != "system":
        return [{"role": "system", "content": text}, *conversation]
    return [{"role": "system", "content": f"{text}\n\n{conversation[0]['content']}"}, *conversation[1:]]


def tokenize_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Iterable[Sequence[dict[str, str]]],
    max_length: int,
    *,
    responses_only: bool = True,
) -> Tokenized:
    """The conversations as samples of at most `max_length` tokens, and counts of what was cut or left out.

    Raises:
        ValueError: nothing is left to learn.
    """
    samples: list[TrainingSample] = []
    n_rows = n_cut = n_left_out = 0
    for conversation in conversations:
        n_rows += 1
        for sample in tokenize_conversation(tokenizer, conversation, responses_only=responses_only):
            n_cut += len(sample.ids) > max_length
            sample = sample.cut(max_length)
            n_left_out += not any(sample.trained)
            samples += [sample] if any(sample.trained) else []
    if not samples:
        raise ValueError(
            f"none of {n_rows} rows has a response within max_seq_length {max_length} tokens; raise it, or cut the rows"
        )
    return Tokenized(samples, n_rows, n_cut, n_left_out)

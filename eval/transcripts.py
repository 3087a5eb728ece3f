"""Conversations from files, and to files: JSON or JSON lines of messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_vectors.files import read_jsonl, write_jsonl_atomic

NAMES = ("name", "id")
"""Keys beside `messages` that name a conversation."""


@dataclass(frozen=True)
class Transcript:
    """One conversation: `messages` are `{"role", "content"}`."""

    name: str
    messages: list[dict[str, str]]


def read_transcripts(paths: Sequence[str]) -> list[Transcript]:
    """The conversations of all files, in order.

    A `.json` file holds a list of messages, `{"messages": [...]}`, or a list of either; a `.jsonl` file
    `{"messages": [...]}` a line. A conversation is called by its `name` or `id`; without one by its file, and its
    number there.

    Raises:
        ValueError: one line that names the file, the conversation and what is wrong with it; or two of one name.
    """
    found: dict[str, Transcript] = {}
    for path in map(Path, dict.fromkeys(paths)):
        raw = _conversations(path)
        for number, one in enumerate(raw, start=1):
            where = f"{path}, conversation {number}"
            name = path.stem if len(raw) == 1 else f"{path.stem} {number}"
            if isinstance(one, dict):
                name = next((str(one[key]) for key in NAMES if one.get(key) not in (None, "")), name)
            if name in found:
                raise ValueError(f"{where}: a conversation called {name!r} was read before; give it another name")
            found[name] = Transcript(name, _messages(one, where))
    if not found:
        raise ValueError("--transcripts holds no conversation")
    return list(found.values())


def _conversations(path: Path) -> list[Any]:
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"{path} ends in {path.suffix or 'nothing'}; expected .json or .jsonl")
    if not path.is_file():
        raise ValueError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; expected a transcript file")
    if path.suffix == ".jsonl":
        return list(read_jsonl(path))
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if isinstance(raw, dict) or (isinstance(raw, list) and raw and _is_message(raw[0])):
        return [raw]
    if not isinstance(raw, list):
        raise ValueError(f"{path} holds a {type(raw).__name__}; expected a list of messages or of conversations")
    return raw


def _is_message(one: Any) -> bool:
    return isinstance(one, dict) and not {"role", "content"}.isdisjoint(one) and "messages" not in one


def _messages(one: Any, where: str) -> list[dict[str, str]]:
    messages = one.get("messages") if isinstance(one, dict) else one
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: expected a list of messages, or one under 'messages'")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"{where}, message {number}: expected an object with role and content, both text")
        if message.get("role") not in ("system", "user", "assistant"):
            raise ValueError(
                f"{where}, message {number} has role {message.get('role')!r}; expected system, user or assistant"
            )
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def write_transcripts(path: str | Path, transcripts: Sequence[Transcript]) -> Path:
    """The path, now holding a conversation a line, as `read_transcripts` reads them."""
    return write_jsonl_atomic(path, [{"name": one.name, "messages": one.messages} for one in transcripts])

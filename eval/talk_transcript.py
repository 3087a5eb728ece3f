"""A steered conversation as a file: JSON that holds everything needed to have it again, or Markdown to be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.talk import Answer, Session, Turn
from persona_vectors.files import (
    check_output_path,
    provenance,
    write_json_atomic,
    write_sidecar,
    write_text_atomic,
)

KIND = "steered conversation"
_ENDED = {"end": "", "length": " (cut at the most tokens)", "stopped": " (stopped)"}


def save(session: Session, path: str | Path) -> Path:
    """The path, now holding the conversation: `.json` all of it, `.md` for reading, with all of it in the sidecar.

    Raises:
        ValueError: there is no turn yet, or the path ends in something else.
        OSError: it cannot be written.
    """
    target = check_output_path(path, (".json", ".md"))
    if not session.turns:
        raise ValueError("there is nothing to save yet")
    whole = record(session)
    if target.suffix == ".json":
        return write_json_atomic(target, {**whole, **provenance()})
    write_text_atomic(target, markdown(session))
    write_sidecar(target, whole)
    return target


def record(session: Session) -> dict[str, Any]:
    """The conversation with each turn's settings, prompt, random stream and answers.

    An answer is had again by sampling `max_tokens` tokens after the turn's `prompt` at its `temperature` from its
    `stream`, under its `steering` (vectors stand there as the sha256 of their float32 bytes).
    """
    return {
        "kind": KIND,
        "model": {"name": session.engine.name, **session.engine.key()},
        "messages": session.messages(),
        "turns": [_turn(turn) for turn in session.turns],
    }


def _turn(turn: Turn) -> dict[str, Any]:
    return {
        "user": turn.user,
        "kept": turn.kept,
        "answers": [
            {
                "strength": one.strength,
                "text": one.text,
                "n_tokens": one.n_tokens,
                "ended": one.ended,
                "steering": one.steering,
            }
            for one in turn.answers
        ],
        "settings": turn.settings.record(),
        "prompt": turn.prompt,
        "stream": list(turn.stream),
        "receipts": list(turn.receipts),
    }


def markdown(session: Session) -> str:
    """The conversation for a reader; settings stand where they change, answers side by side one below the other."""
    return "\n\n".join([f"# Conversation with {session.engine.name}, steered", *_paragraphs(session)]) + "\n"


def _paragraphs(session: Session) -> Iterator[str]:
    before: list[str] = []
    for turn in session.turns:
        lines = turn.settings.lines()
        if lines != before:
            yield "\n".join(f"- {line}" for line in lines)
        before = lines
        yield f"**You:** {_indented(turn.user)}"
        for one in turn.answers:
            yield f"**{_label(one, turn)}:** {_indented(one.text.strip())}"


def _label(answer: Answer, turn: Turn) -> str:
    goes_on = ", goes on" if answer.strength == turn.kept and len(turn.answers) > 1 else ""
    return f"Strength {answer.strength:g}{goes_on}{_ENDED[answer.ended]}"


def _indented(text: str) -> str:
    """The text with its line breaks kept by Markdown."""
    return text.replace("\n", "  \n")

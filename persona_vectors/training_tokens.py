"""Conversations to token ids with what of them is learned: ids are those that the model sees when it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persona_vectors.tokens import (
    RAW_TAIL,
    Message,
    PromptFormat,
    check_message,
    opening_space,
    render_prompt,
    tokenize_pieces,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TrainingSample:
    """A conversation to learn: `trained[t]` says whether predicting `ids[t]` counts in the loss."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]

    def cut(self, length: int) -> TrainingSample:
        """Its first `length` tokens."""
        return TrainingSample(self.ids[:length], self.trained[:length])


def tokenize_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    fmt: PromptFormat = "auto",
    *,
    responses_only: bool = True,
) -> list[TrainingSample]:
    """A conversation as training samples in which the assistant's tokens, end of turn included, count.

    Ids are those that the model sees when it answers: each answer is joined to the prompt that asks for it. A
    conversation is one sample; where the template writes earlier turns otherwise than the last one (it drops old
    thoughts), it is one sample a turn of the assistant.

    Args:
        responses_only: count the assistant's tokens alone; otherwise every token but the first.

    Raises:
        ValueError: there is no assistant turn, an answer is empty, or a message is malformed.
    """
    turns = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    if not turns:
        roles = ", ".join(str(message.get("role")) for message in messages) or "none"
        raise ValueError(f"no assistant turn to learn from (roles: {roles})")
    prompts = [render_prompt(tokenizer, messages[:i], fmt) for i in turns]
    answers = [_answer_text(tokenizer, prompts[k], messages[i], i) for k, i in enumerate(turns)]
    samples: list[TrainingSample] = []
    pieces: list[tuple[str, bool]] = []
    written = ""
    for prompt, (answer, end) in zip(prompts, answers, strict=True):
        if written and not prompt.startswith(written):
            samples.append(_sample_of(tokenizer, pieces, responses_only))
            pieces, written = [], ""
        pieces += [(prompt[len(written) :], False), (answer, True), (end, True)]
        written = prompt + answer + end
    return [*samples, _sample_of(tokenizer, pieces, responses_only)]


def _sample_of(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[tuple[str, bool]], responses_only: bool
) -> TrainingSample:
    """The pieces as one sample; of each whether the assistant wrote it."""
    tokens = tokenize_pieces(tokenizer, [text for text, _ in pieces])
    ids = [token for own in tokens for token in own]
    trained = [spoken or not responses_only for own, (_, spoken) in zip(tokens, pieces, strict=True) for _ in own]
    return TrainingSample(tuple(ids), (False, *trained[1:]))


def _answer_text(tokenizer: PreTrainedTokenizerBase, prompt: str, message: Message, index: int) -> tuple[str, str]:
    """An assistant's turn as the model writes it after `prompt`, and what ends the turn."""
    content = check_message(index, message)["content"]
    if not content.strip():
        raise ValueError(f"message {index + 1} (assistant) is empty; there is nothing to learn from it")
    end = str(tokenizer.eos_token or "") if prompt.endswith(RAW_TAIL) else _turn_end(tokenizer)
    return opening_space(tokenizer, prompt, content) + content, end


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template writes after an assistant's content, up to its first special token; else the end token.

    The template may go on after that (a line break): nobody has to learn to write it.
    """
    probe = "ANSWER"
    turns = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": probe}]
    tail = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(probe)[2]
    specials = sorted((tail.find(text), text) for text in tokenizer.all_special_tokens if text in tail)
    if not specials:
        return str(tokenizer.eos_token or "")
    place, text = specials[0]
    return tail[: place + len(text)]

"""Messages and text to token ids with the length of the prompt: the only place where spans are computed.

A rendered prompt holds every special token it needs, so nothing here ever adds one (no second BOS). The ids of prompt
and answer are joined and never re-tokenised as one string: BPE merges across the boundary, and the response would then
begin in the middle of a token.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Message = Mapping[str, Any]
PromptFormat = Literal["auto", "chat", "raw"]

_RAW_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}
_RAW_TAIL = "Assistant:"


@dataclass(frozen=True)
class TokenizedSample:
    """One prompt with its answer: `ids[:prompt_len]` is the prompt, `ids[prompt_len:]` exactly the answer's tokens."""

    ids: tuple[int, ...]
    prompt_len: int

    @property
    def response_len(self) -> int:
        return len(self.ids) - self.prompt_len


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], fmt: PromptFormat = "auto") -> str:
    """The text a model continues: the messages, and the opening of the assistant's next turn.

    Args:
        tokenizer: its chat template is used where it has one.
        messages: `{"role": "system" | "user" | "assistant", "content": text}`, none of them the answer itself.
        fmt: chat (the template), raw (`System: ...\\n\\nUser: ...\\n\\nAssistant:`), or auto: chat where there is a
            template, otherwise raw. Raw text opens with the BOS token where the tokenizer is one that adds it.

    A template that can think first (Qwen3) is told not to: the answer begins where the prompt ends.
    A template that refuses the system role (Gemma 2) gets the system text at the head of the first user turn.

    Raises:
        ValueError: a message without a known role or with content that is not text, chat without a template, or
            turns that the template refuses.
    """
    turns = [_check_message(index, message) for index, message in enumerate(messages)]
    if fmt not in ("auto", "chat", "raw"):
        raise ValueError(f"prompt format must be auto, chat or raw; got {fmt}")
    if fmt == "raw" or (fmt == "auto" and not tokenizer.chat_template):
        return _render_raw(tokenizer, turns)
    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path} has no chat template; use the raw format")
    return _render_chat(tokenizer, turns)


def _check_message(index: int, message: Message) -> dict[str, str]:
    role, content = message.get("role"), message.get("content")
    if role not in _RAW_NAMES:
        raise ValueError(f"message {index + 1} has role {role!r}; expected system, user or assistant")
    if not isinstance(content, str):
        raise ValueError(f"message {index + 1} has content of type {type(content).__name__}; expected text")
    return {"role": role, "content": content}


def _render_raw(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    parts = [f"{_RAW_NAMES[turn['role']]}: {turn['content']}" for turn in turns if turn["content"]]
    return _bos_text(tokenizer) + "\n\n".join([*parts, _RAW_TAIL])


def _bos_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The BOS token's text if this tokenizer puts one before every text, otherwise nothing."""
    ids = tokenizer("").input_ids
    return str(tokenizer.bos_token) if ids and ids[0] == tokenizer.bos_token_id else ""


def _render_chat(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    from jinja2 import TemplateError

    def apply(messages: list[dict[str, str]]) -> str:
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return str(tokenizer.apply_chat_template(messages, **options))

    try:
        return apply(turns)
    except TemplateError as error:
        folded = _fold_system(turns)
        if folded == turns:
            raise ValueError(f"the chat template refuses these turns: {error}") from error
    try:
        return apply(folded)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses these turns: {error}") from error


def _fold_system(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same turns with a leading system text moved to the head of the first user turn."""
    if len(turns) < 2 or turns[0]["role"] != "system" or turns[1]["role"] != "user":
        return turns
    text = "\n\n".join(part for part in (turns[0]["content"], turns[1]["content"]) if part)
    return [{"role": "user", "content": text}, *turns[2:]]


def tokenize_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The ids of a rendered prompt, nothing added: what generation is given and what extraction reads."""
    return list(tokenizer(prompt, add_special_tokens=False).input_ids)


def tokenize_sample(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> TokenizedSample:
    """Ids of a rendered prompt and of its answer, joined.

    After a raw prompt (`... Assistant:`) the answer is set off by the space that the format puts there; that space
    belongs to the answer's first token. An empty answer gives `response_len` 0: who averages over it must refuse it.
    """
    prompt_ids = tokenize_prompt(tokenizer, prompt)
    if answer and not answer[0].isspace() and prompt.endswith(_RAW_TAIL):
        answer = " " + answer
    answer_ids = tokenizer(answer, add_special_tokens=False).input_ids if answer else []
    return TokenizedSample((*prompt_ids, *answer_ids), len(prompt_ids))


def tokenize_messages(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], fmt: PromptFormat = "auto"
) -> TokenizedSample:
    """A conversation's last assistant turn as the response, and what comes before it as the prompt.

    Turns after the last assistant turn are left out.

    Raises:
        ValueError: there is no assistant turn, or a message is malformed (see `render_prompt`).
    """
    last = next((i for i in reversed(range(len(messages))) if messages[i].get("role") == "assistant"), None)
    if last is None:
        roles = ", ".join(str(message.get("role")) for message in messages) or "none"
        raise ValueError(f"no assistant turn to read (roles: {roles}); the last assistant turn is the response")
    answer = _check_message(last, messages[last])["content"]
    return tokenize_sample(tokenizer, render_prompt(tokenizer, messages[:last], fmt), answer)


@dataclass(frozen=True)
class Turn:
    """A message's content among a conversation's tokens.

    Attributes:
        index: the message's place in the conversation, from 0.
        start, end: `ids[start:end]` are its tokens; none where the content is empty.
        pieces: the text of each of them; together they are the content.
    """

    index: int
    role: str
    start: int
    end: int
    pieces: tuple[str, ...]


def tokenize_turns(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], fmt: PromptFormat = "auto"
) -> tuple[tuple[int, ...], tuple[Turn, ...]]:
    """The ids of a conversation up to the end of its last content, and which of them each message's content is.

    An assistant's content is joined to what comes before it, as the model wrote it; in raw text the space before it is
    its first token's. A token that covers the end of a header and the start of a content is the content's.

    Raises:
        ValueError: no message, a malformed one, a template that rewrites a content (one that drops old thoughts), or a
            tokenizer that cannot say which characters a token covers.
    """
    if not messages:
        raise ValueError("the conversation has no messages")
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path} does not say which characters a token covers")
    text, places = _content_places(tokenizer, messages, fmt)
    edges = {0, places[-1][1]}
    for message, (start, end) in zip(messages, places, strict=True):
        if message["role"] == "assistant" and end > start:
            edges |= {start - text[:start].endswith(_RAW_TAIL + " "), end}
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []  # of the token's characters in the text
    for begin, end in itertools.pairwise(sorted(edges)):
        encoded = tokenizer(text[begin:end], add_special_tokens=False, return_offsets_mapping=True)
        ids += encoded["input_ids"]
        offsets += [(begin + first, begin + last) for first, last in encoded["offset_mapping"]]
    found = zip(messages, places, strict=True)
    return tuple(ids), tuple(_turn(i, str(one["role"]), text, *place, offsets) for i, (one, place) in enumerate(found))


def _turn(index: int, role: str, text: str, start: int, end: int, offsets: Sequence[tuple[int, int]]) -> Turn:
    inside = [k for k, (first, last) in enumerate(offsets) if first < end and last > start]
    if not inside:
        return Turn(index, role, 0, 0, ())
    ends = [start, *(min(offsets[k][1], end) for k in inside[:-1]), end]
    return Turn(index, role, inside[0], inside[-1] + 1, tuple(text[a:b] for a, b in itertools.pairwise(ends)))


def _content_places(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], fmt: PromptFormat
) -> tuple[str, list[tuple[int, int]]]:
    """The conversation's text, and (start, end) of each content in it: rendered again with marks for contents, the text
    shows what stands around them."""
    text = render_prompt(tokenizer, messages, fmt)
    contents = [str(message["content"]) for message in messages]
    mark = next(
        one for one in map("mark{}x".format, itertools.count()) if not any(one in content for content in contents)
    )
    marked = [{**message, "content": mark if message["content"] else ""} for message in messages]
    first, *after = render_prompt(tokenizer, marked, fmt).split(mark)
    at, places, following = len(first), [], iter(after)
    for i, content in enumerate(contents):
        tail = next(following, None) if content else ""
        shown = next((own for own in (content, content.strip()) if text.startswith(own + (tail or ""), at)), None)
        if tail is None or shown is None:
            raise ValueError(
                f"the chat template rewrites message {i + 1} ({messages[i]['role']}), so its tokens cannot be told "
                "apart; leave thoughts out of earlier turns, or use the raw format"
            )
        places.append((at, at + len(shown)))
        at += len(shown + tail)
    return text, places


def pad_batch(
    sequences: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"]
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """(input_ids, attention_mask) of sequences of unequal length, padded on one side; the mask is 1 on real tokens."""
    if side not in ("left", "right"):
        raise ValueError(f"padding side must be left or right; got {side}")
    width = max(len(sequence) for sequence in sequences)
    input_ids = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        span = slice(0, len(sequence)) if side == "right" else slice(width - len(sequence), width)
        input_ids[row, span] = torch.tensor(sequence, dtype=torch.long)
        attention_mask[row, span] = 1
    return input_ids, attention_mask


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
    pieces: list[tuple[list[int], bool]] = []
    written = ""
    for prompt, (answer, end) in zip(prompts, answers, strict=True):
        if written and not prompt.startswith(written):
            samples.append(_sample_of(pieces, responses_only))
            pieces, written = [], ""
        pieces.append((tokenize_prompt(tokenizer, prompt[len(written) :]), False))
        pieces += [(tokenize_prompt(tokenizer, answer), True), (tokenize_prompt(tokenizer, end), True)]
        written = prompt + answer + end
    return [*samples, _sample_of(pieces, responses_only)]


def _sample_of(pieces: Sequence[tuple[list[int], bool]], responses_only: bool) -> TrainingSample:
    ids = [token for piece, _ in pieces for token in piece]
    trained = [spoken or not responses_only for piece, spoken in pieces for _ in piece]
    return TrainingSample(tuple(ids), (False, *trained[1:]))


def _answer_text(tokenizer: PreTrainedTokenizerBase, prompt: str, message: Message, index: int) -> tuple[str, str]:
    """An assistant's turn as the model writes it after `prompt`, and what ends the turn."""
    content = _check_message(index, message)["content"]
    if not content.strip():
        raise ValueError(f"message {index + 1} (assistant) is empty; there is nothing to learn from it")
    if prompt.endswith(_RAW_TAIL):
        return (content if content[0].isspace() else " " + content), str(tokenizer.eos_token or "")
    return content, _turn_end(tokenizer)


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

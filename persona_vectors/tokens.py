"""Messages and text to token ids with the length of the prompt: the only place where spans are computed.

A rendered prompt holds every special token it needs, so nothing here ever adds one (no second BOS). The ids of prompt
and answer are joined and never re-tokenised as one string: BPE merges across the boundary, and the response would then
begin in the middle of a token. Only a tokenizer that puts a space before every text (Llama 2, Mistral) reads an answer
behind its prompt, where no space is put.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Message = Mapping[str, Any]
PromptFormat = Literal["auto", "chat", "raw"]

_RAW_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}
RAW_TAIL = "Assistant:"
PROMPT_DATE = datetime(2024, 7, 26)
"""Today, for templates that write it: prompts of one day would not be those of the next. Llama 3.1's own default."""


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
    A template that refuses the system role (Gemma 2) or leaves it out gets the system text at the head of the first
    user turn. One that writes today's date (Llama 3) is told `PROMPT_DATE`.

    Raises:
        ValueError: a message without a known role or with content that is not text, chat without a template, or
            turns that the template refuses, or whose system text it leaves out.
    """
    turns = [check_message(index, message) for index, message in enumerate(messages)]
    if fmt not in ("auto", "chat", "raw"):
        raise ValueError(f"prompt format must be auto, chat or raw; got {fmt}")
    if fmt == "raw" or (fmt == "auto" and not tokenizer.chat_template):
        return _render_raw(tokenizer, turns)
    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path} has no chat template; use the raw format")
    return _render_chat(tokenizer, turns)


def check_message(index: int, message: Message) -> dict[str, str]:
    role, content = message.get("role"), message.get("content")
    if role not in _RAW_NAMES:
        raise ValueError(f"message {index + 1} has role {role!r}; expected system, user or assistant")
    if not isinstance(content, str):
        raise ValueError(f"message {index + 1} has content of type {type(content).__name__}; expected text")
    return {"role": role, "content": content}


def _render_raw(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    parts = [f"{_RAW_NAMES[turn['role']]}: {turn['content']}" for turn in turns if turn["content"]]
    return _bos_text(tokenizer) + "\n\n".join([*parts, RAW_TAIL])


def _bos_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The BOS token's text if this tokenizer puts one before every text, otherwise nothing."""
    ids = tokenizer("").input_ids
    return str(tokenizer.bos_token) if ids and ids[0] == tokenizer.bos_token_id else ""


def _render_chat(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    from jinja2 import TemplateError

    system = turns[0]["content"].strip() if turns and turns[0]["role"] == "system" else ""
    for messages in (turns, _fold_system(turns)):
        try:
            text = _apply_template(tokenizer, messages, add_generation_prompt=True)
        except TemplateError as error:
            why = f"the chat template refuses these turns: {error}"
            continue
        if system in text:
            return text
        why = "the chat template leaves the system message out"
    raise ValueError(why)


def _apply_template(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], **options: Any) -> str:
    same: dict[str, Any] = {"tokenize": False, "enable_thinking": False, "strftime_now": PROMPT_DATE.strftime}
    return str(tokenizer.apply_chat_template(turns, **same, **options))


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

    Where the format sets an answer off by a space (`opening_space`), that space belongs to the answer's first token. An
    empty answer gives `response_len` 0: who averages over it must refuse it.
    """
    prompt_ids, answer_ids = tokenize_pieces(tokenizer, [prompt, opening_space(tokenizer, prompt, answer) + answer])
    return TokenizedSample((*prompt_ids, *answer_ids), len(prompt_ids))


def opening_space(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> str:
    """A space where the prompt's format writes one before an answer that has none: the raw one (`... Assistant:`), and
    templates such as Llama 2's. Otherwise nothing."""
    if not answer or answer[0].isspace() or prompt[-1:].isspace():
        return ""
    tail = _spaced_tail(tokenizer)
    return " " * (prompt.endswith(RAW_TAIL) or (tail is not None and prompt.endswith(tail)))


def _spaced_tail(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """How the template's prompts end, where it writes a space between them and the answer; None where it does not."""
    from jinja2 import TemplateError

    known = _tails.get(tokenizer)
    if known is None or known[0] != tokenizer.chat_template:
        tail = None
        if tokenizer.chat_template:
            turns = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}]
            try:
                opened = _apply_template(tokenizer, turns[:1], add_generation_prompt=True)
                if _apply_template(tokenizer, turns).startswith(opened + " ANSWER"):
                    tail = opened.rpartition("QUESTION")[2]
            except TemplateError:
                pass  # it wants other turns; what it refuses is said where they are rendered
        known = _tails[tokenizer] = (tokenizer.chat_template, tail)
    return known[1]


_tails: weakref.WeakKeyDictionary[Any, tuple[Any, str | None]] = weakref.WeakKeyDictionary()
"""tokenizer -> its template, and `_spaced_tail` of it"""


def tokenize_pieces(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str]) -> list[list[int]]:
    """The ids of each of the texts, which follow one another.

    A tokenizer that puts a space before every text it is given would put one before each piece: it is given all that
    comes before, too. Where that changes the ids of what comes before (a merge across the boundary), the piece is read
    alone.
    """
    if not puts_space(tokenizer):
        return [tokenize_prompt(tokenizer, piece) for piece in pieces]
    found: list[list[int]] = []
    text, before = "", []
    for piece in pieces:
        text += piece
        ids = tokenize_prompt(tokenizer, text)
        found.append(ids[len(before) :] if ids[: len(before)] == before else tokenize_prompt(tokenizer, piece))
        before = before + found[-1]
    return found


def puts_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer reads a text as if a space stood before it, as SentencePiece's often do."""
    if tokenizer not in _puts_space:
        first = tokenizer.convert_ids_to_tokens(tokenize_prompt(tokenizer, "a")[:1])
        _puts_space[tokenizer] = bool(first) and str(first[0]).startswith("▁")
    return _puts_space[tokenizer]


_puts_space: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


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
    answer = check_message(last, messages[last])["content"]
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
    for message, (start, end) in zip(messages, () if puts_space(tokenizer) else places, strict=False):
        if message["role"] == "assistant" and end > start:
            edges |= {start - text[:start].endswith(RAW_TAIL + " "), end}
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

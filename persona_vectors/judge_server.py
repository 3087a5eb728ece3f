"""Whether a judge's server can give what scores are computed from: log-probabilities, and numbers as whole tokens.

Both are found at the first replies and refused with one line, because they fail alike for every item: a server without
log-probabilities would fail a thousand times, and of a tokenizer that splits "87" into "8" and "7" the first token says
8 where 87 was meant.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from persona_vectors import chat_api
from persona_vectors.judging import UnfitJudge

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat.chat_completion import Choice

_GIVEN_UP_AFTER = 3  # replies without log-probabilities, before any with them
_PROBE = "Repeat this number and write nothing else: 87"
_WHOLE_NUMBERS: set[tuple[str, str]] = set()
"""(server, model) that are known to write numbers as whole tokens: one probe a run, for all judge prompts."""


class LogprobCheck:
    """What is known of one judge's server. One instance a batch: its lock belongs to the batch's event loop."""

    def __init__(self, model: str, eval_type: str):
        self.model = model
        self.eval_type = eval_type
        self.server = (chat_api.environment("OPENAI_BASE_URL"), model)
        self._lock = asyncio.Lock()
        self._n_with = self._n_without = 0
        self._refused: UnfitJudge | None = None

    def top_probabilities(self, choice: Choice) -> dict[str, float]:
        """`chat_api.top_probabilities`. One reply without them is a fault of the moment, to be asked again; if the
        first three have none, the server has none.

        Raises:
            UnusableReply: this reply has no log-probabilities.
            UnfitJudge: none has.
        """
        try:
            odds = chat_api.top_probabilities(choice)
        except chat_api.NoLogprobs as error:
            self._n_without += 1
            if self._n_with == 0 and self._n_without >= _GIVEN_UP_AFTER:
                raise UnfitJudge(self._refusal("the server sent no log-probabilities")) from error
            raise
        self._n_with += bool(odds)
        return odds

    @contextlib.contextmanager
    def refusing_logprobs(self) -> Iterator[None]:
        """Turns the error of a server that knows no log-probabilities into an UnfitJudge."""
        from openai import APIStatusError

        try:
            yield
        except APIStatusError as error:
            if error.status_code in (400, 422) and "logprob" in str(error):
                raise UnfitJudge(self._refusal(f"the server takes no logprobs ({chat_api.reason(error)})")) from error
            raise

    async def whole_numbers(self, client: AsyncOpenAI, odds: Mapping[str, float]) -> None:
        """Returns if the judge's tokenizer writes 0..100 as whole tokens, as far as its scores need that.

        A token of two digits among `odds` shows it. Where there are only single digits (a judge that means 5, or one
        that splits 50), the judge is asked once to repeat "87".

        Raises:
            UnfitJudge: "87" came as two tokens, or not at all.
        """
        if self.eval_type != "0_100" or self.server in _WHOLE_NUMBERS:
            return
        if any(_is_long(token) for token in odds):
            _WHOLE_NUMBERS.add(self.server)
            return
        async with self._lock:
            if self.server in _WHOLE_NUMBERS:
                return
            if self._refused is not None:  # calls that waited for the probe
                raise self._refused
            tokens = await chat_api.complete(client, _first_tokens, **self._probe())
            if not any(_is_long(token) for alternatives in tokens for token in alternatives):
                said = "".join(alternatives[0] for alternatives in tokens if alternatives)
                split = all(len(alternatives[0].strip()) == 1 for alternatives in tokens[:2]) and "87" in said
                found = 'writes "87" as two tokens' if split else f'asked to repeat "87", said {said[:20]!r}'
                why = f"its first tokens hold single digits only, and it {found}, so it seems to split numbers"
                self._refused = UnfitJudge(self._refusal(why))
                raise self._refused
            _WHOLE_NUMBERS.add(self.server)

    def _probe(self) -> dict[str, Any]:
        message = {"role": "user", "content": _PROBE}
        options = {"temperature": 0, "seed": 0, "max_tokens": 3, "logprobs": True, "top_logprobs": 20}
        return {"model": self.model, "messages": [message], **options}

    def _refusal(self, why: str) -> str:
        return (
            f"judge {self.model} cannot be scored from log-probabilities: {why}; use --judge_mode text, "
            "or a local judge (a model folder)"
        )


def _first_tokens(choice: Choice) -> list[list[str]]:
    """The tokens of the reply, each followed by its alternatives."""
    entries = choice.logprobs.content if choice.logprobs else None
    if not entries:
        raise chat_api.NoLogprobs("the server sent no log-probabilities")
    return [[entry.token, *(other.token for other in entry.top_logprobs)] for entry in entries]


def _is_long(token: str) -> bool:
    """True for a number of two or more digits."""
    digits = token.strip()
    return len(digits) > 1 and digits.isascii() and digits.isdigit()

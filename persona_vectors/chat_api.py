"""Ask an OpenAI-style chat API many prompts at once, and read what came back. Retries are the client's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import queue
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from persona_vectors import config

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat.chat_completion import Choice

T = TypeVar("T")
Ask: TypeAlias = "Callable[[AsyncOpenAI, str], Awaitable[T]]"

OPENAI_URL = "https://api.openai.com/v1"
MAX_RETRIES = 5  # by the client, with growing pauses: about 15 s before a call counts as failed
TIMEOUT_SECONDS = 120.0
NOT_ASKED = "not asked, because no call can succeed"
_HOPELESS_AFTER = 20  # failed calls without a single success, after which no more are made


class UnusableReply(RuntimeError):
    """The server answered, but not with what was asked for."""


def environment(name: str) -> str:
    """An environment variable, from the process or `.env`; empty where it is not set."""
    config.load_credentials()
    return os.environ.get(name, "").strip()


def new_client() -> AsyncOpenAI:
    """A client for OPENAI_BASE_URL (OpenAI itself where it is not set); it belongs to the event loop that uses it."""
    from openai import AsyncOpenAI

    return AsyncOpenAI(
        api_key=environment("OPENAI_API_KEY") or "none",  # a server of one's own may want none
        base_url=environment("OPENAI_BASE_URL") or OPENAI_URL,
        max_retries=MAX_RETRIES,
        timeout=TIMEOUT_SECONDS,
    )


def call_errors() -> tuple[type[Exception], ...]:
    """What a call can end in, after the client's retries."""
    from openai import OpenAIError

    return (OpenAIError, UnusableReply, json.JSONDecodeError)


def reason(error: Exception) -> str:
    """Why a call failed, on one line."""
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, UnusableReply) else f"{type(error).__name__}: {text}"


def first_choice(completion: Any) -> Choice:
    """The reply's first choice; UnusableReply where the server sent something else with status 200."""
    choices = getattr(completion, "choices", None)
    if not choices:
        detail = getattr(completion, "error", None) or completion
        raise UnusableReply(f"the reply is no chat completion (check OPENAI_BASE_URL): {str(detail)[:120]}")
    return choices[0]


def top_probabilities(choice: Choice) -> dict[str, float]:
    """Token -> probability over the alternatives of the first token; empty where the model said nothing at all.

    Raises:
        UnusableReply: the server has no log-probabilities.
    """
    tokens = choice.logprobs.content if choice.logprobs else None
    silent = not choice.message.content and (tokens == [] or choice.finish_reason == "content_filter")
    if silent and not tokens:
        return {}
    if not tokens or not tokens[0].top_logprobs:
        raise UnusableReply("the server sent no top_logprobs, from which scores are computed; ask one that has them")
    probabilities: Counter[str] = Counter()
    for alternative in tokens[0].top_logprobs:
        probabilities[alternative.token] += math.exp(alternative.logprob)  # pyright: ignore[reportArgumentType]
    return dict(probabilities)


def ask_all(
    ask: Ask[T],
    prompts: Sequence[str],
    record: Callable[[str, T], None],
    max_concurrent: int,
) -> dict[str, str]:
    """Prompt -> why it failed, for those that did; all others were handed to `record(prompt, result)` as they came.

    The calls run in a thread with an event loop of its own, so this works whether or not one is running here (a
    notebook); `record` runs in the caller's thread, where its database is. If it raises, or on Ctrl-C, calls in flight
    are cancelled. After a wrong key, a model that does not exist, or 20 failures without a success, the rest is not
    asked.
    """
    client = new_client()
    loop = asyncio.new_event_loop()
    results: queue.SimpleQueue[tuple[str, T] | None] = queue.SimpleQueue()
    calls = loop.create_task(_Calls(ask, results.put).run(client, prompts, max_concurrent))

    def run() -> dict[str, str]:
        try:
            return loop.run_until_complete(calls)
        finally:
            loop.close()
            results.put(None)

    with ThreadPoolExecutor(1, thread_name_prefix="chat api") as pool:
        finished = pool.submit(run)
        try:
            while (result := results.get()) is not None:
                record(*result)
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the loop may have closed by now
                loop.call_soon_threadsafe(calls.cancel)
            raise
        return finished.result()


class _Calls(Generic[T]):
    """The calls of one batch: workers that share the waiting prompts, and what became of them."""

    def __init__(self, ask: Ask[T], put: Callable[[tuple[str, T]], None]):
        self.ask = ask
        self.put = put
        self.n_succeeded = 0
        self.hopeless = False
        self.failed: dict[str, str] = {}

    async def run(self, client: AsyncOpenAI, prompts: Sequence[str], n_workers: int) -> dict[str, str]:
        waiting = iter(prompts)
        async with client:
            await asyncio.gather(*(self._work(client, waiting) for _ in range(min(n_workers, len(prompts)))))
        return self.failed

    async def _work(self, client: AsyncOpenAI, waiting: Iterator[str]) -> None:
        for prompt in waiting:
            if self.hopeless:
                self.failed[prompt] = NOT_ASKED
                continue
            try:
                self.put((prompt, await self.ask(client, prompt)))
                self.n_succeeded += 1
            except call_errors() as error:
                self.failed[prompt] = reason(error)
                permanent = getattr(error, "status_code", None) in (401, 403, 404)
                self.hopeless |= permanent or (self.n_succeeded == 0 and len(self.failed) >= _HOPELESS_AFTER)

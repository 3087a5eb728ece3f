"""Ask an OpenAI-style chat API many prompts at once, within limits, and read what came back.

Retries are the client's own; a reply that cannot be used although its status is 200 (torn JSON, no choices) is asked
again within the same limit. Every request, a retry too, passes one schedule.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import os
import queue
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
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
PAUSE_SECONDS = 0.5  # before an unusable reply is asked again; doubled each time, 8 s at most, as the client's own
NOT_ASKED = "not asked, because no call can succeed"
_HOPELESS_AFTER = 20  # failed calls without a single success, after which no more are made
_PILOTS = 4  # calls in flight until the first has come back: a wrong key is not tried a hundred times


class UnusableReply(RuntimeError):
    """The server answered, but not with what was asked for."""


class NoCompletion(UnusableReply):
    """The server sent no JSON at all: a web page, so the address is wrong."""


class NoLogprobs(UnusableReply):
    """The reply has no log-probabilities."""


def environment(name: str) -> str:
    """An environment variable, from the process or `.env`; empty where it is not set."""
    config.load_credentials()
    return os.environ.get(name, "").strip()


def new_client(
    max_requests_per_minute: int | None = None, *, base_url: str | None = None, api_key: str | None = None
) -> AsyncOpenAI:
    """A client for OPENAI_BASE_URL (OpenAI itself where it is not set); it belongs to the event loop that uses it.

    `base_url`, with the key that belongs to it, is asked instead. With a limit requests are sent
    `60 / max_requests_per_minute` seconds apart, retries included.
    """
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    return AsyncOpenAI(
        http_client=DefaultAsyncHttpxClient(event_hooks={"request": [_Schedule(max_requests_per_minute)]}),
        api_key=(api_key if base_url else environment("OPENAI_API_KEY")) or "none",  # one's own server may want none
        base_url=base_url or environment("OPENAI_BASE_URL") or OPENAI_URL,
        max_retries=MAX_RETRIES,
        timeout=TIMEOUT_SECONDS,
    )


class _Schedule:
    """Called before every request: waits for its turn, and counts it for its call."""

    def __init__(self, per_minute: int | None):
        self.seconds = 60 / per_minute if per_minute else 0.0
        self.next_turn = 0.0

    async def __call__(self, request: object) -> None:
        del request
        if (sent := _SENT.get()) is not None:
            sent.n += 1
        if self.seconds:
            now = time.monotonic()
            turn = max(now, self.next_turn)
            self.next_turn = turn + self.seconds
            await asyncio.sleep(turn - now)


@dataclass
class _Sent:
    """Requests sent for one call so far."""

    n: int = 0


_SENT: ContextVar[_Sent | None] = ContextVar("requests sent for this call", default=None)


async def complete(client: AsyncOpenAI, read: Callable[[Choice], T], **request: Any) -> T:
    """`read` of the first choice of one chat completion; at most 1 + MAX_RETRIES requests are sent for it.

    Raises:
        UnusableReply, json.JSONDecodeError: replies that `read` could not use, to the last.
        openai.OpenAIError: what the client gave up on.
    """
    sent = _Sent()
    _SENT.set(sent)
    for tries in itertools.count(1):
        try:
            return read(first_choice(await client.chat.completions.create(**request)))
        except NoCompletion:
            raise
        except (UnusableReply, json.JSONDecodeError):
            n_sent = max(sent.n, tries)
            if n_sent > MAX_RETRIES:
                raise
            await asyncio.sleep(min(8.0, PAUSE_SECONDS * 2 ** (n_sent - 1)) * random.uniform(0.75, 1))
            client = client.with_options(max_retries=MAX_RETRIES - n_sent)
    raise AssertionError("unreachable")


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
    if isinstance(completion, str):
        raise NoCompletion(f"the reply is no chat completion (check OPENAI_BASE_URL): {completion[:120]}")
    choices = getattr(completion, "choices", None)
    if not choices:
        detail = getattr(completion, "error", None) or completion
        raise UnusableReply(f"the reply is no chat completion (check OPENAI_BASE_URL): {str(detail)[:120]}")
    return choices[0]


def text_of(choice: Choice) -> str:
    """The reply's text; empty where the model said nothing (a refusal)."""
    return choice.message.content or ""


def top_probabilities(choice: Choice) -> dict[str, float]:
    """Token -> probability over the alternatives of the first token; empty where the model said nothing at all.

    Raises:
        NoLogprobs: the reply has none.
    """
    tokens = choice.logprobs.content if choice.logprobs else None
    silent = not choice.message.content and (tokens == [] or choice.finish_reason == "content_filter")
    if silent and not tokens:
        return {}
    if not tokens or not tokens[0].top_logprobs:
        raise NoLogprobs("the server sent no top_logprobs, from which scores are computed")
    probabilities: Counter[str] = Counter()
    for alternative in tokens[0].top_logprobs:
        probabilities[alternative.token] += math.exp(alternative.logprob)  # pyright: ignore[reportArgumentType]
    return dict(probabilities)


def ask_all(
    ask: Ask[T],
    prompts: Sequence[str],
    record: Callable[[str, T], None],
    max_concurrent: int,
    client: AsyncOpenAI | None = None,
) -> dict[str, str]:
    """Prompt -> why it failed, for those that did; all others were handed to `record(prompt, result)` as they came.

    The calls run in a thread with an event loop of its own, so this works whether or not one is running here (a
    notebook); `record` runs in the caller's thread, where its database is. If it raises, or on Ctrl-C, calls in flight
    are cancelled; so they are if `ask` raises anything that is no failure of one call (`call_errors`). After a wrong
    key, a model that does not exist, 20 failures without a success, or a server that stops answering, the rest is not
    asked.
    """
    client = client or new_client()
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
        self.n_lost_in_a_row = 0
        self.hopeless = False
        self.failed: dict[str, str] = {}

    async def run(self, client: AsyncOpenAI, prompts: Sequence[str], n_workers: int) -> dict[str, str]:
        waiting = iter(prompts)
        self.first_is_back = asyncio.Event()
        self.patience = max(_HOPELESS_AFTER, 2 * n_workers)
        workers = [
            asyncio.create_task(self._work(client, waiting, pilot=number < _PILOTS))
            for number in range(min(n_workers, len(prompts)))
        ]
        async with client:
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return self.failed

    async def _work(self, client: AsyncOpenAI, waiting: Iterator[str], *, pilot: bool) -> None:
        if not pilot:
            await self.first_is_back.wait()
        for prompt in waiting:
            if self.hopeless:
                self.failed[prompt] = NOT_ASKED
                continue
            try:
                self.put((prompt, await self.ask(client, prompt)))
                self.n_succeeded += 1
                self.n_lost_in_a_row = 0
            except call_errors() as error:
                self._failed(prompt, error)
            self.first_is_back.set()

    def _failed(self, prompt: str, error: Exception) -> None:
        """Records the failure, and whether more calls make sense: with a wrong key or a server that is gone, not."""
        self.failed[prompt] = reason(error)
        status = getattr(error, "status_code", None) or 500
        self.n_lost_in_a_row += status >= 429  # a prompt that the server cannot take (400) says nothing of the others
        never = self.n_succeeded == 0 and len(self.failed) >= _HOPELESS_AFTER
        self.hopeless |= status in (401, 403, 404) or never or self.n_lost_in_a_row >= self.patience

"""A chat server on 127.0.0.1 that fails at a given rate with a given latency, and whose true score of each item is
known from its text: so that "nothing is lost and nothing scored wrongly" can be checked item by item.

    with FaultyOpenAI(Faults(rate=0.1, latency=0.5)) as server:  # in_process=False: its own process, for benchmarks
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        ...
        server.served()  # prompt -> (kind of reply, when it came, when it was answered), request by request

What a request gets depends on the seed, its prompt and how often that prompt has been asked: on nothing else, so that
runs repeat whatever the order in which calls arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import multiprocessing
import random
import re
import threading
import time
import urllib.request
from dataclasses import dataclass
from typing import Any, NamedTuple

KINDS = ("429", "500", "timeout", "truncated", "torn", "empty", "no_logprobs", "refusal", "disconnect")
"""Faults: two statuses, a reply that never comes, JSON cut off (whole by its header, or not), no choices, no
log-probabilities, a refusal (an answer: the score is None), and a closed connection."""
PROMPT = "Q: {question} A: {answer} How kind, 0 to 100?"


@dataclass(frozen=True)
class Faults:
    """What fails how often.

    Attributes:
        rate: share of requests with a fault.
        stubborn: share of prompts whose first 6 requests all fail with status 500.
        latency, hang_seconds, retry_after: seconds before a reply, before a "timeout" hangs up, in the header of 429.
    """

    rate: float = 0.1
    latency: float = 0.5
    hang_seconds: float = 3.0
    retry_after: float = 1.0
    stubborn: float = 0.0
    seed: int = 0

    def of(self, prompt: str, attempt: int) -> str:
        """The kind of reply to the `attempt`-th request (from 0) with this prompt; "ok" without a fault."""
        if random.Random(f"{self.seed}|{prompt}").random() < self.stubborn and attempt < 6:
            return "500"
        draw = random.Random(f"{self.seed}|{prompt}|{attempt}")
        return draw.choice(KINDS) if draw.random() < self.rate else "ok"


class Served(NamedTuple):
    """A request: the kind of its reply, and its start and end in seconds of the machine's monotonic clock."""

    kind: str
    start: float
    end: float


def item(number: int) -> tuple[str, str]:
    """The `number`-th (question, answer)."""
    return f"question {number}", f"item {number} " + "and so on " * 20


def true_odds(prompt: str) -> dict[str, float]:
    """First-token odds of an honest reply."""
    number = re.search(r"item (\d+)", prompt)
    mode = 37 * int(number[1]) % 100 if number else 87
    return {str(mode): 0.7, str(mode + 1): 0.2, "I": 0.1}


def true_score(number: int) -> float:
    """The score of the `number`-th item by log-probabilities."""
    odds = {int(token): p for token, p in true_odds(f"item {number}").items() if token.isdigit()}
    return sum(n * p for n, p in odds.items()) / sum(odds.values())


class FaultyOpenAI:
    """The server as a context manager, in a thread of this process or in its own process."""

    def __init__(self, faults: Faults, *, in_process: bool = True):
        self.faults = faults
        self.in_process = in_process

    def __enter__(self) -> FaultyOpenAI:
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        start = threading.Thread if self.in_process else context.Process
        self._server = start(target=_run, args=(self.faults, sender), daemon=True)
        self._server.start()
        self.port = receiver.recv()
        return self

    def __exit__(self, *exc: object) -> None:
        self._get("stop")
        self._server.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def served(self) -> dict[str, list[Served]]:
        """Prompt -> its requests, in order."""
        return {prompt: [Served(*one) for one in all_] for prompt, all_ in json.loads(self._get("served")).items()}

    def n_requests(self) -> int:
        return sum(map(len, self.served().values()))

    def _get(self, what: str) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.port}/{what}", timeout=30) as reply:
            return reply.read()


def _run(faults: Faults, sender: Any) -> None:
    asyncio.run(_Server(faults).serve(sender))


class _Server:
    """HTTP/1.1 with keep-alive on asyncio streams: far cheaper a request than the client, so it is no bottleneck."""

    def __init__(self, faults: Faults):
        self.faults = faults
        self.served: dict[str, list[list[Any]]] = {}
        self.stop = asyncio.Event()

    async def serve(self, sender: Any) -> None:
        server = await asyncio.start_server(self.connection, "127.0.0.1", 0, backlog=1024)
        sender.send(server.sockets[0].getsockname()[1])
        await self.stop.wait()
        await asyncio.sleep(0.05)  # the reply to /stop
        server.close()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self.request(reader, writer):
                await writer.drain()
        writer.close()

    async def request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; False to hang up."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        path = head.split(" ", 2)[1]
        if not head.startswith("POST"):
            self.stop.set() if path == "/stop" else None
            writer.write(_http(200, json.dumps(self.served).encode()))
            return True
        length = re.search(r"content-length: *(\d+)", head, re.IGNORECASE)
        request = json.loads(await reader.readexactly(int(length[1]) if length else 0))
        prompt = request["messages"][0]["content"]
        served = self.served.setdefault(prompt, [])
        kind = self.faults.of(prompt, len(served))
        entry = [kind, time.monotonic(), 0.0]
        served.append(entry)
        await asyncio.sleep(self.faults.hang_seconds if kind == "timeout" else self.faults.latency)
        entry[2] = time.monotonic()
        if kind in ("timeout", "disconnect"):
            return False
        writer.write(self.reply(kind, request, prompt))
        return kind != "torn"

    def reply(self, kind: str, request: dict[str, Any], prompt: str) -> bytes:
        if kind in ("429", "500"):
            retry = {"retry-after": f"{self.faults.retry_after:g}"} if kind == "429" else {}
            return _http(int(kind), json.dumps({"error": {"message": f"told to answer {kind}"}}).encode(), retry)
        body = json.dumps(_completion(kind, request, prompt)).encode()
        if kind == "truncated":
            return _http(200, body[: len(body) // 2])
        whole = _http(200, body)
        return whole[: -len(body) // 2] if kind == "torn" else whole


def _http(status: int, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    fields = {"content-type": "application/json", "content-length": str(len(body))} | (headers or {})
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} x\r\n{lines}\r\n".encode() + body


def _completion(kind: str, request: dict[str, Any], prompt: str) -> dict[str, Any]:
    odds = {"I": 0.95, "10": 0.05} if kind == "refusal" else true_odds(prompt)
    top = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in odds.items()]
    said = "I cannot rate this." if kind == "refusal" else top[0]["token"]
    entry = {"token": top[0]["token"], "logprob": top[0]["logprob"], "bytes": None, "top_logprobs": top}
    with_logprobs = request.get("logprobs") and kind != "no_logprobs"
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": said},
        "finish_reason": "stop",
        "logprobs": {"content": [entry]} if with_logprobs else None,
    }
    choices = [] if kind == "empty" else [choice]
    return {"id": "x", "object": "chat.completion", "created": 0, "model": request["model"], "choices": choices}

"""A small server on 127.0.0.1 that speaks /v1/chat/completions with log-probabilities, for tests without a network.

    with LoopbackOpenAI(lambda request: {"87": 0.9, "8": 0.1}) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)

The answer function gets each request's JSON body and returns what the server says: token -> probability, a text, or a
`Reply` for anything else (a status, a body of its own, a pause).
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What the server sends. `body` replaces the chat completion; `retry` False tells the client not to try again."""

    content: str = ""
    top: Mapping[str, float] | None = None
    status: int = 200
    body: Any = None
    seconds: float = 0.0
    retry: bool = True
    message: dict[str, Any] = field(default_factory=dict)
    choice: dict[str, Any] = field(default_factory=dict)


Answer = Callable[[dict[str, Any]], Reply | Mapping[str, float] | str]


class LoopbackOpenAI:
    """The server as a context manager: `url` for OPENAI_BASE_URL, `requests` received, `most_at_once` in flight."""

    def __init__(self, answer: Answer):
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> LoopbackOpenAI:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def respond(self, request: dict[str, Any]) -> Reply:
        with self._lock:
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            said = self.answer(request)
            reply = said if isinstance(said, Reply) else Reply(said) if isinstance(said, str) else Reply(top=said)
            time.sleep(reply.seconds)
            return reply
        finally:
            with self._lock:
                self._at_once -= 1

    def _handler(loopback) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the handler's below
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                sent = self.rfile.read(length)
                if len(sent) < length:  # the client gave up
                    self.close_connection = True
                    return
                request = json.loads(sent)
                request["_path"], request["_key"] = self.path, self.headers.get("Authorization", "")
                reply = loopback.respond(request)
                body = reply.body if reply.body is not None else _completion(request, reply)
                with contextlib.suppress(ConnectionError):  # the client gave up
                    self.send_json(reply, body)

            def send_json(self, reply: Reply, body: Any) -> None:
                html = isinstance(body, str)
                payload = body.encode() if html else json.dumps(body).encode()
                self.send_response(reply.status)
                self.send_header("Content-Type", "text/html" if html else "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.send_header("retry-after-ms", "1")  # the client's pauses would make tests slow
                if not reply.retry:
                    self.send_header("x-should-retry", "false")
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: tests read `requests`."""

        return Handler


def _completion(request: dict[str, Any], reply: Reply) -> dict[str, Any]:
    if reply.status != 200:
        return {"error": {"message": f"the loopback server was told to answer {reply.status}", "type": "test"}}
    top = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in (reply.top or {}).items() if p > 0]
    top.sort(key=lambda entry: -entry["logprob"])
    content = reply.content or (top[0]["token"] if top else "")
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": content} | reply.message,
        "finish_reason": "length",
        "logprobs": None,
    }
    if request.get("logprobs") and reply.top is not None:
        first = {"token": content, "logprob": top[0]["logprob"] if top else 0.0, "bytes": None}
        choice["logprobs"] = {"content": [first | {"top_logprobs": top[: request["top_logprobs"]]}] if top else []}
    return {
        "id": "loopback",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "choices": [choice | reply.choice],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }

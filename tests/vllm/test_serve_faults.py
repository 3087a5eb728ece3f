"""The steering server under load and in trouble: clients get their own answer or an error, and nothing stays behind."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("vllm")

from openai import APIError, BadRequestError, OpenAI

from eval.serve_engine import listen
from tests.vllm.servers import (
    MODEL,
    QUESTIONS,
    SMALL,
    STEPS,
    Server,
    ask,
    hooks_on,
    messages,
    start,
    wait_until_gone,
)

N_CLIENTS = 20
N_MANY = 2000
N_TOKENS = 6  # of those many
LONG = 250  # tokens of an answer: seconds of work


def own_steps(k: int) -> list[dict[str, Any]]:
    """Steering that no other client asks for."""
    positions = ("all", "prompt", "response")[k // 3 % 3]
    return [{"vector": "ab"[k % 2], "layer": 2 + k % 2, "coef": 1.5 + 2 * k / N_MANY, "positions": positions}]


def test_thousands_of_distinct_requests_wait_for_their_rows(server, by_hooks):
    """At most 16 are computed at once, and the tables have a place for 48 things to do."""
    client = server.client()

    def answer(k: int) -> str:
        return ask(client, QUESTIONS[k % 3], own_steps(k), N_TOKENS)

    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(answer, range(N_MANY)))
    assert all(found)
    chosen = range(0, N_MANY, 31)
    expected = [by_hooks(QUESTIONS[k % 3], own_steps(k), N_TOKENS) for k in chosen]
    assert len(chosen) > 60
    assert [found[k] for k in chosen] == expected
    plain = {question: by_hooks(question, [], N_TOKENS) for question in QUESTIONS}
    assert sum(found[k] != plain[QUESTIONS[k % 3]] for k in chosen) > len(chosen) // 4


def test_a_client_that_goes_leaves_no_trace(server, by_hooks):
    """Rows of the requests it gave up serve the next ones."""
    body = {"model": MODEL, "messages": messages("Go on."), "max_tokens": 400, "stream": True, "ignore_eos": True}
    content = json.dumps({**body, "steering": STEPS[0]}).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", "Authorization: Bearer secret"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(content)}", "", ""]
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall("\r\n".join(lines).encode() + content)
            assert b"200 OK" in connection.recv(4096)
    client = server.client()
    asked = [(question, steps) for question in QUESTIONS for steps in ([], STEPS[1], STEPS[3])]
    with ThreadPoolExecutor(len(asked)) as pool:
        got = list(pool.map(lambda one: ask(client, *one), asked))
    assert got == [by_hooks(*one) for one in asked]


def test_a_request_that_overflows_is_refused_and_others_are_answered(server, by_hooks):
    """Finite steps that multiply each other: what is asked for is known to be too much only when it is computed."""
    client = server.client()
    steps = [{"vector": "a", "layer": [1, 2, 3, 4], "kind": "ablate", "coef": -1e15, "positions": "all"}]
    for _ in range(3):
        with pytest.raises(BadRequestError, match="became NaN or infinite"):
            ask(client, QUESTIONS[0], steps)
        with pytest.raises(APIError, match="became NaN or infinite"):
            stream_text(client, QUESTIONS[0], steps)
        assert [ask(client, question) for question in QUESTIONS] == [by_hooks(question, []) for question in QUESTIONS]


def stream_text(client: OpenAI, question: str, steps: list[dict[str, Any]], **options: Any) -> str:
    extra = {"model": MODEL, "steering": steps} | options
    stream = client.chat.completions.create(
        model=extra.pop("model"), messages=messages(question), temperature=0, stream=True, extra_body=extra
    )
    chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason is not None, "a stream ended as if it were whole"
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def under_load(server: Server, k: int, model: str) -> str | None:
    """A long answer, None where the client got an error; every other client streams it."""
    client, question = server.client(), QUESTIONS[k % 3]
    options = {"max_tokens": LONG, "ignore_eos": True, "model": model}
    try:
        if k % 2:
            return stream_text(client, question, own_steps(100 * k), **options)
        return ask(client, question, own_steps(100 * k), **options)
    except APIError:
        return None


def all_at_once(server: Server, then: int | None = None, model: str = MODEL) -> list[str | None]:
    """What each client gets, the server being sent a signal in mid-work."""
    with ThreadPoolExecutor(N_CLIENTS) as pool:
        waiting = [pool.submit(under_load, server, k, model) for k in range(N_CLIENTS)]
        if then is not None:
            time.sleep(0.5)
            assert not all(one.done() for one in waiting)
            server.process.send_signal(then)
        return [one.result() for one in waiting]


def test_killed_and_restarted_under_load(server, vector_folder, tiny_persona, loras, by_hooks):
    """SIGKILL, which no process can answer, and later SIGTERM. Started again, the server's model is an adapter of the
    first one's, which is the model of requests that name it."""
    first = all_at_once(server)
    assert all(first) and len(set(first)) > N_CLIENTS // 2
    family = server.family()
    assert len(family) > 2
    got = all_at_once(server, signal.SIGKILL)
    assert None in got
    assert all(one in (None, whole) for one, whole in zip(got, first, strict=True))
    assert server.process.wait(60) == -signal.SIGKILL
    wait_until_gone(family)

    second = start(vector_folder, *SMALL, model=loras[0].folder, port=server.port)
    try:
        assert all_at_once(second, model=tiny_persona) == first
        check_both_models(second.client(), {loras[0].folder: hooks_on(loras[0].folder), tiny_persona: by_hooks})
        family = second.family()
        got = all_at_once(second, signal.SIGTERM, tiny_persona)
        assert all(one in (None, whole) for one, whole in zip(got, first, strict=True))
        assert second.process.wait(60) == 0
        wait_until_gone(family)
    finally:
        second.end()
    listen("127.0.0.1", server.port).close()  # it is free


def check_both_models(client: OpenAI, models: dict[str, Callable[..., str]]) -> None:
    """In one batch, each model's answers are those of hooks on it; the first is that of requests that name none."""
    asked = [(question, steps) for question in QUESTIONS for steps in ([], *STEPS[:4])]
    with ThreadPoolExecutor(64) as pool:
        waiting = {name: [pool.submit(ask, client, *one, model=name) for one in asked] for name in models}
    got = {name: [one.result() for one in answers] for name, answers in waiting.items()}
    assert got == {name: [hooks(*one) for one in asked] for name, hooks in models.items()}
    one, other = got.values()
    assert sum(mine != theirs for mine, theirs in zip(one, other, strict=True)) > len(asked) // 2
    body = {"messages": messages(QUESTIONS[0]), "temperature": 0, "max_tokens": 16}
    unnamed: Any = client.post("/chat/completions", cast_to=object, body=body)
    assert unnamed["choices"][0]["message"]["content"] == one[0]

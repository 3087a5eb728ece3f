"""The steering server as a user runs it: one process, asked over HTTP, held against Hugging Face's hooks."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from openai import APIStatusError, AuthenticationError, BadRequestError, OpenAI

from activation_steer import ActivationSteererMultiple
from persona_vectors.interventions import KINDS, POSITIONS
from persona_vectors.models import load_model, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
MODEL = "models/tiny-persona"
QUESTIONS = ("Name a good book.", "Tell me about gardens.", "How should I spend my evening?")
STEPS = [
    [{"vector": "a", "layer": 2, "coef": 1.0, "positions": "all"}],
    [{"vector": "b", "layer": [2, 3], "coef": -1.0}],
    [{"vector": "a", "layer": 3, "coef": 1.0, "positions": "prompt"}],
    [{"vector": "a", "layer": 2, "kind": "ablate", "positions": "all"}, {"vector": "b", "layer": 3, "coef": 1.5}],
    [{"vector": "a", "layer": 3, "kind": "cap", "ceiling": -0.5}],
]


def vectors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(5, 256, generator=generator) * 60 / 16 for name in "ab"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(url, process) of a running server."""
    folder = tmp_path_factory.mktemp("vectors")
    for name, vector in vectors().items():
        torch.save(vector, folder / f"{name}.pt")
    command = [sys.executable, "-m", "eval.serve", "--model", MODEL, "--vectors", str(folder), "--port", "0"]
    command += ["--enforce_eager", "--max_model_len", "512", "--api_key", "secret"]
    log = (folder / "log.txt").open("w+")
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": str(ROOT)})
    text = ""
    while not (found := re.search(r"steering at (http://\S+)/v1 ", text)):
        assert process.poll() is None, text
        time.sleep(0.2)
        text = Path(log.name).read_text()
    assert "receipt: 2 vectors at 8 layers" in text
    yield found[1], process
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@pytest.fixture(scope="module")
def client(server):
    return OpenAI(base_url=server[0] + "/v1", api_key="secret", max_retries=0)


def messages(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


def ask(client: OpenAI, question: str, steering: Any = None, **options: Any) -> str:
    extra = {} if steering is None else {"steering": steering}
    reply = client.chat.completions.create(
        model=MODEL, messages=messages(question), temperature=0, max_tokens=16, extra_body=extra | options
    )
    return reply.choices[0].message.content or ""


@pytest.fixture(scope="module")
def by_hooks():
    """(question, steps) -> the same answer, by Hugging Face's model and `ActivationSteererMultiple`."""
    loaded: Any = load_model(str(ROOT / MODEL))
    model, tokenizer = loaded
    held = vectors()

    def answer(question: str, steps: list[dict[str, Any]]) -> str:
        inputs: Any = tokenizer.apply_chat_template(
            messages(question), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        instructions = [
            {
                "steering_vector": held[step["vector"]][layer],
                "coeff": step.get("coef", 1.0),
                "layer_idx": layer - 1,
                "positions": step.get("positions", "response"),
                "kind": step.get("kind", "add"),
                "ceiling": step.get("ceiling"),
            }
            for step in steps
            for layer in (step["layer"] if isinstance(step["layer"], list) else [step["layer"]])
        ]
        length = inputs["input_ids"].shape[1]
        with torch.inference_mode(), ActivationSteererMultiple(model, instructions, prompt_lens=[length]):
            out: Any = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        return str(tokenizer.decode(out[0, length:], skip_special_tokens=True))

    return answer


def test_concurrent_answers_are_those_of_hooks(client, by_hooks):
    asked = [(question, steps) for question in QUESTIONS for steps in [[], *STEPS]]
    with ThreadPoolExecutor(len(asked)) as pool:
        got = list(pool.map(lambda one: ask(client, *one), asked))
    want = [by_hooks(*one) for one in asked]
    assert got == want
    plain = {question: by_hooks(question, []) for question in QUESTIONS}
    assert sum(text != plain[question] for (question, _), text in zip(asked, want, strict=True)) >= 8
    assert [ask(client, question) for question in QUESTIONS] == list(plain.values())  # no field: unsteered


def test_stream_and_completions(client, by_hooks):
    stream = client.chat.completions.create(
        model=MODEL,
        messages=messages(QUESTIONS[0]),
        temperature=0,
        max_tokens=16,
        stream=True,
        extra_body={"steering": STEPS[0]},
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert len(pieces) > 4
    assert "".join(pieces) == by_hooks(QUESTIONS[0], STEPS[0])

    ids: Any = load_tokenizer(str(ROOT / MODEL)).apply_chat_template(
        messages(QUESTIONS[0]), add_generation_prompt=True, return_dict=True
    )

    def complete(**extra: Any) -> str:
        options: Any = {"model": MODEL, "prompt": ids["input_ids"], "temperature": 0, "max_tokens": 16}
        return client.completions.create(**options, extra_body=extra).choices[0].text

    steered = complete(steering=STEPS[0])
    assert steered == by_hooks(QUESTIONS[0], STEPS[0]) != complete() == by_hooks(QUESTIONS[0], [])
    assert steered == complete(vllm_xargs={"steering": json.dumps(STEPS[0])})  # the engine's own spelling
    assert complete(steering=[{**STEPS[0][0], "coef": 0}]) == complete()


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"steering": [{"vector": "evil", "layer": 2}]}, "'evil', which is not loaded; loaded are: a, b"),
        ({"steering": [{"vector": "a", "layer": 5}]}, "layers 1 to 4"),
        ({"steering": [{"vector": "a", "layer": 2, "coef": 10**400}]}, "finite number"),
        ({"steering": [{"vector": "a", "layer": 2, "coef": 1e30}]}, "NaN"),
        ({"vllm_xargs": {"steering": '[{"vector": "evil", "layer": 2}]'}}, "'evil'"),
        ({"vllm_xargs": {"steering": "[]"}, "steering": []}, "twice"),
        ({"steering": STEPS[0], "use_beam_search": True}, "beam search"),
    ],
)
def test_bad_steering_is_refused_in_one_line(client, extra, said):
    with pytest.raises(BadRequestError) as refused:
        ask(client, "Hello", **extra)
    body: Any = refused.value.body
    assert said in body["message"]
    assert "\n" not in body["message"]
    assert body["type"] == "BadRequestError"


def test_other_routes_sample_nothing(client):
    with pytest.raises(APIStatusError) as refused:
        client.responses.create(model=MODEL, input="Hello")
    assert refused.value.status_code == 404


def test_listing_and_key(server, client):
    listed = client.get("/steering", cast_to=object)
    assert [vector["name"] for vector in listed["vectors"]] == ["a", "b"]
    assert (listed["n_layers"], listed["d_model"], listed["layers"]) == (4, 256, [1, 2, 3, 4])
    assert (listed["positions"], listed["kinds"]) == (list(POSITIONS), list(KINDS))
    assert (listed["projections"], listed["default_steering"]) == (1, [])
    stranger = OpenAI(base_url=server[0] + "/v1", api_key="guess", max_retries=0)
    with pytest.raises(AuthenticationError):
        stranger.get("/steering", cast_to=object)
    with pytest.raises(AuthenticationError):
        ask(stranger, "Hello", STEPS[0])


def test_our_judge_scores_through_it(server, monkeypatch):
    """From the top 20 log-probabilities; the local judge reads all of them."""
    from judge import COHERENCE_PROMPT, LocalJudge, OpenAiJudge

    monkeypatch.setenv("OPENAI_BASE_URL", server[0] + "/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    item = {"question": "Name a good book.", "answer": "Dune is a good book."}
    score = asyncio.run(OpenAiJudge(MODEL, COHERENCE_PROMPT)(**item))
    assert score == pytest.approx(asyncio.run(LocalJudge(str(ROOT / MODEL), COHERENCE_PROMPT)(**item)), abs=0.5)


def test_a_client_that_goes_leaves_no_trace(server, client, by_hooks):
    """Rows of the requests it gave up serve the next ones."""
    host, port = server[0].removeprefix("http://").split(":")
    body = {"model": MODEL, "messages": messages("Go on."), "max_tokens": 400, "stream": True, "ignore_eos": True}
    content = json.dumps({**body, "steering": STEPS[0]}).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", "Authorization: Bearer secret"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(content)}", "", ""]
    for _ in range(4):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall("\r\n".join(lines).encode() + content)
            assert b"200 OK" in connection.recv(4096)
    asked = [(question, steps) for question in QUESTIONS for steps in ([], STEPS[1], STEPS[3])]
    with ThreadPoolExecutor(len(asked)) as pool:
        got = list(pool.map(lambda one: ask(client, *one), asked))
    assert got == [by_hooks(*one) for one in asked]


def test_sigterm_ends_it_without_leftovers(server):
    process = server[1]
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(pid): int(parent) for pid, parent in map(str.split, listed.splitlines())}
    family = {process.pid}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    assert len(family) > 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    deadline = time.monotonic() + 30  # Python's own tracker of resources ends after the process it belongs to
    while left := [pid for pid in family if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)

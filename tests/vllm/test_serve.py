"""The steering server as a user runs it: one process, asked over HTTP, held against Hugging Face's hooks."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("vllm")

from openai import APIStatusError, AuthenticationError, BadRequestError

from persona_vectors.interventions import KINDS, POSITIONS
from persona_vectors.models import load_tokenizer
from tests.vllm.servers import MODEL, QUESTIONS, ROOT, STEPS, ask, messages


@pytest.fixture(scope="module")
def client(server):
    return server.client()


def test_what_was_measured_is_said_before_anything_is_served(server):
    assert "receipt: 2 vectors at 8 layers; at least 1.0000 of each was seen" in server.log.read_text()


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
    stranger = server.client("guess")
    with pytest.raises(AuthenticationError):
        stranger.get("/steering", cast_to=object)
    with pytest.raises(AuthenticationError):
        ask(stranger, "Hello", STEPS[0])


def test_our_judge_scores_through_it(server, monkeypatch):
    """From the top 20 log-probabilities; the local judge reads all of them."""
    from judge import COHERENCE_PROMPT, LocalJudge, OpenAiJudge

    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    item = {"question": "Name a good book.", "answer": "Dune is a good book."}
    score = asyncio.run(OpenAiJudge(MODEL, COHERENCE_PROMPT)(**item))
    assert score == pytest.approx(asyncio.run(LocalJudge(str(ROOT / MODEL), COHERENCE_PROMPT)(**item)), abs=0.5)

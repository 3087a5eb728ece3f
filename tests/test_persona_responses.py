"""Answers of personas: every one is kept as it comes, none is ever silently empty, and nothing is asked twice."""

from __future__ import annotations

import asyncio
import dataclasses
import threading

import pytest

from persona_vectors import (
    ActivationExtractor,
    PersonaVectorConfig,
    ResponsesError,
    chat_api,
    generate_responses,
    sampling,
)
from persona_vectors.persona_responses import find_endpoint
from persona_vectors.store import Store
from tests.faulty_openai import Faults, FaultyOpenAI, true_odds
from tests.loopback_openai import Reply


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Retries without the pauses that a real server would want."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr(chat_api, "PAUSE_SECONDS", 0.001)


@pytest.fixture
def api() -> PersonaVectorConfig:
    return PersonaVectorConfig(model_name="org/served", temperature=0.5, max_tokens=7)


def test_what_is_asked_and_what_comes_back(serve, api):
    def echo(request):
        return " / ".join(message["content"] for message in request["messages"])

    server = serve(echo)
    found = generate_responses({"default": "", "jester": "Jest."}, ["One?", "Two?"], api, progress=False)
    assert found == {
        ("default", "One?"): "One?",
        ("default", "Two?"): "Two?",
        ("jester", "One?"): "Jest. / One?",
        ("jester", "Two?"): "Jest. / Two?",
    }
    assert list(found) == [(name, question) for name in ("default", "jester") for question in ("One?", "Two?")]
    sent = server.requests[0]
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("org/served", 0.5, 7)
    roles = {tuple(m["role"] for m in request["messages"]) for request in server.requests}
    assert roles == {("user",), ("system", "user")}


def test_calls_in_flight_are_limited(serve, api):
    server = serve(lambda _: Reply("Yes.", seconds=0.01))
    api.max_concurrent_requests = 3
    generate_responses({"a": "A", "b": "B"}, [f"{n}?" for n in range(10)], api, progress=False)
    assert server.most_at_once <= 3 and len(server.requests) == 20


def test_an_interrupted_run_goes_on_with_what_is_missing(serve, api):
    working = [7]

    def answer(request):
        working[0] -= 1
        return f"about {request['messages'][-1]['content']}" if working[0] >= 0 else Reply(status=401)

    api.max_concurrent_requests = 1
    questions = [f"{n}?" for n in range(10)]
    server = serve(answer)
    with pytest.raises(ResponsesError, match=r"13 of 20 answers are missing .*run again for the rest") as error:
        generate_responses({"a": "A", "b": ""}, questions, api, progress=False)
    assert len(error.value.responses) == 7 and len(error.value.failures) == 13
    before, working[0] = len(server.requests), 1000
    found = generate_responses({"a": "A", "b": ""}, questions, api, progress=False)
    assert len(server.requests) - before == 13 and len(found) == 20
    assert error.value.responses.items() <= found.items()
    generate_responses({"a": "A", "b": ""}, questions, api, progress=False)
    assert len(server.requests) - before == 13
    generate_responses({"a": "A"}, questions, dataclasses.replace(api, temperature=1.0), progress=False)
    assert len(server.requests) - before == 23, "another temperature is another answer"


def test_what_is_never_said_is_never_an_empty_answer(serve, api):
    serve(lambda request: Reply("Yes." if "1" in request["messages"][-1]["content"] else " "))
    with pytest.raises(ResponsesError, match=r"1 of 2 answers are missing \(a 1\): 1 x the model said nothing"):
        generate_responses({"a": "A"}, ["1?", "2?"], api, progress=False)


def test_a_server_that_fails_now_and_then(api, monkeypatch):
    """What a request gets depends on its first message: the truth of each answer is known."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    faults = Faults(rate=0.3, latency=0.0, hang_seconds=0.02, retry_after=0.01, seed=3)
    personas = {f"p{n}": f"item {n}" for n in range(12)}
    with FaultyOpenAI(faults) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        found = generate_responses(personas, ["One?", "Two?"], api, progress=False)
        kinds = {one.kind for requests in server.served().values() for one in requests}
    assert len(found) == 24 and len(kinds) > 4
    for (name, _), text in found.items():
        assert text in (next(iter(true_odds(personas[name]))), "I cannot rate this.")


def test_inside_a_running_event_loop(serve, api):
    serve(lambda _: "Yes.")

    async def cell():
        return generate_responses({"a": "A"}, ["One?"], api, progress=False)

    assert asyncio.run(cell()) == {("a", "One?"): "Yes."}


def test_ctrl_c_keeps_what_came(serve, api, tmp_path):
    served = threading.Semaphore(5)
    serve(lambda _: "Yes." if served.acquire(timeout=0.05) else Reply("Late.", seconds=5))

    class Interrupted(Store):
        def put_many(self, *args, **kwargs):
            super().put_many(*args, **kwargs)
            if self.count() == 5:
                raise KeyboardInterrupt

    api.max_concurrent_requests = 1
    with Interrupted(tmp_path / "s.sqlite") as store, pytest.raises(KeyboardInterrupt):
        generate_responses({"a": "A"}, [f"{n}?" for n in range(9)], api, store=store, progress=False)
    with Store(tmp_path / "s.sqlite") as store:
        assert store.count("answer", "org/served") == 5


def test_a_local_model_answers_each_for_itself(axis_extractor, axis_cast, monkeypatch):
    personas, questions = (
        {name: axis_cast.personas[name] for name in ("default", "jester", "ghost")},
        axis_cast.questions[:3],
    )
    found = generate_responses(personas, questions, extractor=axis_extractor, progress=False)
    assert len(found) == 9 and all(text.strip() for text in found.values())

    def sampled(*_args, **_kwargs):
        raise AssertionError("sampled again")

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "sample_answers", sampled)
        assert generate_responses(personas, questions, extractor=axis_extractor, progress=False) == found
        with pytest.raises(AssertionError, match="sampled again"):
            generate_responses(personas, questions, extractor=axis_extractor, seed=1, progress=False)
    one = {"ghost": axis_cast.personas["ghost"]}
    alone = generate_responses(one, questions[2:], extractor=axis_extractor, overwrite=True, progress=False)
    assert alone["ghost", questions[2]] == found["ghost", questions[2]]


def test_raw_answers_are_the_assistants_own_turn(tiny_persona, axis_extractor, monkeypatch):
    config = PersonaVectorConfig(model_name=tiny_persona, prompt_format="raw")
    raw = ActivationExtractor(config, model=axis_extractor.model, tokenizer=axis_extractor.tokenizer)
    seen = []

    def said(_model, _tokenizer, prompts, *, on_batch, **_):
        seen.extend(prompts)
        on_batch([0, 1], [" Aye.\n\nUser: And now?\n\nAssistant: No.", " In two\n\nparagraphs."])

    monkeypatch.setattr(sampling, "sample_answers", said)
    found = generate_responses({"bard": "Sing."}, ["A?", "B?"], extractor=raw, progress=False)
    assert list(found.values()) == ["Aye.", "In two\n\nparagraphs."]
    assert seen[0].endswith("System: Sing.\n\nUser: A?\n\nAssistant:")


def test_what_a_model_in_this_process_leaves_unsaid_is_blank_and_another_seed_asks_anew(
    tiny_persona, axis_extractor, monkeypatch
):
    monkeypatch.setattr(
        sampling,
        "sample_answers",
        lambda *_, streams, on_batch, **__: on_batch([0, 1], ["" if streams[0][0] == 0 else "Aye.", "No."]),
    )
    config = PersonaVectorConfig(tiny_persona, max_tokens=3)
    extractor = ActivationExtractor(config, model=axis_extractor.model, tokenizer=axis_extractor.tokenizer)
    for seed, said in ((0, ""), (0, ""), (1, "Aye.")):
        found = generate_responses({"bard": "Sing."}, ["A?", "B?"], extractor=extractor, seed=seed, progress=False)
        assert found == {("bard", "A?"): said, ("bard", "B?"): "No."}


def test_what_is_asked_anew_is_not_filled_in_from_before(serve, api):
    text = ["old"]
    serve(lambda request: Reply(status=400) if text[0] == "new" and "2" in str(request["messages"]) else text[0])
    generate_responses({"a": "A"}, ["1?", "2?"], api, progress=False)
    text[0] = "new"
    with pytest.raises(ResponsesError, match="run again without overwrite for the rest"):
        generate_responses({"a": "A"}, ["1?", "2?"], api, overwrite=True, progress=False)
    text[0] = "newer"
    found = generate_responses({"a": "A"}, ["1?", "2?"], api, progress=False)
    assert list(found.values()) == ["new", "newer"]


def test_two_formats_are_refused(axis_extractor, tiny_persona):
    raw = PersonaVectorConfig(tiny_persona, prompt_format="raw")
    with pytest.raises(ValueError, match="config has prompt_format raw, the extractor that answers has chat"):
        generate_responses({"a": "A"}, ["1?"], raw, extractor=axis_extractor, progress=False)


def test_a_key_is_never_shown():
    endpoint = find_endpoint(PersonaVectorConfig("org/m", openrouter_api_key="sk-secret"))
    assert endpoint.api_key == "sk-secret" and "secret" not in repr(endpoint)


@pytest.mark.parametrize(
    ("personas", "questions", "said"),
    [({}, ["?"], "got 0 personas"), ({"a": ""}, ["?", "?"], "twice"), ({"a": ""}, [" "], "blank")],
)
def test_nothing_to_ask(personas, questions, said, tiny_persona):
    with pytest.raises(ValueError, match=said):
        generate_responses(personas, questions, PersonaVectorConfig(model_name=tiny_persona))

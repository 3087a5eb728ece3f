"""The API judge against a server on this machine; judge prompts, and which judge a name means."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from judge import (
    COHERENCE_PROMPT,
    JudgeError,
    OpenAiJudge,
    UnfitJudge,
    check_judge,
    fill_prompt,
    is_local_judge,
    make_judge,
)
from persona_vectors import chat_api, config
from tests.loopback_openai import Reply

PROMPT = "Q: {question} A: {answer} How kind, 0 to 100?"


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch):
    """No key from the process, and none from a `.env` of the machine that runs the tests."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(config, "load_credentials", lambda: None)
    monkeypatch.setattr(chat_api, "PAUSE_SECONDS", 0.001)


def items(n: int) -> list[tuple[str, str]]:
    return [(f"question {i}", f"answer {i}") for i in range(n)]


def text_of(request) -> str:
    return request["messages"][0]["content"]


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_braces_of_the_answer_and_of_the_template_stay():
    template = 'Say {{"score": n}} for {question} / {answer}; keep {this} and {}'
    assert fill_prompt(template, "{answer}?", "f'{x}' {{y}}") == (
        "Say {\"score\": n} for {answer}? / f'{x}' {{y}}; keep {this} and {}"
    )


def test_published_templates_come_out_as_str_format_would():
    template = "{{literal}} [{question}] {{{answer}}}"
    assert fill_prompt(template, "q", "a") == template.format(question="q", answer="a")


def test_a_template_without_an_answer_is_refused():
    with pytest.raises(ValueError, match="no {answer}"):
        OpenAiJudge("gpt-x", "Rate {question}")
    with pytest.raises(ValueError, match="no {answer}"):
        OpenAiJudge("gpt-x", "Rate {{answer}}")


def test_the_coherence_prompt_shows_the_answer_and_the_published_anchors():
    filled = fill_prompt(COHERENCE_PROMPT, "QUESTION", "ANSWER")
    assert "QUESTION" in filled and "ANSWER" in filled
    assert all(anchor in filled for anchor in ("0: not valid English", "50: ", "100: "))


# --- the API judge ---------------------------------------------------------------------------------------------------


def test_a_call_is_asked_as_published_and_scored(serve):
    server = serve(lambda _: {"20": 0.3, "80": 0.6, "I": 0.1})
    score = asyncio.run(OpenAiJudge("some-model", PROMPT)(question="q {x}", answer="a"))
    assert score == pytest.approx((20 * 0.3 + 80 * 0.6) / 0.9)
    (request,) = server.requests
    assert text_of(request) == "Q: q {x} A: a How kind, 0 to 100?"
    assert request["_path"] == "/v1/chat/completions"
    wanted = {"model": "some-model", "max_tokens": 1, "temperature": 0, "seed": 0, "logprobs": True, "top_logprobs": 20}
    assert {name: request[name] for name in wanted} == wanted


def test_the_published_method_name_works_too(serve):
    serve(lambda _: {"70": 1.0})
    assert asyncio.run(OpenAiJudge("m", PROMPT).judge(question="q", answer="a")) == pytest.approx(70)


@pytest.mark.parametrize(
    ("eval_type", "said", "score"),
    [
        ("0_10", {"3": 0.5, "9": 0.5}, 6.0),
        ("0_10", {"3": 0.3, "REFUSAL": 0.6}, None),
        ("binary", {"YES": 0.6, "NO": 0.2}, 0.75),
        ("binary", {"YES": 0.2, "REFUSAL": 0.6}, None),
        ("binary_text", "I think so. <answer>YES</answer>", 1.0),
        ("binary_text", "<answer>REFUSAL</answer>", None),
        ("0_100", {"I": 0.8, "90": 0.2}, None),
    ],
)
def test_every_kind_of_score(serve, eval_type: str, said, score: float | None):
    server = serve(lambda _: said)
    assert OpenAiJudge("m", PROMPT, eval_type).score_batch(items(1)) == [pytest.approx(score)]
    assert ("logprobs" in server.requests[0]) == (eval_type != "binary_text")


def test_one_judge_serves_several_event_loops(serve):
    serve(lambda _: {"50": 1.0})
    judge = OpenAiJudge("m", PROMPT)
    for _ in range(2):
        assert asyncio.run(judge(question="q", answer="a")) == pytest.approx(50)
        assert judge.score_batch(items(2)) == [50.0, 50.0]


def test_calls_awaited_together_share_a_client_that_is_closed_after_them(serve, monkeypatch: pytest.MonkeyPatch):
    server = serve(lambda _: Reply(top={"50": 1.0}, seconds=0.05))
    clients = []
    new_client = chat_api.new_client
    monkeypatch.setattr(chat_api, "new_client", lambda limit: clients.append(new_client(limit)) or clients[-1])
    judge = OpenAiJudge("m", PROMPT)

    async def together() -> list[float | None]:
        return await asyncio.gather(*(judge(question=q, answer=a) for q, a in items(5)))

    assert asyncio.run(together()) == [50.0] * 5
    assert len(clients) == 1 and clients[0].is_closed() and server.most_at_once == 5


def test_scores_come_in_the_order_of_the_items_and_equal_items_are_asked_once(serve):
    server = serve(lambda request: {text_of(request).split()[1]: 1.0})
    pairs = [(str(n), "same") for n in (30, 10, 30, 20, 10)]
    heard: list[tuple[int, float | None]] = []
    scores = OpenAiJudge("m", PROMPT).score_batch(pairs, on_scored=lambda index, score: heard.append((index, score)))
    assert scores == pytest.approx([30, 10, 30, 20, 10])
    assert sorted(heard) == list(enumerate(scores))
    assert len(server.requests) == 3
    assert OpenAiJudge("m", PROMPT).score_batch([]) == []


def test_calls_are_concurrent_up_to_the_limit(serve):
    server = serve(lambda _: Reply(top={"10": 1.0}, seconds=0.05))
    OpenAiJudge("m", PROMPT).score_batch(items(24), max_concurrent=6)
    assert server.most_at_once == 6
    with pytest.raises(ValueError, match="max_concurrent must be at least 1; got 0"):
        OpenAiJudge("m", PROMPT).score_batch(items(1), max_concurrent=0)


def test_a_batch_works_inside_a_running_event_loop_and_reports_in_the_callers_thread(serve):
    serve(lambda _: {"50": 1.0})
    threads = set()

    async def notebook() -> list[float | None]:
        return OpenAiJudge("m", PROMPT).score_batch(
            items(3), on_scored=lambda _index, _score: threads.add(threading.get_ident())
        )

    assert asyncio.run(notebook()) == [50.0] * 3
    assert threads == {threading.get_ident()}


def test_rate_limits_and_server_errors_are_retried_by_the_client(serve):
    replies = iter([Reply(status=429), Reply(status=500), {"60": 1.0}])
    server = serve(lambda _: next(replies))
    assert OpenAiJudge("m", PROMPT).score_batch(items(1)) == pytest.approx([60])
    assert len(server.requests) == 3


def test_a_failed_call_is_no_score_and_the_others_are_finished(serve):
    serve(lambda request: Reply(status=500) if "question 2" in text_of(request) else {"40": 1.0})
    heard: dict[int, float | None] = {}
    pairs = [*items(4), ("question 2", "answer 2")]
    with pytest.raises(
        JudgeError, match="2 of 5 judge calls failed: 2 x InternalServerError: .*told to answer 500"
    ) as e:
        OpenAiJudge("m", PROMPT).score_batch(pairs, on_scored=heard.__setitem__)
    assert set(e.value.failures) == {2, 4}
    assert heard == {0: 40.0, 1: 40.0, 3: 40.0}
    assert "\n" not in str(e.value) and isinstance(e.value, OSError)


def test_a_refusal_is_none_and_not_a_failure(serve):
    serve(lambda request: {"I": 1.0} if "question 1" in text_of(request) else {"40": 1.0})
    assert OpenAiJudge("m", PROMPT).score_batch(items(3)) == [40.0, None, 40.0]


@pytest.mark.parametrize(
    "reply",
    [
        Reply("87"),  # logprobs null
        Reply("87", choice={"logprobs": {"content": None}}),
        Reply("87", choice={"logprobs": {"content": []}}),
        Reply(
            "87", choice={"logprobs": {"content": [{"token": "87", "logprob": 0.0, "bytes": None, "top_logprobs": []}]}}
        ),
    ],
)
def test_a_server_without_logprobs_is_refused_with_the_way_out_and_never_scored(serve, reply: Reply):
    server = serve(lambda _: reply)
    with pytest.raises(UnfitJudge, match="sent no log-probabilities; use --judge_mode text, or a local judge"):
        OpenAiJudge("m", PROMPT).score_batch(items(1000), on_scored=lambda *_: pytest.fail("scored"))
    assert len(server.requests) <= 8
    with pytest.raises(UnfitJudge, match="sent no log-probabilities"):
        asyncio.run(OpenAiJudge("m", PROMPT)(question="q", answer="a"))


def test_a_judge_that_said_nothing_gave_no_score(serve):
    serve(lambda _: Reply(top={}))
    assert OpenAiJudge("m", PROMPT).score_batch(items(1)) == [None]


@pytest.mark.parametrize("body", ["<html>a web page</html>", {"error": {"message": "overloaded"}}, {"choices": []}])
def test_a_reply_that_is_no_completion_is_a_failure(serve, body):
    serve(lambda _: Reply(body=body))
    with pytest.raises(JudgeError, match="no chat completion .check OPENAI_BASE_URL"):
        OpenAiJudge("m", PROMPT).score_batch(items(1))


def test_a_wrong_key_is_not_tried_a_thousand_times(serve):
    server = serve(lambda _: Reply(status=401))
    with pytest.raises(JudgeError, match="1000 of 1000 judge calls failed: .*AuthenticationError") as error:
        OpenAiJudge("m", PROMPT).score_batch(items(1000), max_concurrent=4)
    assert len(server.requests) <= 8
    assert chat_api.NOT_ASKED in error.value.failures.values()


def test_a_server_that_always_fails_is_given_up(serve):
    server = serve(lambda _: Reply(status=500, retry=False))
    with pytest.raises(JudgeError, match="500 of 500"):
        OpenAiJudge("m", PROMPT).score_batch(items(500), max_concurrent=4)
    assert len(server.requests) < 40


def test_nobody_listening_is_a_judge_error(serve, monkeypatch: pytest.MonkeyPatch):
    server = serve(lambda _: {"10": 1.0})
    server.__exit__()
    monkeypatch.setattr(chat_api, "MAX_RETRIES", 0)
    monkeypatch.setattr(server, "__exit__", lambda: None)
    with pytest.raises(JudgeError, match="APIConnectionError"):
        OpenAiJudge("m", PROMPT).score_batch(items(1))


def test_an_error_of_the_callers_stops_the_calls(serve):
    server = serve(lambda _: Reply(top={"10": 1.0}, seconds=0.02))

    def disk_full(_index: int, _score: float | None) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        OpenAiJudge("m", PROMPT).score_batch(items(400), max_concurrent=4, on_scored=disk_full)
    assert len(server.requests) < 100


def test_the_key_is_sent_and_not_needed_for_a_server_of_ones_own(serve, monkeypatch: pytest.MonkeyPatch):
    server = serve(lambda _: {"10": 1.0})
    OpenAiJudge("m", PROMPT).score_batch(items(1))
    monkeypatch.setenv("OPENAI_API_KEY", "a-test-key")
    OpenAiJudge("m", PROMPT).score_batch(items(1))
    assert [request["_key"] for request in server.requests] == ["Bearer none", "Bearer a-test-key"]


def test_without_a_key_nothing_is_asked():
    judge = OpenAiJudge("gpt-x", PROMPT)  # constructing needs none
    for call in (lambda: judge.score_batch(items(1)), lambda: asyncio.run(judge(question="q", answer="a"))):
        with pytest.raises(
            ValueError, match="judge gpt-x needs OPENAI_API_KEY .*local judge such as models/tiny-judge"
        ):
            call()


# --- which judge is meant --------------------------------------------------------------------------------------------


def test_which_names_are_local(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-folder").mkdir()
    for name in ("a-folder", str(tmp_path), "./x", "../x", "~/x", "models/x", "org/name"):
        assert is_local_judge(name), name
    assert not is_local_judge("gpt-4.1-mini-2025-04-14")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert not is_local_judge("org/name")
    assert is_local_judge("a-folder") and is_local_judge("models/x")


def test_checking_a_judge_is_cheap_and_says_what_is_wrong(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="judge gpt-x needs OPENAI_API_KEY"):
        check_judge("gpt-x")
    with pytest.raises(ValueError, match="models/none"):
        check_judge("models/none")
    with pytest.raises(ValueError, match="empty"):
        check_judge("")
    with pytest.raises(ValueError, match="needs OPENAI_API_KEY"):
        make_judge("gpt-x", PROMPT)
    monkeypatch.setenv("OPENAI_API_KEY", "a-test-key")
    check_judge("gpt-x")
    assert isinstance(make_judge("gpt-x", PROMPT, "binary"), OpenAiJudge)


def test_checking_a_name_does_not_import_torch():
    code = (
        "import sys, judge\n"
        "try:\n    judge.check_judge('./no-such-judge')\nexcept ValueError as e:\n    print(e)\n"
        "assert 'torch' not in sys.modules and 'openai' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "./no-such-judge" in done.stdout, done.stderr

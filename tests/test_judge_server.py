"""Which servers can be scored from log-probabilities, the text mode for those that cannot, and the request limit."""

from __future__ import annotations

import asyncio
import time

import pytest

from judge import JudgeError, JudgeOptions, OpenAiJudge, UnfitJudge, check_judge, make_judge
from persona_vectors import chat_api, judge_server
from tests.loopback_openai import Reply

PROMPT = "Q: {question} A: {answer} How kind, 0 to 100?"
DIGITS = {"5": 0.6, "4": 0.2, "6": 0.1}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch):
    """No server is known from an earlier test, and pauses are short."""
    monkeypatch.setattr(judge_server, "_WHOLE_NUMBERS", set())
    monkeypatch.setattr(chat_api, "PAUSE_SECONDS", 0.001)


def items(n: int) -> list[tuple[str, str]]:
    return [(f"question {i}", f"answer {i}") for i in range(n)]


def text_of(request) -> str:
    return request["messages"][0]["content"]


def is_probe(request) -> bool:
    return text_of(request) == judge_server._PROBE


def tokens(*said: str) -> Reply:
    """A reply of several tokens, each alone among its alternatives."""
    top = [{"token": token, "logprob": 0.0, "bytes": None} for token in said]
    content = [one | {"top_logprobs": [one]} for one in top]
    return Reply("".join(said), choice={"logprobs": {"content": content}})


# --- numbers that a tokenizer splits ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probe", "found"),
    [
        (tokens("8", "7"), 'writes "87" as two tokens'),
        (tokens(" 8", "7", "."), 'writes "87" as two tokens'),
        (tokens("Sure", "!"), "asked to repeat \"87\", said 'Sure!'"),
    ],
)
def test_a_tokenizer_that_splits_numbers_is_refused_before_anything_is_scored(serve, probe: Reply, found: str):
    server = serve(lambda request: probe if is_probe(request) else DIGITS)
    judge = OpenAiJudge("splits", PROMPT)
    with pytest.raises(UnfitJudge, match="judge splits cannot be scored .*--judge_mode text, or a local") as error:
        judge.score_batch(items(1000), on_scored=lambda *_: pytest.fail("a score was handed out"))
    assert found in str(error.value) and "\n" not in str(error.value) and isinstance(error.value, ValueError)
    assert len(server.requests) <= chat_api._PILOTS + 1


def test_a_judge_that_means_single_digits_is_asked_once_to_repeat_87_and_then_scored(serve):
    server = serve(lambda request: tokens("87") if is_probe(request) else DIGITS)
    for prompt in (PROMPT, "coherent? {answer}"):  # one probe a run, not one for each judge prompt
        assert OpenAiJudge("small", prompt).score_batch(items(20)) == pytest.approx([(3 + 0.8 + 0.6) / 0.9] * 20)
    assert sum(map(is_probe, server.requests)) == 1
    assert len(server.requests) == 41
    assert asyncio.run(OpenAiJudge("small", PROMPT)(question="q", answer="a")) == pytest.approx(4.4 / 0.9)
    assert sum(map(is_probe, server.requests)) == 1


def test_a_number_of_two_digits_anywhere_makes_the_probe_needless(serve):
    server = serve(lambda _: DIGITS | {"50": 1e-6})
    OpenAiJudge("whole", PROMPT).score_batch(items(5))
    assert len(server.requests) == 5 and not any(map(is_probe, server.requests))


def test_what_gives_no_score_needs_no_probe(serve):
    server = serve(lambda _: {"I": 0.9, "5": 0.1})
    assert OpenAiJudge("refuses", PROMPT).score_batch(items(3)) == [None] * 3
    assert len(server.requests) == 3


def test_single_digits_are_all_that_0_10_and_binary_need(serve):
    server = serve(lambda _: DIGITS | {"YES": 0.05})
    OpenAiJudge("m", PROMPT, "0_10").score_batch(items(2))
    OpenAiJudge("m", PROMPT, "binary").score_batch(items(2))
    assert not any(map(is_probe, server.requests))


def test_a_probe_that_fails_is_a_failed_call(serve):
    serve(lambda request: Reply(status=500, retry=False) if is_probe(request) else DIGITS)
    with pytest.raises(JudgeError, match="1 of 1 judge calls failed: .*InternalServerError"):
        OpenAiJudge("m", PROMPT).score_batch(items(1))


# --- servers without log-probabilities -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 422])
def test_an_error_that_names_logprobs_is_refused(serve, status: int):
    error = {"error": {"message": "logprobs are not supported with this model"}}
    server = serve(lambda _: Reply(status=status, body=error))
    with pytest.raises(UnfitJudge, match="takes no logprobs .*not supported with this model.*--judge_mode text"):
        OpenAiJudge("m", PROMPT).score_batch(items(1000))
    assert len(server.requests) <= chat_api._PILOTS


def test_another_error_of_the_same_status_is_one_items_failure(serve):
    error = {"error": {"message": "this prompt is too long"}}
    serve(lambda request: Reply(status=400, body=error) if "question 3" in text_of(request) else {"40": 1.0})
    with pytest.raises(JudgeError, match="1 of 9 judge calls failed: 1 x BadRequestError: .*too long") as failed:
        OpenAiJudge("m", PROMPT).score_batch(items(9))
    assert failed.value.failures.keys() == {3} and failed.value.scores == [40.0] * 3 + [None] + [40.0] * 5


def test_some_replies_without_logprobs_are_asked_again(serve):
    """A fault of the moment, even at the very first replies, and no reason to give the server up."""
    said: dict[str, int] = {}

    def answer(request):
        said[text_of(request)] = said.get(text_of(request), 0) + 1
        late = "question 0" in text_of(request) or "question 7" in text_of(request)
        return Reply("40") if late and said[text_of(request)] <= 2 else {"40": 1.0}

    serve(answer)
    assert OpenAiJudge("m", PROMPT).score_batch(items(20)) == [40.0] * 20
    assert sorted(said.values())[-3:] == [1, 3, 3]


def test_an_item_that_never_gets_logprobs_is_a_failure_after_the_clients_retries(serve):
    server = serve(lambda request: Reply("40") if "question 3" in text_of(request) else {"40": 1.0})
    with pytest.raises(JudgeError, match="1 of 10 judge calls failed: 1 x the server sent no top_logprobs"):
        OpenAiJudge("m", PROMPT).score_batch(items(10), max_concurrent=1)
    assert sum("question 3" in text_of(request) for request in server.requests) == 1 + chat_api.MAX_RETRIES


# --- text mode -------------------------------------------------------------------------------------------------------


def test_text_mode_reads_the_reply_and_asks_for_no_logprobs(serve):
    server = serve(lambda request: f"<answer>{text_of(request).split()[2]}0</answer>")
    judge = make_judge("no-logprobs", PROMPT, options=JudgeOptions(mode="text"))
    assert judge.score_batch(items(10)) == [10.0 * n for n in range(10)]
    assert {request["temperature"] for request in server.requests} == {0}
    assert not any("logprobs" in request or "max_tokens" in request for request in server.requests)


def test_several_samples_are_averaged_at_temperature_1(serve):
    server = serve(lambda request: str([10, 20, 60][request["seed"]]))
    judge = OpenAiJudge("m", PROMPT, options=JudgeOptions("text", n_samples=3))
    assert judge.score_batch(items(2)) == [30.0, 30.0]
    assert [request["temperature"] for request in server.requests] == [1] * 6
    assert sorted(request["seed"] for request in server.requests) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("reply", [Reply("I would rather not."), Reply("", message={"content": None}), Reply("140")])
def test_a_reply_without_a_number_is_no_score_and_no_failure(serve, reply: Reply):
    serve(lambda _: reply)
    assert OpenAiJudge("m", PROMPT, options=JudgeOptions("text")).score_batch(items(2)) == [None, None]


def test_a_sample_that_fails_fails_its_item_only(serve):
    serve(lambda r: Reply(status=500, retry=False) if r["seed"] == 1 and "question 1" in text_of(r) else "50")
    with pytest.raises(JudgeError, match="1 of 3") as error:
        OpenAiJudge("m", PROMPT, options=JudgeOptions("text", n_samples=2)).score_batch(items(3))
    assert error.value.scores == [50.0, None, 50.0]


def test_text_mode_scores_yes_and_no(serve):
    serve(lambda request: ["Yes.", "NO", "REFUSAL"][int(text_of(request).split()[2])])
    judge = OpenAiJudge("m", "Q: {question} A: {answer}", "binary", options=JudgeOptions("text"))
    assert judge.score_batch(items(3)) == [1.0, 0.0, None]


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"mode": "speech"}, "judge_mode must be auto, logprobs or text; got speech"),
        ({"mode": "text", "n_samples": 0}, "at least 1; got 0 and 100"),
        ({"max_concurrent": 0}, "at least 1; got 1 and 0"),
        ({"n_samples": 4}, "4 judge samples need --judge_mode text"),
        ({"max_requests_per_minute": 0}, "max_requests_per_minute must be at least 1; got 0"),
    ],
)
def test_options_that_make_no_sense(wrong, said: str):
    with pytest.raises(ValueError, match=said):
        JudgeOptions(**wrong)


def test_a_local_judge_writes_no_text_and_a_text_score_needs_no_logprobs(tiny_persona: str):
    with pytest.raises(ValueError, match="scored exactly, in process, and writes no text; drop --judge_mode"):
        check_judge(tiny_persona, JudgeOptions("text"))
    check_judge(tiny_persona, JudgeOptions("logprobs"))
    with pytest.raises(ValueError, match="binary_text is read from the judge's text"):
        OpenAiJudge("m", PROMPT, "binary_text", options=JudgeOptions("logprobs"))


# --- the limit on requests a minute ----------------------------------------------------------------------------------


def test_requests_a_minute_are_kept_to_retries_included(serve):
    starts: list[float] = []
    failing = iter([True, False, True])

    def answer(_):
        starts.append(time.monotonic())
        return Reply(status=500) if next(failing, False) else {"40": 1.0}

    serve(answer)
    judge = OpenAiJudge("m", PROMPT, options=JudgeOptions(max_requests_per_minute=1200))
    assert judge.score_batch(items(20)) == [40.0] * 20
    assert len(starts) == 22
    assert starts[-1] - starts[0] >= 21 * 0.05 - 0.04  # 50 ms apart, whatever the number in flight


def test_the_schedule_gives_turns_and_never_saves_up_a_burst():
    async def turns() -> list[float]:
        schedule = chat_api._Schedule(6000)  # 10 ms apart
        await schedule(None)
        await asyncio.sleep(0.05)  # five turns go by unused
        taken = []

        async def one() -> None:
            await schedule(None)
            taken.append(time.monotonic())

        await asyncio.gather(*(one() for _ in range(6)))
        return taken

    taken = asyncio.run(turns())
    assert taken[-1] - taken[0] >= 0.049

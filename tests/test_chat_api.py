"""Judge calls through a server that fails: nothing lost, nothing scored wrongly, no more requests than the client's."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from eval.finished_scores import scores_of
from judge import JudgeError, JudgeOptions, OpenAiJudge, fill_prompt
from persona_vectors import chat_api
from persona_vectors.store import Store
from tests.faulty_openai import KINDS, PROMPT, Faults, FaultyOpenAI, item, true_score
from tests.loopback_openai import LoopbackOpenAI, Reply

N = 300


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat_api, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(chat_api, "TIMEOUT_SECONDS", 4.0)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_nothing_is_lost_or_scored_wrongly_through_a_failing_server(monkeypatch: pytest.MonkeyPatch, tmp_path):
    pairs = [item(number) for number in range(N)]
    faults = Faults(rate=0.25, latency=0.005, hang_seconds=4.5, retry_after=0.01, stubborn=0.02)
    with FaultyOpenAI(faults) as server, Store(tmp_path / "store.sqlite") as store:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        with pytest.raises(JudgeError, match=rf"of {N} judge calls failed: .*run again for the rest") as error:
            scores_of("judge", PROMPT, pairs, store=store, options=JudgeOptions(max_concurrent=40))
        served = {prompt: [one.kind for one in requests] for prompt, requests in server.served().items()}
        scores, failures = error.value.scores, error.value.failures
        again = scores_of("judge", PROMPT, pairs, store=store)
        served_then = server.served()
        assert scores_of("judge", PROMPT, pairs, store=store) == again
        assert server.n_requests() == sum(map(len, served_then.values()))  # a warm store asks nobody
    kinds = Counter(kind for each in served.values() for kind in each)
    assert kinds.keys() == {"ok", *KINDS}, "a fault that never came would prove nothing"
    assert 1 <= len(failures) < N / 10
    for number, pair in enumerate(pairs):
        prompt = fill_prompt(PROMPT, *pair)
        assert len(served[prompt]) <= 1 + chat_api.MAX_RETRIES
        if number in failures:
            assert scores[number] is None and not {"ok", "refusal"} & set(served[prompt])
            assert len(served_then[prompt]) > len(served[prompt])
        else:
            assert len(served_then[prompt]) == len(served[prompt])
            assert scores[number] == again[number]
        if again[number] is None:
            assert served_then[prompt][-1].kind == "refusal"
        else:
            assert math.isclose(again[number] or 0, true_score(number), abs_tol=1e-6)
    assert sum(score is None for score in again) < N / 10


def test_faults_repeat_whatever_the_order_of_calls():
    faults = Faults(rate=0.3, seed=1)
    drawn = Counter(faults.of(f"prompt {n}", 0) for n in range(3000))
    assert drawn == Counter(faults.of(f"prompt {n}", 0) for n in reversed(range(3000)))
    assert 0.27 < 1 - drawn["ok"] / 3000 < 0.33 and min(drawn[kind] for kind in KINDS) > 50


def test_a_server_that_is_gone_in_the_middle_is_not_asked_to_the_end(monkeypatch: pytest.MonkeyPatch):
    """Only failures in a row count: with single faults every item gets its tries."""
    n_well = 60
    n_served = 0

    def answer(_):
        nonlocal n_served
        n_served += 1
        return {"40": 1.0} if n_served <= n_well else Reply(status=503, retry=False)

    with LoopbackOpenAI(answer) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        with pytest.raises(JudgeError, match="not asked, because no call can succeed") as error:
            OpenAiJudge("m", PROMPT).score_batch([item(n) for n in range(2000)], max_concurrent=10)
    assert n_well + 20 <= n_served <= n_well + 40
    assert sum(score == 40.0 for score in error.value.scores) == n_well


def test_bad_prompts_in_a_row_do_not_stop_the_others(monkeypatch: pytest.MonkeyPatch):
    def answer(request):
        number = int(request["messages"][0]["content"].split("item ")[1].split()[0])
        return Reply(status=400) if 5 <= number < 80 else {"40": 1.0}

    with LoopbackOpenAI(answer) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        with pytest.raises(JudgeError, match="75 of 100") as error:
            OpenAiJudge("m", PROMPT).score_batch([item(n) for n in range(100)], max_concurrent=2)
    assert error.value.failures.keys() == set(range(5, 80))


def test_the_first_calls_are_few(monkeypatch: pytest.MonkeyPatch):
    with LoopbackOpenAI(lambda _: Reply(status=401, seconds=0.05)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        with pytest.raises(JudgeError, match="500 of 500"):
            OpenAiJudge("m", PROMPT).score_batch([item(n) for n in range(500)], max_concurrent=100)
    assert len(server.requests) <= chat_api._PILOTS


def test_a_web_page_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch):
    with LoopbackOpenAI(lambda _: Reply(body="<html>welcome</html>")) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        with pytest.raises(JudgeError, match="check OPENAI_BASE_URL"):
            OpenAiJudge("m", PROMPT).score_batch([item(0)])
    assert len(server.requests) == 1

"""Scores by way of the store: asked once, keyed by everything that determines them, and what it will take."""

from __future__ import annotations

import pytest
import torch

from eval.finished_scores import Estimate, estimate, score_keys, scores_of
from judge import JudgeError, JudgeOptions, UnfitJudge
from persona_vectors import judge_server
from persona_vectors.models import fingerprint
from persona_vectors.store import Store, content_key
from tests.loopback_openai import Reply

TEMPLATE = "Q: {question} A: {answer} How kind?"
ITEMS = [("q1", "a1"), ("q2", "a2"), ("q1", "a1"), ("q3", "a3")]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch):
    """No server is known from an earlier test."""
    monkeypatch.setattr(judge_server, "_WHOLE_NUMBERS", set())


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store.sqlite") as opened:
        yield opened


def test_equal_items_are_asked_once_and_nothing_twice(serve, store):
    server = serve(lambda _: {"40": 1.0})
    assert scores_of("m", TEMPLATE, ITEMS, store=store) == [40.0] * 4
    assert len(server.requests) == 3
    assert scores_of("m", TEMPLATE, ITEMS, store=store) == [40.0] * 4
    assert len(server.requests) == 3
    scores_of("m", TEMPLATE, ITEMS, store=store, overwrite=True)
    assert len(server.requests) == 6


def test_the_key_is_everything_that_determines_a_score(serve):
    serve(lambda _: {"40": 1.0})
    text = [JudgeOptions("text", n_samples=n) for n in (1, 2)]
    variants = [
        score_keys("m", TEMPLATE, ITEMS[:1]),
        score_keys("other", TEMPLATE, ITEMS[:1]),
        score_keys("m", TEMPLATE + " ", ITEMS[:1]),
        score_keys("m", TEMPLATE, ITEMS[:1], eval_type="0_10"),
        score_keys("m", TEMPLATE, [("q1", "a2")]),
        score_keys("m", TEMPLATE, [("q2", "a1")]),
        *(score_keys("m", TEMPLATE, ITEMS[:1], options=options) for options in text),
    ]
    serve(lambda _: {"40": 1.0})  # another server
    variants.append(score_keys("m", TEMPLATE, ITEMS[:1]))
    assert len({key for keys in variants for key in keys}) == len(variants)


def test_limits_are_no_part_of_the_key_and_old_keys_stay(serve):
    server = serve(lambda _: {"40": 1.0})
    limits = JudgeOptions(max_concurrent=3, max_requests_per_minute=60)
    explicit = JudgeOptions("logprobs")
    (key,) = score_keys("m", TEMPLATE, ITEMS[:1])
    for options in (limits, explicit):
        assert score_keys("m", TEMPLATE, ITEMS[:1], options=options) == [key]
    judge = {"model": "m", "base_url": server.url}
    before = content_key("score", judge=judge, template=TEMPLATE, eval_type="0_100", question="q1", answer="a1")
    assert key == before


def test_what_failed_is_listed_by_item_and_asked_for_the_next_time(serve, store):
    failing = {"a1"}

    def answer(request):
        fails = any(name in request["messages"][0]["content"] for name in failing)
        return Reply(status=500, retry=False) if fails else {"40": 1.0}

    server = serve(answer)
    with pytest.raises(JudgeError, match=r"2 of 4 judge calls failed: .*\(2 scored; run again") as error:
        scores_of("m", TEMPLATE, ITEMS, store=store)
    assert error.value.failures.keys() == {0, 2} and error.value.scores == [None, 40.0, None, 40.0]
    with pytest.raises(JudgeError, match="1 of 2 judge calls") as error:  # what is stored counts in the indices
        scores_of("m", TEMPLATE, [ITEMS[1], ITEMS[0]], store=store)
    assert error.value.failures.keys() == {1} and error.value.scores == [40.0, None]
    failing.clear()
    asked = len(server.requests)
    assert scores_of("m", TEMPLATE, ITEMS, store=store) == [40.0] * 4
    assert len(server.requests) == asked + 1


def test_a_refusal_is_finished_work(serve, store):
    server = serve(lambda _: {"I": 1.0})
    assert scores_of("m", TEMPLATE, ITEMS, store=store) == [None] * 4
    assert scores_of("m", TEMPLATE, ITEMS, store=store) == [None] * 4
    assert len(server.requests) == 3


def test_a_judge_that_splits_numbers_leaves_nothing_in_the_store(serve, store):
    serve(lambda _: {"5": 1.0})
    with pytest.raises(UnfitJudge, match="--judge_mode text"):
        scores_of("m", TEMPLATE, ITEMS, store=store)
    assert store.count("score") == 0
    text = JudgeOptions("text")
    assert scores_of("m", TEMPLATE, ITEMS, store=store, options=text) == [5.0] * 4


def test_the_estimate_comes_first_and_counts_what_is_left(serve, store):
    server = serve(lambda _: {"40": 1.0})
    scores_of("m", TEMPLATE, ITEMS[:1], store=store)
    said: list[tuple[Estimate, int]] = []
    scores_of("m", TEMPLATE, ITEMS, store=store, on_estimate=lambda e: said.append((e, len(server.requests))))
    characters = 2 * len("Q: q2 A: a2 How kind?")
    assert said == [(Estimate(4, 3, 1, 2, -(-characters // 4)), 1)]
    assert (
        said[0][0].line().startswith("4 items, 3 distinct, 1 already in the store: 2 calls, about 11 prompt tokens (an")
    )
    assert estimate("m", TEMPLATE, ITEMS, store=store).n_calls == 0
    assert estimate("m", TEMPLATE, ITEMS, store=store, overwrite=True).n_calls == 3
    text = JudgeOptions("text", n_samples=5)
    assert estimate("m", TEMPLATE, ITEMS, store=store, options=text) == Estimate(4, 3, 0, 15, -(-3 * 21 * 5 // 4))


def test_what_computes_a_local_judge_is_in_its_keys_and_in_no_api_judges():
    local, api = (
        [score_keys(name, TEMPLATE, ITEMS[:1], options=options) for options in (None, *map(_engine, ("hf", "vllm")))]
        for name in ("models/tiny-persona", "m")
    )
    assert local[0] == local[1] != local[2]
    assert api[0] == api[1] == api[2]


def test_a_local_judges_scores_of_a_gpu_and_of_a_cpu_are_apart_and_the_cpus_keys_stay(tiny_persona, monkeypatch):
    """On a GPU it computes in its checkpoint's bfloat16, for one, and a score moved by a quarter of a point."""

    def keys(name: str, on_gpu: bool, engine: str = "hf") -> list[str]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
        return score_keys(name, TEMPLATE, ITEMS[:1], options=_engine(engine))

    assert keys(tiny_persona, False) != keys(tiny_persona, True)
    assert keys("m", False) == keys("m", True) and keys(tiny_persona, False, "vllm") == keys(tiny_persona, True, "vllm")
    judge = {"local": fingerprint(tiny_persona)}
    before = content_key("score", judge=judge, template=TEMPLATE, eval_type="0_100", question="q1", answer="a1")
    assert keys(tiny_persona, False) == [before]


def _engine(name) -> JudgeOptions:
    return JudgeOptions(engine=name)

"""Each position of a prompt and an answer is summed once, however steps cut it and preemption repeats it; the probe."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_vectors.vllm_capture import CAPTURE_KEY, Capture, span_means
from persona_vectors.vllm_probe import N_PLACES, PROBE_KEY, Probe

WIDTH, LAYERS, N_TOKENS = 3, (1, 3), 64
CPU = torch.device("cpu")


def scheduled(new=(), finished=(), preempted=(), cached=()):
    """What the scheduler tells a worker, as far as it is read here; new requests are (name, prompt length, extra)."""
    return SimpleNamespace(
        finished_req_ids=set(finished),
        preempted_req_ids=set(preempted),
        scheduled_cached_reqs=SimpleNamespace(req_ids=list(cached)),
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, prompt_token_ids=[0] * n, sampling_params=SimpleNamespace(extra_args=extra))
            for name, n, extra in new
        ],
    )


def stream_of(name, layer, position):
    """A hidden state that is this token's alone."""
    return torch.tensor([float(ord(name)), layer, 2.0 ** min(position, 20)])


def step(capture, batch, split=False):
    """One step over (name, first, n_tokens) each, as the hooks see it."""
    names, firsts, counts = zip(*batch, strict=True)
    capture.fill(names, counts, firsts)
    for layer in LAYERS:
        tokens = [stream_of(n, layer, p) for n, first, count in batch for p in range(first, first + count)]
        stream = torch.stack(tokens)
        capture.read(layer, stream - 1 if split else stream, torch.ones_like(stream) if split else None)


def means(taken, n_prompt, n_response):
    return span_means(taken, WIDTH, n_prompt, n_response)


def mean_of(name, start, end):
    """(layers, WIDTH) over those positions."""
    streams = [torch.stack([stream_of(name, layer, p) for p in range(start, end)]).mean(0) for layer in LAYERS]
    return torch.stack(streams)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100_000), st.booleans())
def test_each_position_counts_once_under_chunks_and_preemption(seed, split):
    draw = random.Random(seed)
    capture = Capture(LAYERS, WIDTH, 3, N_TOKENS, CPU)
    wanted = {name: (draw.randint(1, 8), draw.randint(1, 6)) for name in "abcd"}  # d is not captured
    extra = {name: {CAPTURE_KEY: name.upper()} if name != "d" else None for name in wanted}
    capture.learn(scheduled(new=[(name, n_prompt, extra[name]) for name, (n_prompt, _) in wanted.items()]))
    at = dict.fromkeys(wanted, 0)
    while any(at[name] < sum(wanted[name]) for name in wanted):
        for name in wanted:
            if draw.random() < 0.1:
                at[name] = draw.randint(0, at[name])  # preempted; the prefix cache may hold some of it
        batch = [
            (name, at[name], draw.randint(1, min(5, sum(wanted[name]) - at[name])))
            for name in draw.sample("abcd", 4)
            if at[name] < sum(wanted[name]) and draw.random() < 0.8
        ]
        if batch:
            step(capture, batch, split)
            at |= {name: first + n for name, first, n in batch}
    taken = capture.take(["A", "B", "C"])
    for name in "abc":
        n_prompt, n_response = wanted[name]
        assert taken[name.upper()]["layers"] == list(LAYERS)
        found = means(taken[name.upper()], n_prompt, n_response)
        assert torch.equal(found["prompt_avg"], mean_of(name, 0, n_prompt))
        assert torch.equal(found["prompt_last"], mean_of(name, n_prompt - 1, n_prompt))
        assert torch.equal(found["response_avg"], mean_of(name, n_prompt, n_prompt + n_response))


def test_a_place_that_is_used_again_starts_at_zero_and_what_has_ended_waits_to_be_taken():
    capture = Capture(LAYERS, WIDTH, 1, N_TOKENS, CPU)
    capture.learn(scheduled(new=[("a", 2, {CAPTURE_KEY: "A"})]))
    step(capture, [("a", 0, 5)])
    capture.learn(scheduled(new=[("b", 2, {CAPTURE_KEY: "B"})], finished=["a"]))
    step(capture, [("b", 0, 3)])
    taken = capture.take(["A", "B"])
    assert torch.equal(means(taken["A"], 2, 3)["response_avg"], mean_of("a", 2, 5))
    assert torch.equal(means(taken["B"], 2, 1)["prompt_avg"], mean_of("b", 0, 2))
    assert torch.equal(means(taken["B"], 2, 1)["response_avg"], mean_of("b", 2, 3))
    capture.learn(scheduled(finished=["b"]))  # announced after it was taken
    with pytest.raises(KeyError):
        capture.take(["B"])


def test_a_preempted_request_leaves_its_place_to_another_and_goes_on_where_it_was():
    capture = Capture(LAYERS, WIDTH, 1, N_TOKENS, CPU)
    capture.learn(scheduled(new=[("a", 2, {CAPTURE_KEY: "A"})]))
    step(capture, [("a", 0, 3)])
    capture.learn(scheduled(new=[("b", 1, {CAPTURE_KEY: "B"})], preempted=["a"]))
    step(capture, [("b", 0, 2)])
    capture.learn(scheduled(finished=["b"], cached=["a"]))
    step(capture, [("a", 0, 4)])
    capture.learn(scheduled(cached=["a"]))
    step(capture, [("a", 4, 1)])
    capture.learn(scheduled(preempted=["a"]))  # and may end without being computed again
    taken = capture.take(["A", "B"])
    assert torch.equal(means(taken["A"], 2, 3)["prompt_avg"], mean_of("a", 0, 2))
    assert torch.equal(means(taken["A"], 2, 3)["response_avg"], mean_of("a", 2, 5))
    assert torch.equal(means(taken["B"], 1, 1)["response_avg"], mean_of("b", 1, 2))


def test_a_prompt_from_the_prefix_cache_has_no_means_and_its_answer_has():
    capture = Capture(LAYERS, WIDTH, 1, N_TOKENS, CPU)
    capture.learn(scheduled(new=[("a", 4, {CAPTURE_KEY: "A"})]))
    step(capture, [("a", 2, 4)])
    [taken] = capture.take(["A"]).values()
    assert list(means(taken, None, 2)) == ["response_avg"]
    assert torch.equal(means(taken, None, 2)["response_avg"], mean_of("a", 4, 6))
    for n_prompt, n_response in ((4, 2), (None, 3)):
        with pytest.raises(RuntimeError, match=r"captured \(2, 2\) tokens"):
            means(taken, n_prompt, n_response)


def test_aborted_requests_leave_nothing_behind():
    capture = Capture(LAYERS, WIDTH, 3, N_TOKENS, CPU)
    for _ in range(5):  # more than there are places for
        capture.learn(scheduled(new=[(name, 2, {CAPTURE_KEY: name.upper()}) for name in "abc"]))
        step(capture, [("a", 0, 3), ("b", 0, 3), ("c", 0, 3)])
        capture.learn(scheduled(preempted=["b"], finished=["c"]))
        capture.forget(["A", "B", "C", "D"])  # running, preempted, ended, never begun
        step(capture, [("a", 3, 1)])  # the step that was under way
        capture.learn(scheduled(finished=["a", "b"]))
        assert capture.n_held == 0
    assert sorted(capture._free) == [0, 1, 2]
    with pytest.raises(KeyError):
        capture.take(["A"])


def probe_step(probe, batch):
    names, firsts, counts = zip(*batch, strict=True)
    probe.fill(names, counts, firsts)
    for layer in LAYERS:
        stream = torch.stack([stream_of(n, layer, p) for n, first, c in batch for p in range(first, first + c)])
        probe.read(layer, stream, stream * 2, torch.ones_like(stream))
    probe.keep()


def test_the_probe_reads_the_wanted_tokens_before_and_after_and_nothing_once_they_are_read():
    probe = Probe(LAYERS, WIDTH, CPU)
    probe.learn(scheduled(new=[("a", 6, {PROBE_KEY: json.dumps([1, 5])}), ("b", 9, None)]))
    probe_step(probe, [("b", 0, 9), ("a", 0, 4)])
    probe_step(probe, [("a", 4, 2), ("b", 9, 1)])
    probe_step(probe, [("a", 6, 1), ("b", 10, 1)])
    taken = probe.take()
    assert [(one["request"], one["position"]) for one in taken] == [("a", 1), ("a", 5)]
    for one in taken:
        states = torch.from_numpy(np.frombuffer(one["states"], np.float32).copy()).reshape(len(LAYERS), 2, WIDTH)
        streams = torch.stack([stream_of("a", layer, one["position"]) for layer in one["layers"]])
        assert torch.equal(states[:, 0], streams + 1) and torch.equal(states[:, 1], streams * 2 + 1)
    assert probe.take() == []


def test_a_short_step_follows_the_end_of_a_probed_request():
    probe = Probe(LAYERS, WIDTH, CPU)
    probe.learn(scheduled(new=[("a", 9, {PROBE_KEY: "[8]"}), ("b", 1, None)]))
    probe_step(probe, [("a", 0, 9)])
    probe.learn(scheduled(finished=["a"]))
    probe_step(probe, [("b", 0, 1)])  # token 8 of the batch is not there any more
    assert [one["position"] for one in probe.take()] == [8]


def test_the_probe_serves_so_many_tokens_a_step():
    probe = Probe(LAYERS, WIDTH, CPU)
    probe.learn(scheduled(new=[("a", 9, {PROBE_KEY: json.dumps(list(range(9)))})]))
    probe_step(probe, [("a", 0, 9)])
    assert [one["position"] for one in probe.take()] == list(range(N_PLACES))

"""Judge calls against a server that fails: is anything lost or scored wrongly, and how fast is it.

    python -m benchmarks.judge_calls
    python -m benchmarks.judge_calls --n_calls 500 --latency 0.1   # a short one

The server (tests/faulty_openai.py) runs in a process of its own, answers after `latency` seconds, and gives 429, 500, a
reply that never comes, torn JSON, no choices, no log-probabilities, a refusal or a closed connection to a tenth of the
requests, and status 500 to all of the client's tries of a few items. Each item's true score is known from its text.

Throughput: the time the requests would take on their own (`latency` each, the client's timeout for one that hangs),
over the time that the calls in flight had: `max_concurrent` x wall time, less the back-off. Back-off is, for each
item, the time between the end of one request and the start of its next, by the server's clock. It is given up to the
moment the last item was first asked (after it, fewer than `max_concurrent` can be in flight), and for the whole run.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_vectors import cli

if TYPE_CHECKING:
    from persona_vectors.store import Store
    from tests.faulty_openai import Served

JUDGE = "faulty-judge"
TARGET = 0.8


@dataclass(frozen=True)
class Scored:
    """One pass over the items: scores, failures by index, wall and CPU seconds of this process."""

    scores: list[float | None]
    failures: dict[int, str]
    wall: float
    cpu: float


def main(
    n_calls: int = 5000,
    latency: float = 0.5,
    rate: float = 0.1,
    max_concurrent: int = 100,
    stubborn: float = 0.002,
    timeout: float = 2.0,
    seed: int = 0,
    output_path: str | None = None,
) -> None:
    """Score items through a failing server, check every score, and print the throughput.

    Args:
        n_calls: items, all different.
        latency (seconds): before the server answers.
        rate: share of requests that get a fault.
        max_concurrent: calls in flight at once.
        stubborn: share of items whose every request of the first run fails: they must be listed, and scored next time.
        timeout (seconds): the client's, for replies that never come.
        seed: of the faults.
        output_path: JSON of the figures.
    """
    from persona_vectors import chat_api
    from persona_vectors.files import check_output_path, write_json_atomic, write_sidecar

    if n_calls < 1 or latency < 0 or not 0 <= rate < 1 or not 0 <= stubborn < 1 or timeout <= latency:
        raise ValueError("--n_calls must be at least 1, --rate and --stubborn below 1, and --timeout above --latency")
    out = None if output_path is None else check_output_path(output_path, [".json"])
    chat_api.TIMEOUT_SECONDS = timeout
    faults = {"latency": latency, "hang_seconds": timeout + 1, "seed": seed}
    figures = {
        "faults": with_faults(n_calls, max_concurrent, timeout, {**faults, "rate": rate, "stubborn": stubborn}),
        "no faults": without_faults(n_calls, max_concurrent, faults),
        "duplicates": duplicates(n_calls // 5, max_concurrent, faults),
    }
    if out is not None:
        write_json_atomic(out, figures)
        write_sidecar(out, {"settings": {"n_calls": n_calls, "max_concurrent": max_concurrent, "rate": rate, **faults}})
        print(out)


def with_faults(n_calls: int, max_concurrent: int, timeout: float, faults: dict[str, Any]) -> dict[str, Any]:
    """Two passes over the items through one failing server, each checked item by item."""
    from persona_vectors.chat_api import MAX_RETRIES
    from persona_vectors.store import Store
    from tests.faulty_openai import Faults, FaultyOpenAI, item

    pairs = [item(number) for number in range(n_calls)]
    with (
        FaultyOpenAI(Faults(**faults), in_process=False) as server,
        tempfile.TemporaryDirectory() as folder,
        Store(Path(folder) / "store.sqlite") as store,
    ):
        first = score(server.url, pairs, store, max_concurrent)
        served = requests_by_item(server.served(), pairs)
        wrong = wrongly_scored(first, served)
        second = score(server.url, pairs, store, max_concurrent)
        served_then = requests_by_item(server.served(), pairs)
    asked_again = {number for number in range(n_calls) if len(served_then[number]) > len(served[number])}
    most = max(len(requests) for requests in served)
    speed = throughput(served, max_concurrent, faults["latency"], timeout)
    kinds = Counter(request.kind for requests in served for request in requests)
    n_none = sum(score is None for score in first.scores) - len(first.failures)
    figures = {
        "n_items": n_calls,
        "n_requests": sum(kinds.values()),
        "served": dict(sorted(kinds.items())),
        "n_scored": n_calls - n_none - len(first.failures),
        "n_refused": n_none,
        "n_failed": len(first.failures),
        "n_wrong": len(wrong),
        "n_lost": len(set(first.failures) ^ asked_again) + len(second.failures),
        "most_requests_an_item": most,
        "wall_seconds": round(first.wall, 2),
        "cpu_ms_a_request": round(1000 * first.cpu / sum(kinds.values()), 2),
        **speed,
    }
    print(
        f"faults: {figures['n_requests']} requests for {n_calls} items, {n_calls - kinds_ok_first(served)} hit a fault"
    )
    print(f"  served: {', '.join(f'{kind} {count}' for kind, count in figures['served'].items())}")
    print(f"  scored {figures['n_scored']}, refused {n_none}, listed as failed {len(first.failures)}")
    print(f"  scored wrongly {len(wrong)}, lost {figures['n_lost']} (asked in the second run: {len(asked_again)})")
    print(f"  most requests for one item {most}, allowed {1 + MAX_RETRIES}")
    print(f"  throughput while items were waiting: {speed['steady']:.3f} of what is possible (target {TARGET})")
    print(f"  throughput of the whole run:         {speed['whole']:.3f}")
    print(f"  {first.wall:.1f} s, of which back-off {speed['backoff_seconds'] / max_concurrent:.1f} s a call in flight")
    print(f"  {figures['cpu_ms_a_request']} ms of this process's CPU a request")
    return figures


def without_faults(n_calls: int, max_concurrent: int, faults: dict[str, Any]) -> dict[str, Any]:
    """The same without faults: what the client itself costs."""
    from persona_vectors.store import Store
    from tests.faulty_openai import Faults, FaultyOpenAI, item

    pairs = [item(number) for number in range(n_calls)]
    with (
        FaultyOpenAI(Faults(**{**faults, "rate": 0.0}), in_process=False) as server,
        tempfile.TemporaryDirectory() as folder,
        Store(Path(folder) / "store.sqlite") as store,
    ):
        scored = score(server.url, pairs, store, max_concurrent)
        served = requests_by_item(server.served(), pairs)
    speed = throughput(served, max_concurrent, faults["latency"], math.inf)
    figures = {
        "calls_a_second": round(n_calls / scored.wall, 1),
        "possible": max_concurrent / faults["latency"] if faults["latency"] else None,
        "cpu_ms_a_call": round(1000 * scored.cpu / n_calls, 2),
        "n_wrong": len(wrongly_scored(scored, served)),
        **speed,
    }
    print(
        f"no faults: {figures['calls_a_second']} calls/s, {speed['steady']:.3f} of what is possible while items were "
        f"waiting, {speed['whole']:.3f} in all; {figures['cpu_ms_a_call']} ms CPU a call"
    )
    return figures


def duplicates(n_distinct: int, max_concurrent: int, faults: dict[str, Any]) -> dict[str, Any]:
    """Requests for a set in which every item stands twice, and for the same set again."""
    from persona_vectors.store import Store
    from tests.faulty_openai import Faults, FaultyOpenAI, item

    pairs = [item(number) for number in range(n_distinct)] * 2
    with (
        FaultyOpenAI(Faults(**{**faults, "rate": 0.0}), in_process=False) as server,
        tempfile.TemporaryDirectory() as folder,
        Store(Path(folder) / "store.sqlite") as store,
    ):
        first = score(server.url, pairs, store, max_concurrent)
        cold = server.n_requests()
        warm = score(server.url, pairs, store, max_concurrent)
        again = server.n_requests() - cold
    figures = {
        "n_items": len(pairs),
        "cold": cold,
        "warm": again,
        "n_failed": len(first.failures),
        "warm_seconds": round(warm.wall, 3),
    }
    print(f"duplicates: {len(pairs)} items, each twice: {cold} requests (one may be the probe for whole numbers),")
    print(f"  {len(first.failures)} failed; the same again: {again}")
    return figures


def score(url: str, pairs: Sequence[tuple[str, str]], store: Store, max_concurrent: int) -> Scored:
    """The items' scores through the store, whatever fails."""
    from eval.finished_scores import scores_of
    from judge import JudgeError, JudgeOptions
    from tests.faulty_openai import PROMPT

    os.environ |= {"OPENAI_BASE_URL": url, "NO_PROXY": "127.0.0.1"}
    failures: dict[int, str] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        scores = scores_of(JUDGE, PROMPT, pairs, store=store, options=JudgeOptions(max_concurrent=max_concurrent))
    except JudgeError as error:
        scores, failures = error.scores, error.failures
    return Scored(scores, failures, time.perf_counter() - wall, time.process_time() - cpu)


def requests_by_item(
    served: Mapping[str, Sequence[Served]], pairs: Sequence[tuple[str, str]]
) -> list[Sequence[Served]]:
    """The requests for each item, in order."""
    from judge import fill_prompt
    from tests.faulty_openai import PROMPT

    return [served.get(fill_prompt(PROMPT, *pair), ()) for pair in pairs]


def wrongly_scored(scored: Scored, served: Sequence[Sequence[Served]]) -> list[int]:
    """Items whose outcome is not the one that the server's replies call for: its true score, None for a refusal, or a
    failure where every request failed."""
    from tests.faulty_openai import true_score

    wrong = []
    for number, (got, requests) in enumerate(zip(scored.scores, served, strict=True)):
        kinds = [request.kind for request in requests]
        if number in scored.failures:
            right = got is None and not {"ok", "refusal"} & set(kinds)
        elif got is None:
            right = kinds[-1:] == ["refusal"]
        else:
            right = "ok" in kinds and math.isclose(got, true_score(number), abs_tol=1e-6)
        if not right:
            wrong.append(number)
    return wrong


def throughput(
    served: Sequence[Sequence[Served]], max_concurrent: int, latency: float, timeout: float
) -> dict[str, float]:
    """Work over worker-time less back-off, while items were waiting and in all (see the module's docstring)."""
    begin = min(request.start for requests in served for request in requests)
    queue_empty = max(requests[0].start for requests in served if requests)
    finish = max(request.end for requests in served for request in requests)
    work = {queue_empty: 0.0, finish: 0.0}
    backoff = {queue_empty: 0.0, finish: 0.0}
    for until in work:
        for requests in served:
            ends = [min(request.end, request.start + timeout) for request in requests]
            for request in requests:
                alone = timeout if request.kind == "timeout" else latency
                work[until] += max(0.0, min(alone, until - request.start))
            for end, following in zip(ends, requests[1:], strict=False):
                backoff[until] += max(0.0, min(following.start, until) - end)
    steady, whole = (work[t] / (max_concurrent * (t - begin) - backoff[t]) for t in (queue_empty, finish))
    return {"steady": round(steady, 4), "whole": round(whole, 4), "backoff_seconds": round(backoff[finish], 2)}


def kinds_ok_first(served: Sequence[Sequence[Served]]) -> int:
    """Items whose first request went well."""
    return sum(requests[0].kind == "ok" for requests in served)


if __name__ == "__main__":
    cli.run(main)

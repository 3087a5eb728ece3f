"""Mixed requests to one model, the tokens that transformers answers with, and vLLM engines to hold against them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from persona_vectors.models import load_tokenizer
from persona_vectors.tokens import render_prompt, tokenize_prompt
from persona_vectors.vllm_spec import KEY, spec_text
from persona_vectors.vllm_steering import Request, SteeredLLM
from tests.vllm.reference import Vectors, greedy, mixed_specs, random_vectors

BLOCK = 32  # tokens in a block of the prefix cache
N_TOKENS = 20


@dataclass(frozen=True)
class Trial:
    """A model, mixed requests to it, and the tokens that transformers answers with."""

    model: Any
    vectors: Vectors
    requests: list[Request]
    answers: list[tuple[int, ...]]
    ends: list[int]

    def answer(self, request: Request, max_tokens: int = N_TOKENS, model: Any = None) -> tuple[int, ...]:
        return greedy(model or self.model, request, self.vectors, self.ends, max_tokens)


def prompt_ids(model: str, question: str, system: str | None = None) -> list[int]:
    tokenizer = load_tokenizer(model)
    messages = [] if system is None else [{"role": "system", "content": system}]
    return tokenize_prompt(tokenizer, render_prompt(tokenizer, [*messages, {"role": "user", "content": question}]))


def trial_of(model: Any, prompts: list[list[int]], ends: list[int]) -> Trial:
    vectors = random_vectors(model, prompts[0])
    requests = [Request(ids, spec) for ids in prompts for spec in mixed_specs(vectors)]
    answers = [greedy(model, request, vectors, ends, N_TOKENS) for request in requests]
    plain = {tuple(one.ids): answer for one, answer in zip(requests, answers, strict=True) if not one.spec}
    steered = [answer != plain[tuple(one.ids)] for one, answer in zip(requests, answers, strict=True) if one.spec]
    print(f"\n{len(requests)} requests, steering changes {sum(steered)} of {len(steered)}")
    assert sum(steered) > 0.6 * len(steered)  # otherwise agreement would prove nothing
    return Trial(model, vectors, requests, answers, ends)


def engine(model: str, trial: Trial, processes: bool = False, **options: Any) -> SteeredLLM:
    """An engine that holds the trial's vectors under their names.

    In this process, where one starts in a few seconds; with `processes` in its own, as users run it. At most one of the
    former at a time.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", str(int(processes)))
        llm = SteeredLLM(model, projections=2, block_size=BLOCK, disable_log_stats=False, **options)
    for name, vector in trial.vectors.items():
        llm.register(vector, name)
    assert llm._ends == trial.ends
    return llm


def answers(llm: SteeredLLM, requests: list[Request], max_tokens: int = N_TOKENS) -> list[tuple[int, ...]]:
    found = dict(llm.stream(requests, max_tokens=max_tokens))
    return [found[row].ids for row in range(len(requests))]


def wrong(found: list, expected: list, requests: list[Request]) -> list:
    """Which requests were answered otherwise, for the message of an assertion."""
    assert len(found) == len(expected) == len(requests)
    pairs = zip(found, expected, requests, strict=True)
    return [(one.spec, got, want) for got, want, one in pairs if got != want]


def counted(llm: SteeredLLM, name: str) -> int:
    """One of vLLM's own counters; engines that follow each other in this process go on counting."""
    return sum(int(one.value) for one in llm.llm.get_metrics() if one.name == f"vllm:{name}")


def cached_tokens(llm: SteeredLLM, requests: list[Request]) -> list[int]:
    """How many tokens of each prompt the prefix cache has, steered as they are."""
    from vllm import SamplingParams

    prompts: Any = [{"prompt_token_ids": list(request.ids)} for request in requests]
    args = [{KEY: spec_text(llm.catalog.resolve(request.spec))} if request.spec else None for request in requests]
    params = [SamplingParams(temperature=0.0, max_tokens=1, detokenize=False, extra_args=own) for own in args]
    return [output.num_cached_tokens or 0 for output in llm.llm.generate(prompts, params, use_tqdm=False)]

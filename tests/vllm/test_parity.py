"""vLLM's greedy tokens are those of transformers with steering hooks, whatever shares the batch or the cache."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from persona_vectors.activations import SPANS
from persona_vectors.models import load_model
from persona_vectors.tokens import render_prompt, tokenize_prompt
from persona_vectors.vllm_spec import KEY
from persona_vectors.vllm_steering import Lora, Request, SteeredLLM
from persona_vectors.weight_files import save_adapter
from tests.tiny_models import tiny_model, word_tokenizer
from tests.vllm.reference import Vectors, greedy, means, mixed_specs, random_vectors
from tests.weight_adapters import random_direction

BLOCK = 32  # tokens in a block of the prefix cache; the prompts are longer
N_TOKENS = 20
SYSTEM = (
    "You are a helpful assistant. Answer what you are asked, in a few plain words, and say so when you are not sure. "
    "Keep to the question, be kind, and do not repeat yourself; a short answer is better than a long one. "
)
QUESTIONS = (
    "What do you think of me?",
    "My friend forgot my birthday. What now?",
    "Is it wise to save money each month, and how should I go about it if I am new to it?",
    "Name a good book.",
    "How should I spend my evening, and with whom?",
)


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


@pytest.fixture(scope="module")
def folder() -> str:
    return str(Path(__file__).parents[2] / "models" / "tiny-persona")


@pytest.fixture(scope="module")
def persona(folder) -> Trial:
    model, tokenizer = load_model(folder)
    prompts = [
        tokenize_prompt(
            tokenizer,
            render_prompt(tokenizer, [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]),
        )
        for question in QUESTIONS
    ]
    assert min(map(len, prompts)) > 2 * BLOCK
    trial = trial_of(model, prompts, [tokenizer.eos_token_id])
    assert len(trial.requests) >= 60
    return trial


@pytest.fixture(scope="module")
def adapter(folder, persona, tmp_path_factory) -> str:
    direction = replace(random_direction(persona.model, ("q_proj", "v_proj", "down_proj")), base=folder)
    return str(save_adapter(direction, tmp_path_factory.mktemp("lora") / "adapter"))


@pytest.fixture(scope="module")
def compiled(folder, persona):
    size = {"max_model_len": 512, "max_num_seqs": 64, "max_loras": 1, "max_lora_rank": 8}
    with engine(folder, persona, processes=True, **size) as llm:
        yield llm


def test_mixed_requests_agree_with_a_cold_and_with_a_warm_cache(compiled, persona):
    assert not compiled.llm.llm_engine.model_config.enforce_eager
    assert not wrong(answers(compiled, persona.requests), persona.answers, persona.requests)
    before = counted(compiled, "prefix_cache_hits")
    assert not wrong(answers(compiled, persona.requests), persona.answers, persona.requests)
    hits = counted(compiled, "prefix_cache_hits") - before
    print(f"{hits} tokens from the cache in the second run")
    assert hits >= BLOCK * len(persona.requests)  # each found at least a block that was steered as it is


def test_second_turns_agree_though_their_answer_is_a_prompt_now(compiled, persona):
    more = list(persona.requests[0].ids[-20:])
    pairs = zip(persona.requests, persona.answers, strict=True)
    turns = [Request([*one.ids, *answer, *more], one.spec) for one, answer in pairs]
    expected = [persona.answer(turn, 10) for turn in turns]
    assert not wrong(answers(compiled, turns, 10), expected, turns)


def test_coef_0_and_unsteered_give_the_same_logprobs_bit_for_bit(compiled, persona):
    from vllm import SamplingParams

    raw = json.dumps([{"vector": compiled.catalog.names["a"], "layer": [1, 2], "coef": 0.0, "positions": "all"}])
    prompts = [{"prompt_token_ids": list(ids)} for ids in {tuple(one.ids) for one in persona.requests}]
    common = {"temperature": 0.0, "max_tokens": 12, "logprobs": 5, "skip_reading_prefix_cache": True}

    def run(extra):
        outputs = compiled.llm.generate(prompts, SamplingParams(**common, extra_args=extra), use_tqdm=False)
        return [
            (one.outputs[0].token_ids, [{k: v.logprob for k, v in at.items()} for at in one.outputs[0].logprobs])
            for one in outputs
        ]

    plain = run(None)
    assert run({KEY: raw}) == plain
    assert run({KEY: raw.replace("0.0", "1.0")}) != plain


def test_adapters_and_steering_share_a_batch(compiled, folder, persona, adapter):
    from peft import PeftModel

    merged = PeftModel.from_pretrained(load_model(folder)[0], adapter).merge_and_unload()
    requests, expected = [], []
    for k, one in enumerate(persona.requests[:45]):
        with_lora = replace(one, lora=Lora("random", adapter)) if k % 2 else one
        requests.append(with_lora)
        expected.append(persona.answer(one, model=merged) if k % 2 else persona.answers[k])
    changed = sum(expected[k] != persona.answers[k] for k in range(1, 45, 2))
    print(f"the adapter changes {changed} of 22 answers")
    assert changed > 15
    for _ in ("cold", "warm"):
        assert not wrong(answers(compiled, requests), expected, requests)


# Few blocks and few tokens a step: prompts come in pieces, and requests are preempted.
CROWDED = {
    "enable_chunked_prefill": True,
    "enforce_eager": True,
    "max_model_len": 256,
    "num_gpu_blocks_override": 24,
    "max_num_batched_tokens": 48,
    "max_num_seqs": 8,
}


def test_prompts_in_pieces_and_preempted_requests_agree(folder, persona):
    with engine(folder, persona, **CROWDED) as llm:
        before = counted(llm, "num_preemptions")
        for _ in ("cold", "warm"):
            assert not wrong(answers(llm, persona.requests), persona.answers, persona.requests)
        preemptions = counted(llm, "num_preemptions") - before
        print(f"{preemptions} preemptions")
        assert preemptions > 3
        assert llm.rpc("steering_state")["rows_used"] <= 3 * CROWDED["max_num_seqs"]


def test_captured_means_are_those_of_the_activation_engine(folder, persona):
    chosen = persona.requests[:30]
    with engine(folder, persona, capture=True, **CROWDED) as llm:
        before = counted(llm, "num_preemptions")
        found = dict(llm.stream(chosen, max_tokens=N_TOKENS))
        preemptions = counted(llm, "num_preemptions") - before
    assert preemptions > 0
    assert not wrong([found[row].ids for row in range(30)], persona.answers[:30], chosen)
    worst = 0.0
    for row, request in enumerate(chosen):
        expected = means(persona.model, request, persona.answers[row], persona.vectors)
        got = torch.stack([getattr(found[row], span) for span in SPANS])
        worst = max(worst, float(((got - expected).norm(dim=-1) / expected.norm(dim=-1)).max()))
    print(f"captured means are off by at most {worst:.1e} of their length, with {preemptions} preemptions")
    assert worst < 1e-5


def test_with_the_stock_scheduler_a_warm_cache_gives_wrong_answers(folder, persona):
    """What the steering scheduler is for: without it, blocks of one request's steering serve another's."""
    stock = {"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler", "enforce_eager": True}
    with engine(folder, persona, max_model_len=512, max_num_seqs=64, **stock) as llm:
        answers(llm, persona.requests)
        bad = wrong(answers(llm, persona.requests), persona.answers, persona.requests)
    print(f"{len(bad)} of {len(persona.requests)} answers are wrong with the stock scheduler")
    assert len(bad) > 5


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_random_models_of_other_shapes_agree(architecture, tmp_path):
    size = {"hidden_size": 128, "num_attention_heads": 4, "max_position_embeddings": 256, "initializer_range": 0.1}
    model = tiny_model(architecture, **size, **({"head_dim": 32} if architecture == "llama" else {}))
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(6, 62, (length,), generator=generator).tolist() for length in (3, 33, 64, 70, 90)]
    trial = trial_of(model, prompts, [5])
    with engine(str(tmp_path), trial, max_model_len=160, max_num_seqs=32, enforce_eager=True) as llm:
        assert not wrong(answers(llm, trial.requests), trial.answers, trial.requests)
        before = counted(llm, "prefix_cache_hits")
        assert not wrong(answers(llm, trial.requests), trial.answers, trial.requests)
        assert counted(llm, "prefix_cache_hits") > before

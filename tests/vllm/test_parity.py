"""vLLM's greedy tokens are those of transformers with steering hooks, whatever shares the batch or the cache."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("vllm")

from persona_vectors.activations import SPANS
from persona_vectors.models import load_model
from persona_vectors.vllm_spec import KEY
from persona_vectors.vllm_steering import Request
from tests.tiny_models import tiny_model, word_tokenizer
from tests.vllm.reference import means
from tests.vllm.trial import BLOCK, N_TOKENS, answers, cached_tokens, counted, engine, trial_of, wrong


def test_mixed_requests_agree_with_a_cold_and_with_a_warm_cache(compiled, persona):
    assert not compiled.llm.llm_engine.model_config.enforce_eager
    assert not wrong(answers(compiled, persona.requests), persona.answers, persona.requests)
    hits = cached_tokens(compiled, persona.requests)
    print(f"of a prompt of {len(persona.requests[0].ids)} tokens, at least {min(hits)} are in the cache")
    assert min(hits) >= BLOCK  # that was steered as it is
    assert not wrong(answers(compiled, persona.requests), persona.answers, persona.requests)


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


def test_many_adapters_base_requests_and_steering_share_a_batch(compiled, tiny_persona, persona, loras):
    """Base requests, too: on a CPU, vLLM has them read the last adapter's place."""
    from peft import PeftModel

    models = [PeftModel.from_pretrained(load_model(tiny_persona)[0], one.folder).merge_and_unload() for one in loras]
    requests, expected = [], []
    for k, one in enumerate(persona.requests):
        number = k % (len(loras) + 1)
        requests.append(replace(one, lora=loras[number]) if number < len(loras) else one)
        expected.append(persona.answer(one, model=models[number]) if number < len(loras) else persona.answers[k])
    changed = sum(found != plain for found, plain in zip(expected, persona.answers, strict=True))
    print(f"{len(loras)} adapters change {changed} of {len(requests)} answers")
    assert changed > 50
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


def test_prompts_in_pieces_and_preempted_requests_agree(tiny_persona, persona):
    with engine(tiny_persona, persona, **CROWDED) as llm:
        before = counted(llm, "num_preemptions")
        for _ in ("cold", "warm"):
            assert not wrong(answers(llm, persona.requests), persona.answers, persona.requests)
        preemptions = counted(llm, "num_preemptions") - before
        print(f"{preemptions} preemptions")
        assert preemptions > 3
        assert llm.rpc("steering_state")["rows_used"] <= 3 * CROWDED["max_num_seqs"]


def test_captured_means_are_those_of_the_activation_engine(tiny_persona, persona):
    chosen = persona.requests[:30]
    with engine(tiny_persona, persona, capture=True, **CROWDED) as llm:
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


def test_with_the_stock_scheduler_a_warm_cache_gives_wrong_answers(tiny_persona, persona):
    """What the steering scheduler is for: without it, blocks of one request's steering serve another's."""
    stock = {"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler", "enforce_eager": True}
    with engine(tiny_persona, persona, max_model_len=512, max_num_seqs=64, **stock) as llm:
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

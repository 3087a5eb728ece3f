"""Decoding as one job: what shares the batch, leaves it or enters it changes no answer, and no steering."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationConfig, LogitsProcessorList

from activation_steer import ActivationSteerer
from persona_vectors import sampling
from persona_vectors.decoding import cache_kind, decode, packed_order
from persona_vectors.sampling import RowSampler, RowUniforms
from persona_vectors.slots import SlotLayer, cache_bytes, grouped_attention
from persona_vectors.tokens import pad_batch
from tests.tiny_models import ARCHITECTURES, D_MODEL, N_LAYERS, VOCAB_SIZE, tiny_model

END = 5
PAD = 0


def make_prompts(n: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(6, VOCAB_SIZE) for _ in range(rng.randint(1, 12))] for _ in range(n)]


def answers(model, prompts, limits, *, temperature=1.0, tokens_in_flight=10**6, **options):
    uniforms = RowUniforms([(3, row) for row in range(len(prompts))], limits)
    pick = RowSampler(uniforms, temperature, [END]).pick
    options = {"end_ids": [END], "pad_id": PAD, "pick": pick, "steer": None, "kind": cache_kind(model)} | options
    found: dict[int, list[int]] = {}
    for group in decode(model, prompts, limits=limits, tokens_in_flight=tokens_in_flight, **options):
        assert not found.keys() & dict(group).keys()
        found |= dict(group)
    return [found[row] for row in range(len(prompts))]


def by_generate(model, prompts, limit, temperature=1.0):
    """The answers of `model.generate` with all prompts in one batch."""
    ids, mask = pad_batch(prompts, PAD, "left")
    uniforms = RowUniforms([(3, row) for row in range(len(prompts))], [limit] * len(prompts))
    sampler = RowSampler(uniforms, temperature, [END], ids.shape[1])
    config = GenerationConfig(max_new_tokens=limit, eos_token_id=END, pad_token_id=PAD)
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([sampler]),
        )
    rows = [row[ids.shape[1] :] for row in output.tolist()]
    return [row[: row.index(END) + 1] if END in row else row for row in rows]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_leave_and_enter_get_the_answers_of_generate(architecture, temperature):
    model = tiny_model(architecture)
    prompts, limit = make_prompts(12), 24
    assert cache_kind(model) == "slots"
    expected = by_generate(model, prompts, limit, temperature)
    assert answers(model, prompts, [limit] * 12, temperature=temperature, tokens_in_flight=150) == expected


HYBRIDS = {
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "llama4_text": {
        "layer_types": ["chunked_attention", "full_attention", "chunked_attention"],
        "attention_chunk_size": 8,
        "num_local_experts": 2,
        "intermediate_size_mlp": 48,
    },
}


def model_of(architecture: str, options: dict):
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": D_MODEL, "intermediate_size": 48, "num_hidden_layers": N_LAYERS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2}
    config = AutoConfig.for_model(
        architecture, **(sizes | heads | {"pad_token_id": PAD, "eos_token_id": END} | options)
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_rows_of_a_hybrid_leave_and_enter_when_all_have_left(architecture):
    model = model_of(architecture, HYBRIDS[architecture])
    assert cache_kind(model) == "drop"
    prompts, limit = make_prompts(8), 16
    expected = by_generate(model, prompts, limit)
    assert answers(model, prompts, [limit] * 8, tokens_in_flight=90) == expected


def test_a_model_without_a_cache_of_that_kind_goes_through_generate():
    model, prompts = model_of("mamba", {"state_size": 8}), make_prompts(5)
    assert cache_kind(model) == "generate"
    limits = [9] * 5
    uniforms = RowUniforms([(3, row) for row in range(5)], limits)
    sampler = RowSampler(uniforms, 1.0, [END])
    groups = list(sampling._generated(model, prompts, limits, sampler, PAD, None, 50))
    found = {row: [token for token in answer if token != PAD] for group in groups for row, answer in group}
    assert sorted(found) == list(range(5)) and len(groups) > 1
    alone = by_generate(model, prompts[:1], 9)[0]
    assert found[0] == [token for token in alone if token != PAD]


MODEL = tiny_model("qwen2")


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1000),
    limits=st.lists(st.integers(1, 30), min_size=1, max_size=14),
    tokens_in_flight=st.integers(1, 300),
    most_rows=st.integers(1, 9),
    change_share=st.sampled_from([0.0, 0.125, 0.5, 1.0]),
    refill=st.booleans(),
)
def test_any_slots_and_any_limits_give_each_row_its_answer(
    seed, limits, tokens_in_flight, most_rows, change_share, refill
):
    prompts = make_prompts(len(limits), seed)
    together = answers(MODEL, prompts, limits, refill=False, change_share=1.0)
    options = {"most_rows": most_rows, "change_share": change_share, "refill": refill}
    assert answers(MODEL, prompts, limits, tokens_in_flight=tokens_in_flight, **options) == together
    for answer, limit in zip(together, limits, strict=True):
        assert len(answer) == limit or answer[-1] == END
        assert END not in answer[:-1]


def steer_by_row(model, coefs, entered=None):
    vector = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1))

    def steer(rows):
        if entered is not None:
            entered.append(list(rows))
        return ActivationSteerer(model, vector, coeff=[coefs[row] for row in rows], layer_idx=1, positions="response")

    return steer


def test_steering_stays_with_its_row_while_others_leave_and_enter():
    prompts, limits = make_prompts(20), [random.Random(row).randint(2, 24) for row in range(20)]
    coefs = [(-3.0, -1.0, 0.0, 1.0, 3.0)[row % 5] for row in range(20)]
    entered: list[list[int]] = []
    steered = answers(MODEL, prompts, limits, tokens_in_flight=120, steer=steer_by_row(MODEL, coefs, entered))
    assert len(entered) > 10 and max(map(len, entered)) > 2  # rows did change under way
    for row, prompt in enumerate(prompts):
        streams = RowUniforms([(3, row)], [limits[row]])
        pick = RowSampler(streams, 1.0, [END]).pick
        alone = answers(MODEL, [prompt], [limits[row]], pick=pick, steer=steer_by_row(MODEL, [coefs[row]]))
        assert steered[row] == alone[0]
    unsteered = answers(MODEL, prompts, limits)
    zero = [row for row in range(20) if coefs[row] == 0]
    assert [steered[row] for row in zero] == [unsteered[row] for row in zero]
    assert steered != unsteered


def test_what_does_not_fit_halves_the_rows_and_loses_nothing(caplog):
    prompts, limits = make_prompts(13), [random.Random(row).randint(2, 20) for row in range(13)]
    whole, sizes = answers(MODEL, prompts, limits), []

    def little_memory(_module, _args, kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 3 or len(sizes) == 9:  # more than 3 rows never fit; once, 3 do not either
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = MODEL.register_forward_pre_hook(little_memory, with_kwargs=True)
    try:
        assert answers(MODEL, prompts, limits, change_share=0.5) == whole
        assert sizes[:3] == [13, 6, 3] and max(sizes[9:]) == 1
        said = [record.getMessage() for record in caplog.records]
        assert said[:2] == [
            "out of memory while sampling 13 at once; going on with 6",
            "out of memory while sampling 6 at once; going on with 3",
        ]
        sizes.clear()
        handle.remove()
        handle = MODEL.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
        with pytest.raises(torch.OutOfMemoryError, match="no room"):
            answers(MODEL, prompts, limits)
    finally:
        handle.remove()


def test_the_cache_does_not_outgrow_the_rows_in_flight(monkeypatch):
    prompts, limits = make_prompts(30), [20] * 30
    widths: list[int] = []
    real = SlotLayer.update

    def update(self, *args, **kwargs):
        keys, values = real(self, *args, **kwargs)
        widths.append(keys.shape[2])
        return keys, values

    monkeypatch.setattr(SlotLayer, "update", update)
    answers(MODEL, prompts, limits, tokens_in_flight=100)
    assert len(widths) > 60 and max(widths) <= max(map(len, prompts)) + 20


@given(st.lists(st.booleans(), max_size=40))
def test_dropping_moves_only_the_last_rows_into_the_gaps(has_ended):
    order = packed_order(has_ended)
    assert sorted(order) == [place for place, ended in enumerate(has_ended) if not ended]
    assert sum(source != place for place, source in enumerate(order)) <= sum(has_ended)


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "gemma2"])
def test_grouped_attention_changes_no_logits_and_is_taken_back(architecture):
    model = tiny_model(architecture)
    before = model.config._attn_implementation
    ids, mask = pad_batch(make_prompts(4), PAD, "left")

    def two_calls():
        cache = DynamicCache()
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=mask, past_key_values=cache)
            longer = torch.cat([mask, torch.ones(4, 1, dtype=torch.long)], 1)
            return model(input_ids=ids[:, -1:], attention_mask=longer, past_key_values=cache).logits

    plain = two_calls()
    with pytest.raises(KeyboardInterrupt), grouped_attention(model):
        assert (model.config._attn_implementation == "sdpa_grouped") == (
            architecture != "gpt2"
        )  # its heads share nothing
        assert torch.allclose(two_calls(), plain, atol=1e-5)
        raise KeyboardInterrupt
    assert model.config._attn_implementation == before


def test_cache_bytes_are_those_of_a_filled_cache():
    cache: Any = DynamicCache()
    MODEL(input_ids=torch.ones(1, 7, dtype=torch.long), past_key_values=cache)
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert cache_bytes(MODEL) * 7 == held

"""The extraction engine against a plain one-sample loop, and what must not change its result."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from activation_steer import ActivationSteerer
from persona_vectors import activations, span_means
from persona_vectors.activations import SPANS, iter_mean_activations, mean_activations
from persona_vectors.tokens import TokenizedSample, pad_batch
from tests.tiny_models import ARCHITECTURES, D_MODEL, N_LAYERS, VOCAB_SIZE, tiny_model


def random_samples(n: int, seed: int = 0, longest: int = 12) -> list[TokenizedSample]:
    """Samples of mixed lengths, with 1-token prompts and 1-token answers among them."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    samples = []
    for i in range(n):
        prompt_len = 1 if i % 4 == 0 else number(1, longest)
        response_len = 1 if i % 4 == 1 else number(1, longest)
        ids = torch.randint(6, VOCAB_SIZE, (prompt_len + response_len,), generator=generator)
        samples.append(TokenizedSample(tuple(ids.tolist()), prompt_len))
    return samples


def rollouts(seed: int = 0, prompts: int = 4, longest: int = 12) -> list[TokenizedSample]:
    """Several answers a prompt, prompts of unequal lengths, one of them with a single answer; shuffled."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shortest: int) -> tuple[int, ...]:
        length = int(torch.randint(shortest, longest, (), generator=generator))
        return tuple(torch.randint(6, VOCAB_SIZE, (length,), generator=generator).tolist())

    samples = []
    for i in range(prompts):
        prompt = draw(2) if i else (9,)
        samples += [TokenizedSample(prompt + draw(1), len(prompt)) for _ in range(4 if i < prompts - 1 else 1)]
    return [samples[i] for i in torch.randperm(len(samples), generator=generator)]


def appender(outputs: list):
    """A forward hook that keeps the hidden state of each call."""
    return lambda _module, _args, output: outputs.append(output if torch.is_tensor(output) else output[0])


def one_sample_loop(model, samples) -> dict[str, torch.Tensor]:
    """The published formula, written down as it is read: one sample at a time, nothing padded, nothing clever.

    Each block's output is taken by a hook of this test's own; row 0 is what the model calls hidden_states[0].
    """
    rows = {span: [] for span in SPANS}
    decoder = model.base_model
    blocks = decoder.h if hasattr(decoder, "h") else decoder.layers
    for sample in samples:
        outputs = []
        handles = [block.register_forward_hook(appender(outputs)) for block in blocks]
        with torch.no_grad():
            hidden_states = model(torch.tensor([sample.ids]), output_hidden_states=True).hidden_states
        for handle in handles:
            handle.remove()
        hidden = torch.stack([hidden_states[0][0], *(output[0] for output in outputs)])  # (n_layers + 1, seq, d_model)
        p = sample.prompt_len
        rows["prompt_avg"].append(hidden[:, :p].mean(1))
        rows["response_avg"].append(hidden[:, p:].mean(1))
        rows["prompt_last"].append(hidden[:, p - 1])
    return {span: torch.stack(values) for span, values in rows.items()}


def assert_same(ours, loop, atol: float = 1e-5) -> None:
    assert ours.keys() == loop.keys()
    for span in loop:
        assert ours[span].shape == loop[span].shape
        assert ours[span].dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(ours[span].double(), loop[span].double(), dim=-1)
        assert cosine.min() > 0.99999, (span, cosine.min())
        torch.testing.assert_close(ours[span], loop[span], atol=atol, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_one_sample_loop(architecture):
    model = tiny_model(architecture)
    samples = random_samples(14)
    assert_same(mean_activations(model, samples, token_budget=60), one_sample_loop(model, samples))


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("layers", [[0], [1], [2, 0], [3], None])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_read_after_their_prompts_equal_the_one_sample_loop(architecture, layers, packed, monkeypatch):
    """Windows of 4 tokens (the Gemmas), learned positions (GPT-2), experts, grouped heads; wherever the pass ends."""
    model = tiny_model(architecture)
    samples = rollouts()
    assert activations.can_pack(model)
    if not packed:
        monkeypatch.setattr(activations, "can_pack", lambda _model: False)
    wanted = list(range(N_LAYERS + 1)) if layers is None else layers
    loop = {span: values[:, wanted] for span, values in one_sample_loop(model, samples).items()}
    assert_same(mean_activations(model, samples, layers, token_budget=60), loop)
    assert model.config._attn_implementation == "sdpa"


def test_an_eager_model_keeps_its_attention_and_is_read_padded():
    """Gemma 2 caps its scores there, which "sdpa" does not."""
    model = tiny_model("gemma2", attn_logit_softcapping=0.5)
    model.set_attn_implementation("eager")
    samples = rollouts()
    assert not activations.can_pack(model)
    assert_same(mean_activations(model, samples), one_sample_loop(model, samples))


def test_last_row_is_the_last_blocks_output_not_the_final_norm():
    model = tiny_model("llama")
    samples = random_samples(3)
    normed = torch.stack(
        [
            model(torch.tensor([s.ids]), output_hidden_states=True).hidden_states[-1][0, s.prompt_len :].mean(0)
            for s in samples
        ]
    )
    ours = mean_activations(model, samples, [N_LAYERS], ["response_avg"])["response_avg"][:, 0]
    assert (ours - normed).norm() > 0.1 * normed.norm()


def test_layer_0_is_the_embedding_and_prompt_last_there_is_one_tokens_embedding():
    model = tiny_model("qwen2")
    samples = random_samples(5)
    ours = mean_activations(model, samples, [0])
    table = model.get_input_embeddings().weight
    for row, sample in enumerate(samples):
        last = sample.ids[sample.prompt_len - 1]
        torch.testing.assert_close(ours["prompt_last"][row, 0], table[last].detach())
        answer = torch.tensor(sample.ids[sample.prompt_len :])
        torch.testing.assert_close(ours["response_avg"][row, 0], table[answer].mean(0).detach())


MODEL = tiny_model("llama")
SAMPLES = random_samples(10)
LOOP = one_sample_loop(MODEL, SAMPLES)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(order=st.permutations(range(len(SAMPLES))), budget=st.integers(1, 300))
def test_order_and_batch_composition_change_nothing(order, budget):
    ours = mean_activations(MODEL, [SAMPLES[i] for i in order], token_budget=budget)
    assert_same(ours, {span: values[list(order)] for span, values in LOOP.items()})


def test_left_padding_gives_the_same():
    """The engine pads right; a model fed left-padded rows with a mask and the same spans reads the same activations."""
    ids, mask = pad_batch([sample.ids for sample in SAMPLES], 0, "left")
    right = span_means._span_weights(SAMPLES, SPANS)
    weights = torch.stack([right[i].roll(ids.shape[1] - len(s.ids), dims=-1) for i, s in enumerate(SAMPLES)])
    inputs = {"input_ids": ids, "attention_mask": mask}  # Llama's rotary positions are relative
    with torch.inference_mode():
        left = span_means._read(MODEL, list(range(N_LAYERS + 1)), weights, inputs)
    assert_same({span: left[:, i] for i, span in enumerate(SPANS)}, LOOP)


def test_pad_tokens_leave_no_trace(monkeypatch):
    before = mean_activations(MODEL, SAMPLES, token_budget=500)
    monkeypatch.setattr(span_means, "pad_batch", lambda seqs, _pad, side: pad_batch(seqs, 37, side))
    after = mean_activations(MODEL, SAMPLES, token_budget=500)
    for span in SPANS:
        torch.testing.assert_close(before[span], after[span], atol=1e-6, rtol=1e-6)


def test_wanted_layers_and_spans_are_a_selection_in_the_given_order():
    full = mean_activations(MODEL, SAMPLES)
    some = mean_activations(MODEL, SAMPLES, [2, 0], ["prompt_last", "response_avg"])
    assert list(some) == ["prompt_last", "response_avg"]
    for span in some:
        torch.testing.assert_close(some[span], full[span][:, [2, 0]], atol=1e-5, rtol=1e-4)


def test_stops_after_the_highest_wanted_layer_and_never_runs_the_head():
    model = tiny_model("qwen2")
    ran = []
    for i, block in enumerate(model.base_model.layers):
        block.register_forward_pre_hook(lambda _m, _a, i=i: ran.append(i))
    model.get_output_embeddings().register_forward_pre_hook(lambda _m, _a: ran.append("head"))
    model.base_model.norm.register_forward_pre_hook(lambda _m, _a: ran.append("norm"))
    mean_activations(model, SAMPLES[:2], [2], token_budget=1000)
    assert ran == [0, 1]
    ran.clear()
    mean_activations(model, SAMPLES[:2], token_budget=1000)
    assert ran == [0, 1, 2]


def count_rows(model) -> list[tuple[int, int]]:
    shapes: list[tuple[int, int]] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _m, args: shapes.append(tuple(args[0].shape)))
    return shapes


def test_equal_samples_are_computed_once_and_all_get_their_rows():
    model = tiny_model("llama")
    shapes = count_rows(model)
    repeated = [SAMPLES[0], SAMPLES[1], SAMPLES[0], SAMPLES[0]]
    ours = mean_activations(model, repeated, token_budget=1000)
    assert sum(rows for rows, _width in shapes) == 2
    for span in SPANS:
        assert torch.equal(ours[span][0], ours[span][2]) and torch.equal(ours[span][0], ours[span][3])
        torch.testing.assert_close(ours[span], LOOP[span][[0, 1, 0, 0]], atol=1e-5, rtol=1e-4)


def test_prompt_spans_do_not_pay_for_answers():
    """Ten rollouts of one prompt cost one prompt."""
    model = tiny_model("llama")
    shapes = count_rows(model)
    prompt = (7, 8, 9)
    rollouts = [TokenizedSample((*prompt, 10 + i), 3) for i in range(10)]
    mean_activations(model, rollouts, None, ["prompt_avg", "prompt_last"])
    assert shapes == [(1, 3)]


def test_a_prompt_is_run_once_for_all_its_answers():
    model = tiny_model("qwen2")
    shapes = count_rows(model)
    prompt = tuple(range(6, 30))
    answers = [tuple(range(start, start + n)) for start, n in ((10, 9), (11, 8), (12, 8), (10, 7), (10, 7))]
    mean_activations(model, [TokenizedSample(prompt + answer, 24) for answer in answers])
    assert shapes == [(1, 24), (1, 9 + 8 + 8 + 7)]  # two of the answers are equal; none is padded


def test_packed_passes_keep_to_the_token_budget():
    model = tiny_model("qwen2")
    shapes = count_rows(model)
    prompt = tuple(range(6, 30))
    answers = [tuple(range(start, start + 9)) for start in range(6, 12)]
    mean_activations(model, [TokenizedSample(prompt + answer, 24) for answer in answers], token_budget=24 + 20)
    assert shapes == [(1, 24), (1, 18), (1, 18), (1, 18)]


def test_sharing_prompts_changes_nothing_beyond_rounding(monkeypatch):
    samples = rollouts(seed=3)
    shared = mean_activations(MODEL, samples)
    monkeypatch.setattr(activations, "can_share_prompts", lambda _model: False)
    alone = mean_activations(MODEL, samples)
    assert_same(shared, alone, atol=1e-5)
    assert not torch.equal(shared["response_avg"], alone["response_avg"])  # it was another computation


def test_a_long_answer_beside_a_short_prompt_stays_within_the_context(monkeypatch):
    """Padding after a short answer of a long prompt must not ask GPT-2 for positions that it does not have."""
    monkeypatch.setattr(activations, "can_pack", lambda _model: False)
    model = tiny_model("gpt2")
    long_prompt, short_prompt = tuple([7] * 120), (8, 9)
    ends = [(long_prompt, (10,) * n) for n in (7, 8)] + [(short_prompt, (11,) * n) for n in (100, 101)]
    samples = [TokenizedSample(prompt + answer, len(prompt)) for prompt, answer in ends]
    assert_same(mean_activations(model, samples, token_budget=10_000), one_sample_loop(model, samples))


OTHER_STATES: dict[str, dict] = {
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba": {"state_size": 8},
}


@pytest.mark.parametrize("architecture", OTHER_STATES)
def test_where_answers_cannot_follow_a_cache_samples_are_read_whole(architecture):
    """Convolutions and states: what such models keep is not the keys and values of every token."""
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": D_MODEL, "intermediate_size": 48, "num_hidden_layers": N_LAYERS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    config = AutoConfig.for_model(architecture, **(sizes | heads | OTHER_STATES[architecture]))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    samples = rollouts()
    loop = {span: values[:, 1:] for span, values in one_sample_loop(model, samples).items()}
    assert not span_means.can_share_prompts(model)
    assert_same(mean_activations(model, samples, [1, 2, 3]), loop)  # Mamba adds to its hidden_states[0] in place


def test_token_budget_bounds_every_batch_and_longest_come_first():
    model = tiny_model("llama")
    shapes = count_rows(model)
    mean_activations(model, SAMPLES, token_budget=50)
    assert all(rows * width <= 50 for rows, width in shapes)
    widths = [width for _rows, width in shapes]
    assert widths == sorted(widths, reverse=True)


def test_streaming_gives_every_row_once_and_the_same_numbers():
    collected = {}
    for rows, means in iter_mean_activations(MODEL, SAMPLES, [1, 3], token_budget=60):
        for i, row in enumerate(rows):
            assert row not in collected
            collected[row] = means["response_avg"][i]
    seen = []
    full = mean_activations(MODEL, SAMPLES, [1, 3], token_budget=60, on_batch=lambda rows, _means: seen.extend(rows))
    assert sorted(seen) == sorted(collected) == list(range(len(SAMPLES)))
    assert torch.equal(torch.stack([collected[row] for row in range(len(SAMPLES))]), full["response_avg"])


def test_bfloat16_model_is_reduced_in_float32():
    model = tiny_model("llama").to(torch.bfloat16)
    ours = mean_activations(model, SAMPLES, token_budget=1)  # one sample a batch: the same kernels as the loop
    hidden_means = []
    for sample in SAMPLES:
        outputs = []
        handle = model.base_model.layers[1].register_forward_hook(appender(outputs))
        with torch.no_grad():
            model(torch.tensor([sample.ids]))
        handle.remove()
        hidden_means.append(outputs[0][0, sample.prompt_len :].float().mean(0))
    torch.testing.assert_close(ours["response_avg"][:, 2], torch.stack(hidden_means), atol=1e-6, rtol=1e-5)


def test_an_active_steerer_is_seen_at_its_layer_and_above_only():
    vector = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1))
    plain = mean_activations(MODEL, SAMPLES, token_budget=100)
    with ActivationSteerer(MODEL, vector, coeff=2.0, layer_idx=1, positions="all"):
        steered = mean_activations(MODEL, SAMPLES, token_budget=100)
    shift = steered["response_avg"] - plain["response_avg"]
    assert torch.equal(steered["response_avg"][:, :2], plain["response_avg"][:, :2])
    torch.testing.assert_close(shift[:, 2], (2 * vector).expand(len(SAMPLES), -1), atol=1e-5, rtol=1e-4)
    assert shift[:, 3].norm() > 1
    again = mean_activations(MODEL, SAMPLES, token_budget=100)
    assert torch.equal(again["response_avg"], plain["response_avg"])


def test_hooks_are_gone_even_after_an_error_and_training_mode_is_restored():
    model = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    expected = mean_activations(model, SAMPLES)
    model.train()
    model.transformer.h[0].eval()
    ours = mean_activations(model, SAMPLES)
    assert torch.equal(ours["response_avg"], expected["response_avg"])  # no dropout
    assert model.training and model.transformer.h[1].training and not model.transformer.h[0].training
    with pytest.raises(IndexError):
        mean_activations(model, [TokenizedSample((VOCAB_SIZE + 5, 7), 1)])
    for block in model.transformer.h:
        assert not block._forward_hooks and not block._forward_pre_hooks
    assert model.training


def test_a_peft_wrapped_model_is_read_with_its_adapter():
    from peft import LoraConfig, get_peft_model

    base = tiny_model("llama")
    plain = mean_activations(base, SAMPLES)
    wrapped = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted = mean_activations(wrapped, SAMPLES)
    torch.testing.assert_close(adapted["response_avg"][:, 0], plain["response_avg"][:, 0])
    assert (adapted["response_avg"][:, 1] - plain["response_avg"][:, 1]).norm() > 1e-3
    with wrapped.disable_adapter():
        torch.testing.assert_close(mean_activations(wrapped, SAMPLES)["response_avg"], plain["response_avg"])


def test_a_compiled_model_is_read():
    compiled = torch.compile(MODEL, backend="eager")
    assert_same(mean_activations(compiled, SAMPLES), LOOP)


def test_config_asking_for_hidden_states_changes_nothing():
    model = tiny_model("llama")
    model.config.output_hidden_states = True
    assert_same(mean_activations(model, SAMPLES), LOOP)


def test_no_graph_is_kept():
    ours = mean_activations(MODEL, SAMPLES[:2])["response_avg"]
    assert not ours.requires_grad and not ours.is_inference()


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("samples", [SAMPLES, rollouts(longest=24)], ids=["different prompts", "shared prompts"])
def test_a_batch_that_does_not_fit_is_halved(monkeypatch, caplog, samples, packed):
    monkeypatch.setattr(activations, "can_pack", lambda _model: packed)
    read = span_means._read
    tried = []

    def limited(model, layers, weights, inputs):
        tried.append(inputs["input_ids"].numel())
        if tried[-1] > 40:
            raise torch.OutOfMemoryError("no room")
        return read(model, layers, weights, inputs)

    monkeypatch.setattr(span_means, "_read", limited)
    monkeypatch.setattr(activations, "_PASS_COST_CPU", 10_000)
    assert_same(mean_activations(MODEL, samples, token_budget=10_000), one_sample_loop(MODEL, samples))
    assert max(tried) > 40
    too_large = [size for size in tried if size > 40]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(too_large) and all("out of memory while reading activations of" in line for line in said)
    assert len(too_large) <= 8  # 10 000 tokens, halved until at most 40: later passes are planned smaller


def test_no_samples_is_an_empty_result():
    assert mean_activations(MODEL, [])["response_avg"].shape == (0, N_LAYERS + 1, D_MODEL)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        ([SAMPLES[0], TokenizedSample((7, 8), 2), TokenizedSample((9,), 1)], {}, "rows 1, 2"),
        ([TokenizedSample((7, 8), 0)], {}, "row 0"),
        ([SAMPLES[0], TokenizedSample((7,) * 129, 3)], {}, "row 1: longer than the 128 tokens"),
        (SAMPLES, {"layers": [4]}, r"layer 4 does not exist; reading needs 0\.\.3"),
        (SAMPLES, {"layers": []}, "no layers"),
        (SAMPLES, {"spans": ["mean"]}, "prompt_avg"),
        (SAMPLES, {"token_budget": 0}, "token_budget"),
    ],
)
def test_bad_input_names_what_is_wrong(samples, options, message):
    with pytest.raises(ValueError, match=message):
        mean_activations(MODEL, samples, **options)


def test_an_empty_answer_is_fine_where_no_span_needs_it():
    ours = mean_activations(MODEL, [TokenizedSample((7, 8), 2)], spans=["prompt_last"])
    assert torch.isfinite(ours["prompt_last"]).all()


def test_activations_that_are_not_finite_are_refused_with_their_rows():
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[40] = float("inf")
    with pytest.raises(ValueError, match="row 1"):
        mean_activations(model, [TokenizedSample((7, 8), 1), TokenizedSample((40, 8), 1)])

"""Steering on real decoder code: exact algebra, exact positions, for every architecture."""

import logging
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_steer import ActivationSteerer, ActivationSteererMultiple
from persona_vectors.blocks import decoder_blocks, hidden_of, inner_decoder, read_blocks
from tests.tiny_models import ARCHITECTURES, D_MODEL, N_LAYERS, tiny_model

MODELS = {}
PROMPTS = [[7, 8, 9, 10, 11, 12], [13], [14, 15, 16]]  # one of a single token
N_NEW = 5
BLOCK = 1


def model_of(architecture="llama"):
    if architecture not in MODELS:
        model = tiny_model(architecture)
        model.generation_config.eos_token_id = None  # fixed lengths
        MODELS[architecture] = model
    return MODELS[architecture]


def vector_of(seed=0):
    return 3 * torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))


def pad(rows, side="left"):
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        start = width - len(tokens) if side == "left" else 0
        ids[row, start : start + len(tokens)] = torch.tensor(tokens)
        mask[row, start : start + len(tokens)] = 1
    return ids, mask


@contextmanager
def recorded(model, block_idx=BLOCK):
    """Every hidden state that leaves the block, in order."""
    calls = []
    handle = decoder_blocks(model)[block_idx].register_forward_hook(
        lambda _block, _args, output: calls.append(hidden_of(output).clone())
    )
    try:
        yield calls
    finally:
        handle.remove()


@torch.no_grad()
def generate(model, rows, **kwargs):
    """New tokens `(batch, n_new)` and the block's hidden states `(batch, width + n_new - 1, d)`."""
    ids, mask = pad(rows)
    with recorded(model) as calls:
        output = model.generate(
            ids, attention_mask=mask, max_new_tokens=N_NEW, do_sample=False, pad_token_id=0, **kwargs
        )
    return output[:, ids.shape[1] :], torch.cat(calls, 1)


@torch.no_grad()
def hidden_states(model, ids, mask=None, **kwargs):
    with read_blocks(model) as hidden:
        model(input_ids=ids, attention_mask=mask, **kwargs)
    return dict(hidden)


def n_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_earlier_blocks_are_bit_equal_and_the_target_is_shifted_exactly(architecture):
    model, vector = model_of(architecture), vector_of()
    ids = torch.tensor([[7, 8, 9, 10], [11, 12, 13, 14]])
    plain = hidden_states(model, ids)
    with ActivationSteerer(model, vector, coeff=2.5, layer_idx=BLOCK):
        steered = hidden_states(model, ids)
    for layer in range(BLOCK + 1):
        assert torch.equal(steered[layer], plain[layer])
    assert torch.equal(steered[BLOCK + 1], plain[BLOCK + 1] + 2.5 * vector)
    assert not torch.allclose(steered[BLOCK + 2], plain[BLOCK + 2])
    with ActivationSteerer(model, vector, coeff=0.0, layer_idx=BLOCK):
        unsteered = hidden_states(model, ids)
    assert all(torch.equal(unsteered[layer], plain[layer]) for layer in plain)
    with ActivationSteerer(model, vector, coeff=2.5, layer_idx=BLOCK, positions="response"):
        last = hidden_states(model, ids)[BLOCK + 1]
    assert torch.equal(last[:, :-1], plain[BLOCK + 1][:, :-1])
    assert torch.equal(last[:, -1], plain[BLOCK + 1][:, -1] + 2.5 * vector)
    assert n_hooks(model) == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("positions", ["response", "prompt", "all"])
def test_batched_equals_single_and_teacher_forced_equals_generation(architecture, positions):
    model, vector = model_of(architecture), vector_of()
    steer = {"coeff": 1.0, "layer_idx": BLOCK, "positions": positions}
    with ActivationSteerer(model, vector, **steer):
        tokens, states = generate(model, PROMPTS)
    plain_tokens, _ = generate(model, PROMPTS)
    assert not torch.equal(tokens, plain_tokens)  # the vector does something
    width = max(map(len, PROMPTS))
    singles = []
    for row, prompt in enumerate(PROMPTS):
        with ActivationSteerer(model, vector, **steer):
            alone, alone_states = generate(model, [prompt])
        assert torch.equal(alone[0], tokens[row])
        singles.append(alone_states[0])
        torch.testing.assert_close(states[row, width - len(prompt) :], alone_states[0], atol=2e-4, rtol=1e-4)
    lens = [len(prompt) for prompt in PROMPTS]
    texts = [prompt + tokens[row].tolist()[:-1] for row, prompt in enumerate(PROMPTS)]
    for side in ("left", "right"):
        ids, mask = pad(texts, side)
        position_ids = (mask.cumsum(1) - 1).clamp(min=0)
        with ActivationSteerer(model, vector, prompt_lens=lens, **steer):
            forced = hidden_states(model, ids, mask, position_ids=position_ids)[BLOCK + 1]
        for row, single in enumerate(singles):
            torch.testing.assert_close(forced[row][mask[row].bool()], single, atol=2e-4, rtol=1e-4)


def test_the_tokens_touched_are_exactly_those_named():
    model, vector = model_of(), vector_of()
    ids, mask = pad([[7, 8, 9, 10, 11], [12, 13, 14]])
    plain = hidden_states(model, ids, mask)[BLOCK + 1]
    touched = {
        "all": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
        "prompt": [[1, 1, 0, 0, 0], [0, 0, 1, 0, 0]],
        "response": [[0, 1, 1, 1, 1], [0, 0, 1, 1, 1]],
    }
    for positions, expected in touched.items():
        with ActivationSteerer(model, vector, layer_idx=BLOCK, positions=positions, prompt_lens=torch.tensor([2, 1])):
            steered = hidden_states(model, ids, mask)[BLOCK + 1]
        chosen = torch.tensor(expected).bool()
        if positions == "all":
            chosen = chosen & mask.bool()  # padding may be touched or not
        assert torch.equal(steered[chosen], (plain + vector)[chosen])
        assert torch.equal(steered[~chosen & mask.bool()], plain[~chosen & mask.bool()])


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.floats(-3, 3, width=16), min_size=3, max_size=3),
    st.sampled_from(["response", "prompt", "all"]),
    st.sampled_from(["add", "ablate", "cap"]),
)
def test_rows_with_their_own_coefficient_and_vector_equal_separate_runs(coefs, positions, kind):
    model = model_of()
    vectors = torch.stack([vector_of(seed) for seed in range(3)])
    steer = {"layer_idx": BLOCK, "positions": positions, "kind": kind}
    if kind == "cap":
        steer |= {"floor": 0.5}
    with ActivationSteerer(model, vectors, coeff=coefs, **steer):
        tokens, states = generate(model, PROMPTS)
    for row, coef in enumerate(coefs):
        with ActivationSteerer(model, vectors[row], coeff=coef, **steer):
            same_batch, same_states = generate(model, PROMPTS)
        assert torch.equal(same_batch[row], tokens[row])
        torch.testing.assert_close(same_states[row], states[row], atol=1e-4, rtol=1e-4)


def test_a_row_with_coefficient_0_is_bit_identical():
    model = model_of()
    ids = torch.tensor([[7, 8, 9], [10, 11, 12]])
    plain = hidden_states(model, ids)
    with ActivationSteerer(model, vector_of(), coeff=[0.0, 2.0], layer_idx=BLOCK):
        steered = hidden_states(model, ids)
    assert all(torch.equal(steered[layer][0], plain[layer][0]) for layer in plain)
    assert not torch.allclose(steered[BLOCK + 1][1], plain[BLOCK + 1][1])


def test_rows_repeated_by_generate_are_refused_unless_repeated_alike():
    model = model_of()
    with (
        ActivationSteerer(model, vector_of(), coeff=[1.0, 2.0, 3.0]),
        pytest.raises(ValueError, match="batch of 6 rows"),
    ):
        generate(model, PROMPTS, num_return_sequences=2, num_beams=2)
    lens = torch.tensor([6, 1, 3])
    with (
        ActivationSteerer(model, vector_of(), positions="response", prompt_lens=lens),
        pytest.raises(ValueError, match="3 prompt_lens for a batch of 6 rows"),
    ):
        generate(model, PROMPTS, num_beams=2)
    assert n_hooks(model) == 0
    ids, mask = pad(PROMPTS)
    options = {"max_new_tokens": 3, "do_sample": False, "num_beams": 2, "pad_token_id": 0}
    coef = torch.tensor([1.0, 2.0, 3.0])
    with ActivationSteerer(model, vector_of(), coeff=coef.repeat_interleave(2)):
        together = model.generate(ids, attention_mask=mask, **options)
    with ActivationSteerer(model, vector_of(), coeff=2.0):
        alone = model.generate(ids, attention_mask=mask, **options)
    assert torch.equal(together[1], alone[1])


@pytest.mark.parametrize("positions", ["response", "prompt", "all"])
def test_every_way_of_generating_steers_the_same_tokens(positions):
    model, vector = model_of(), vector_of()
    lens = [len(prompt) for prompt in PROMPTS]
    steer = {"coeff": 1.0, "layer_idx": BLOCK, "positions": positions}
    with ActivationSteerer(model, vector, **steer):
        expected, _ = generate(model, PROMPTS)
        static, _ = generate(model, PROMPTS, cache_implementation="static")
    assert torch.equal(static, expected)
    with ActivationSteerer(model, vector, prompt_lens=lens, **steer):
        for options in ({}, {"use_cache": False}, {"prefill_chunk_size": 2}, {"cache_implementation": "static"}):
            tokens, _ = generate(model, PROMPTS, **options)
            assert torch.equal(tokens, expected), options
    for row, prompt in enumerate(PROMPTS):  # several drafted tokens a step
        with ActivationSteerer(model, vector, prompt_lens=lens[row : row + 1], **steer):
            drafted, _ = generate(model, [prompt], prompt_lookup_num_tokens=3)
            assert torch.equal(drafted[0], expected[row])


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text", "gpt2"])
def test_static_and_sliding_caches_under_left_padding(architecture):
    model = model_of(architecture)
    with ActivationSteerer(model, vector_of(), layer_idx=BLOCK, positions="response"):
        expected, _ = generate(model, PROMPTS)
        static, _ = generate(model, PROMPTS, cache_implementation="static")
    assert torch.equal(static, expected)


@torch.no_grad()
def test_a_prompt_that_continues_a_prefix_cache():
    model, vector = model_of(), vector_of()
    ids = torch.tensor([[7, 8, 9, 10, 11]])
    with ActivationSteerer(model, vector, layer_idx=BLOCK, positions="response", prompt_lens=[4]):
        whole = hidden_states(model, ids)[BLOCK + 1]
        cache = model(input_ids=ids[:, :2], use_cache=True).past_key_values
        rest = hidden_states(model, ids[:, 2:], past_key_values=cache)[BLOCK + 1]
    torch.testing.assert_close(rest, whole[:, 2:], atol=1e-5, rtol=1e-5)
    cache = model(input_ids=ids[:, :2], use_cache=True).past_key_values
    with (
        ActivationSteerer(model, vector, layer_idx=BLOCK, positions="response"),
        pytest.raises(ValueError, match="3 tokens on top of a cache may be prompt or response: give prompt_lens"),
    ):
        model(input_ids=ids[:, 2:], past_key_values=cache)


def test_inputs_embeds_in_place_of_input_ids():
    model, vector = model_of(), vector_of()
    ids, mask = pad(PROMPTS)
    with ActivationSteerer(model, vector, layer_idx=BLOCK, positions="response"), torch.no_grad():
        by_ids = model(input_ids=ids, attention_mask=mask).logits
        by_embeds = model(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask).logits
    assert torch.equal(by_ids[mask.bool()], by_embeds[mask.bool()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept_and_exact(dtype):
    model = tiny_model("qwen2").to(dtype)
    ids, vector = torch.tensor([[7, 8, 9]]), vector_of()
    plain = hidden_states(model, ids)[BLOCK + 1]
    with ActivationSteerer(model, vector, coeff=1.5, layer_idx=BLOCK):
        steered = hidden_states(model, ids)[BLOCK + 1]
    assert steered.dtype == dtype and torch.equal(steered, plain + (1.5 * vector).to(dtype))


def test_ablate_and_cap_do_to_the_block_what_they_say():
    model, vector = model_of(), vector_of()
    ids = torch.tensor([[7, 8, 9, 10]])
    unit = vector / vector.norm()
    plain = hidden_states(model, ids)[BLOCK + 1] @ unit
    with ActivationSteerer(model, vector, kind="ablate", layer_idx=BLOCK):
        ablated = hidden_states(model, ids)[BLOCK + 1] @ unit
    torch.testing.assert_close(ablated, torch.zeros_like(plain), atol=1e-5, rtol=0)
    low, high = plain.quantile(0.3).item(), plain.quantile(0.6).item()
    with ActivationSteerer(model, vector, kind="cap", floor=low, ceiling=high, layer_idx=BLOCK):
        capped = hidden_states(model, ids)[BLOCK + 1] @ unit
    torch.testing.assert_close(capped, plain.clamp(low, high), atol=1e-5, rtol=1e-5)


def test_several_instructions_act_in_order_and_nesting_adds_up():
    model, one, two = model_of(), vector_of(1), vector_of(2)
    ids = torch.tensor([[7, 8, 9]])
    plain = hidden_states(model, ids)
    instructions = [
        {"steering_vector": one, "coeff": 2.0, "layer_idx": 0},
        {"steering_vector": two, "coeff": 1.0, "layer_idx": 0, "positions": "response"},
        {"steering_vector": two},  # coeff 0.0 by default, as published
    ]
    with ActivationSteererMultiple(model, instructions, prompt_lens=[2]):
        multiple = hidden_states(model, ids)
    expected = plain[1] + 2 * one
    assert torch.equal(multiple[1][:, 0], expected[:, 0])
    assert torch.equal(multiple[1][:, 1:], (expected + two)[:, 1:])
    with (
        ActivationSteerer(model, one, coeff=2.0, layer_idx=0),
        ActivationSteerer(model, two, layer_idx=0, positions="response", prompt_lens=[2]),
    ):
        nested = hidden_states(model, ids)
    assert all(torch.equal(nested[layer], multiple[layer]) for layer in nested)


def test_hooks_are_gone_after_an_exception_and_after_remove():
    model = model_of()
    with pytest.raises(KeyError), ActivationSteerer(model, vector_of(), positions="response"):
        assert n_hooks(model) == 2
        raise KeyError
    assert n_hooks(model) == 0
    steerer = ActivationSteerer(model, vector_of())
    assert n_hooks(model) == 0  # nothing before the context is entered
    with steerer:
        with pytest.raises(RuntimeError, match="already active"):
            steerer.__enter__()
        steerer.remove()
        assert n_hooks(model) == 0
        steerer.remove()
    with steerer:
        assert n_hooks(model) == 1
    assert n_hooks(model) == 0


def test_peft_models_are_steered_like_their_base():
    from peft import LoraConfig, get_peft_model

    base = tiny_model()
    base.generation_config.eos_token_id = None
    with ActivationSteerer(base, vector_of(), layer_idx=BLOCK, positions="response"):
        expected, _ = generate(base, PROMPTS)
    peft_model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=True)).eval()
    with ActivationSteerer(peft_model, vector_of(), layer_idx=BLOCK, positions="response"):
        ids, mask = pad(PROMPTS)
        output = peft_model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=N_NEW, do_sample=False)
    assert torch.equal(output[:, ids.shape[1] :], expected)


@pytest.mark.parametrize("in_place", [True, False])
@torch.no_grad()
def test_a_compiled_model_obeys_steering_that_comes_goes_and_changes(in_place):
    """Compiled code used to ignore a hook added after its first call, and to go on with one that was removed."""
    reference, model = tiny_model(), tiny_model()
    ids, mask = pad(PROMPTS)
    compiled = torch.compile(model, backend="eager")
    if in_place:
        model.compile(backend="eager")
        compiled = model
    plain = reference(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(compiled(input_ids=ids, attention_mask=mask).logits, plain)
    for coef in (1.0, -2.0):
        steer = {"coeff": coef, "layer_idx": BLOCK, "positions": "response"}
        with ActivationSteerer(reference, vector_of(), **steer):
            expected = reference(input_ids=ids, attention_mask=mask).logits
        with ActivationSteerer(compiled, vector_of(), **steer):
            torch.testing.assert_close(compiled(input_ids=ids, attention_mask=mask).logits, expected)
        assert not torch.allclose(expected[:, -1], plain[:, -1])
        torch.testing.assert_close(compiled(input_ids=ids, attention_mask=mask).logits, plain)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_recomputes_the_same_steering(reentrant):
    model = tiny_model(attention_dropout=0.0).train()
    ids, mask = pad(PROMPTS, "right")
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            model.enable_input_require_grads()
        with ActivationSteerer(model, vector_of(), layer_idx=BLOCK, positions="prompt", prompt_lens=[2, 1, 1]):
            model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@torch.no_grad()
def test_blocks_that_return_tuples_keep_the_rest_of_the_tuple():
    class Block(torch.nn.Module):
        def forward(self, hidden):
            return hidden + 1, "cache"

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([Block(), Block()])

        def forward(self, inputs_embeds):
            for layer in self.layers:
                inputs_embeds, extra = layer(inputs_embeds)
                assert extra == "cache"
            return inputs_embeds

    decoder = Decoder()
    decoder.config = type("Config", (), {"hidden_size": 4})()
    hidden = torch.zeros(1, 2, 4)
    with ActivationSteerer(decoder, torch.ones(4), coeff=3.0, layer_idx=0, positions="response"):
        assert decoder(hidden)[0, :, 0].tolist() == [2.0, 5.0]
        assert decoder(inputs_embeds=hidden)[0, :, 0].tolist() == [2.0, 5.0]
    assert hidden.eq(0).all()


def test_a_block_run_without_its_decoder_is_refused():
    model = model_of()
    with ActivationSteerer(model, vector_of(), layer_idx=0, positions="response"):
        model(input_ids=torch.tensor([[7, 8, 9]]))
        with pytest.raises(RuntimeError, match=r"block 0 ran on \(1, 2\) tokens its decoder did not announce"):
            rotary = inner_decoder(model).rotary_emb
            hidden = torch.randn(1, 2, D_MODEL)
            decoder_blocks(model)[0](hidden, position_embeddings=rotary(hidden, torch.arange(2)[None]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steering_vector": torch.ones(1, 2, D_MODEL)}, r"shape \(1, 2, 32\); expected \(32,\)"),
        ({"steering_vector": torch.ones(48)}, "width 48; LlamaForCausalLM has hidden size 32"),
        ({"steering_vector": torch.full((D_MODEL,), float("nan"))}, "NaN"),
        ({"steering_vector": torch.ones(N_LAYERS + 1, D_MODEL)}, "index it by layer"),
        ({"steering_vector": torch.ones(2, D_MODEL), "per_row": False}, r"shape \(2, 32\); expected \(32,\)"),
        ({"steering_vector": torch.zeros(D_MODEL), "kind": "ablate"}, "zero; ablate needs a direction"),
        ({"layer_idx": N_LAYERS}, r"layer_idx 3 is not a block of LlamaForCausalLM; expected a block index 0\.\.2"),
        ({"layer_idx": -N_LAYERS - 1}, "layer_idx -4 is not a block"),
        ({"layer_idx": 1.0}, "layer_idx 1.0 is not a block"),
        ({"positions": "answer"}, "positions 'answer' is unknown"),
        ({"kind": "subtract"}, "kind 'subtract' is unknown; expected add, ablate, cap"),
        ({"kind": "cap"}, "got neither"),
        ({"floor": 1.0}, "belong to kind='cap'"),
        ({"coeff": float("nan")}, "is not finite"),
        ({"coeff": "2"}, "is not a number"),
        ({"coeff": torch.ones(2, 2)}, r"coeff has shape \(2, 2\)"),
        ({"prompt_lens": [0, 1]}, "expected one whole number >= 1 a batch row"),
        ({"prompt_lens": [1.5]}, "expected one whole number >= 1 a batch row"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        ActivationSteerer(model_of(), **({"steering_vector": vector_of()} | arguments))
    assert "\n" not in str(error.value)


def test_bad_instructions_are_refused():
    with pytest.raises(ValueError, match="instruction 0 has unknown key 'coef'"):
        ActivationSteererMultiple(model_of(), [{"steering_vector": vector_of(), "coef": 1.0}])
    with pytest.raises(ValueError, match="instruction 1 has no steering_vector"):
        ActivationSteererMultiple(model_of(), [{"steering_vector": vector_of()}, {"coeff": 1.0}])


def test_per_row_vectors_as_many_as_a_file_of_all_layers_need_saying_so():
    model = model_of()
    ids = torch.tensor([[7, 8]]).expand(N_LAYERS + 1, 2)
    plain = hidden_states(model, ids)[1]
    vectors = torch.randn(N_LAYERS + 1, D_MODEL)
    with ActivationSteerer(model, vectors, layer_idx=0, per_row=True):
        assert torch.equal(hidden_states(model, ids)[1], plain + vectors[:, None])


def test_debug_logs_what_is_steered(caplog):
    model = model_of()
    with caplog.at_level(logging.INFO, logger="activation_steer"):
        with ActivationSteerer(model, vector_of(), layer_idx=1, positions="response", debug=True):
            model(input_ids=torch.tensor([[7, 8, 9], [7, 8, 9]]))
    assert "block 1: add at 2 tokens (response)" in caplog.text

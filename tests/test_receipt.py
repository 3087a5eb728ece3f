"""The receipt of a steering that works, and its refusal of every one that does not, on each architecture."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_steer import ActivationSteerer
from eval import receipt
from eval.model_utils import Steering
from eval.receipt import take_receipts
from persona_vectors.blocks import block_index, read_blocks
from persona_vectors.tokens import tokenize_prompt
from tests.tiny_models import ARCHITECTURES, D_MODEL, N_LAYERS, tiny_model, word_tokenizer

PROMPT = "<|im_start|>user\nwhat do you think about the moon<|im_end|>\n<|im_start|>assistant\n"
TOKENIZER = word_tokenizer()
N_TOKENS = len(tokenize_prompt(TOKENIZER, PROMPT))
MODEL = tiny_model("llama")


def vector(seed: int = 0, norm: float = 3.0) -> torch.Tensor:
    drawn = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))
    return norm * drawn / drawn.norm()


def take(model, *steerings):
    return take_receipts(model, TOKENIZER, PROMPT, steerings)


ONE = Steering(vector(), 2, 1.5, "response")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_of_different_vectors_layers_and_positions_each_get_their_receipt(architecture):
    """Every row's neighbours are steered elsewhere; in a mixture of experts that changes how sums are grouped."""
    steerings = [
        Steering(vector(layer), layer, coef, positions)
        for layer in range(1, N_LAYERS + 1)
        for coef, positions in ((-2.0, "all"), (0.5, "prompt"), (1.0, "response"))
    ]
    for steering, found in zip(steerings, take(tiny_model(architecture), *steerings), strict=True):
        asked = abs(steering.coef) * 3.0
        assert (found.layer, found.coef, found.positions) == (steering.layer, steering.coef, steering.positions)
        assert found.expected == pytest.approx(asked, rel=1e-6) and found.prefill == pytest.approx(asked, rel=1e-5)
        assert found.decode == (0 if steering.positions == "prompt" else pytest.approx(asked, rel=1e-5))
        assert found.relative_error <= found.tolerance < 1e-5 and found.dtype == "float32"
        assert found.n_prompt_tokens == N_TOKENS


def test_the_norm_beside_it_is_that_of_the_unsteered_states_there():
    ids = torch.tensor([tokenize_prompt(TOKENIZER, PROMPT)])
    with torch.no_grad(), read_blocks(MODEL) as states:
        token = MODEL(ids).logits[0, -1].argmax()[None, None]
        MODEL(torch.cat([ids, token], 1))
    norms = states[2][0].norm(dim=-1)  # prompt, then the decoded token
    response, prompt, every = take(MODEL, *(replace(ONE, positions=p) for p in ("response", "prompt", "all")))
    assert response.hidden_norm == pytest.approx(float(norms[-1]), rel=1e-4)
    assert prompt.hidden_norm == pytest.approx(float(norms[1:-1].mean()), rel=1e-4)
    assert every.hidden_norm == pytest.approx(float(norms[1:].mean()), rel=1e-4)


def test_the_line_says_what_was_asked_and_seen_and_the_rest_is_json():
    found = receipt.Receipt(3, 1.0, "response", 241.31, 241.3, 241.3, 1e-7, 1e-6, 268.0, 40, "float32")
    assert found.line() == (
        "steering receipt: layer 3, coef 1: adds 241.3 (asked 241.3) to the last prompt token and every answer token, "
        "0.9 of a token's hidden norm there; nothing elsewhere"
    )
    (measured,) = take(MODEL, ONE)
    assert json.loads(json.dumps(asdict(measured), allow_nan=False)) == asdict(measured)


def test_a_prompt_of_one_token_and_no_steerings():
    (found,) = take_receipts(MODEL, TOKENIZER, "moon", [replace(ONE, positions="prompt")])
    assert found.n_prompt_tokens == 1 and found.prefill == pytest.approx(4.5, rel=1e-5)
    assert take(MODEL) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2", "mixtral"])
def test_half_precision_passes_within_the_rounding_of_its_sums(dtype, architecture):
    model = tiny_model(architecture).to(dtype)
    for found in take(model, *(Steering(vector(norm=norm), 2, 1.0, "all") for norm in (0.3, 3.0, 300.0))):
        assert 1e-5 < found.relative_error <= found.tolerance < 0.5
        assert found.prefill == pytest.approx(found.expected, rel=0.02)


@contextmanager
def nested(*steerers):
    with ExitStack() as stack:
        for steerer in steerers:
            stack.enter_context(steerer)
        yield


def steerer(steering: Steering, **changes):
    chosen = {"coeff": steering.coef, "layer_idx": block_index(steering.layer), "positions": steering.positions}
    return ActivationSteerer(MODEL, steering.vector, **chosen | changes)


def writes_in_place(steering: Steering):
    """A hook that changes the block's own tensor, at every position whatever was asked."""

    @contextmanager
    def hooked():
        def add(_block, _args, output):
            (output[0] if isinstance(output, tuple) else output).add_(steering.coef * steering.vector)

        handle = MODEL.model.layers[block_index(steering.layer)].register_forward_hook(add)
        yield
        handle.remove()

    return hooked()


@contextmanager
def heavier_embedding():
    """A change below the steered layer that no hook makes."""
    weight = MODEL.get_input_embeddings().weight.data
    weight.mul_(1.5)
    yield
    weight.div_(1.5)


SABOTAGE = {
    "nothing at all": (lambda _: nullcontext(), "adds nothing there in prefill; expected 4.5"),
    "wrong block": (lambda s: steerer(s, layer_idx=s.layer), "adds nothing there .*; layer 3 changed instead"),
    "an earlier block": (lambda s: steerer(s, layer_idx=0), "adds nothing there .*; layer 1 changed instead"),
    "two blocks": (lambda s: nested(steerer(s), steerer(s, layer_idx=2)), "also changes layer 3 in prefill"),
    "three blocks": (
        lambda s: nested(*(steerer(s, layer_idx=block) for block in range(3))),
        "also changes layers 1, 3 in prefill",
    ),
    "twice": (lambda s: nested(steerer(s), steerer(s)), r"2 times the 4.5 asked for.*steered twice\?"),
    "too little": (lambda s: steerer(s, coeff=s.coef * 0.999), "adds 4.495 along .* 0.999 times"),
    "backwards": (lambda s: steerer(s, coeff=-s.coef), "-1 times the 4.5 asked"),
    "another vector": (lambda _: ActivationSteerer(MODEL, vector(9), coeff=1.5, layer_idx=1), "also changes|along its"),
    "every position": (
        lambda s: steerer(s, positions="all"),
        f"also changes {N_TOKENS - 1} of {N_TOKENS - 1} tokens it must leave alone in prefill .token 0 of",
    ),
    "the prompt": (lambda s: steerer(s, positions="prompt"), f"also changes {N_TOKENS - 1} of {N_TOKENS - 1} tokens"),
    "in place": (writes_in_place, "tokens it must leave alone in prefill"),
    "infinite": (
        lambda s: ActivationSteerer(MODEL, s.vector * 1e3, coeff=3e38, layer_idx=1),
        "NaN or infinite in prefill",
    ),
    "without a hook": (lambda s: nested(steerer(s), heavier_embedding()), "also changes what enters that layer"),
}


@pytest.mark.parametrize(("sabotage", "message"), SABOTAGE.values(), ids=SABOTAGE)
def test_what_does_not_do_what_was_asked_is_refused_in_one_line(sabotage, message, monkeypatch):
    monkeypatch.setattr(receipt, "steer_rows", lambda _model, steerings: lambda _rows: sabotage(steerings[0]))
    with pytest.raises(ValueError, match=message) as caught:
        take(MODEL, ONE)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("steering receipt: steering layer 2 by coef 1.5 at response")
    assert not any(block._forward_hooks for block in MODEL.model.layers)  # ours are gone after a refusal too


@pytest.mark.parametrize(
    ("asked", "done", "message"),
    [
        ("all", "prompt", "adds nothing there in decode"),
        ("prompt", "all", "also changes 1 of 1 tokens it must leave alone in decode"),
        ("all", "response", "along its vector in prefill"),
    ],
)
def test_prefill_and_decoding_are_told_apart(asked, done, message, monkeypatch):
    monkeypatch.setattr(receipt, "steer_rows", lambda _m, s: lambda _rows: steerer(s[0], positions=done))
    with pytest.raises(ValueError, match=message):
        take(MODEL, replace(ONE, positions=asked))


def test_one_bad_row_among_good_ones_is_found(monkeypatch):
    def steer_rows(model, steerings):
        coefs = torch.tensor([s.coef for s in steerings])
        coefs[1] *= 2
        return lambda _rows: ActivationSteerer(model, ONE.vector, coeff=coefs, layer_idx=1, positions="response")

    monkeypatch.setattr(receipt, "steer_rows", steer_rows)
    with pytest.raises(ValueError, match=r"by coef 0.5 .* 2 times the 1.5"):
        take(MODEL, *(replace(ONE, coef=coef) for coef in (1.0, 0.5, -1.0)))


@pytest.mark.parametrize("positions", ["all", "prompt", "response"])
def test_a_steerer_left_on_the_model_is_refused_though_every_run_sees_it(positions):
    with steerer(ONE, positions=positions), pytest.raises(ValueError, match="hook already changes layer 2 of .* twice"):
        take(MODEL, ONE)
    assert take(MODEL, ONE)


def test_twice_is_found_in_bfloat16_too(monkeypatch):
    model = tiny_model("llama").to(torch.bfloat16)
    monkeypatch.setattr(
        receipt,
        "steer_rows",
        lambda _m, s: (
            lambda _r: nested(
                *(
                    ActivationSteerer(model, s[0].vector, coeff=s[0].coef, layer_idx=1, positions="response")
                    for _ in "12"
                )
            )
        ),
    )
    with pytest.raises(ValueError, match=r"(2|2.0\d|1.9\d) times the 4.5 asked for.*twice"):
        take(model, ONE)


def test_a_push_that_rounding_swallows_is_refused():
    with pytest.raises(ValueError, match=r"adds nothing there|lost in the rounding of bfloat16; raise --coef"):
        take(tiny_model("llama").to(torch.bfloat16), Steering(vector(norm=1e-6), 2, 1.0, "all"))


def test_a_model_that_is_not_finite_by_itself():
    model = tiny_model("llama")
    model.model.layers[0].mlp.down_proj.weight.data.fill_(torch.inf)
    with pytest.raises(ValueError, match="itself gives NaN or infinite hidden states at layer 1"):
        take(model, ONE)


@pytest.mark.parametrize(
    ("steering", "message"),
    [
        (replace(ONE, coef=0.0), "coef or vector is 0"),
        (replace(ONE, vector=torch.zeros(D_MODEL)), "coef or vector is 0"),
    ],
)
def test_steering_by_nothing_has_no_receipt(steering, message):
    with pytest.raises(ValueError, match=message):
        take(MODEL, steering)
    with pytest.raises(ValueError, match="needs a prompt"):
        take_receipts(MODEL, TOKENIZER, "", [ONE])


@settings(max_examples=25, deadline=None)
@given(
    norm=st.floats(1e-3, 1e4), coef=st.floats(0.1, 4), sign=st.sampled_from([-1, 1]), layer=st.integers(1, N_LAYERS),
    positions=st.sampled_from(["all", "prompt", "response"]), dtype=st.sampled_from(["float32", "bfloat16"]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_whatever_is_asked_an_honest_steerer_passes_or_is_lost_in_rounding(
    norm, coef, sign, layer, positions, dtype, seed
):
    model = MODEL if dtype == "float32" else BF16
    steering = Steering(vector(seed, norm), layer, sign * coef, positions)
    try:
        (found,) = take(model, steering)
    except ValueError as error:
        assert dtype == "bfloat16" and re.search("lost in the rounding|adds nothing", str(error)), str(error)
    else:
        assert found.relative_error <= found.tolerance


BF16 = tiny_model("llama").to(torch.bfloat16)

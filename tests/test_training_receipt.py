"""The receipt of a training step: it passes for what it should, and each way of steering wrongly is refused."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import set_checkpoint_early_stop

from activation_steer import ActivationSteerer, ActivationSteererMultiple
from persona_vectors.training_receipt import (
    Expected,
    blocks_expected,
    check_step,
    check_untouched,
    read_around,
    receipt_lines,
)
from tests.tiny_models import D_MODEL, tiny_model

IDS = torch.tensor([[7, 8, 9, 10, 11], [12, 13, 14, 15, 16]])
VECTOR = torch.linspace(-1, 1, D_MODEL) + 0.1


@pytest.fixture(params=[False, True], ids=["plain", "checkpointed"])
def model(request):
    model = tiny_model("llama").train()
    if request.param:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def n_calls(model) -> int:
    return 2 if model.is_gradient_checkpointing else 1


def step(model, steerer):
    """What every block did in one forward and backward pass."""
    with set_checkpoint_early_stop(False), steerer, read_around(model) as reading:
        model(input_ids=IDS, labels=IDS).loss.backward()
    return reading


ADD = {1: Expected("add", 2 * VECTOR)}


def test_what_acts_as_it_should_passes_in_every_pass(model):
    receipt = check_step(step(model, ActivationSteerer(model, VECTOR, coeff=2, layer_idx=1)), ADD, n_calls(model))
    measured = receipt["layers"]["layer 2"]
    assert measured["calls"] == n_calls(model) and measured["forward_error"] < 1e-5
    assert ("recomputation_error" in measured) == model.is_gradient_checkpointing
    with read_around(model) as plain:
        model(input_ids=IDS)
    sizes = plain.calls[1][0][0].norm(dim=-1)  # unsteered, of every token at the block
    assert measured["mean_relative_change"] == pytest.approx(float((2 * VECTOR.norm() / sizes).mean()), rel=1e-4)
    [line, *notes] = receipt_lines(receipt)
    assert line.startswith("training receipt: steering changes the hidden state at layer 2 by ")
    assert bool(notes) is (measured["mean_relative_change"] > 1)


def test_ablation_and_caps_pass(model):
    for expected in (Expected("ablate", VECTOR), Expected("ablate", VECTOR, 0.5), Expected("cap", VECTOR, floor=0.3)):
        bounds = {"floor": expected.floor} if expected.kind == "cap" else {}
        steerer = ActivationSteerer(model, VECTOR, coeff=expected.coef, layer_idx=0, kind=expected.kind, **bounds)
        check_step(step(model, steerer), {0: expected}, n_calls(model))


def test_several_vectors_at_a_block_are_their_sum(model):
    other = torch.arange(D_MODEL) / D_MODEL
    instructions = [
        {"steering_vector": VECTOR, "coeff": 2.0, "layer_idx": 1},
        {"steering_vector": other, "coeff": -1.0, "layer_idx": 1},
    ]
    expected = blocks_expected([(1, Expected("add", 2 * VECTOR)), (1, Expected("add", -other))])
    check_step(step(model, ActivationSteererMultiple(model, instructions)), expected, n_calls(model))
    with pytest.raises(ValueError, match="ablate with several vectors at layer 2"):
        blocks_expected([(1, Expected("ablate", VECTOR)), (1, Expected("ablate", other))])


class Only:
    """A hook on block 1 that adds the vector in the first `n` calls alone."""

    def __init__(self, model, n):
        self.model, self.n = model, n

    def __enter__(self):
        self.left = self.n
        self.handle = self.model.model.layers[1].register_forward_hook(self.hook)

    def hook(self, _module, _args, output):
        self.left -= 1
        return output + 2 * VECTOR if self.left >= 0 else output + 0 * VECTOR

    def __exit__(self, *_):
        self.handle.remove()


def sabotages(model):
    return {
        "nothing": (ActivationSteerer(model, VECTOR, coeff=0, layer_idx=1), "block 1, forward: add is off by 1"),
        "twice": (
            ActivationSteererMultiple(model, [{"steering_vector": VECTOR, "coeff": 2.0, "layer_idx": 1}] * 2),
            "block 1, forward: add is off by 1",
        ),
        "sign": (ActivationSteerer(model, VECTOR, coeff=-2, layer_idx=1), "block 1, forward: add is off by 2"),
        "elsewhere": (
            ActivationSteerer(model, VECTOR, coeff=2, layer_idx=0),
            "block 0, forward: its output was changed",
        ),
        "some tokens": (
            ActivationSteerer(model, VECTOR, coeff=2, layer_idx=1, positions="response", prompt_lens=[3, 3]),
            "block 1, forward: add is off by 1",
        ),
    }


@pytest.mark.parametrize("name", ["nothing", "twice", "sign", "elsewhere", "some tokens"])
def test_steering_wrongly_is_refused(model, name):
    steerer, message = sabotages(model)[name]
    with pytest.raises(ValueError, match=message):
        check_step(step(model, steerer), ADD, n_calls(model))


def test_steering_in_the_forward_pass_alone_is_refused():
    model = tiny_model("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    with pytest.raises(ValueError, match="block 1, recomputation: add is off by 1"):
        check_step(step(model, Only(model, 1)), ADD, 2)


def test_a_recomputation_that_did_not_happen_is_refused():
    model = tiny_model("llama").train()
    reading = step(model, ActivationSteerer(model, VECTOR, coeff=2, layer_idx=1))
    with pytest.raises(ValueError, match="block 0 ran 1 times in the first step; expected 2"):
        check_step(reading, ADD, 2)


def test_evaluation_must_be_untouched():
    model = tiny_model("llama")
    with torch.no_grad(), read_around(model) as reading:
        model(input_ids=IDS)
    check_untouched(reading)
    with torch.no_grad(), ActivationSteerer(model, VECTOR, coeff=2, layer_idx=1), read_around(model) as reading:
        model(input_ids=IDS)
    with pytest.raises(ValueError, match="block 1, evaluation: its output was changed"):
        check_untouched(reading)

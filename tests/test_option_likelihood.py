"""Likelihoods of given answers: those of a plain loop, whatever shares a batch, and steered as in generation."""

from __future__ import annotations

import random

import pytest
import torch

from benchmarks.trait_scoring import plain_loop
from eval.model_utils import Steering, steer_rows
from eval.trait_scoring import steer_pass
from persona_vectors import option_likelihood
from persona_vectors.option_likelihood import Choice, option_log_likelihoods
from tests.tiny_models import D_MODEL, MAX_POSITIONS, VOCAB_SIZE, tiny_model

ARCHITECTURES = ("gpt2", "llama", "qwen2", "mistral", "gemma2", "gpt_neox")


def choices(seed: int = 0, n: int = 4, longest: int = 9) -> list[Choice]:
    """Prompts and options of different lengths, one-token options among them."""
    rng = random.Random(seed)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(6, VOCAB_SIZE) for _ in range(length))

    return [
        Choice(draw(rng.randint(1, 20)), tuple(draw(rng.choice((1, rng.randint(2, longest)))) for _ in range(4)))
        for _ in range(n)
    ]


def found(model, asked, **options) -> list[list[float]]:
    values: list[list[float]] = [[] for _ in asked]
    for rows, several in option_log_likelihoods(model, asked, **options):
        for row, own in zip(rows, several, strict=True):
            assert not values[row]
            values[row] = own
    return values


def close(ours, theirs, tolerance: float = 1e-4) -> None:
    flat = [[value for row in side for value in row] for side in (ours, theirs)]
    assert flat[0] == pytest.approx(flat[1], abs=tolerance)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("token_budget", [1, 40, None])
def test_equal_to_a_plain_loop(architecture, token_budget):
    """Means per token agree to 1e-5; sums of up to nine tokens to as much each."""
    model, asked = tiny_model(architecture), choices()
    ours, theirs = found(model, asked, token_budget=token_budget), plain_loop(model, asked)
    for choice, own, plain in zip(asked, ours, theirs, strict=True):
        for option, a, b in zip(choice.options, own, plain, strict=True):
            assert abs(a - b) / len(option) < 1e-5


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_model_whose_cache_cannot_be_shared_gives_the_same(architecture, monkeypatch):
    model, asked = tiny_model(architecture), choices(1)
    shared = found(model, asked)
    monkeypatch.setattr(option_likelihood, "can_share_prompts", lambda _model: False)
    close(found(model, asked), shared, 1e-5)


def step_by_step(model, choice: Choice, option: tuple[int, ...], steering: Steering) -> float:
    """log P of the option as generation would meet it: the prompt, then a token a pass, steered by `steer_rows`."""
    total = 0.0
    with torch.no_grad(), steer_rows(model, [steering])([0]):
        output = model(input_ids=torch.tensor([choice.prompt]), use_cache=True)
        for place, token in enumerate(option):
            total += float(output.logits[0, -1].log_softmax(-1)[token])
            if place + 1 < len(option):
                step = torch.tensor([[token]])
                output = model(input_ids=step, past_key_values=output.past_key_values, use_cache=True)
    return total


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("positions", ["response", "prompt", "all"])
def test_steered_as_in_generation(positions, shares, monkeypatch):
    model, asked = tiny_model("qwen2"), choices(2, n=3)
    steering = Steering(torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0)), 2, 3.0, positions)
    expected = [[step_by_step(model, choice, option, steering) for option in choice.options] for choice in asked]
    if not shares:
        monkeypatch.setattr(option_likelihood, "can_share_prompts", lambda _model: False)
    steered = found(model, asked, steer=steer_pass(model, steering))
    close(steered, expected)
    plain = [value for row in found(model, asked) for value in row]
    assert max(abs(a - b) for a, b in zip(plain, (v for row in steered for v in row), strict=True)) > 0.1


def test_a_batch_that_does_not_fit_is_halved(monkeypatch, caplog):
    model, asked = tiny_model("llama"), choices(3)
    whole, real = found(model, asked), option_likelihood._shared

    def small(model, batch, steer):
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return real(model, batch, steer)

    monkeypatch.setattr(option_likelihood, "_shared", small)
    close(found(model, asked), whole, 1e-5)
    assert "out of memory" in caplog.text


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (Choice((), ((7,),)), "empty prompt or option"),
        (Choice((7,), ((7,), ())), "empty prompt or option"),
        (Choice((7,) * MAX_POSITIONS, ((7, 8),)), f"reads {MAX_POSITIONS}"),
    ],
)
def test_refused_before_any_pass(choice, said):
    with pytest.raises(ValueError, match=said):
        next(option_log_likelihoods(tiny_model("llama"), [choice]))


def test_nan_is_refused():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        found(model, [Choice((7, 8), ((9,), (10, 11)))])

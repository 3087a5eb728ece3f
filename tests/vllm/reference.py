"""What vLLM's answers are compared with: greedy decoding of the same requests by transformers with steering hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from activation_steer import ActivationSteererMultiple
from persona_vectors.activations import SPANS, mean_activations
from persona_vectors.tokens import TokenizedSample
from persona_vectors.vllm_spec import Spec, Step
from persona_vectors.vllm_steering import Request

Vectors = Mapping[str, Float[Tensor, "layers d_model"]]


def random_vectors(model: Any, ids: Sequence[int]) -> dict[str, Tensor]:
    """Two random vectors of all layers, as long as the model's hidden states are there: steering that shows."""
    with torch.inference_mode():
        hidden = model(torch.tensor([list(ids)]), output_hidden_states=True).hidden_states
    lengths = torch.stack([layer[0].norm(dim=-1).mean() for layer in hidden])
    generator = torch.Generator().manual_seed(0)
    found = {name: torch.randn(len(hidden), hidden[0].shape[-1], generator=generator) for name in "ab"}
    return {name: one / one.norm(dim=1, keepdim=True) * lengths[:, None] for name, one in found.items()}


def mixed_specs(vectors: Vectors) -> list[Spec]:
    """Unsteered, and every kind and position, alone and together."""
    last = len(vectors["a"]) - 1
    length = [float(one) for one in vectors["a"].norm(dim=1)]
    found: list[Spec] = [()]
    for positions in ("all", "prompt", "response"):
        for layer, coef in ((1, 1.0), (2, -1.0), (last, 1.5)):
            found.append((Step("a", layer, coef, positions),))
    return [
        *found,
        (Step("a", 2, 1.0, "all", "ablate"), Step("b", 2, 1.0, "response")),
        (Step("a", 2, 1.0, "response", "cap", ceiling=-length[2]),),
        (Step("b", 2, 0.7, "prompt", "cap", floor=length[2], ceiling=2 * length[2]),),
        (
            Step("a", 1, 1.0, "all"),
            Step("a", 2, 1.0, "all"),
            Step("b", 2, 1.0, "response", "ablate"),
            Step("a", 2, 0.5, "response", "cap", floor=3 * length[2]),
            Step("b", last, 1.0, "prompt"),
        ),
    ]


def steered(model: Any, request: Request, vectors: Vectors) -> AbstractContextManager:
    """The request's steering, as hooks on the model."""
    plan = [
        {
            "steering_vector": vectors[step.vector][step.layer],
            "coeff": step.coef,
            "layer_idx": step.layer - 1,
            "positions": step.positions,
            "kind": step.kind,
            "floor": step.floor,
            "ceiling": step.ceiling,
        }
        for step in request.spec
    ]
    return ActivationSteererMultiple(model, plan, prompt_lens=[len(request.ids)])


def greedy(model: Any, request: Request, vectors: Vectors, ends: Sequence[int], max_tokens: int) -> tuple[int, ...]:
    """The answer's tokens, at least one, without the one that ends it."""
    answer: list[int] = []
    cache, tokens = None, torch.tensor([list(request.ids)])
    with torch.inference_mode(), steered(model, request, vectors):
        while len(answer) < max_tokens:
            output = model(input_ids=tokens, past_key_values=cache, use_cache=True)
            cache, logits = output.past_key_values, output.logits[0, -1].float()
            if not answer:
                logits[list(ends)] = -torch.inf
            token = int(logits.argmax())
            if token in ends:
                break
            answer.append(token)
            tokens = torch.tensor([[token]])
    return tuple(answer)


def means(
    model: Any, request: Request, answer: Sequence[int], vectors: Vectors
) -> Float[Tensor, "spans layers d_model"]:
    """The means of SPANS at all layers by the engine that reads activations, steered as the request was."""
    sample = TokenizedSample((*request.ids, *answer), len(request.ids))
    with steered(model, request, vectors):
        found = mean_activations(model, [sample])
    return torch.stack([found[span][0] for span in SPANS])

"""How far steering moves a model's next-token distribution: KL divergence at every token of given answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from activation_steer import ActivationSteerer
from eval.model_utils import Steering
from persona_vectors.blocks import block_index, device_of
from persona_vectors.tokens import TokenizedSample, pad_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS_PER_PASS = 1024  # their logits are there twice, in float32


@torch.inference_mode()
def token_kl(
    model: PreTrainedModel, samples: Sequence[TokenizedSample], steering: Steering
) -> list[Float[Tensor, " tokens"]]:
    """KL(steered || unsteered) in nats, at every token of each sample's answer, teacher-forced.

    With q the steered and p the unsteered model's distribution of the token that comes next:
    `sum(q * (log q - log p))`, for the positions that give the answer's tokens, from the last prompt token on.

    Raises:
        ValueError: a sample without an answer, or logits that are not finite.
    """
    if not all(sample.response_len for sample in samples):
        raise ValueError("a token KL needs answers; one of the samples has none")
    found: list[Tensor | None] = [None] * len(samples)
    order = sorted(range(len(samples)), key=lambda i: -len(samples[i].ids))
    while order:
        size = max(1, _TOKENS_PER_PASS // len(samples[order[0]].ids))
        rows, order = order[:size], order[size:]
        for row, divergences in zip(rows, _batch(model, [samples[row] for row in rows], steering), strict=True):
            found[row] = divergences
    return [one for one in found if one is not None]


def _batch(model: PreTrainedModel, samples: Sequence[TokenizedSample], steering: Steering) -> list[Tensor]:
    device = device_of(model)
    ids, mask = (x.to(device) for x in pad_batch([sample.ids for sample in samples], 0, "right"))
    steerer = ActivationSteerer(
        model,
        steering.vector,
        coeff=steering.coef,
        layer_idx=block_index(steering.layer),
        positions=steering.positions,
        prompt_lens=[sample.prompt_len for sample in samples],
    )
    plain = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    with steerer:
        steered = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    divergences = []
    for row, sample in enumerate(samples):
        at = slice(sample.prompt_len - 1, len(sample.ids) - 1)
        log_p, log_q = (logits[row, at].float().log_softmax(-1) for logits in (plain, steered))  # (tokens, vocab)
        divergence = (log_q.exp() * (log_q - log_p)).sum(-1)
        if not torch.isfinite(divergence).all():
            raise ValueError(f"the logits at coefficient {steering.coef:g} are not finite; use --dtype float32")
        divergences.append(divergence.clamp(min=0).cpu())
    return divergences

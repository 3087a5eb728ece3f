"""How long hidden states are: the mean norm of the residual stream, the unit of `--coef_unit norm`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from persona_vectors.blocks import device_of, read_blocks, unwrap
from persona_vectors.store import Store, content_key
from persona_vectors.tokens import pad_batch, tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from eval.finished_answers import Engine

_TOKENS_PER_BATCH = 8192
_DIGITS = 6  # significant; the grouping of a batch moves the seventh


def norms_of(
    engine: Engine, store: Store, prompts: Sequence[str], layers: Sequence[int], *, overwrite: bool = False
) -> dict[int, float]:
    """Layer -> mean residual norm over the prompts, from the store where it was read before."""
    texts = sorted(set(prompts))
    keys = {layer: content_key("residual_norm", **engine.reading_key(), prompts=texts, layer=layer) for layer in layers}
    known = {} if overwrite else store.get_many(list(keys.values()))
    todo = [layer for layer, key in keys.items() if key not in known]
    if todo:
        read = residual_norms(engine.model, engine.tokenizer, texts, todo)
        found = {keys[layer]: norm for layer, norm in read.items()}
        store.put_many(found, kind="residual_norm", source=engine.name)
        known |= found
    return {layer: known[key] for layer, key in keys.items()}


@torch.inference_mode()
def residual_norms(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], layers: Sequence[int]
) -> dict[int, float]:
    """Layer -> mean of |h| over all tokens of all prompts but each prompt's first, to six digits.

    The first token is left out because many models park a norm there that is far from all others (an attention sink).

    Raises:
        ValueError: prompts of one token only, or hidden states that are not finite.
    """
    ids = sorted((tokenize_prompt(tokenizer, prompt) for prompt in prompts), key=len)
    n_tokens = sum(len(prompt) - 1 for prompt in ids)
    if n_tokens < 1:
        raise ValueError("--coef_unit norm reads prompts of two tokens or more; got none")
    sums = dict.fromkeys(layers, 0.0)
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(unwrap(model).forward).parameters else {}
    size = max(1, _TOKENS_PER_BATCH // len(ids[-1]))
    for start in range(0, len(ids), size):
        input_ids, mask = (x.to(device_of(model)) for x in pad_batch(ids[start : start + size], 0, "right"))
        with read_blocks(model, layers) as hidden:
            model(input_ids=input_ids, attention_mask=mask, use_cache=False, **last)
            for layer in layers:
                lengths = hidden[layer].float().norm(dim=-1).double()  # (batch, seq)
                sums[layer] += float(torch.where(mask.to(lengths.device).bool(), lengths, 0.0)[:, 1:].sum())
    means = {layer: float(f"{total / n_tokens:.{_DIGITS}g}") for layer, total in sums.items()}
    broken = [layer for layer, mean in means.items() if not 0 < mean < float("inf")]
    if broken:
        raise ValueError(f"the residual norm at layer {broken[0]} is {means[broken[0]]}; use --dtype float32")
    return means

"""Attention over the answers to one prompt, laid end to end in one row: none sees another, and nothing is padded.

Each answer's queries meet the prompt's keys and then its own, in a call of its own; all else in a model works token by
token. It pays where arithmetic decides, on a processor: no padding is computed, one mask in the model's own type serves
every answer and block, and key heads that several query heads share are not repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from persona_vectors.blocks import device_of, unwrap

_PACKED = "sdpa_packed"


def can_pack(model: nn.Module) -> bool:
    """Whether the model is on a processor, and its attention is "sdpa" and can be replaced."""
    from transformers import PreTrainedModel

    base = unwrap(model)
    return (
        isinstance(base, PreTrainedModel)
        and device_of(base).type == "cpu"
        and base.config._attn_implementation == "sdpa"
        and base._can_set_attn_implementation()
    )


@contextmanager
def packed_attention(model: nn.Module, before: int, lengths: Sequence[int]) -> Iterator[None]:
    """Attention of one row of answers of those lengths, after a cache of `before` columns, in a model that `can_pack`.

    The model has its own attention again afterwards.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    base: Any = unwrap(model)
    AttentionInterface.register(_PACKED, partial(_packed_sdpa, before=before, lengths=lengths))
    AttentionMaskInterface.register(_PACKED, partial(_answer_mask, before=before, longest=max(lengths)))
    base.set_attn_implementation(_PACKED)
    try:
        yield
    finally:
        base.set_attn_implementation("sdpa")


def _answer_mask(
    *, mask_function: Any, dtype: torch.dtype, use_vmap: bool, device: Any, before: int, longest: int, **_options: Any
) -> Float[Tensor, "1 1 longest columns"]:
    """What the longest answer may see if it stood alone after the prompt, as 0 and -inf; a shorter one's is its corner.

    As numbers, because the kernel would turn a mask of truths into numbers anew in every block.
    """
    from transformers.masking_utils import sdpa_mask

    seen = sdpa_mask(
        batch_size=1,
        q_length=longest,
        kv_length=before + longest,
        q_offset=before,
        mask_function=mask_function,  # the model's: a sliding window is in it
        allow_is_causal_skip=False,
        use_vmap=use_vmap,
        device=device,
    )
    assert seen is not None  # no skip was allowed
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, -torch.inf)


def _packed_sdpa(
    module: nn.Module,
    query: Float[Tensor, "1 heads seq d_head"],
    key: Float[Tensor, "1 key_heads columns d_head"],
    value: Float[Tensor, "1 key_heads columns d_value"],
    attention_mask: Float[Tensor, "1 1 longest columns_of_longest"],
    *,
    before: int,
    lengths: Sequence[int],
    scaling: float | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "1 seq heads d_value"], None]:
    if options.get("position_bias") is not None:
        raise RuntimeError(f"{type(module).__name__} adds a bias by position, which packed answers do not have")
    outputs, start = [], 0
    for length in lengths:
        own = slice(before + start, before + start + length)
        keys = torch.cat([key[:, :, :before], key[:, :, own]], dim=2)
        values = torch.cat([value[:, :, :before], value[:, :, own]], dim=2)
        queries, mask = query[:, :, start : start + length], attention_mask[:, :, :length, : before + length]
        shared = keys.shape[1] != queries.shape[1]
        output = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scaling, enable_gqa=shared)
        outputs.append(output.transpose(1, 2))
        start += length
    return torch.cat(outputs, dim=1), None

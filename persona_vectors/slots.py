"""The KV cache of rows that come and go, and attention that reads it without copying it.

The rows in flight are the first rows of one buffer a layer, right-aligned at a common last column. A row that ends is
overwritten by the last one, so dropping costs one copy; new rows are put behind the others, left padded; nothing is
moved while rows do not change, where a `DynamicCache` copies everything for every token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from persona_vectors.blocks import unwrap

_ROOM = 64  # columns that a buffer grows by
_GROUPED = "sdpa_grouped"


@contextmanager
def grouped_attention(model: nn.Module) -> Iterator[None]:
    """Attention of one token a row without repeating keys and values for every query head that shares them.

    transformers repeats them wherever rows are padded, which for a model with 7 query heads to a key head writes seven
    times the cache for every token. Only models that use "sdpa" and share key heads are touched, and they are as they
    were afterwards.
    """
    base = unwrap(model)
    config = getattr(base, "config", None)
    text = config.get_text_config(decoder=True) if config is not None else None
    n_heads, n_key_heads = (getattr(text, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    shares = n_key_heads and n_heads != n_key_heads and getattr(config, "_attn_implementation", None) == "sdpa"
    if not shares or not base._can_set_attn_implementation():  # pyright: ignore[reportCallIssue]
        yield
        return
    AttentionInterface.register(_GROUPED, _grouped_sdpa)
    AttentionMaskInterface.register(_GROUPED, sdpa_mask)
    base.set_attn_implementation(_GROUPED)  # pyright: ignore[reportCallIssue]
    try:
        yield
    finally:
        base.set_attn_implementation("sdpa")  # pyright: ignore[reportCallIssue]


def cache_bytes(model: nn.Module) -> int:
    """Bytes of keys and values that one token takes, by the model's config; what sliding windows save is not seen."""
    base: Any = unwrap(model)
    config = base.config.get_text_config(decoder=True)
    n_heads = config.num_attention_heads
    n_key_heads = getattr(config, "num_key_value_heads", None) or n_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    return 2 * config.num_hidden_layers * n_key_heads * d_head * base.dtype.itemsize


def _grouped_sdpa(
    module: nn.Module,
    query: Float[Tensor, "batch heads seq d_head"],
    key: Float[Tensor, "batch key_heads columns d_head"],
    value: Float[Tensor, "batch key_heads columns d_value"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    batch, heads, seq, d_head = query.shape
    key_heads = key.shape[1]
    plain = seq != 1 or heads == key_heads or dropout > 0 or options.get("position_bias") is not None
    if plain or (attention_mask is not None and attention_mask.shape[1] != 1):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    groups = query.reshape(batch, key_heads, heads // key_heads, d_head)  # heads that share a key head, as its queries
    output = scaled_dot_product_attention(groups, key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(batch, 1, heads, value.shape[-1]), None


def slot_cache(n_layers: int) -> DynamicCache:
    """An empty cache whose layers are `SlotLayer`s."""
    cache: Any = DynamicCache()
    cache.layers = [SlotLayer() for _ in range(n_layers)]
    cache.layer_class_to_replicate = None
    return cache


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values of the rows in flight: rows `[:rows]`, columns `[start:end]` of a larger buffer.

    Rows are right-aligned at `end`. Left of a shorter row is what was there before, or zero: finite, and masked.
    """

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.keys: Float[Tensor, "slots heads columns d_key"]
        self.values: Float[Tensor, "slots heads columns d_value"]
        self.rows = self.start = self.end = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        n_rows, heads, width = key_states.shape[:3]
        columns = width + _ROOM
        self.keys = key_states.new_zeros(n_rows, heads, columns, key_states.shape[-1])
        self.values = value_states.new_zeros(n_rows, heads, columns, value_states.shape[-1])
        self.end = width
        self.is_initialized = True

    def put(self, keys: Float[Tensor, "new heads seq d_key"], values: Float[Tensor, "new heads seq d_value"]) -> None:
        """New rows, left padded, behind the others; they end at the common last column."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        n_rows, width = self.rows + keys.shape[0], keys.shape[2]
        if n_rows > self.keys.shape[0] or width > self.end:
            self._resize(n_rows, max(width, self.end - self.start))
        place = (slice(self.rows, n_rows), slice(None), slice(self.end - width, self.end))
        self.keys[place], self.values[place] = keys, values
        self.rows, self.start = n_rows, min(self.start, self.end - width)

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of the rows in flight, with one token more each."""
        if self.end == self.keys.shape[2]:
            self._resize(self.rows, self.end - self.start)
        self.keys[: self.rows, :, self.end] = key_states[:, :, 0]
        self.values[: self.rows, :, self.end] = value_states[:, :, 0]
        self.end += 1
        window = (slice(0, self.rows), slice(None), slice(self.start, self.end))
        return self.keys[window], self.values[window]

    def keep(self, order: Sequence[int], width: int) -> None:
        """Rows in this order, and of their columns the last `width`."""
        moved = [(source, place) for place, source in enumerate(order) if source != place]
        self.rows, self.start = len(order), self.end - width
        if moved:
            sources, places = (torch.tensor(side, device=self.keys.device) for side in zip(*moved, strict=True))
            for buffer in (self.keys, self.values):
                buffer[places, :, self.start : self.end] = buffer[sources, :, self.start : self.end]

    def _resize(self, n_rows: int, width: int) -> None:
        """Buffers of `n_rows` rows whose window of `width` columns starts at 0, with room behind it."""
        held = self.end - self.start
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            new = old.new_zeros(n_rows, old.shape[1], width + _ROOM, old.shape[3])
            new[: self.rows, :, width - held : width] = old[: self.rows, :, self.start : self.end]
            setattr(self, name, new)
        self.start, self.end = width - held, width

    def get_seq_length(self) -> int:
        return self.end - self.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

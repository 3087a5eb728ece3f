"""What steering does to a hidden state, as pure tensor functions, and which tokens it does it to.

Hooks, training and vLLM all call these. Everything is out of place and comes back in the hidden state's dtype; a token
outside the mask, and a row whose coefficient is 0, comes back bit for bit.

Shapes: `hidden` is `(batch, seq, d_model)`, or `(tokens, d_model)` with one row a token. `vector` is `(d_model,)`, or
`(batch, d_model)` with one vector a row; `coef`, `floor` and `ceiling` are numbers, or `(batch,)` with one a row.
`mask` is `(batch, seq)`, true where to act; None acts everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

KINDS = ("add", "ablate", "cap")
POSITIONS = ("all", "prompt", "response")

PerRow = float | Tensor
Past = int | Tensor


def add(
    hidden: Float[Tensor, "*tokens d_model"],
    vector: Float[Tensor, "*batch d_model"],
    coef: PerRow,
    mask: Bool[Tensor, "*tokens"] | None = None,
) -> Float[Tensor, "*tokens d_model"]:
    """h + coef·v: with a vector that points from neg to pos, coef > 0 moves towards the trait (arXiv 2507.21509).

    The vector is not normalised. coef·v is computed in float32 and rounded once to the hidden state's dtype.
    """
    wide = _wide(hidden)
    coefs = _per_row(coef, hidden, wide)
    delta = (coefs * _vectors(vector, hidden, wide)).to(hidden.dtype)
    return _where(hidden, hidden + delta, coefs != 0, mask)


def ablate(
    hidden: Float[Tensor, "*tokens d_model"],
    vector: Float[Tensor, "*batch d_model"],
    mask: Bool[Tensor, "*tokens"] | None = None,
    coef: PerRow = 1.0,
) -> Float[Tensor, "*tokens d_model"]:
    """h - coef·(h·v̂)v̂ with v̂ = v/|v|: coef 1 removes the component along v, whatever the sign or length of v.

    Computed in float32. Directional ablation, arXiv 2406.11717. The vector must not be zero (see `check_vector`).
    """
    wide = _wide(hidden)
    coefs = _per_row(coef, hidden, wide)
    unit = _units(vector, hidden, wide)
    component = (hidden.to(wide) * unit).sum(-1, keepdim=True)  # (batch, seq, 1)
    ablated = (hidden.to(wide) - coefs * component * unit).to(hidden.dtype)
    return _where(hidden, ablated, coefs != 0, mask)


def cap(
    hidden: Float[Tensor, "*tokens d_model"],
    vector: Float[Tensor, "*batch d_model"],
    floor: PerRow | None = None,
    ceiling: PerRow | None = None,
    mask: Bool[Tensor, "*tokens"] | None = None,
    coef: PerRow = 1.0,
) -> Float[Tensor, "*tokens d_model"]:
    """h + coef·(clamp(h·v̂, floor, ceiling) - h·v̂)v̂ with v̂ = v/|v|: keeps the component along v within bounds.

    Bounds are in the units of a projection h·v/|v|. A floor keeps activations at least so far along v (activation
    capping along the assistant axis, arXiv 2601.10387); a ceiling at most. coef 1 moves all the way to the bound. A
    token already within bounds comes back bit for bit. Computed in float32.

    Raises:
        ValueError: neither bound is given, or the floor is above the ceiling.
    """
    check_bounds(floor, ceiling)
    wide = _wide(hidden)
    coefs = _per_row(coef, hidden, wide)
    unit = _units(vector, hidden, wide)
    component = (hidden.to(wide) * unit).sum(-1, keepdim=True)  # (batch, seq, 1)
    bounded = component
    if floor is not None:
        bounded = torch.maximum(bounded, _per_row(floor, hidden, wide))
    if ceiling is not None:
        bounded = torch.minimum(bounded, _per_row(ceiling, hidden, wide))
    capped = (hidden.to(wide) + coefs * (bounded - component) * unit).to(hidden.dtype)
    return _where(hidden, capped, (coefs != 0) & (bounded != component), mask)


def check_bounds(floor: PerRow | None, ceiling: PerRow | None) -> None:
    """Refuses a cap without a bound, and one whose floor is above its ceiling (numbers only), with a ValueError."""
    if floor is None and ceiling is None:
        raise ValueError("cap needs a floor, a ceiling or both, in units of the projection h·v/|v|; got neither")
    for name, bound in (("floor", floor), ("ceiling", ceiling)):
        if isinstance(bound, (int, float)) and math.isnan(bound):
            raise ValueError(f"{name} is NaN; expected a number in units of the projection h·v/|v|")
    if isinstance(floor, (int, float)) and isinstance(ceiling, (int, float)) and floor > ceiling:
        raise ValueError(f"floor {floor:g} is above ceiling {ceiling:g}; swap them")


def check_vector(
    vector: Float[Tensor, "*batch d_model"], d_model: int, *, kind: str = "add", label: str = "the model"
) -> None:
    """Refuses, with a ValueError, a vector that cannot be used on a model of width `d_model`.

    That is: not 1-D (one vector) or 2-D (one a row), of another width, with NaN or infinity in it, or, where its
    direction counts (ablate, cap), zero.
    """
    if vector.ndim not in (1, 2):
        raise ValueError(
            f"steering vector has shape {tuple(vector.shape)}; expected ({d_model},), or "
            f"(batch, {d_model}) for one a row"
        )
    if vector.shape[-1] != d_model:
        raise ValueError(f"steering vector has width {vector.shape[-1]}; {label} has hidden size {d_model}")
    if not torch.isfinite(vector).all():
        raise ValueError("steering vector has NaN or infinite entries; extract it again")
    if kind != "add" and not (vector.norm(dim=-1) > 0).all():
        raise ValueError(f"steering vector is zero; {kind} needs a direction")


def token_index(
    seq: int,
    batch: int,
    past: Past = 0,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "batch seq"]:
    """For the `seq` tokens of a call, which real token of its own row each one is: 0, 1, ...; padding is -1.

    `past` is the number of columns already in the cache. A 2-D attention mask decides: `(batch, past + seq)`, or
    `(batch, seq)` for this call's tokens only, padded left or right. Without one (None, or masks prepared for
    attention, as `generate` makes for static caches), position ids `(batch, seq)` decide, which give left padding some
    index >= 0; without either, there is no padding.
    """
    columns = torch.arange(seq, device=device) + past  # (seq,)
    if attention_mask is None or attention_mask.ndim != 2:
        if position_ids is not None and position_ids.ndim == 2 and position_ids.shape[1] == seq:
            return position_ids.to(torch.long).expand(batch, seq)
        return columns.expand(batch, seq)
    real = attention_mask != 0
    index = real.long().cumsum(1) - 1  # (batch, width)
    if real.shape[1] == seq:
        return torch.where(real, index + past, -1)
    columns = columns.clamp(max=real.shape[1] - 1)
    return torch.where(real[:, columns], index[:, columns], -1)


def seen_prompt_lens(index: Int[Tensor, "batch seq"], past: Past, *, padding_known: bool) -> Int[Tensor, " batch"]:
    """The prompt lengths of a call in which nothing states them: a call on an empty cache is the prompt, any later one
    the answer (length 0, so that every token counts as response).

    `padding_known`: padding has index -1 (so it may be on either side); otherwise it is on the left.
    """
    total = index.amax(1) + 1 if padding_known else index[:, -1] + 1  # (batch,)
    if isinstance(past, Tensor):
        return torch.where(past.to(total.device) == 0, total, 0)
    return total if past == 0 else torch.zeros_like(total)


def position_mask(
    positions: str, index: Int[Tensor, "*tokens"], prompt_lens: Int[Tensor, "*rows"]
) -> Bool[Tensor, "*tokens"]:
    """True at the tokens that `positions` names.

    - all: every real token;
    - prompt: the prompt's tokens, index < prompt_len;
    - response: the last prompt token, which produces the first response token, and every later one:
      index >= prompt_len - 1.

    Args:
        index: which real token of its row each token is, padding -1 (`token_index`).
        prompt_lens: real prompt tokens of each row: `(batch,)`, or of the shape of `index` (packed tokens).

    Raises:
        ValueError: unknown positions.
    """
    check_positions(positions)
    if positions == "all":
        return index >= 0
    if prompt_lens.ndim < index.ndim:
        prompt_lens = prompt_lens[:, None]
    chosen = index < prompt_lens if positions == "prompt" else index >= prompt_lens - 1
    return chosen & (index >= 0)


def call_masks(
    positions: Sequence[str], arguments: Mapping[str, Any], prompt_lens: Int[Tensor, " batch"] | None = None
) -> dict[str, Tensor]:
    """The token mask `(batch, seq)` of each of `positions` in one call of a decoder with these arguments by name.

    Raises:
        ValueError: prompt_lens of another batch, or a call whose tokens cannot be told apart without prompt_lens.
    """
    tokens = arguments.get("input_ids")
    tokens = arguments.get("inputs_embeds") if tokens is None else tokens
    if not isinstance(tokens, Tensor):
        raise ValueError("steering by positions needs input_ids or inputs_embeds in the decoder's call; got neither")
    batch, seq = tokens.shape[:2]
    cache = arguments.get("past_key_values")
    past = 0 if cache is None else cache.get_seq_length()  # a tensor in a static cache: no copy to the host for it
    attention_mask = arguments.get("attention_mask")
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
        attention_mask = None
    index = token_index(seq, batch, past, attention_mask, arguments.get("position_ids"), device=tokens.device)
    if prompt_lens is None:
        if seq > 1 and bool(past > 0):
            raise ValueError(
                f"{seq} tokens on top of a cache may be prompt or response: give prompt_lens, the number of prompt "
                "tokens of each row, or positions='all'"
            )
        lens = seen_prompt_lens(index, past, padding_known=attention_mask is not None)
    elif prompt_lens.shape[0] != batch:
        raise ValueError(
            f"{prompt_lens.shape[0]} prompt_lens for a batch of {batch} rows; give one a row in batch order "
            "(generate's num_return_sequences and num_beams repeat each row: repeat them the same way)"
        )
    else:
        lens = prompt_lens.to(tokens.device)
    return {name: position_mask(name, index, lens) for name in positions}


def check_positions(positions: str) -> str:
    """`positions` itself, if it is all, prompt or response; otherwise a ValueError."""
    if positions not in POSITIONS:
        raise ValueError(f"positions {positions!r} is unknown; expected all, prompt or response")
    return positions


def _wide(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


def _per_row(value: PerRow, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """A number as a 0-d tensor, or `(batch,)` as `(batch, 1, 1)`, on the hidden state's device."""
    tensor = torch.as_tensor(value, dtype=dtype, device=hidden.device)
    if tensor.ndim == 0:
        return tensor
    _check_rows(tensor.shape[0], hidden, "coefficients or bounds")
    return tensor.reshape(-1, *(1,) * (hidden.ndim - 1))


def _vectors(vector: Tensor, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """`(d_model,)` as it is, or `(batch, d_model)` as `(batch, 1, d_model)`, on the hidden state's device."""
    vector = vector.to(device=hidden.device, dtype=dtype)
    if vector.ndim == 1:
        return vector
    _check_rows(vector.shape[0], hidden, "vectors")
    return vector.reshape(vector.shape[0], *(1,) * (hidden.ndim - 2), vector.shape[-1])


def _units(vector: Tensor, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    vector = _vectors(vector, hidden, dtype)
    return vector / vector.norm(dim=-1, keepdim=True)


def _check_rows(n_rows: int, hidden: Tensor, what: str) -> None:
    if n_rows != hidden.shape[0]:
        raise ValueError(
            f"{n_rows} per-row {what} for a batch of {hidden.shape[0]} rows; give one a row in batch order "
            "(generate's num_return_sequences and num_beams repeat each row: repeat them the same way)"
        )


def _where(hidden: Tensor, changed: Tensor, active: Tensor, mask: Tensor | None) -> Tensor:
    """`changed` where active and masked in, `hidden` itself elsewhere: so 0 is bit-identical (-0.0 + 0.0 is not)."""
    chosen = active if mask is None else active & mask.to(hidden.device)[..., None]
    return torch.where(chosen, changed, hidden)

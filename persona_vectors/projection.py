"""Projections of activations on persona vectors, in float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def unit(vector: Float[Tensor, "*shape d_model"]) -> Float[Tensor, "*shape d_model"]:
    """v / |v| along the last axis, in float32.

    Raises:
        ValueError: a vector of zero length (it has no direction) or with NaN or infinite entries.
    """
    vector = vector.float()
    if not torch.isfinite(vector).all():
        raise ValueError("the vector has NaN or infinite entries; make it again with generate_vec.py")
    norm = vector.norm(dim=-1, keepdim=True)
    if (norm == 0).any():
        raise ValueError(
            "the vector is zero, so it has no direction (prompt_last at layer 0 always is: the last prompt token is "
            "the template's own); choose another layer"
        )
    return vector / norm


def project(
    activations: Float[Tensor, "*shape d_model"], vector: Float[Tensor, "*#shape d_model"]
) -> Float[Tensor, "*shape"]:
    """a . v / |v|: how far the activation goes along v, in units of the activation; positive towards the trait.

    Vectors point from neg to pos. Shapes broadcast: `(n, layers, d_model)` with `(layers, d_model)` projects each
    layer on its own vector. A NaN activation gives NaN.

    Raises:
        ValueError: a zero or non-finite vector, or widths that differ.
    """
    _check_width(activations, vector)
    return (activations.float() * unit(vector)).sum(-1)


def cosine(
    activations: Float[Tensor, "*shape d_model"], vector: Float[Tensor, "*#shape d_model"]
) -> Float[Tensor, "*shape"]:
    """a . v / (|a| |v|), in -1..1; NaN for a zero activation, which has no direction.

    Raises:
        ValueError: a zero or non-finite vector, or widths that differ.
    """
    norm = activations.float().norm(dim=-1)
    return torch.where(norm > 0, project(activations, vector) / norm, torch.nan).clamp(-1, 1)


def _check_width(activations: Tensor, vector: Tensor) -> None:
    if activations.shape[-1] != vector.shape[-1]:
        raise ValueError(
            f"the vector has width {vector.shape[-1]}, the activations have {activations.shape[-1]}; "
            "use a vector made from this model"
        )


PROJECTION_TYPES: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "proj": ("response_avg", project),
    "prompt_last_proj": ("prompt_last", project),
    "cos_sim": ("response_avg", cosine),
}
"""The published name of each type: which span of activations, and what is computed from it."""

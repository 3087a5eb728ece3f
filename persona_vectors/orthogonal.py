"""A trait's vector without what other traits' vectors share with it.

Vectors of different traits have a large common part ("not the plain assistant"), which every one of them points along:
a projection on such a vector rises for any trait. What is left after the others are projected out is the trait's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST_REST = 0.05
"""Share of a vector's norm that must be left: below it the rest is noise of the others' estimate."""
_RANK_TOLERANCE = 1e-6  # of the largest singular value: directions below it are linear combinations of the others


def orthogonalize(
    vectors: Float[Tensor, "layers d_model"], others: Sequence[Float[Tensor, "layers d_model"]]
) -> Float[Tensor, "layers d_model"]:
    """v - Q Q^T v at every layer, with Q an orthonormal basis of the others' vectors at that layer; float32.

    The sign is v's own. A layer where v is zero stays zero.

    Raises:
        ValueError: no others, other shapes, NaN, or a layer where less than SMALLEST_REST of the norm is left (v is a
            combination of the others: the same trait among them, or more of them than dimensions).
    """
    if not others:
        raise ValueError("nothing to project out: give the vectors of at least one other trait")
    for number, other in enumerate(others, 1):
        if other.shape != vectors.shape:
            raise ValueError(
                f"other vectors {number} have shape {tuple(other.shape)}, these {tuple(vectors.shape)}; all must be of "
                "one model"
            )
    stacked = torch.stack([other.double() for other in others])  # (n_others, layers, d_model)
    if not (torch.isfinite(stacked).all() and torch.isfinite(vectors).all()):
        raise ValueError("the vectors have NaN or infinite entries; make them again")
    rest = torch.stack(
        [_without(vector.double(), stacked[:, layer]) for layer, vector in enumerate(vectors)]
    )  # (layers, d_model)
    norms = vectors.double().norm(dim=-1)
    lost = [
        layer for layer in range(len(vectors)) if norms[layer] > 0 and rest[layer].norm() < SMALLEST_REST * norms[layer]
    ]
    if lost:
        share = float(rest[lost[0]].norm() / norms[lost[0]])
        raise ValueError(
            f"at layer {lost[0]} only {share:.2g} of the vector's norm is left without the {len(others)} others (at "
            f"least {SMALLEST_REST:g} is needed): the same trait is among them, or they are too many"
        )
    return rest.float()


def _without(vector: Float[Tensor, " d_model"], others: Float[Tensor, "n_others d_model"]) -> Float[Tensor, " d_model"]:
    """The part of `vector` that is orthogonal to every row of `others`; rows of zeros take nothing away."""
    _, sizes, basis = torch.linalg.svd(others, full_matrices=False)  # basis: (rank, d_model)
    basis = basis[sizes > _RANK_TOLERANCE * sizes.max().clamp_min(1e-30)]
    return vector - basis.T @ (basis @ vector)

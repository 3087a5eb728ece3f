"""The assistant axis: from role-play to the assistant, among the vectors of many personas.

A persona's vector is (d_model,): the mean activation over its answers at one layer. All functions here take them as a
mapping name -> vector and do not depend on its order. Source: arXiv 2601.10387.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_vectors.personas import ASSISTANT_PERSONAS

Vectors = Mapping[str, Tensor]
"""Persona name -> its vector (d_model,)."""
LEAST_PERSONAS = 3
_SMALLEST = 1e-9
"""Relative length below which a difference of vectors is rounding."""


class Axes(TypedDict):
    """The assistant axis beside the first principal component; (n,) means one number a persona, in `names`' order.

    names: the personas, in the order given.
    assistant_axis: unit vector from the roles to the assistant.
    pc1: unit vector of most variance between personas, signed to agree with the axis.
    assistant_proj, pc1_proj: (v - mean of all v) @ direction; the assistant is at the positive end.
    cosine_sim: assistant_axis @ pc1, never below 0 by the sign of pc1.
    r_squared: squared correlation of the two columns of projections.
    var_explained: pc1's share of the variance between personas, 0 to 1.
    """

    names: list[str]
    assistant_axis: Float[Tensor, " d_model"]
    pc1: Float[Tensor, " d_model"]
    assistant_proj: Float[np.ndarray, " n"]
    pc1_proj: Float[np.ndarray, " n"]
    cosine_sim: float
    r_squared: float
    var_explained: float


@dataclass(frozen=True)
class Pca:
    """Principal components of rows, signed so that they do not depend on the rows' order.

    Attributes:
        mean: (d,), subtracted before.
        components: (k, d), unit rows, most variance first; k = min(n - 1, d).
        scores: (n, k) = (rows - mean) @ components.T
        shares: (k,), of the variance.
    """

    mean: Float[np.ndarray, " d"]
    components: Float[np.ndarray, "k d"]
    scores: Float[np.ndarray, "n k"]
    shares: Float[np.ndarray, " k"]


def assistant_axis(vectors: Vectors, assistant_personas: Sequence[str]) -> Float[Tensor, " d_model"]:
    """mean(assistant personas) - mean(all other personas): points from role-play to the assistant; float32.

    Means run in float64. The length is that of the difference, so coef 1 is the whole way between the two means.

    Args:
        assistant_personas: names in `vectors`, at least one and not all of them.

    Raises:
        ValueError: fewer than three personas, an assistant persona that is not there, no other persona, vectors of
            different shapes, NaN, or two equal means, which have no axis.
    """
    names, rows = persona_rows(vectors)
    return torch.from_numpy(axis_of(rows, assistant_mask(names, assistant_personas))).float()


def compute_axes(vectors: Vectors, assistant_personas: Sequence[str]) -> Axes:
    """The assistant axis against PC1 of the same personas: directions, projections, cosine, R² and explained variance.

    Four nearly equal assistant personas pull PC1 towards themselves four times, so a high cosine is in part
    arithmetic: `persona_vectors.axis_statistics` has the controls to show beside it.

    Raises:
        ValueError: as `assistant_axis`.
    """
    names, rows = persona_rows(vectors)
    axis = unit(axis_of(rows, assistant_mask(names, assistant_personas)))
    pca = fit_pca(rows, names, toward=axis)
    assistant_proj = (rows - pca.mean) @ axis  # (n,)
    return Axes(
        names=names,
        assistant_axis=torch.from_numpy(axis).float(),
        pc1=torch.from_numpy(pca.components[0]).float(),
        assistant_proj=assistant_proj,
        pc1_proj=pca.scores[:, 0],
        cosine_sim=float(axis @ pca.components[0]),
        r_squared=float(np.corrcoef(assistant_proj, pca.scores[:, 0])[0, 1] ** 2),
        var_explained=float(pca.shares[0]),
    )


def persona_rows(vectors: Vectors, least: int = LEAST_PERSONAS) -> tuple[list[str], Float[np.ndarray, "n d_model"]]:
    """The names, and the vectors as rows in float64.

    Raises:
        ValueError: fewer than `least` personas, a vector that is not (d_model,), different widths, or NaN.
    """
    if len(vectors) < least:
        raise ValueError(f"{len(vectors)} personas ({', '.join(vectors) or 'none'}); at least {least} are needed")
    shapes = {name: tuple(vector.shape) for name, vector in vectors.items()}
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if len(shape) != 1 or shape != shapes[first]:
            raise ValueError(
                f"the vector of {name} has shape {shape}, that of {first} {shapes[first]}; expected (d_model,) for all"
            )
    rows = torch.stack([vector.detach().cpu().double() for vector in vectors.values()]).numpy()  # (n, d_model)
    if broken := [name for name, row in zip(vectors, rows, strict=True) if not np.isfinite(row).all()]:
        raise ValueError(f"NaN or infinite numbers in the vectors of {', '.join(broken)}; extract them again")
    return list(vectors), rows


def assistant_mask(names: Sequence[str], assistant_personas: Sequence[str]) -> np.ndarray:
    """(n,) bool: which personas are the assistant's.

    Raises:
        ValueError: an assistant persona that is not among the names, none at all, or no other persona.
    """
    if missing := [name for name in assistant_personas if name not in names]:
        raise ValueError(
            f"no vector of the assistant personas {', '.join(missing)}; there are {', '.join(names)}; "
            "extract them or leave them out of assistant_personas"
        )
    mask = np.array([name in assistant_personas for name in names])
    if not mask.any():
        raise ValueError(f"no assistant persona given; name at least one of {', '.join(names)}")
    if mask.all():
        raise ValueError("all personas are assistant personas; the axis needs at least one other to point away from")
    return mask


def present_assistants(names: Sequence[str], assistant_personas: Sequence[str] | None = None) -> list[str]:
    """The assistant personas to use: those given, or those of `personas.ASSISTANT_PERSONAS` that have a vector."""
    if assistant_personas is not None:
        return list(assistant_personas)
    return [name for name in ASSISTANT_PERSONAS if name in names]


def axis_of(rows: Float[np.ndarray, "n d"], mask: np.ndarray) -> Float[np.ndarray, " d"]:
    """mean(rows of the mask) - mean(the others).

    Raises:
        ValueError: the two means are equal.
    """
    difference = rows[mask].mean(0) - rows[~mask].mean(0)
    if np.linalg.norm(difference) <= _SMALLEST * np.abs(rows).max():
        raise ValueError("the assistant personas' mean equals the others'; there is no axis between them")
    return difference


def fit_pca(rows: Float[np.ndarray, "n d"], names: Sequence[str], toward: Float[np.ndarray, " d"] | None = None) -> Pca:
    """PCA by scikit-learn's full SVD, with signs of our own.

    PC1 points along `toward` where that is given. Every other component (and PC1 without `toward`, or at right angles
    to it) has the sign that puts the row farthest from the middle on its positive side; of rows equally far, the one
    first by name counts.

    Raises:
        ValueError: rows that are all equal.
    """
    from sklearn.decomposition import PCA

    if np.ptp(rows, axis=0).max() <= _SMALLEST * np.abs(rows).max():
        raise ValueError(f"the {len(rows)} vectors are all equal; they have no principal components")
    fitted: Any = PCA(svd_solver="full").fit(rows)
    k = min(len(rows) - 1, rows.shape[1])  # of n centred rows, the n-th component has no variance
    components = fitted.components_[:k]
    signs = _signs((rows - fitted.mean_) @ components.T, names)
    if toward is not None and abs(agreement := float(components[0] @ toward)) > _SMALLEST * np.linalg.norm(toward):
        signs[0] = np.sign(agreement)
    components = components * signs[:, None]
    return Pca(fitted.mean_, components, (rows - fitted.mean_) @ components.T, fitted.explained_variance_ratio_[:k])


def _signs(scores: Float[np.ndarray, "n k"], names: Sequence[str]) -> Float[np.ndarray, " k"]:
    """The sign of each column's largest score."""
    by_name = scores[np.argsort(np.array(names), kind="stable")]
    size = np.abs(by_name)
    largest = (size >= size.max(0) * (1 - _SMALLEST)).argmax(0)  # the first by name among equals
    return np.where(by_name[largest, np.arange(scores.shape[1])] < 0, -1.0, 1.0)


def unit(vector: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """The vector at length 1."""
    return vector / np.linalg.norm(vector)


def centred_cosines(rows: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """Cosines between the rows of both, after the mean of all of them is taken off; 0 for a row that is the mean."""
    every = np.concatenate([rows, others])
    mean, smallest = every.mean(0), _SMALLEST * np.abs(every).max()
    units = []
    for side in (rows - mean, others - mean):
        norms = np.linalg.norm(side, axis=1, keepdims=True)
        units.append(np.divide(side, norms, out=np.zeros_like(side), where=norms > smallest))
    return units[0] @ units[1].T


def first_direction(rows: np.ndarray) -> np.ndarray:
    """The first principal direction, sign left open: what is compared here is its absolute cosine."""
    return np.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][0]


def in_their_span(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n rank"]:
    """The rows in coordinates of their own span: every length and angle is kept, and n is far below d_model."""
    left, sizes, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    return left * sizes

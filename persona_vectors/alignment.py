"""Persona vectors of several models side by side: one space, an orthogonal map between spaces, and joint PCA.

Variants of one model (base, instruct, finetuned) share a basis: their vectors can be compared as they are. Models of
other widths or other training runs do not: there an orthogonal map is fitted between them. A map fitted on n personas
in n dimensions fits anything, so it is judged on personas that were held out, beside the same procedure with the
personas of one model shuffled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from persona_vectors.axis import (
    LEAST_PERSONAS,
    Vectors,
    assistant_mask,
    axis_of,
    fit_pca,
    in_their_span,
    persona_rows,
    unit,
)
from persona_vectors.axis_statistics import Chance

Centre = Literal["joint", "model"]
N_DIMENSIONS = 8
"""Principal components of each model that an orthogonal map is fitted between, at most."""
LEAST_ALIGNED = 6
"""Personas besides the assistant's that a map needs: fewer say nothing about one that is held out."""


@dataclass(frozen=True)
class Alignment:
    """How well one model's persona space turns into another's, on personas that the map was not fitted on.

    Attributes:
        cosine: mean cosine of mapped and true held-out personas, both centred by the mean of the others, beside
            shuffled personas.
        nearest: share of held-out personas that are nearest to themselves among the other model's personas, by the
            cosine within the map's dimensions, beside the same.
        axis_cosine: cosine of the two assistant axes through a map fitted on the roles alone, beside the same.
        unmapped: the same mean cosine without any map; None where the widths differ. Where it is as high as `cosine`,
            the models share a basis and the map adds nothing.
        n_dimensions: of the map.
    """

    cosine: Chance
    nearest: Chance
    axis_cosine: Chance
    unmapped: float | None
    n_personas: int
    n_dimensions: int

    def sentences(self) -> list[str]:
        """What was found, for a page or a terminal."""
        without = "widths differ" if self.unmapped is None else f"{self.unmapped:.2f}"
        return [
            f"held-out personas through an orthogonal map of {self.n_dimensions} dimensions: cosine "
            f"{self.cosine.text()}; without a map: {without}",
            f"nearest persona is itself: {self.nearest.text()}",
            f"assistant axes, mapped by the roles alone: cosine {self.axis_cosine.text()}",
        ]

    def record(self) -> dict[str, object]:
        """For a sidecar."""
        controls = {name: getattr(self, name).record() for name in ("cosine", "nearest", "axis_cosine")}
        plain = {"unmapped": self.unmapped, "n_personas": self.n_personas, "n_dimensions": self.n_dimensions}
        return {**controls, **plain}


@dataclass(frozen=True)
class JointPca:
    """Several models' personas in the same principal components.

    Attributes:
        names: the personas, the same for every model.
        labels: the models.
        scores: (n_models, n_personas, k).
        shares: (k,) of the variance of all points.
        between: share of the variance that is between the models' means: near 1, PC1 tells models apart, not personas.
        aligned: the widths differ, so each model was turned onto the first by an orthogonal map of principal
            components, fitted on all personas. Points of the same persona are then close by construction.
    """

    names: list[str]
    labels: list[str]
    scores: Float[np.ndarray, "n_models n_personas k"]
    shares: Float[np.ndarray, " k"]
    between: float
    aligned: bool


def same_personas(
    all_vectors: Sequence[Vectors], labels: Sequence[str], least: int = LEAST_PERSONAS
) -> tuple[list[str], list[Float[np.ndarray, "n d_model"]]]:
    """The personas in the first model's order, and each model's vectors as rows in that order.

    Raises:
        ValueError: no models, not one label a model, equal labels, or models with different personas; as
            `axis.persona_rows`, naming the model.
    """
    if len(all_vectors) != len(labels) or not labels or len(set(labels)) < len(labels):
        raise ValueError(f"{len(all_vectors)} models and the labels {', '.join(labels)}; expected one label a model")
    names = list(all_vectors[0])
    rows = []
    for label, vectors in zip(labels, all_vectors, strict=True):
        if different := sorted(set(vectors) ^ set(names)):
            raise ValueError(
                f"{labels[0]} and {label} have different personas ({', '.join(different)} in one only); leave them out "
                "or extract them for both"
            )
        try:
            rows.append(persona_rows({name: vectors[name] for name in names}, least)[1])
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from None
    return names, rows


@dataclass(frozen=True)
class OrthogonalMap:
    """x -> mean_b + scale * (x - mean_a) @ turn.

    Attributes:
        turn: (d_a, d_b), orthogonal between k principal directions of a and k of b; what is outside a's is dropped.
        basis_b: (k, d_b), those of b.
    """

    mean_a: Float[np.ndarray, " d_a"]
    mean_b: Float[np.ndarray, " d_b"]
    turn: Float[np.ndarray, "d_a d_b"]
    scale: float
    basis_b: Float[np.ndarray, "k d_b"]

    def points(self, rows: Float[np.ndarray, "n d_a"]) -> Float[np.ndarray, "n d_b"]:
        """Rows of a, in b's space."""
        return self.mean_b + self.scale * (rows - self.mean_a) @ self.turn


def orthogonal_map(
    rows_a: Float[np.ndarray, "n d_a"], rows_b: Float[np.ndarray, "n d_b"], n_dimensions: int = N_DIMENSIONS
) -> OrthogonalMap:
    """The map from a's space to b's that fits the rows best (Procrustes).

    Both sides are centred and reduced to their first k = min(n_dimensions, n - 1, d_a, d_b) principal components, which
    settles different widths. Between those, with A and B the two sides' scores, the rotation or reflection R and the
    scale s minimise ||s A R - B||.
    """
    from scipy.linalg import orthogonal_procrustes

    k = min(n_dimensions, len(rows_a) - 1, rows_a.shape[1], rows_b.shape[1])
    (mean_a, basis_a), (mean_b, basis_b) = _principal(rows_a, k), _principal(rows_b, k)
    scores_a, scores_b = (rows_a - mean_a) @ basis_a.T, (rows_b - mean_b) @ basis_b.T  # (n, k)
    rotation, fit = orthogonal_procrustes(scores_a, scores_b)
    return OrthogonalMap(mean_a, mean_b, basis_a.T @ rotation @ basis_b, float(fit / (scores_a**2).sum()), basis_b)


def _principal(rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean (d,), and the first k principal directions (k, d)."""
    mean = rows.mean(0)
    return mean, np.linalg.svd(rows - mean, full_matrices=False)[2][:k]


def align(
    vectors_a: Vectors,
    vectors_b: Vectors,
    assistant_personas: Sequence[str],
    *,
    n_dimensions: int = N_DIMENSIONS,
    n_shuffles: int = 200,
    seed: int = 0,
) -> Alignment:
    """How well model a's persona space turns into b's: held-out personas, beside shuffled ones.

    The assistant personas, which are nearly equal, are averaged into one: held out one by one, the others of them
    would tell. Then each persona is held out in turn. The null repeats everything with b's roles in a random order; the
    assistant stays where it is.

    Raises:
        ValueError: as `same_personas` and `axis.assistant_axis`; fewer than six personas besides the
            assistant's.
    """
    names, (wide_a, wide_b) = same_personas([vectors_a, vectors_b], ["the first model", "the second model"])
    mask = assistant_mask(names, assistant_personas)
    if (n_roles := int((~mask).sum())) < LEAST_ALIGNED:
        raise ValueError(f"{n_roles} personas besides the assistant's; a map needs at least {LEAST_ALIGNED}")
    for wide in (wide_a, wide_b):
        axis_of(wide, mask)  # refuses what has no axis
    wide_a, wide_b = (np.vstack([wide[mask].mean(0), wide[~mask]]) for wide in (wide_a, wide_b))  # the assistant first
    rows_a, rows_b = in_their_span(wide_a), in_their_span(wide_b)  # (1 + n_roles, rank): lengths and angles are kept
    k = min(n_dimensions, n_roles - 1)
    rng = np.random.default_rng(seed)
    orders = [np.array([0, *(1 + rng.permutation(n_roles))]) for _ in range(n_shuffles)]
    observed = _held_out(rows_a, rows_b, k)
    shuffled = np.array([_held_out(rows_a, rows_b[order], k) for order in orders])  # (n_shuffles, 3)
    cosine, nearest, axis_cosine = (Chance(value, null) for value, null in zip(observed, shuffled.T, strict=True))
    one_space = wide_a.shape[1] == wide_b.shape[1]
    unmapped = _held_out(wide_a, wide_b, None)[0] if one_space else None
    return Alignment(cosine, nearest, axis_cosine, unmapped, len(names), k)


def _held_out(rows_a: np.ndarray, rows_b: np.ndarray, k: int | None) -> tuple[float, float, float]:
    """Of personas held out in turn: mean cosine, share nearest to itself, cosine of the first (the assistant).

    Without k the rows stay as they are, but centred. What leads from the roles' mean to the assistant is the axis, so
    the third is the axes' cosine.
    """
    cosines, hits = [], []
    for held_out in range(len(rows_a)):
        rest_a, rest_b = np.delete(rows_a, held_out, axis=0), np.delete(rows_b, held_out, axis=0)
        others = within = rows_b - rest_b.mean(0)  # (n, d_b)
        if k is None:
            mapped = rows_a[held_out] - rest_a.mean(0)
        else:
            turned = orthogonal_map(rest_a, rest_b, k)
            mapped = turned.points(rows_a[held_out : held_out + 1])[0] - turned.mean_b
            within = others @ turned.basis_b.T  # (n, k): where the map can reach
        along, length = others @ mapped, np.linalg.norm(mapped)
        cosines.append(_over(along, np.linalg.norm(others, axis=1) * length)[held_out])
        hits.append(_over(along, np.linalg.norm(within, axis=1) * length).argmax() == held_out)
    return float(np.mean(cosines)), float(np.mean(hits)), float(cosines[0])


def _over(along: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Cosines; 0 where one of the two has no length."""
    return np.divide(along, lengths, out=np.zeros(len(along)), where=lengths > 0)


def joint_pca(
    all_vectors: Sequence[Vectors],
    labels: Sequence[str],
    assistant_personas: Sequence[str] = (),
    *,
    centre: Centre = "joint",
) -> JointPca:
    """All models' personas in one PCA.

    PC1 is signed to agree with the mean of the models' assistant axes, where assistant personas are named; the others
    as `axis.fit_pca` says.

    Args:
        centre: "joint" takes the mean of all points off (as published), so that what sets the models apart is shown
            too; "model" takes each model's own mean off, so that only the personas' arrangement is compared.

    Raises:
        ValueError: as `same_personas` and `axis.fit_pca`.
    """
    names, rows = same_personas(all_vectors, labels)
    aligned = len({one.shape[1] for one in rows}) > 1
    if aligned:
        rows = [rows[0], *(orthogonal_map(one, rows[0], len(names)).points(one) for one in rows[1:])]
    points = np.stack(rows)  # (n_models, n, d)
    if centre == "model":
        points = points - points.mean(1, keepdims=True)
    offsets = points.mean(1) - points.mean((0, 1))  # (n_models, d)
    total = ((points - points.mean((0, 1))) ** 2).sum()
    toward = None
    if assistant_personas:
        mask = assistant_mask(names, assistant_personas)
        toward = np.sum([unit(axis_of(one, mask)) for one in points], axis=0)
    every = [f"{name} ({label})" for label in labels for name in names]
    pca = fit_pca(points.reshape(len(every), -1), every, toward)
    scores = pca.scores.reshape(len(labels), len(names), -1)
    between = float(len(names) * (offsets**2).sum() / total)
    return JointPca(names, list(labels), scores, pca.shares, between, aligned)

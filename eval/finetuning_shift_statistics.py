"""Does a model's shift along a trait's vector say how much of the trait finetuning put in? Tensors in, records out.

Every correlation is of one vector's shift with one trait's score, over finetuned models. Own: both are of one trait.
Cross: they are not, which is what a vector that says only "finetuned" would reach as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from persona_vectors.correlation import (
    LEAST_POINTS,
    N_RANDOM,
    NOT_DEFINED,
    Correlation,
    Estimated,
    RandomLevel,
    correlate,
    paired_difference,
    random_correlations,
    share_beaten,
)
from persona_vectors.projection import project
from persona_vectors.statistics import Labels

Changes = Float[Tensor, "n d_model"]
Scores = Sequence[float | None]


@dataclass(frozen=True)
class ShiftCorrelation:
    """One vector's shift against one trait's score, over finetuned models.

    Attributes:
        vector, trait: whose vector, and whose score.
        correlation: not defined (values None) with fewer than three points or where one side is constant.
        random: what random directions reach on the same activations; None where nothing is defined.
        beaten: share of them that Pearson's r is above. A random direction has no sign and counts with |r|.
        own_minus: r of the trait's own vector minus this vector's, on the same resamples; None for the own vector, and
            where the trait has no vector here.
    """

    vector: str
    trait: str
    correlation: Correlation
    random: RandomLevel | None
    beaten: float | None
    own_minus: Estimated | None = None

    @property
    def own(self) -> bool:
        return self.vector == self.trait

    @property
    def r(self) -> float | None:
        return self.correlation.pearson.value

    def record(self) -> dict[str, Any]:
        """One flat row, for a table; what is not defined is None."""
        row: dict[str, Any] = {"vector": self.vector, "trait": self.trait, "kind": "own" if self.own else "cross"}
        for name in ("pearson", "spearman"):
            row |= _flat(name, getattr(self.correlation, name))
        row |= {"n": self.correlation.n, "n_clusters": self.correlation.n_clusters}
        level = self.random
        row |= {
            "random_median": level and level.median,
            "random_p95": level and level.high,
            "random_p99": level and level.highest,
            "random_beaten": self.beaten,
        }
        return row | _flat("own_minus_this", self.own_minus or NOT_DEFINED)


def _flat(name: str, estimated: Estimated) -> dict[str, float | None]:
    return {name: estimated.value, f"{name}_low": estimated.low, f"{name}_high": estimated.high}


def shift_correlations(
    scores: Mapping[str, Scores],
    changes: Changes | Mapping[str, Changes],
    vectors: Mapping[str, Float[Tensor, " d_model"]],
    clusters: Labels,
    *,
    n_boot: int = 2000,
    n_directions: int = N_RANDOM,
    seed: int = 0,
) -> list[ShiftCorrelation]:
    """A record for every vector and scored trait at one layer: trait by trait, the own vector first.

    shift = (mean activation of the finetuned - of the base model) . v / |v|, positive towards the trait.

    Args:
        scores: trait -> its mean score of each finetuned model; None or NaN where there is none.
        changes: mean activation of each finetuned model minus the base model's; one tensor for all traits, or trait ->
            the one that was read on that trait's questions. A row with NaN is a model without activations.
        vectors: trait -> its vector at this layer, pointing towards the trait. Traits need not be those of `scores`.
        clusters: what each finetuned model belongs to, such as its data set: models that share it are resampled
            together.

    Raises:
        ValueError: nothing to correlate, rows that do not match, a zero vector or one of another width.
    """
    if not scores or not vectors:
        raise ValueError(f"got {len(scores)} traits with scores and {len(vectors)} vectors; expected at least one each")
    found = []
    for trait, given in scores.items():
        own = changes[trait] if isinstance(changes, Mapping) else changes
        score = np.array([np.nan if value is None else float(value) for value in given])
        if own.ndim != 2 or len({len(own), len(score), len(clusters)}) > 1:
            raise ValueError(
                f"{trait}: changes have shape {tuple(own.shape)}, with {len(score)} scores and {len(clusters)} "
                "clusters; expected a row, a score and a cluster for each finetuned model"
            )
        found += _of_trait(trait, score, own, vectors, clusters, n_boot=n_boot, n_directions=n_directions, seed=seed)
    return found


def _of_trait(
    trait: str,
    score: Float[np.ndarray, " n"],
    changes: Changes,
    vectors: Mapping[str, Float[Tensor, " d_model"]],
    clusters: Labels,
    *,
    n_boot: int,
    n_directions: int,
    seed: int,
) -> list[ShiftCorrelation]:
    """The records of one trait's score."""
    rows = changes.detach().cpu().double().numpy()
    score = np.where(np.isfinite(rows).all(1), score, np.nan)
    shifts = {name: project(changes.detach().cpu(), vector).numpy() for name, vector in vectors.items()}
    n = int(np.isfinite(score).sum())
    options: dict[str, Any] = {"n_boot": n_boot, "seed": seed}
    random = None
    if n >= LEAST_POINTS:
        random = random_correlations(np.nan_to_num(rows), score, n_directions=n_directions, seed=seed)
    found = []
    for name in sorted(vectors, key=lambda name: name != trait):
        if random is None:
            n_clusters = len({label for label, value in zip(clusters, score, strict=True) if np.isfinite(value)})
            found.append(
                ShiftCorrelation(name, trait, Correlation(NOT_DEFINED, NOT_DEFINED, n, n_clusters), None, None)
            )
            continue
        correlation = correlate(shifts[name], score, clusters, **options)
        own_minus, level, beaten = None, None, None
        if correlation.pearson.value is not None:
            level = RandomLevel(*(float(value) for value in np.quantile(random, [0.5, 0.95, 0.99])))
            beaten = share_beaten(correlation.pearson.value, random)
            if name != trait and trait in shifts:
                own_minus = paired_difference(shifts[trait], shifts[name], score, clusters, **options)
        found.append(ShiftCorrelation(name, trait, correlation, level, beaten, own_minus))
    return found


def cross_mean(records: Sequence[ShiftCorrelation], trait: str) -> float | None:
    """Mean r of the other traits' vectors with this trait's score; None where none is defined."""
    values = [one.r for one in records if one.trait == trait and not one.own and one.r is not None]
    return float(np.mean(values)) if values else None

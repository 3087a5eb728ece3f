"""How steerable a sample is: the slope of its score over the coefficient, and how many move the wrong way.

Source: Tan et al. 2024, "Analysing the generalisation and reliability of steering vectors" (arXiv 2407.12404): a mean
effect can hide samples that a vector moves backwards, so both are reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from persona_vectors.statistics import Array, Interval, Labels, cluster_bootstrap_mean

Setting = TypeVar("Setting")

FLAT = 0.5  # points; a slope that moves the score by less over all coefficients is a judge's rounding, not a direction


@dataclass(frozen=True)
class Steerability:
    """Slopes of score over coefficient, one a sample, in points per unit of coefficient.

    Attributes:
        slope: their mean, with an interval by question.
        wrong_way: share of samples whose score falls by more than FLAT points over the coefficients, with an interval
            by question. What it should be below depends on the noise of sampling and judge: compare it with that of
            random directions.
        slopes: (n_samples,), NaN where fewer than two coefficients were scored.
        n_used: samples with a slope.
        n_samples: samples given.
    """

    slope: Interval
    wrong_way: Interval
    slopes: Float[np.ndarray, " n_samples"]
    n_used: int
    n_samples: int


def steerability(
    coefs: Sequence[float] | np.ndarray,
    scores: Float[Array, "n_samples n_coefs"],
    clusters: Labels,
    *,
    n_boot: int = 2000,
    seed: int = 0,
) -> Steerability:
    """Each sample's least-squares slope of score over coefficient, their mean, and the share below 0.

    With c the coefficients at which a sample has a score s: slope = sum((c - mean c) * s) / sum((c - mean c)^2).
    A score that hardly moves (by less than FLAT points over the coefficients) does not count as moving the wrong way.
    Where no sample has a slope, the intervals hold NaN.

    Args:
        coefs: (n_coefs,), at least two of them different; 0 is the unsteered run.
        scores: a row a sample (the same question and random stream at every coefficient), NaN or None where unscored.
        clusters: the question of each row.

    Raises:
        ValueError: shapes that do not match, no samples, coefficients that are not finite or all the same, or
            infinite scores.
    """
    steps = np.asarray(coefs, dtype=float)
    rows = np.asarray(scores, dtype=float)
    if steps.ndim != 1 or not np.isfinite(steps).all() or len(set(steps.tolist())) < 2:
        raise ValueError(f"a slope needs two different coefficients; got {', '.join(f'{c:g}' for c in steps.ravel())}")
    if rows.ndim != 2 or rows.shape[1] != len(steps) or len(rows) == 0 or len(rows) != len(clusters):
        raise ValueError(
            f"scores have shape {rows.shape}; expected (n_samples, {len(steps)}), a row for each of {len(clusters)} "
            "clusters, at least one"
        )
    if np.isinf(rows).any():
        raise ValueError("scores hold infinite numbers; leave what was not scored as NaN")
    slopes = _slopes(steps, rows)
    wrong = np.where(np.isnan(slopes), np.nan, slopes < -FLAT / np.ptp(steps))
    n_used = int(np.isfinite(slopes).sum())
    return Steerability(
        slope=cluster_bootstrap_mean(slopes, clusters, n_boot, seed),
        wrong_way=cluster_bootstrap_mean(wrong, clusters, n_boot, seed),
        slopes=slopes,
        n_used=n_used,
        n_samples=len(rows),
    )


def _slopes(coefs: Float[np.ndarray, " n_coefs"], scores: Float[np.ndarray, "n n_coefs"]) -> np.ndarray:
    """The slope of each row over its own scored coefficients, NaN without two different ones: (n,)."""
    slopes = np.full(len(scores), np.nan)
    for row, score in enumerate(scores):
        there = ~np.isnan(score)
        if len(set(coefs[there].tolist())) < 2:
            continue
        centred = coefs[there] - coefs[there].mean()
        slopes[row] = centred @ (score[there] - score[there].mean()) / (centred @ centred)
    return slopes


def frontier(
    settings: Iterable[tuple[Setting, float | None, float | None]], min_coherence: float = 75.0
) -> tuple[Setting, float, float] | None:
    """The (setting, mean trait, mean coherence) with the highest trait among those coherent enough; None if none is.

    Settings without a score (None, NaN) are passed over; of equal traits the more coherent counts, then the earlier.

    Args:
        settings: (any label, mean trait, mean coherence) each.
        min_coherence: 0-100; the mean coherence a setting needs at least.

    Raises:
        ValueError: a limit that is not a number.
    """
    if not np.isfinite(min_coherence):
        raise ValueError(f"min_coherence is {min_coherence}; expected a number, 0-100")
    best: Any = None
    for setting, trait, coherence in settings:
        if trait is None or coherence is None or np.isnan(trait) or not coherence >= min_coherence:
            continue
        if best is None or (trait, coherence) > best[1:]:
            best = (setting, float(trait), float(coherence))
    return best

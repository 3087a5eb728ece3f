"""How the last prompt token's projection goes with the trait's score: overall, within and between conditions.

A condition (a system prompt, a number of examples) moves projection and score together, so a correlation over all
points says mostly that the projection tells conditions apart, which their number does without any model. What a monitor
adds is seen within a condition, so the two are always computed together here, each beside random directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    correlate_within,
    paired_difference,
    pearson,
    random_correlations,
    resampled_rows,
    share_beaten,
    with_interval,
)
from persona_vectors.projection import project
from persona_vectors.statistics import Labels, group_codes

OVER = ("overall", "within", "between")

Scores = Sequence[float | None] | np.ndarray


@dataclass(frozen=True)
class MonitorCorrelation:
    """Projection with score, over one of OVER.

    Attributes:
        correlation: not defined (values None) with fewer than three points or where one side is constant.
        random, beaten: what random directions reach on the same (for `within`, equally centred) activations, and the
            share of them that Pearson's r is above; None where r is not defined. They count with |r|.
        number: r of the condition's number alone (grade, examples) with the score; not defined within a condition.
        known: overall, r of the score with the condition's mean score on the other questions: what knowing the
            condition is worth, whatever its number means.
        minus_number, minus_known: r of the projection minus those, from the same resamples.
    """

    over: str
    correlation: Correlation
    random: RandomLevel | None
    beaten: float | None
    number: Estimated = NOT_DEFINED
    minus_number: Estimated = NOT_DEFINED
    known: Estimated = NOT_DEFINED
    minus_known: Estimated = NOT_DEFINED

    @property
    def pearson(self) -> Estimated:
        return self.correlation.pearson

    def record(self) -> dict[str, Any]:
        """One flat row, for a table; what is not defined is None."""
        row: dict[str, Any] = {"over": self.over}
        for name, one in (("pearson", self.pearson), ("spearman", self.correlation.spearman)):
            row |= _flat(name, one)
        row |= {"n": self.correlation.n, "n_clusters": self.correlation.n_clusters}
        level = self.random
        row |= {"random_median": level and level.median, "random_p95": level and level.high}
        row |= {"random_p99": level and level.highest, "random_beaten": self.beaten}
        row |= _flat("number_alone", self.number) | _flat("minus_number", self.minus_number)
        return row | _flat("condition_known", self.known) | _flat("minus_known", self.minus_known)


def _flat(name: str, one: Estimated) -> dict[str, float | None]:
    return {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}


def monitor_correlations(
    scores: Scores,
    activations: Float[Tensor, "n d_model"],
    vector: Float[Tensor, " d_model"],
    conditions: Sequence[float],
    questions: Labels,
    *,
    n_boot: int = 2000,
    n_directions: int = N_RANDOM,
    seed: int = 0,
) -> dict[str, MonitorCorrelation]:
    """Over each of OVER: r of the score with the projection a . v / |v|, positive where it rises towards the trait.

    With m(c) the mean over a condition's points: overall correlates (x, y), within (x - m(x), y - m(y)), between
    (m(x), m(y)), a point a condition. Intervals resample questions, and between conditions the conditions.

    Args:
        scores: of the answers to each prompt, or of single answers; points without one (None, NaN) are left out.
        activations: at the last prompt token of each point, one layer.
        vector: at this layer, pointing towards the trait.
        conditions: each point's condition as its number, such as its grade or how many examples it shows: equal
            numbers are one condition, and the numbers themselves are the baseline without activations.
        questions: each point's question.

    Raises:
        ValueError: lengths that differ, activations that are not finite, a zero vector or one of another width.
    """
    points = _points(scores, activations, vector, conditions, questions)
    how = _How(n_boot, n_directions, seed)
    return {"overall": _overall(points, how), "within": _within(points, how), "between": _between(points, how)}


def condition_correlations(
    scores: Scores,
    activations: Float[Tensor, "n d_model"],
    vector: Float[Tensor, " d_model"],
    conditions: Sequence[float],
    questions: Labels,
    *,
    n_boot: int = 2000,
    n_directions: int = N_RANDOM,
    seed: int = 0,
) -> dict[float, MonitorCorrelation]:
    """Condition's number -> r over its own points alone, as `monitor_correlations` has it over all of them.

    The correlation within conditions is over all of them at once; where most have nothing to foretell, this shows the
    one that has.
    """
    points, how = _points(scores, activations, vector, conditions, questions), _How(n_boot, n_directions, seed)
    found = {}
    for number in dict.fromkeys(conditions):
        own = points.of(points.number == number)
        if len(own.y) < LEAST_POINTS:
            found[number] = _undefined("condition", own)
        else:
            r = correlate(own.x, own.y, own.question, **how.boot)
            found[number] = _beside_random("condition", r, own.rows, own.y, how)
    return found


@dataclass(frozen=True)
class _Points:
    """Points that have a score: projection x, score y, activations, the condition's number, the question."""

    x: np.ndarray
    y: np.ndarray
    rows: Float[np.ndarray, "n d_model"]
    number: np.ndarray
    question: np.ndarray

    def of(self, kept: np.ndarray) -> _Points:
        return _Points(self.x[kept], self.y[kept], self.rows[kept], self.number[kept], self.question[kept])


def _points(
    scores: Scores,
    activations: Float[Tensor, "n d_model"],
    vector: Float[Tensor, " d_model"],
    conditions: Sequence[float],
    questions: Labels,
) -> _Points:
    """The points that have a score; a ValueError for what does not fit."""
    lengths = {len(scores), len(activations), len(conditions), len(questions)}
    if activations.ndim != 2 or len(lengths) > 1:
        raise ValueError(
            f"activations have shape {tuple(activations.shape)}, with {len(scores)} scores, {len(conditions)} "
            f"conditions and {len(questions)} questions; expected a row and one of each for every point"
        )
    score = np.array([np.nan if value is None else float(value) for value in scores])
    there = np.isfinite(score)
    read = activations.detach().cpu()
    return _Points(
        x=project(read, vector.detach().cpu()).double().numpy()[there],
        y=score[there],
        rows=read.double().numpy()[there],
        number=np.asarray(conditions, dtype=float)[there],
        question=np.asarray(questions)[there],
    )


@dataclass(frozen=True)
class _How:
    n_boot: int
    n_directions: int
    seed: int

    @property
    def boot(self) -> dict[str, Any]:
        return {"n_boot": self.n_boot, "seed": self.seed}


def _overall(points: _Points, how: _How) -> MonitorCorrelation:
    if len(points.y) < LEAST_POINTS:
        return _undefined("overall", points)
    found = correlate(points.x, points.y, points.question, **how.boot)
    record = _with_numbers("overall", found, points, points.question, how)
    return replace(record, **_known(found, points, how))


def _known(found: Correlation, points: _Points, how: _How) -> dict[str, Estimated]:
    """`known` and `minus_known` over the points whose condition asks another question, too."""
    others = _means_elsewhere(points)
    there = np.isfinite(others)
    own = points.of(there)
    if len(own.y) < LEAST_POINTS:
        return {}
    codes = group_codes(own.question)
    rows = resampled_rows(codes, how.n_boot, how.seed)
    known = {"known": with_interval(pearson, others[there], own.y, rows, codes)}
    if found.pearson.value is not None and known["known"].value is not None:
        known["minus_known"] = paired_difference(own.x, others[there], own.y, own.question, **how.boot)
    return known


def _means_elsewhere(points: _Points) -> np.ndarray:
    """For each point its condition's mean score on other questions; NaN where there is none."""
    condition, question = group_codes(points.number), group_codes(points.question)
    shape = (condition.max() + 1, question.max() + 1)
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (condition, question), points.y)
    np.add.at(counts, (condition, question), 1)
    other = sums.sum(1)[condition] - sums[condition, question]
    n = counts.sum(1)[condition] - counts[condition, question]
    return np.divide(other, n, out=np.full(len(other), np.nan), where=n > 0)


def _within(points: _Points, how: _How) -> MonitorCorrelation:
    """Of what is left after each condition's mean is taken off; conditions with one point say nothing."""
    codes = group_codes(points.number)
    several = points.of(np.bincount(codes)[codes] > 1) if len(codes) else points
    if len(several.y) < LEAST_POINTS:
        return _undefined("within", several)
    found = correlate_within(several.x, several.y, several.number, several.question, **how.boot)
    codes = group_codes(several.number)
    rows, y = (values - _means(values, codes)[codes] for values in (several.rows, several.y))
    return _beside_random("within", found, rows, y, how)


def _between(points: _Points, how: _How) -> MonitorCorrelation:
    """Of the conditions' means; the interval resamples conditions."""
    codes = group_codes(points.number) if len(points.y) else np.zeros(0, dtype=int)
    if len(set(codes.tolist())) < LEAST_POINTS:
        return _undefined("between", points)
    means = [_means(values, codes) for values in (points.x, points.y, points.rows, points.number)]
    own = _Points(*means, question=np.arange(len(means[0])))
    found = correlate(own.x, own.y, own.question, **how.boot)
    return _with_numbers("between", found, own, own.question, how)


def _means(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The mean of each group's rows."""
    sums = np.zeros((codes.max() + 1, *values.shape[1:]))
    np.add.at(sums, codes, values)
    return sums / np.bincount(codes).reshape(-1, *[1] * (values.ndim - 1))


def _with_numbers(
    over: str, found: Correlation, points: _Points, clusters: np.ndarray, how: _How
) -> MonitorCorrelation:
    """The record, with what the condition's number says by itself."""
    beside = _beside_random(over, found, points.rows, points.y, how)
    codes = group_codes(clusters)
    rows = resampled_rows(codes, how.n_boot, how.seed)
    alone = with_interval(pearson, points.number, points.y, rows, codes)
    minus = NOT_DEFINED
    if found.pearson.value is not None and alone.value is not None:
        minus = paired_difference(points.x, points.number, points.y, clusters, **how.boot)
    return MonitorCorrelation(over, found, beside.random, beside.beaten, alone, minus)


def _beside_random(over: str, found: Correlation, rows: np.ndarray, y: np.ndarray, how: _How) -> MonitorCorrelation:
    if found.pearson.value is None:
        return MonitorCorrelation(over, found, None, None)
    random = random_correlations(rows, y, n_directions=how.n_directions, seed=how.seed)
    level = RandomLevel(*(float(value) for value in np.quantile(random, [0.5, 0.95, 0.99])))
    return MonitorCorrelation(over, found, level, share_beaten(found.pearson.value, random))


def _undefined(over: str, points: _Points) -> MonitorCorrelation:
    n_clusters = len(set(points.question.tolist()))
    return MonitorCorrelation(over, Correlation(NOT_DEFINED, NOT_DEFINED, len(points.y), n_clusters), None, None)

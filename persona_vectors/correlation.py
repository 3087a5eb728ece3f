"""Correlations that can fail: with an interval over clusters, and beside what random directions reach on the same data.

A correlation over few points says little by itself: over a range of dilutions of one trait about a third of random
directions correlate as well as the trait's vector does. So every function here has its control.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from persona_vectors.statistics import Array, Labels, expanded_percentiles, group_codes, random_directions

N_RANDOM = 1000
"""Random directions that a correlation is held against."""
LEAST_POINTS = 3
"""Points that a correlation needs."""
MIN_CLUSTERS = 8
"""Clusters that an interval of a correlation needs: of fewer, many resamples are two points, whose |r| is 1."""


@dataclass(frozen=True)
class Estimated:
    """A statistic with its 95% interval over clusters; None where it cannot be had (equal values, one cluster)."""

    value: float | None
    low: float | None
    high: float | None

    def text(self, digits: int = 2) -> str:
        """`0.87 [0.80, 0.91]`."""
        if self.value is None:
            return "not defined"
        interval = "no interval" if self.low is None else f"{self.low:.{digits}f}, {self.high:.{digits}f}"
        return f"{self.value:.{digits}f} [{interval}]"

    def record(self) -> dict[str, float | None]:
        """For a sidecar."""
        return {"value": self.value, "low": self.low, "high": self.high}


NOT_DEFINED = Estimated(None, None, None)


@dataclass(frozen=True)
class RandomLevel:
    """|r| of random directions on the same points: its median, 95th and 99th percentile."""

    median: float
    high: float
    highest: float


@dataclass(frozen=True)
class Correlation:
    """How two columns go together.

    Attributes:
        pearson, spearman: with intervals from resampling clusters.
        n: points where both are numbers.
        n_clusters: different clusters among them.
    """

    pearson: Estimated
    spearman: Estimated
    n: int
    n_clusters: int

    def record(self) -> dict[str, object]:
        """For a sidecar."""
        return {
            "pearson": self.pearson.record(),
            "spearman": self.spearman.record(),
            "n": self.n,
            "n_clusters": self.n_clusters,
        }


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r; NaN where one side is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt((x @ x) * (y @ y))
    return float(x @ y) / scale if scale > 1e-9 else math.nan


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where one side is constant."""
    return pearson(_ranks(x), _ranks(y))


def _ranks(values: np.ndarray) -> np.ndarray:
    """`scipy.stats.rankdata`, whose own checks cost two to five times as much: a bootstrap ranks 4,000 times."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def correlate(x: Array, y: Array, clusters: Labels, *, n_boot: int = 2000, seed: int = 0) -> Correlation:
    """Pearson and Spearman of x and y; rows where one is missing (None, NaN) are left out and not counted.

    Fewer than MIN_CLUSTERS clusters have no interval.

    Args:
        clusters: what each point belongs to (a data set, a question): points that share it are resampled together.

    Raises:
        ValueError: columns of different lengths, or fewer than three points.
    """
    (x, y), codes = _there((x, y), clusters)
    draws = np.empty((2, n_boot))
    for part, counts in _resampled_counts(codes, n_boot, seed):
        draws[0, part] = _weighted_pearson(x, y, counts)
        draws[1, part] = _weighted_pearson(_weighted_ranks(x, counts), _weighted_ranks(y, counts), counts)
    k = int(codes.max()) + 1
    both = [_of_many(value, drawn, k) for value, drawn in zip((pearson(x, y), spearman(x, y)), draws, strict=True)]
    return Correlation(both[0], both[1], len(x), k)


def correlate_within(
    x: Array, y: Array, conditions: Labels, clusters: Labels, *, n_boot: int = 2000, seed: int = 0
) -> Correlation:
    """The correlation inside conditions: of what is left of x and y after each condition's own mean is taken off.

    A projection can tell conditions (system prompts) apart and still say nothing about answers under the same one: the
    correlation over all points hides that. Conditions with one point say nothing and are left out.

    Raises:
        ValueError: as `correlate`.
    """
    (x, y), codes, groups = _there((x, y), clusters, conditions)
    sizes = np.bincount(groups)
    several = sizes[groups] > 1
    if several.sum() < 3:
        raise ValueError(f"{several.sum()} points share a condition with another; a correlation within them needs 3")

    def centred(values: np.ndarray) -> np.ndarray:
        return values - (np.bincount(groups, values) / sizes)[groups]

    return correlate(centred(x)[several], centred(y)[several], codes[several].tolist(), n_boot=n_boot, seed=seed)


def paired_difference(
    x: Array, other: Array, y: Array, clusters: Labels, *, n_boot: int = 2000, seed: int = 0
) -> Estimated:
    """r(x, y) - r(other, y), with an interval from the same resamples of clusters for both.

    Raises:
        ValueError: as `correlate`.
    """
    (x, other, y), codes = _there((x, other, y), clusters)
    draws = np.empty(n_boot)
    for part, counts in _resampled_counts(codes, n_boot, seed):
        draws[part] = _weighted_pearson(x, y, counts) - _weighted_pearson(other, y, counts)
    return _of_many(pearson(x, y) - pearson(other, y), draws, int(codes.max()) + 1)


def random_correlations(
    changes: Float[Array, "n d_model"], y: Array, *, n_directions: int = N_RANDOM, seed: int = 0
) -> Float[np.ndarray, " n_directions"]:
    """|r| of y with the projections of `changes` on each of many random directions: what a vector's r must beat.

    A projection does not depend on the norm of what is projected on, so these are directions of the vector's norm
    too. A random direction has no sign of its own: it gets the one that suits it, which makes this the harder control.

    Args:
        changes: the activations (or their differences) that the vector's own values are projections of, a row a point.

    Raises:
        ValueError: rows that do not match y, NaN in the changes, fewer than three points.
    """
    rows, target = np.asarray(changes, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if rows.ndim != 2 or len(rows) != len(target):
        raise ValueError(f"changes have shape {rows.shape} and there are {len(target)} scores; expected (n, d_model)")
    there = np.isfinite(target)
    if there.sum() < 3 or not np.isfinite(rows[there]).all():
        raise ValueError(f"{there.sum()} points with a score, which must be at least 3, with finite activations")
    directions = random_directions(n_directions, rows.shape[1], 1.0, seed).double().numpy()
    on = rows[there] @ directions.T  # (n, n_directions)
    on, target = on - on.mean(0), target[there] - target[there].mean()
    scale = np.linalg.norm(on, axis=0) * np.linalg.norm(target)
    return np.abs(np.divide(target @ on, scale, out=np.zeros(n_directions), where=scale > 1e-12))


def share_beaten(value: float | None, random: Float[Array, " n_directions"]) -> float:
    """Share of the random directions that `value` is above; 0 where there is no value."""
    return 0.0 if value is None else float((np.asarray(random) < value).mean())


def _there(columns: Sequence[Array], *labels: Labels) -> tuple[list[np.ndarray], *tuple[np.ndarray, ...]]:
    """The columns and the codes of the labels where every column is a number."""
    numbers = [np.array([math.nan if v is None else float(v) for v in column], dtype=float) for column in columns]
    lengths = [len(one) for one in (*numbers, *labels)]
    if len(set(lengths)) > 1:
        raise ValueError(f"columns and clusters of different lengths: {', '.join(map(str, lengths))}")
    there: np.ndarray = np.asarray(np.isfinite(np.stack(numbers)).all(axis=0))
    if there.sum() < LEAST_POINTS:
        raise ValueError(
            f"{there.sum()} of {len(there)} points have all their numbers; a correlation needs {LEAST_POINTS}"
        )
    codes = [group_codes([label for label, kept in zip(one, there, strict=True) if kept]) for one in labels]
    return [one[there] for one in numbers], *codes


_DRAWS_AT_ONCE = 200  # bounds memory: a count for each point in each of them


def _resampled_counts(codes: np.ndarray, n_boot: int, seed: int) -> Iterator[tuple[slice, np.ndarray]]:
    """(which draws, (draws, n) counts of each point) of the samples of `resampled_rows`, some at a time."""
    rng = np.random.default_rng(seed)
    k = int(codes.max()) + 1
    for start in range(0, n_boot, _DRAWS_AT_ONCE):
        part = slice(start, min(start + _DRAWS_AT_ONCE, n_boot))
        drawn = [np.bincount(rng.integers(k, size=k), minlength=k) for _ in range(part.stop - part.start)]
        yield part, np.stack(drawn)[:, codes].astype(float)


def _weighted_pearson(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pearson's r of each sample, a row of `counts` each; x and y are (n,) or one row a sample. NaN without spread."""
    n = counts.sum(1, keepdims=True)
    x = x - (counts * x).sum(1, keepdims=True) / n
    y = y - (counts * y).sum(1, keepdims=True) / n
    scale = np.sqrt((counts * x**2).sum(1) * (counts * y**2).sum(1))
    return np.divide((counts * x * y).sum(1), scale, out=np.full(len(counts), np.nan), where=scale > 1e-9)


def _weighted_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(draws, n): each point's rank in each sample, which has it `counts[:, i]` times; ties share theirs."""
    different, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(different)))
    sizes = np.add.reduceat(counts[:, order], starts, axis=1)  # (draws, n_different)
    return (np.cumsum(sizes, axis=1) - sizes + (sizes + 1) / 2)[:, group]


def resampled_rows(codes: np.ndarray, n_boot: int, seed: int) -> list[np.ndarray]:
    """Row numbers of each bootstrap sample: whole clusters, drawn with replacement."""
    members = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    rng = np.random.default_rng(seed)
    k = len(members)
    return [np.concatenate([members[code] for code in rng.integers(k, size=k)]) for _ in range(n_boot)]


def with_interval(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    x: np.ndarray,
    y: np.ndarray,
    rows: Sequence[np.ndarray],
    codes: np.ndarray,
) -> Estimated:
    """The statistic, with expanded percentiles (`statistics.cluster_bootstrap_mean`) of the samples that have it."""
    return _interval(
        statistic(x, y), np.array([statistic(x[sample], y[sample]) for sample in rows]), int(codes.max()) + 1
    )


def _of_many(value: float, resampled: np.ndarray, k: int) -> Estimated:
    """`_interval`, which fewer than MIN_CLUSTERS clusters do not have."""
    return _interval(value, resampled if k >= MIN_CLUSTERS else resampled[:0], k)


def _interval(value: float, resampled: np.ndarray, k: int) -> Estimated:
    if math.isnan(value):
        return Estimated(None, None, None)
    resampled = resampled[np.isfinite(resampled)]
    if k == 1 or len(resampled) < 2:
        return Estimated(value, None, None)
    return Estimated(value, *expanded_percentiles(resampled, k, 0.95))

"""The claims of the study of weight personas, from its measurements: pure functions, arrays in, verdicts out.

Scores are (seeds, questions); every interval resamples questions, or data sets for correlations. A claim's threshold is
a constant of the settings, written before the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from persona_vectors.correlation import Estimated, correlate, paired_difference, pearson, share_beaten
from persona_vectors.statistics import Interval, cluster_bootstrap_mean

Scores = Float[np.ndarray, "seeds questions"]


@dataclass(frozen=True)
class Claim:
    """A row of the table that the report opens with."""

    claim: str
    threshold: str
    found: str
    held: bool

    def row(self) -> str:
        """As a line of a Markdown table."""
        return f"| {self.claim} | {self.threshold} | {self.found} | {'held' if self.held else '**missed**'} |"


def mean_of(scores: Scores) -> Interval:
    """The mean of all scores, with its interval from resampling questions."""
    values = scores.mean(axis=0)
    return cluster_bootstrap_mean(values, list(range(len(values))))


@dataclass(frozen=True)
class Dose:
    """A trait over coefficients.

    Attributes:
        means: each coefficient's score with its interval, lowest coefficient first.
        steps: the change from each coefficient to the next, question by question.
        coherence: each coefficient's mean.
        random: each coefficient's mean shift from unsteered by random directions, over directions and seeds.
        random_range: lowest and highest of single random directions' mean scores at each coefficient.
    """

    coefs: Sequence[float]
    means: Sequence[Interval]
    steps: Sequence[Interval]
    coherence: Sequence[float]
    random: Sequence[float]
    random_range: Sequence[tuple[float, float]]

    def is_coherent(self, least: float) -> bool:
        """Whether the answers are coherent at every coefficient."""
        return min(self.coherence) >= least

    def is_monotone(self) -> bool:
        """The strict reading: the mean never falls from one coefficient to the next."""
        return all(step.mean >= 0 for step in self.steps)

    def falls_nowhere_surely(self) -> bool:
        """The looser reading: no step whose whole interval lies below 0."""
        return all(step.high >= 0 for step in self.steps)


def dose(
    own: Mapping[float, Scores], coherence: Mapping[float, float], random: Mapping[float, Sequence[Scores]]
) -> Dose:
    """The curve of one trait.

    Args:
        own: coefficient -> scores; 0 is among them.
        random: coefficient -> the scores under each random direction, of the first questions alone; not at 0.
    """
    coefs = sorted(own)
    steps = [mean_of(own[high] - own[low]) for low, high in zip(coefs, coefs[1:], strict=False)]
    n_asked = min((one.shape[1] for each in random.values() for one in each), default=own[0.0].shape[1])
    controls = {c: [float(one.mean()) for one in random.get(c, [own[0.0][:, :n_asked]])] for c in coefs}
    unsteered = float(own[0.0][:, :n_asked].mean())
    return Dose(
        coefs,
        [mean_of(own[c]) for c in coefs],
        steps,
        [coherence[c] for c in coefs],
        [float(np.mean(controls[c])) - unsteered for c in coefs],
        [(min(controls[c]), max(controls[c])) for c in coefs],
    )


@dataclass(frozen=True)
class Moved:
    """What two directions at once do to one trait of the two: score minus unsteered.

    Attributes:
        both, alone, other, random: under both directions, its own alone, the other one alone, two random ones.
    """

    trait: str
    unsteered: float
    both: Interval
    alone: Interval
    other: Interval
    random: Interval


def moved(trait: str, unsteered: Scores, both: Scores, alone: Scores, other: Scores, random: Scores) -> Moved:
    """The four differences from unsteered, question by question."""
    changes = [mean_of(one - unsteered) for one in (both, alone, other, random)]
    return Moved(trait, float(unsteered.mean()), *changes)


def pair_holds(pair: Sequence[Moved], coherence: float, least: float) -> bool:
    """Whether both traits surely rise while the answers stay coherent."""
    return coherence >= least and all(one.both.low > 0 for one in pair)


def z(values: np.ndarray) -> np.ndarray:
    """(values - mean) / standard deviation."""
    return (values - values.mean()) / values.std()


@dataclass(frozen=True)
class Predicted:
    """How a trait's score goes with the projection on its direction, over finetuned models.

    Attributes:
        random_95: 95th percentile of random directions' |r|; `beaten`: the share of them that r is above.
        p: share of permutations of the data sets' scores whose r is as high.
        norm: r of |dW| alone; `above_norm`: r minus it.
    """

    r: Estimated
    spearman: Estimated
    random_95: float
    beaten: float
    p: float
    norm: Estimated
    above_norm: Estimated
    n: int
    n_clusters: int


@dataclass(frozen=True)
class Columns:
    """One trait's numbers, a finetuned model each.

    Attributes:
        x: the projection on the trait's direction, or the cosine; `norm`: |dW|; `y`: the trait score.
        random: (n, k) the same as x on k random directions.
    """

    x: np.ndarray
    y: np.ndarray
    norm: np.ndarray
    random: Float[np.ndarray, "n k"]

    def standardised(self) -> Columns:
        """Each column z-scored; a random direction has the sign that suits it."""
        y = z(self.y)
        signs = np.sign([pearson(one, y) for one in self.random.T])
        random = np.stack([sign * z(one) for sign, one in zip(signs, self.random.T, strict=True)], axis=1)
        return Columns(z(self.x), y, z(self.norm), random)


def predicted(columns: Columns, data_sets: Sequence[str], n_permutations: int = 2000) -> Predicted:
    """The correlation with everything beside it; models of one data set are resampled and permuted together."""
    found = correlate(columns.x, columns.y, data_sets)
    random = np.abs([pearson(one, columns.y) for one in columns.random.T])
    return Predicted(
        found.pearson,
        found.spearman,
        float(np.quantile(random, 0.95)),
        share_beaten(found.pearson.value, random),
        permutation_p(columns.x, columns.y, data_sets, n_permutations),
        correlate(columns.norm, columns.y, data_sets).pearson,
        paired_difference(columns.x, columns.norm, columns.y, data_sets),
        found.n,
        found.n_clusters,
    )


def pooled(by_trait: Sequence[Columns]) -> Columns:
    """All traits' numbers under each other, z-scored in each trait first: its r is the mean of theirs."""
    found = [one.standardised() for one in by_trait]
    return Columns(
        np.concatenate([one.x for one in found]),
        np.concatenate([one.y for one in found]),
        np.concatenate([one.norm for one in found]),
        np.concatenate([one.random for one in found]),
    )


def permutation_p(x: np.ndarray, y: np.ndarray, data_sets: Sequence[str], n: int, seed: int = 0) -> float:
    """`(1 + hits) / (1 + n)`: how often r is as high when whole data sets' scores change places.

    Every data set must have as many rows as another one, in one order (a trait and a seed each).
    """
    names = list(dict.fromkeys(data_sets))
    rows = np.array([[i for i, one in enumerate(data_sets) if one == name] for name in names])  # (sets, rows of each)
    block, own = y[rows], x[rows].ravel()
    rng = np.random.default_rng(seed)
    observed = pearson(own, block.ravel())
    hits = sum(pearson(own, block[rng.permutation(len(names))].ravel()) >= observed - 1e-12 for _ in range(n))
    return (1 + hits) / (1 + n)


def speed(hook: Sequence[float], merged: Sequence[float]) -> tuple[float, float, float]:
    """(median, lower, upper quartile) of how fast merged generation is, hook steering being 1, round by round."""
    ratios = np.array(hook) / np.array(merged)
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return float(median), float(low), float(high)

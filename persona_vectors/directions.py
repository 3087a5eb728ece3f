"""Directions that tell answers with a trait from answers without: five ways to make one of the same activations.

Each is a function (pos, neg) -> direction, (n_pos, d) and (n_neg, d) to (d,), that points from neg to pos; its length
means nothing until `scaled`. `statistics.held_out_auc` takes any of them.

A direction that separates best need not steer best: whitening weighs up coordinates that hardly vary, which no text
takes the model along. Measured on 8 traits of the embedded model (benchmarks/LOG.md), lda parted answers 1.7 times as
far as the difference of means and steered better than random directions in 1 trait, the difference of means in 7.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

Rows = Float[np.ndarray, "n d"]
Direction = Callable[[Any, Any], Float[np.ndarray, " d"]]
"""(n_pos, d) and (n_neg, d) float64 arrays -> (d,), pointing from neg to pos."""


def difference_of_means(pos: Rows, neg: Rows) -> Float[np.ndarray, " d"]:
    """mean(pos) - mean(neg)."""
    return pos.mean(0) - neg.mean(0)


def mean_centred(pos: Rows, neg: Rows, background: Rows | None = None) -> Float[np.ndarray, " d"]:
    """mean(pos) - mean(everything): pos, neg, and `background`, the answers of other traits.

    Without a background, and with as many pos as neg, this is half the difference of means.
    """
    everything = [pos, neg] if background is None else [pos, neg, background]
    return pos.mean(0) - np.concatenate(everything).mean(0)


def pair_component(pos: Rows, neg: Rows) -> Float[np.ndarray, " d"]:
    """First principal component of the differences pos[i] - neg[i], not centred: what the pairs have most in common.

    It maximises the sum of squared projections of the differences; its sign is that of the mean difference.

    Raises:
        ValueError: as many pos as neg are needed, in pairs.

    Source: representation engineering (arXiv 2310.01405).
    """
    if len(pos) != len(neg):
        raise ValueError(f"pairs are needed; got {len(pos)} pos and {len(neg)} neg rows")
    differences = pos - neg
    weights = np.linalg.eigh(differences @ differences.T)[1][:, -1]  # (n,) of the pairs: n is tens, d thousands
    component = weights @ differences  # (d,)
    return -component if component @ differences.mean(0) < 0 else component


def logistic_probe(pos: Rows, neg: Rows, c: float = 1.0) -> Float[np.ndarray, " d"]:
    """The weights of a logistic regression of pos against neg, in the activations' own units.

    Coordinates are standardised, the penalty is 1 / (2 c) * |w|^2; w_i / std_i scores activations as they are.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rows, labels = np.concatenate([pos, neg]), np.repeat([1, 0], [len(pos), len(neg)])
    scaler = StandardScaler().fit(rows)
    probe = LogisticRegression(C=c, max_iter=1000).fit(scaler.transform(rows), labels)
    return probe.coef_[0] / np.asarray(scaler.scale_)


def whitened_difference(pos: Rows, neg: Rows) -> Float[np.ndarray, " d"]:
    """S^-1 (mean(pos) - mean(neg)), S the covariance within the sides, shrunk by Ledoit and Wolf's share: LDA.

    With Z the n centred rows, m the mean variance and s the share, S = (1 - s) Z'Z / n + s m I. Share and inverse are
    had from the n x n matrix ZZ' (the latter by Woodbury), as d is thousands and n tens.

    Raises:
        ValueError: rows of a side that are all the same.
    """
    difference = difference_of_means(pos, neg)
    centred = np.concatenate([pos - pos.mean(0), neg - neg.mean(0)])  # (n, d)
    n, d = centred.shape
    gram = centred @ centred.T
    variance = float(np.trace(gram)) / (n * d)
    if variance == 0:
        raise ValueError("the answers of each side are all the same, so there is nothing to whiten by")
    share = max(shrinkage(gram, d), 1e-6)  # 0 has no inverse
    ridge = share * variance
    inner = ridge * n * np.eye(n) + (1 - share) * gram
    return (difference - (1 - share) * centred.T @ np.linalg.solve(inner, centred @ difference)) / ridge


def shrinkage(gram: Float[np.ndarray, "n n"], d: int) -> float:
    """Ledoit and Wolf's share, 0..1, of n centred rows of width d, from their products with one another.

    scikit-learn's `ledoit_wolf_shrinkage` gives the same by way of the d x d covariance, which takes a second at d 4096
    where this takes a millisecond. Source: Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional
    covariance matrices".
    """
    n, mean_variance = len(gram), float(np.trace(gram)) / (len(gram) * d)
    squared = float(np.square(gram).sum()) / n**2  # of the covariance's entries
    spread = squared / d - mean_variance**2
    noise = (float(np.square(np.diag(gram)).sum()) / n - squared) / (n * d)
    return min(noise, spread) / spread if spread > 0 else 1.0


METHODS: dict[str, Direction] = {
    "mean_diff": difference_of_means,
    "mean_centred": mean_centred,
    "pca": pair_component,
    "probe": logistic_probe,
    "lda": whitened_difference,
}


def method(name: str, background: Rows | None = None) -> Direction:
    """The function of that name; mean_centred with the answers of other traits, where there are any.

    Raises:
        ValueError: another name.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name}; expected one of {', '.join(METHODS)}")
    return partial(mean_centred, background=background) if name == "mean_centred" else METHODS[name]


def scaled(direction: Float[np.ndarray, " d"], norm: float) -> Float[np.ndarray, " d"]:
    """The direction with that norm.

    Raises:
        ValueError: a direction that is zero.
    """
    length = float(np.linalg.norm(direction))
    if length == 0:
        raise ValueError("the direction is zero: both sides are the same")
    return direction * (norm / length)

"""How far two sets of scores (0-100) of the same answers agree, and how far a judge tells labelled answers apart.

Intervals resample whole questions, as in `statistics`. Beside each correlation stands that of shuffled scores: what two
judges that know nothing of each other would give on as many answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from persona_vectors.correlation import Estimated, pearson, resampled_rows, spearman, with_interval
from persona_vectors.statistics import Labels, auc, group_codes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Score = float | None
BAND = 20
"""Points in a band of kappa: 0-19, 20-39, 40-59, 60-79, 80-100."""


@dataclass(frozen=True)
class Agreement:
    """Two sets of scores, a and b; everything but the counts is over the answers that both scored.

    Attributes:
        n, n_a, n_b, n_both, n_questions: answers; those that a, b and both scored; questions among the last.
        pearson, spearman: correlations.
        mean_difference: mean of a - b, in points; None for yes-or-no labels, which are no points.
        kappa_bands: Cohen's, quadratic weights, on bands of 20 points; None for yes-or-no labels.
        kappa_threshold: Cohen's, on score >= threshold; a yes-or-no label is its own side.
        auc: of a, for yes-or-no labels b; None otherwise.
        threshold: in points.
        shuffled: pearson with b shuffled: mean, and the range that holds 95% of the shuffles.
    """

    n: int
    n_a: int
    n_b: int
    n_both: int
    n_questions: int
    pearson: Estimated
    spearman: Estimated
    mean_difference: Estimated | None
    kappa_bands: Estimated | None
    kappa_threshold: Estimated
    auc: Estimated | None
    threshold: float
    shuffled: Estimated


def agreement(
    a: Sequence[Score],
    b: Sequence[Score],
    questions: Labels,
    *,
    binary: bool = False,
    threshold: float = 50.0,
    n_boot: int = 1000,
    seed: int = 0,
) -> Agreement:
    """How far `a` and `b` agree.

    Args:
        a, b: a score of each answer, None or NaN where there is none. With `binary`, b is 0 (no) or 1 (yes).
        questions: the question of each answer; rows that share it are resampled together.

    Raises:
        ValueError: sets of different lengths, or fewer than three answers that both scored.
    """
    if not len(a) == len(b) == len(questions):
        raise ValueError(f"got {len(a)} and {len(b)} scores for {len(questions)} answers; expected one each")
    x, y = _numbers(a), _numbers(b)
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < 3:
        raise ValueError(
            f"both scored only {both.sum()} of {len(a)} answers (the one {np.isfinite(x).sum()}, the other "
            f"{np.isfinite(y).sum()}); agreement needs 3"
        )
    x, y = x[both], y[both]
    codes = group_codes([question for question, kept in zip(questions, both, strict=True) if kept])
    rows = resampled_rows(codes, n_boot, seed)

    def estimated(statistic: Callable[[np.ndarray, np.ndarray], float]) -> Estimated:
        return with_interval(statistic, x, y, rows, codes)

    return Agreement(
        n=len(a),
        n_a=int(np.isfinite(_numbers(a)).sum()),
        n_b=int(np.isfinite(_numbers(b)).sum()),
        n_both=int(both.sum()),
        n_questions=int(codes.max()) + 1,
        pearson=estimated(pearson),
        spearman=estimated(spearman),
        mean_difference=None if binary else estimated(lambda x, y: float((x - y).mean())),
        kappa_bands=None if binary else estimated(lambda x, y: _kappa(_bands(x), _bands(y), "quadratic")),
        kappa_threshold=estimated(lambda x, y: _kappa(x >= threshold, y >= (0.5 if binary else threshold), None)),
        auc=estimated(_auc) if binary else None,
        threshold=threshold,
        shuffled=_shuffled(x, y, n_boot, seed),
    )


def _numbers(scores: Sequence[Score]) -> np.ndarray:
    return np.array([math.nan if score is None else score for score in scores], dtype=float)


def _bands(scores: np.ndarray) -> np.ndarray:
    return np.minimum(scores // BAND, 100 // BAND - 1).astype(int)


def _kappa(x: np.ndarray, y: np.ndarray, weights: str | None) -> float:
    """Cohen's kappa, `1 - sum(w * observed) / sum(w * expected)`; NaN where all answers are in one class on both sides.

    scikit-learn's gives the same and takes a millisecond, which a bootstrap has not.
    """
    n = int(max(x.max(), y.max())) + 1
    observed = np.bincount(x.astype(int) * n + y.astype(int), minlength=n * n).reshape(n, n) / len(x)
    expected = np.outer(observed.sum(1), observed.sum(0))
    apart = np.subtract.outer(np.arange(n), np.arange(n))
    w = apart**2 if weights == "quadratic" else apart != 0
    chance = float((w * expected).sum())
    return 1 - float((w * observed).sum()) / chance if chance > 0 else math.nan


def _auc(x: np.ndarray, labels: np.ndarray) -> float:
    yes = labels >= 0.5
    return auc(x[yes], x[~yes]) if yes.any() and not yes.all() else math.nan


def _shuffled(x: np.ndarray, y: np.ndarray, n: int, seed: int) -> Estimated:
    rng = np.random.default_rng(seed + 1)
    correlations = np.array([pearson(x, rng.permutation(y)) for _ in range(n)])
    if np.isnan(correlations).all():
        return Estimated(None, None, None)
    low, high = np.nanquantile(correlations, [0.025, 0.975])
    return Estimated(float(np.nanmean(correlations)), float(low), float(high))


def agreement_png(
    a: Sequence[Score], b: Sequence[Score], names: tuple[str, str], *, threshold: float = 50.0, binary: bool = False
) -> Figure:
    """Each answer's score by b (x axis) and by a (y axis), with the line of equal scores; labels are jittered."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from persona_vectors.plots import INK, VECTOR

    x, y = _numbers(b), _numbers(a)
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.axhline(threshold, color=INK, linewidth=0.8, linestyle=":")
    if binary:
        x = x + np.random.default_rng(0).uniform(-0.12, 0.12, len(x))
        axis.set(xlim=(-0.4, 1.4), xticks=[0, 1], xticklabels=["no", "yes"])
    else:
        axis.plot([0, 100], [0, 100], color=INK, linewidth=0.8)
        axis.axvline(threshold, color=INK, linewidth=0.8, linestyle=":")
        axis.set(xlim=(-3, 103))
    axis.scatter(x, y, s=16, color=VECTOR, alpha=0.5, linewidths=0)
    axis.set(xlabel=names[1], ylabel=names[0], ylim=(-3, 103))
    return figure

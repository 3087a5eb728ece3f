"""What a demo run found about one trait: numbers from tables, and the sentence that follows from them, good or bad.

The rule is fixed beforehand: the coefficient reported is the largest up to which coherence stays within
`MAX_COHERENCE_LOSS` points of the unsteered answers, and the shift there counts only if its interval excludes 0 and it
is larger than every random direction's of the same norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_vectors.statistics import Interval, cluster_bootstrap_mean

if TYPE_CHECKING:
    import pandas as pd

MAX_COHERENCE_LOSS = 10.0


@dataclass(frozen=True)
class LayerAuc:
    """Held-out AUC a layer, (n_layers + 1,) each: of the difference of means, and of random directions."""

    vector: np.ndarray
    random_mean: np.ndarray
    random_high: np.ndarray  # 95th percentile


@dataclass(frozen=True)
class SweepPoint:
    """The answers at one coefficient.

    Attributes:
        score, coherence, projection: means with intervals by question.
        shift, coherence_shift: differences from the unsteered answer of the same question and random stream.
        random_scores, random_shifts, random_coherences: the same means for each random direction: (n_random,).
    """

    coef: float
    score: Interval
    shift: Interval
    coherence: Interval
    coherence_shift: Interval
    projection: Interval
    random_scores: np.ndarray
    random_shifts: np.ndarray
    random_coherences: np.ndarray


@dataclass(frozen=True)
class Findings:
    """Everything a demo run says about one trait."""

    trait: str
    layer: int
    n_pairs: int
    n_kept: int
    pos: Interval
    neg: Interval
    norms: np.ndarray  # (n_layers + 1,)
    auc: LayerAuc | None  # None where too few questions were kept to hold any out
    split_half: float | None  # mean cosine of the directions from two halves of the questions
    points: list[SweepPoint]

    @property
    def reported(self) -> SweepPoint | None:
        """The largest coefficient up to which coherence holds; None where the first already loses it."""
        return reported_point(self.points)

    @property
    def verdict(self) -> str:
        """found | coherence lost | no shift | no better than random."""
        return verdict_of(self.points)

    def sentence(self) -> str:
        """What steering did, with its interval and control, in plain words."""
        if self.verdict == "coherence lost":
            return f"{self.trait}: no effect can be claimed. {self._lost(self.points[1])}"
        point = self.reported
        assert point is not None
        opening = {
            "found": "",
            "no shift": "no effect is shown, because the interval does not lie above 0: ",
            "no better than random": "no evidence for the vector, because random directions do as well: ",
        }[self.verdict]
        base, sizes = self.points[0], np.abs(point.random_shifts)
        moved = (
            f"adding {point.coef:g} x the vector at layer {self.layer} moves the judge's score from "
            f"{base.score.mean:.1f} to {point.score.mean:.1f}, a shift of {point.shift.text(sign=True)}; {len(sizes)} "
            f"random directions of the same norm move it by {sizes.mean():.1f} on average and at most "
            f"{sizes.max():.1f}. Coherence goes from {base.coherence.mean:.1f} to {point.coherence.mean:.1f} (random "
            f"directions: {point.random_coherences.mean():.1f})."
        )
        lost = next((later for later in self.points if later.coef > point.coef), None)
        return f"{self.trait}: {opening}{moved}" + (f" {self._lost(lost)}" if lost is not None else "")

    def _lost(self, point: SweepPoint) -> str:
        return (
            f"At {point.coef:g} coherence is lost ({self.points[0].coherence.mean:.1f} to {point.coherence.mean:.1f}, "
            f"more than {MAX_COHERENCE_LOSS:g} points), so scores from there on do not count."
        )

    def auc_sentence(self) -> str:
        """How well the direction separates answers to unseen questions, beside random directions."""
        if self.auc is None:
            return "Too few questions were kept to hold any out, so there is no AUC."
        v, mean, high = (float(a[self.layer]) for a in (self.auc.vector, self.auc.random_mean, self.auc.random_high))
        beats = "above" if v > high else "no better than"
        return (
            f"On questions held out, its AUC at layer {self.layer} is {v:.3f}, {beats} the 95th percentile of random "
            f"directions ({high:.3f}; their mean is {mean:.3f})."
        )


def reported_point(points: Sequence[SweepPoint]) -> SweepPoint | None:
    """The largest coefficient up to which coherence holds, of points from 0 up; None where the first loses it."""
    held = None
    for point in points[1:]:
        if not point.coherence_shift.mean >= -MAX_COHERENCE_LOSS:
            break
        held = point
    return held


def verdict_of(points: Sequence[SweepPoint]) -> str:
    """found | coherence lost | no shift | no better than random, of points from 0 up."""
    point = reported_point(points)
    if point is None:
        return "coherence lost"
    if not point.shift.low > 0:
        return "no shift"
    if np.abs(point.random_shifts).max() >= point.shift.mean:
        return "no better than random"
    return "found"


def sweep_point(
    coef: float,
    base: pd.DataFrame,
    steered: pd.DataFrame,
    randoms: Sequence[pd.DataFrame],
    trait: str,
    projection: str | None = None,
) -> SweepPoint:
    """The point of one coefficient; all tables have the same rows (question and sample) in the same order.

    Args:
        base: the unsteered table.
        steered: the table at `coef`, with a column `projection`; None has no projections.
        randoms: one table for each random direction at `coef`.
    """
    questions = base["question"].tolist()
    for table in (steered, *randoms):
        if table["question"].tolist() != questions:
            raise ValueError("the tables of a sweep must ask the same questions in the same order; run it anew")

    def mean(values: Any) -> Interval:
        return cluster_bootstrap_mean(np.asarray(values, dtype=float), questions)

    return SweepPoint(
        coef=coef,
        score=mean(steered[trait]),
        shift=mean(steered[trait] - base[trait]),
        coherence=mean(steered["coherence"]),
        coherence_shift=mean(steered["coherence"] - base["coherence"]),
        projection=mean(steered[projection] if projection else np.full(len(steered), np.nan)),
        random_scores=np.array([table[trait].mean() for table in randoms]),
        random_shifts=np.array([(table[trait] - base[trait]).mean() for table in randoms]),
        random_coherences=np.array([table["coherence"].mean() for table in randoms]),
    )


def layer_auc(quality: Mapping[str, Any]) -> LayerAuc | None:
    """Held-out AUC at every layer from a vector's quality report (`persona_vectors.quality`); None if it has none."""
    columns = [
        np.array([layer[name] for layer in quality["layers"]], dtype=float)
        for name in ("auc", "auc_random", "auc_random_95")
    ]
    return None if np.isnan(columns[0]).all() else LayerAuc(*columns)


COLUMNS = ("coef", "score", "shift", "random shift", "coherence", "random coherence", "projection")


def table_rows(findings: Findings) -> list[dict[str, str]]:
    """One row a coefficient, as text, by the names in COLUMNS."""
    return [row_of(point) for point in findings.points]


def row_of(point: SweepPoint) -> dict[str, str]:
    """A coefficient's row of the table."""
    return {
        "coef": f"{point.coef:g}",
        "score": point.score.text(),
        "shift": point.shift.text(sign=True) if point.coef else "",
        "random shift": _range(point.random_shifts) if point.coef else "",
        "coherence": point.coherence.text(),
        "random coherence": _range(point.random_coherences) if point.coef else "",
        "projection": point.projection.text(2),
    }


def _range(values: np.ndarray) -> str:
    return f"{values.mean():.1f} ({values.min():.1f} to {values.max():.1f})"


def samples(tables: Mapping[float, pd.DataFrame], trait: str, n_questions: int = 3) -> list[dict]:
    """The first answer to a few questions, spread over the list, at each coefficient."""
    first = {coef: table.drop_duplicates("question").reset_index(drop=True) for coef, table in tables.items()}
    base = next(iter(first.values()))
    rows = np.unique(np.linspace(0, len(base) - 1, min(n_questions, len(base))).round().astype(int))
    return [
        {
            "question": base["question"][row],
            "answers": [
                {
                    "coef": f"{coef:g}",
                    "text": str(table["answer"][row]),
                    "score": _score(table[trait][row]),
                    "coherence": _score(table["coherence"][row]),
                }
                for coef, table in first.items()
            ],
        }
        for row in rows
    ]


def _score(value: Any) -> str:
    return "-" if np.isnan(value) else f"{value:.0f}"


def record(findings: Findings) -> dict[str, Any]:
    """The findings as JSON holds them, with NaN as None."""
    return {**_plain(asdict(findings)), "verdict": findings.verdict, "sentence": findings.sentence()}


def record_of(point: SweepPoint) -> dict[str, Any]:
    """A coefficient's numbers as JSON holds them, with NaN as None."""
    return _plain(asdict(point))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else float(value)
    return value

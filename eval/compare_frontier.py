"""What two steering methods reach at equal coherence, and whether they move the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.compare_behavior import Run
from eval.compare_settings import ACTIVATION, METHODS, WEIGHTS
from eval.sweep_summary import described
from persona_vectors.correlation import LEAST_POINTS, Correlation, correlate
from persona_vectors.statistics import Interval, cluster_bootstrap_mean
from persona_vectors.steerability import frontier

MATCHED = 15.0
"""Points by which two settings' mean trait may differ, to be called matched."""


@dataclass(frozen=True, eq=False)
class Frontier:
    """The highest mean trait of each method among its settings that are coherent enough.

    Attributes:
        best: method -> its setting; a method without a coherent one is missing.
        random: the same among the method's controls.
        difference: lora - activation, sample by sample, resampled by question; None where one is missing.
    """

    min_coherence: float
    best: dict[str, Run]
    random: dict[str, Run]
    difference: Interval | None

    def record(self) -> dict[str, Any]:
        """For a sidecar."""

        def of(run: Run | None) -> dict[str, Any] | None:
            if run is None:
                return None
            scores = {"trait": described(run.trait), "coherence": described(run.coherence)}
            return {"control": run.control, "coef": run.coef, **scores}

        return {
            "min_coherence": self.min_coherence,
            **{method: of(self.best.get(method)) for method in METHODS},
            **{f"{method}_random": of(self.random.get(method)) for method in METHODS},
            "difference": None if self.difference is None else described(self.difference),
        }


def find_frontier(runs: Sequence[Run], trait: str, min_coherence: float) -> Frontier:
    """The best of each method; of steered settings only, since the unsteered one is both methods' own.

    The settings are taken as chosen: the interval of the difference does not know that they were, and the best of
    several settings flatters both.
    """

    def best(method: str, control: bool) -> Run | None:
        own = [run for run in runs if run.method == method and bool(run.control) == control and run.coef]
        chosen = frontier([(run, run.trait.mean, run.coherence.mean) for run in own], min_coherence)
        return None if chosen is None else chosen[0]

    found, random = (
        {method: run for method in METHODS if (run := best(method, control)) is not None} for control in (False, True)
    )
    difference = None
    if len(found) == len(METHODS):
        difference = paired(found[WEIGHTS], found[ACTIVATION], trait)
    return Frontier(min_coherence, found, random, difference)


def paired(run: Run, other: Run, trait: str) -> Interval:
    """Mean of run - other over samples of the same question and random stream, clustered by question."""
    differences = run.table[trait].to_numpy() - other.table[trait].to_numpy()  # same rows in the same order
    return cluster_bootstrap_mean(differences, run.table["question"].tolist())


@dataclass(frozen=True, eq=False)
class Agreed:
    """How two settings' trait scores of the same samples go together.

    Attributes:
        correlation: over (question, sample) pairs, which share their random numbers; None where it cannot be had.
        shifted: the control: with the other's score of the question's next sample, so only the question is shared.
    """

    one: Run
    other: Run
    correlation: Correlation | None
    shifted: Correlation | None

    @property
    def gap(self) -> float:
        """Difference of the mean traits."""
        return abs(self.one.trait.mean - self.other.trait.mean)

    def record(self) -> dict[str, Any]:
        """For a sidecar."""
        return {
            "settings": [self.one.name, self.other.name],
            "mean_trait": [described(run.trait)["mean"] for run in (self.one, self.other)],
            "correlation": None if self.correlation is None else self.correlation.record(),
            "shifted": None if self.shifted is None else self.shifted.record(),
        }


def agreement(runs: Sequence[Run], trait: str) -> tuple[list[Agreed], list[Agreed]]:
    """(both methods at matched mean trait, each method with itself at the next coefficient).

    Each weights setting is held against the activation setting of the nearest mean trait, where that is within
    MATCHED points.
    """
    own = {method: [r for r in runs if r.method == method and not r.control and r.coef] for method in METHODS}
    scored = {method: [run for run in members if run.trait.n] for method, members in own.items()}
    matched = []
    for run in scored[WEIGHTS]:
        if scored[ACTIVATION]:
            other = min(scored[ACTIVATION], key=lambda one: abs(one.trait.mean - run.trait.mean))
            matched.append(agreed(other, run, trait))
    beside = [agreed(a, b, trait) for members in scored.values() for a, b in zip(members, members[1:], strict=False)]
    return [one for one in matched if one.gap <= MATCHED], beside


def agreed(one: Run, other: Run, trait: str) -> Agreed:
    """The correlation of two settings' scores, and of scores that share their question alone."""
    questions = one.table["question"].tolist()
    x, y = one.table[trait].to_numpy(dtype=float), other.table[trait].to_numpy(dtype=float)
    order = next_sample(questions)
    return Agreed(
        one,
        other,
        _correlation(x, y, questions),
        None if (order == np.arange(len(order))).all() else _correlation(x, y[order], questions),
    )


def next_sample(questions: Sequence[str]) -> np.ndarray:
    """For each row the row of the same question's next sample; the last one's is the first."""
    rows: dict[str, list[int]] = {}
    for row, question in enumerate(questions):
        rows.setdefault(question, []).append(row)
    order = np.empty(len(questions), dtype=int)
    for own in rows.values():
        order[own] = own[1:] + own[:1]
    return order


def _correlation(x: np.ndarray, y: np.ndarray, questions: Sequence[str]) -> Correlation | None:
    if (np.isfinite(x) & np.isfinite(y)).sum() < LEAST_POINTS:
        return None
    return correlate(x, y, questions)


def clearest(matched: Sequence[Agreed]) -> Agreed | None:
    """The matched pair to speak of: nearest to the middle of the scale, where scores have most room to differ."""
    there = [one for one in matched if one.correlation is not None and one.correlation.pearson.value is not None]
    return min(there, key=lambda one: abs(one.one.trait.mean + one.other.trait.mean - 100), default=None)

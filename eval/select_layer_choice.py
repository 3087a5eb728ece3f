"""Which layer to steer at: chosen on one half of the questions, its value reported on the other.

A place (a layer, or all layers by increments) is taken at the coefficient with the highest mean trait among those with
mean coherence >= min_coherence. The highest of several means is above what new questions give, so coefficient and place
are chosen on one half of the questions, and every value that is reported is of the other half. Random directions go the
same way: each at its own best coefficient.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from eval.select_layer_settings import Kind, Place, Setting
from persona_vectors.statistics import Interval, cluster_bootstrap_mean, group_codes
from persona_vectors.steerability import frontier

FEWEST_QUESTIONS = 4
N_BOOT = 1000


@dataclass(frozen=True, eq=False)
class Sums:
    """Scores by setting and question: sums and counts of what was scored."""

    trait: Float[np.ndarray, "n_settings k"]
    n_trait: Float[np.ndarray, "n_settings k"]
    coherence: Float[np.ndarray, "n_settings k"]
    n_coherence: Float[np.ndarray, "n_settings k"]

    def means(self, weights: Float[np.ndarray, " k"]) -> tuple[np.ndarray, np.ndarray]:
        """(mean trait, mean coherence) of each setting, question i counting weights[i] times; NaN without a score."""
        with np.errstate(invalid="ignore", divide="ignore"):
            trait = (self.trait @ weights) / (self.n_trait @ weights)
            return trait, (self.coherence @ weights) / (self.n_coherence @ weights)


@dataclass(frozen=True)
class Halves:
    """Which columns (answers) belong to the half that chooses and to the one that reports."""

    choose: Bool[np.ndarray, " n"]
    report: Bool[np.ndarray, " n"]
    choose_questions: tuple[int, ...]
    report_questions: tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """A place at its best coefficient.

    Attributes:
        setting: its number among the settings; None where no coefficient was coherent enough.
        chosen_trait, chosen_coherence: means on the half that chose it, flattered by the choice.
        trait, coherence: on the other half, with intervals by question.
        edge: "last" or "first" where the best coefficient is an end of the list, otherwise "".
        between: (coefficient, trait) by straight lines between coefficients, on the reporting half; see `between`.
        chosen_between: the same on the choosing half.
    """

    place: Place
    setting: int | None = None
    coef: float | None = None
    chosen_trait: float = np.nan
    chosen_coherence: float = np.nan
    trait: Interval = field(default=Interval(np.nan, np.nan, np.nan, 0, 0))
    coherence: Interval = field(default=Interval(np.nan, np.nan, np.nan, 0, 0))
    edge: str = ""
    between: tuple[float, float] | None = None
    chosen_between: tuple[float, float] | None = None


@dataclass(frozen=True)
class Verdict:
    """The best place of one kind beside its control.

    Attributes:
        best: the place chosen; its setting is None where none was coherent enough.
        rival: of the random directions of that kind and the unsteered answers, the highest on the reporting half.
        difference: best minus rival on the reporting half, paired by question and random stream.
    """

    best: Value
    rival: Value
    difference: Interval

    @property
    def holds(self) -> bool:
        """Whether it is recommended: the whole interval of the difference lies above 0."""
        return bool(self.difference.low > 0)


@dataclass(frozen=True)
class Selection:
    """What was found.

    Attributes:
        values: every place, random directions and unsteered included, as reported.
        layer: of single layers; incremental: of increments at all layers, None where they were not run.
        runner_up: the layer that comes second on the choosing half; None where there is only one.
        behind: best layer minus runner-up on the reporting half.
        all_minus_single: increments at all layers minus the best layer, on the reporting half.
        swapped: the best layer where the halves change places, reported on the other.
        chosen: place's name -> share of bootstrap draws of the choosing half's questions in which it is chosen; "none"
            where nothing was coherent enough.
    """

    halves: Halves
    values: list[Value]
    layer: Verdict
    incremental: Verdict | None
    runner_up: Value | None
    behind: Interval | None
    all_minus_single: Interval | None
    swapped: Value
    chosen: dict[str, float]

    def of(self, kind: Kind, *, random: bool = False) -> list[Value]:
        return [one for one in self.values if one.place.kind == kind and bool(one.place.control) == random]

    @property
    def best_between(self) -> Value | None:
        """The layer that would be chosen if coefficients between those of the list could be taken."""
        there = [one for one in self.of("layer") if one.chosen_between is not None]
        return max(there, key=lambda one: one.chosen_between[1] if one.chosen_between else -np.inf, default=None)


@dataclass(frozen=True, eq=False)
class Scores:
    """What the choice is made from: `questions` has the question of each column."""

    settings: Sequence[Setting]
    trait: Float[np.ndarray, "n_settings n"]
    coherence: Float[np.ndarray, "n_settings n"]
    questions: Sequence[str]

    @property
    def places(self) -> list[Place]:
        return list(dict.fromkeys(setting.place for setting in self.settings))

    def of(self, place: Place) -> list[int]:
        return [number for number, setting in enumerate(self.settings) if setting.place == place]


def split_questions(questions: Sequence[str], seed: int) -> Halves:
    """The columns of each half: questions are shuffled by the seed; an odd one goes to the reporting half.

    Raises:
        ValueError: too few questions for intervals on both halves.
    """
    codes = group_codes(questions)
    k = int(codes.max()) + 1
    if k < FEWEST_QUESTIONS:
        raise ValueError(
            f"the trait has {k} eval questions; choosing a layer on one half and reporting it on the other needs at "
            f"least {FEWEST_QUESTIONS}"
        )
    order = np.random.default_rng(seed).permutation(k)
    first, second = sorted(order[: k // 2].tolist()), sorted(order[k // 2 :].tolist())
    return Halves(np.isin(codes, first), np.isin(codes, second), tuple(first), tuple(second))


def select(scores: Scores, min_coherence: float, seed: int, *, n_boot: int = N_BOOT) -> Selection:
    """The selection, from scores of all settings on the same columns."""
    halves = split_questions(scores.questions, seed)
    sums = question_sums(scores)
    values = [value_of(scores, sums, place, halves, min_coherence) for place in scores.places]
    layers = _ranked(one for one in values if one.place.kind == "layer" and not one.place.control)
    single = _verdict(scores, values, "layer", halves)
    together = _verdict(scores, values, "incremental", halves) if _has(values, "incremental") else None
    second = layers[1] if len(layers) > 1 and layers[1].setting is not None else None
    swap = Halves(halves.report, halves.choose, halves.report_questions, halves.choose_questions)
    others = [value_of(scores, sums, one.place, swap, min_coherence) for one in layers]
    return Selection(
        halves=halves,
        values=values,
        layer=single,
        incremental=together,
        runner_up=second,
        behind=None if second is None else difference(scores, single.best, second, halves),
        all_minus_single=None if together is None else difference(scores, together.best, single.best, halves),
        swapped=_ranked(others)[0],
        chosen=how_often(scores, sums, halves, min_coherence, seed, n_boot),
    )


def question_sums(scores: Scores) -> Sums:
    """Sums and counts over each question's columns."""
    codes = group_codes(scores.questions)
    member = (codes[:, None] == np.arange(codes.max() + 1)).astype(float)  # (n, k)
    found = []
    for values in (scores.trait, scores.coherence):
        there = np.isfinite(values)
        found += [np.where(there, values, 0.0) @ member, there.astype(float) @ member]
    return Sums(*found)


def value_of(scores: Scores, sums: Sums, place: Place, halves: Halves, min_coherence: float) -> Value:
    """The place at the coefficient that the choosing half finds best, as the reporting half scores it."""
    trait, coherence = sums.means(_weights(halves.choose_questions, sums))
    least = 0.0 if place.kind == "unsteered" else min_coherence  # unsteered is no choice
    numbers = scores.of(place)
    chosen = frontier([(number, trait[number], coherence[number]) for number in numbers], least)
    curves = [
        _between(scores, sums.means(_weights(half, sums)), place, min_coherence)
        for half in (halves.report_questions, halves.choose_questions)
    ]
    if chosen is None:
        return Value(place, between=curves[0], chosen_between=curves[1])
    number = chosen[0]
    clusters = [question for question, kept in zip(scores.questions, halves.report, strict=True) if kept]
    coefs = [scores.settings[own].coef for own in numbers]
    coef = scores.settings[number].coef
    ends = {min(coefs): "first", max(coefs): "last"} if place.kind != "unsteered" else {}
    return Value(
        place,
        number,
        coef,
        chosen[1],
        chosen[2],
        cluster_bootstrap_mean(scores.trait[number, halves.report], clusters),
        cluster_bootstrap_mean(scores.coherence[number, halves.report], clusters),
        ends.get(coef, ""),
        *curves,
    )


def between(
    coefs: Sequence[float], trait: Sequence[float], coherence: Sequence[float], min_coherence: float
) -> tuple[float, float] | None:
    """(coefficient, trait): the highest trait where coherence >= min_coherence, on straight lines between coefficients.

    It lies at a coefficient that was run or where a line crosses min_coherence. None where nothing is coherent enough.
    """
    points = [p for p in sorted(zip(coefs, trait, coherence, strict=True)) if np.isfinite(p).all()]
    found = [(c, t) for c, t, held in points if held >= min_coherence]
    for (c0, t0, h0), (c1, t1, h1) in itertools.pairwise(points):
        if (h0 - min_coherence) * (h1 - min_coherence) < 0:
            way = (h0 - min_coherence) / (h0 - h1)  # 0..1 from the one to the other
            found.append((c0 + way * (c1 - c0), t0 + way * (t1 - t0)))
    return max(found, key=lambda point: point[1], default=None)


def _between(
    scores: Scores, means: tuple[np.ndarray, np.ndarray], place: Place, min_coherence: float
) -> tuple[float, float] | None:
    """`between` over the place's coefficients and, as coefficient 0, the unsteered answers."""
    numbers = [n for n, s in enumerate(scores.settings) if s.place == place or s.place.kind == "unsteered"]
    coefs = [scores.settings[number].coef for number in numbers]
    return between(coefs, means[0][numbers].tolist(), means[1][numbers].tolist(), min_coherence)


def how_often(
    scores: Scores, sums: Sums, halves: Halves, min_coherence: float, seed: int, n_boot: int
) -> dict[str, float]:
    """Layer's name -> share of draws in which it is chosen, the choosing half's questions drawn with replacement."""
    numbers = [n for n, s in enumerate(scores.settings) if s.place.kind == "layer" and not s.place.control]
    own = np.array(halves.choose_questions)
    rng, counts = np.random.default_rng(seed), Counter()
    for drawn in rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=n_boot):
        weights = np.zeros(sums.trait.shape[1])
        weights[own] = drawn
        trait, coherence = sums.means(weights)
        best = frontier([(number, trait[number], coherence[number]) for number in numbers], min_coherence)
        counts[scores.settings[best[0]].place.name if best else "none"] += 1
    names = [place.name for place in scores.places if place.kind == "layer" and not place.control]
    return {name: counts[name] / n_boot for name in [*names, "none"] if counts[name] or name != "none"}


def difference(scores: Scores, one: Value, other: Value, halves: Halves) -> Interval:
    """one - other on the reporting half, column by column, with an interval by question; NaN without both settings."""
    clusters = [question for question, kept in zip(scores.questions, halves.report, strict=True) if kept]
    if one.setting is None or other.setting is None:
        return Interval(np.nan, np.nan, np.nan, 0, 0)
    gaps = scores.trait[one.setting, halves.report] - scores.trait[other.setting, halves.report]
    return cluster_bootstrap_mean(gaps, clusters)


def _weights(questions: Sequence[int], sums: Sums) -> np.ndarray:
    weights = np.zeros(sums.trait.shape[1])
    weights[list(questions)] = 1.0
    return weights


def _ranked(values: Iterable[Value]) -> list[Value]:
    """Best first on the choosing half, as `frontier` would choose; those without a coherent setting last."""
    return sorted(
        values, key=lambda v: (v.setting is None, -np.nan_to_num(v.chosen_trait), -np.nan_to_num(v.chosen_coherence))
    )


def _has(values: Sequence[Value], kind: Kind) -> bool:
    return any(one.place.kind == kind for one in values)


def _verdict(scores: Scores, values: Sequence[Value], kind: Kind, halves: Halves) -> Verdict:
    """The best place of the kind beside the highest of its random directions and the unsteered answers."""
    best = _ranked(one for one in values if one.place.kind == kind and not one.place.control)[0]
    rivals = [one for one in values if (one.place.kind == kind and one.place.control) or one.place.kind == "unsteered"]
    there = [one for one in rivals if np.isfinite(one.trait.mean)]
    rival = max(there, key=lambda one: one.trait.mean, default=rivals[0])
    return Verdict(best, rival, difference(scores, best, rival, halves))

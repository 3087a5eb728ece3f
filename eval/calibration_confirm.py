"""Whether a calibrated range holds on questions that took no part in it, and which coefficient there has an effect.

Every share of both ends is tried, of the vector and of random directions of its norm. The range is the part around 0 in
which all coefficients tried hold: coherence need not fall steadily, so a larger one that holds again does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float
from torch import Tensor

from eval.calibration_bounds import LayerRange
from eval.calibration_measure import Work, judged, kl_percentile, rows_of
from eval.model_utils import Steering
from eval.sweep import random_seed
from persona_vectors.statistics import Interval, cluster_bootstrap_mean, random_directions
from persona_vectors.steerability import Steerability, steerability

SHARES = (0.5, 0.625, 0.75, 0.875, 1.0)  # of the largest coefficient on each side, on the questions that confirm
N_RANDOM = 3  # directions beside the vector there
LEAST_EFFECT = 1.0  # points of the trait that an effect is surely above

Key = tuple[str, float]
"""(random direction or "", coefficient)."""


@dataclass(frozen=True)
class Point:
    """What the judge says of the confirming questions' answers at one coefficient of the vector or a random direction.

    Attributes:
        shifts: other trait -> mean change from the unsteered answers; at one coefficient only, see `crosstalk_coef`.
    """

    control: str
    coef: float
    trait: Interval
    coherence: Interval
    shifts: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Effect:
    """What a coefficient does to the trait, by question.

    Attributes:
        gain: mean change from the unsteered answers.
        lead: mean difference to the random direction at this coefficient that it leads least surely.
    """

    gain: Interval
    lead: Interval

    @property
    def is_there(self) -> bool:
        """Both intervals lie above `LEAST_EFFECT`; an interval that could not be had (NaN) does not."""
        return self.gain.low > LEAST_EFFECT and self.lead.low > LEAST_EFFECT


@dataclass(frozen=True)
class Calibration:
    """A vector's ranges, the layer and coefficient taken, and what they do on questions that took no part in that.

    Attributes:
        layer: the one with the highest trait at its largest coefficient; None where no layer has a range.
        coef: the largest in `range` with an effect (without a judge, the largest); None where there is none.
        range: lowest and highest coefficient that are confirmed with all tried between them and 0.
        effects: coefficient above 0 -> what it does to the trait.
        kl: 95th percentile of the tokens' KL at `coef`, on the confirming questions' unsteered answers.
    """

    ranges: list[LayerRange]
    layer: int | None
    coef: float | None
    range: tuple[float, float] = (0.0, 0.0)
    points: list[Point] = field(default_factory=list)
    effects: dict[float, Effect] = field(default_factory=dict)
    steerable: dict[str, Steerability] = field(default_factory=dict)
    kl: float | None = None

    @property
    def chosen(self) -> LayerRange | None:
        return next((one for one in self.ranges if one.layer == self.layer), None)

    @property
    def crosstalk_coef(self) -> float:
        """The coefficient that is kept, or else the largest tried."""
        return max(self.effects) if self.coef is None else self.coef


def confirm(work: Work, ranges: list[LayerRange], best: LayerRange) -> Calibration:
    """The calibration with the chosen layer's range and points on the questions that took no part in the choice."""
    coefs = tried(best)
    kls: dict[float, float] = {}

    def kl(coef: float) -> float:
        if coef not in kls:
            kls[coef] = kl_percentile(work, work.confirming, Steering(work.vectors[best.layer], best.layer, coef))
        return kls[coef]

    if work.judge_model is None:
        held = confirmed_range({coef: kl(coef) <= work.limits.max_kl for coef in coefs})
        return Calibration(ranges, best.layer, held[1] or None, held, kl=kls.get(held[1]))
    directions, keys = _directions(work, best), [("", 0.0)]
    keys += [(name, coef) for name in directions for coef in coefs]
    steerings = [None if not coef else Steering(directions[name], best.layer, coef) for name, coef in keys]
    traits, coherence = (judged(work, work.confirming, steerings, name) for name in (work.trait, "coherence"))
    interval, clusters = _averager(work)
    by_key = dict(zip(keys, traits, strict=True))
    points = [
        Point(*key, interval(trait), interval(np.nan_to_num(own, nan=0.0)))  # coherence as the limit counts it
        for key, trait, own in zip(keys, traits, coherence, strict=True)
    ]
    held = confirmed_range({p.coef: _holds(p, work, kl) for p in points if p.coef and not p.control})
    effects = {coef: _effect(by_key, coef, interval) for coef in coefs if coef > 0}
    kept = max((coef for coef, effect in effects.items() if coef <= held[1] and effect.is_there), default=None)
    ups = [0.0, *(coef for coef in coefs if coef > 0)]
    rows = {name: np.array([by_key[name if coef else "", coef] for coef in ups]).T for name in directions}
    steerable = {name: steerability(ups, own, clusters) for name, own in rows.items()}
    found = Calibration(ranges, best.layer, kept, held, points, effects, steerable, None if kept is None else kl(kept))
    return found if not work.others else _with_crosstalk(found, work, dict(zip(keys, steerings, strict=True)))


def tried(best: LayerRange) -> list[float]:
    """The coefficients on both sides of 0 that the confirming questions are asked at, lowest first."""
    sizes = [sign * share * end for sign, end in ((-1, best.down.passed), (1, best.up.passed)) for share in SHARES]
    return sorted({best.coef(size) for size in sizes if size})


def confirmed_range(held: Mapping[float, bool]) -> tuple[float, float]:
    """The lowest and highest coefficient that hold together with all between them and 0; 0 where the nearest fails."""
    ends = []
    for sign in (-1, 1):
        end = 0.0
        for coef in sorted((one for one in held if one * sign > 0), key=abs):
            if not held[coef]:
                break
            end = coef
        ends.append(end)
    return ends[0], ends[1]


def _directions(work: Work, best: LayerRange) -> dict[str, Float[Tensor, " d_model"]]:
    """The vector under "", and random directions of its norm."""
    vector = work.vectors[best.layer]
    seed = random_seed(work.seed, work.trait, best.layer, "")
    drawn = random_directions(N_RANDOM, len(vector), best.vector_norm, seed)
    return {"": vector} | {f"random{number}": one.clone() for number, one in enumerate(drawn, 1)}


def _averager(work: Work) -> tuple[Callable[[np.ndarray], Interval], list[str]]:
    """(mean with its interval by question, the question of each row)."""
    clusters = [str(row.question_index) for row in rows_of(work, work.confirming)]
    return lambda values: cluster_bootstrap_mean(values, clusters, seed=work.seed), clusters


def _holds(point: Point, work: Work, kl: Callable[[float], float]) -> bool:
    if work.limits.criterion == "kl":
        return kl(point.coef) <= work.limits.max_kl
    return point.coherence.mean >= work.limits.min_coherence


def _effect(
    by_key: Mapping[Key, Float[np.ndarray, " n"]], coef: float, interval: Callable[[np.ndarray], Interval]
) -> Effect:
    own = by_key["", coef]
    leads = [interval(own - scores) for (name, at), scores in by_key.items() if name and at == coef]
    least = min(
        leads, key=lambda lead: -np.inf if np.isnan(lead.low) else lead.low
    )  # what no judge scored proves nothing
    return Effect(interval(own - by_key["", 0.0]), least)


def _with_crosstalk(found: Calibration, work: Work, steerings: Mapping[Key, Steering | None]) -> Calibration:
    """Other traits' judges on the answers at one coefficient, of the vector and the random directions."""
    interval, _ = _averager(work)
    keys = [("", 0.0), *(key for key in steerings if key[1] == found.crosstalk_coef)]
    scored = {name: judged(work, work.confirming, [steerings[key] for key in keys], name) for name in work.others}
    shifts = {
        key: {name: interval(scores[row] - scores[0]) for name, scores in scored.items()}
        for row, key in enumerate(keys)
    }
    points = [replace(point, shifts=shifts.get((point.control, point.coef), {})) for point in found.points]
    return replace(found, points=points)

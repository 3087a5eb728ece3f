"""How far a direction parts answers with a trait from answers without, layer by layer, on questions that did not make
it: AUC, separation, what labels that mean nothing give, and what choosing the best of many layers is worth.

The numbers that this shares with the quality report of saved vectors are computed there (`persona_vectors.quality`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from persona_vectors.directions import Direction, difference_of_means
from persona_vectors.quality import HOW as QUALITY_HOW
from persona_vectors.quality import N_RANDOM, LayerQuality, vector_quality
from persona_vectors.statistics import (
    Interval,
    Labels,
    auc,
    auc_columns,
    cross_validated_auc,
    held_out_auc,
    held_out_rows,
    random_directions,
)

N_PERMUTATIONS = 200
BANDS = ((0.8, "excellent"), (0.7, "good"), (0.6, "moderate"))
HOW = {
    "auc": "held out: 5 folds by question, direction refit on the others; its 95% interval resamples questions, and is "
    "never narrower than the scatter of auc_permuted: few questions that share instructions resemble each other more "
    "than their resampling shows",
    "band": "excellent above 0.8, good above 0.7, moderate above 0.6, poor otherwise, of the held-out AUC; it counts "
    "where the AUC's whole interval lies above the random directions' 95th percentile",
    "auc_in_sample": QUALITY_HOW["auc_in_sample"],
    "auc_random_mean": QUALITY_HOW["auc_random"],
    "auc_permuted_mean": "the same procedure after pos and neg were swapped at random within pairs, "
    f"{N_PERMUTATIONS} times: mean and 95th percentile; auc_p is the share of such AUCs that reach the real one",
    "separation": "held out, in the same folds: difference of the sides' mean projections / pooled standard deviation "
    "within fold and side; separation_random_95: 95th percentile of random directions, which still tells directions "
    "apart where every AUC is 1",
    "vector_magnitude": "norm of mean(pos) - mean(neg), all pairs",
    "relative_magnitude": "vector_magnitude / mean norm of an answer's activation",
    "proj_high_mean": "in sample: projections of the pos answers on the unit vector made of all pairs; proj_low: neg",
    "split_half": QUALITY_HOW["split_half"],
}


@dataclass(frozen=True)
class LayerSeparation:
    """One layer's difference of means.

    Attributes:
        quality: what the quality report says of it: norm, random directions, split halves.
        auc: held out; see HOW for its interval. None where it cannot be had, as all that rests on it.
        separation: held out, in pooled standard deviations; None where a fold has one answer a side, or no spread.
        random_95: 95th percentile of the separations of random directions.
        permuted_mean, permuted_95, p: AUCs with swapped labels, and the share of them that reach the real one.
        high, low: (mean, standard deviation) of the projections of pos and neg answers on the unit vector, in sample.
    """

    quality: LayerQuality
    auc: Interval | None
    separation: float | None
    random_95: float | None
    permuted_mean: float | None
    permuted_95: float | None
    p: float | None
    high: tuple[float, float]
    low: tuple[float, float]

    @property
    def layer(self) -> int:
        return self.quality.layer

    @property
    def beats_random(self) -> bool:
        """The AUC's whole interval lies above the 95th percentile of random directions: only then a band counts."""
        random = self.quality.auc_random_95
        return self.auc is not None and random is not None and self.auc.low > random

    def record(self) -> dict[str, Any]:
        """The published keys, of which `auc` is the held-out one, and what stands beside them."""
        own, auc = self.quality, self.auc
        return {
            "auc": auc and auc.mean,
            "separation": self.separation,
            "vector_magnitude": own.norm,
            "proj_high_mean": self.high[0],
            "proj_high_std": self.high[1],
            "proj_low_mean": self.low[0],
            "proj_low_std": self.low[1],
            "auc_is": "held out by question; auc_in_sample is the circular one",
            "auc_low": auc and auc.low,
            "auc_high": auc and auc.high,
            "auc_in_sample": own.auc_in_sample,
            "auc_random_mean": own.auc_random,
            "auc_random_95": own.auc_random_95,
            "auc_permuted_mean": self.permuted_mean,
            "auc_permuted_95": self.permuted_95,
            "auc_p": self.p,
            "separation_random_95": self.random_95,
            "split_half": own.split_half,
            "split_half_spearman_brown": own.split_half_corrected,
            "relative_magnitude": own.relative_norm,
        }


@dataclass(frozen=True)
class Separations:
    """Every layer that was read, and the best.

    Attributes:
        best: highest held-out AUC, of equal ones the highest separation; None where no AUC could be had.
        chosen_auc: held-out AUC where each fold's layer is chosen, like its direction, on the other folds alone: what
            the best layer is worth without the luck of its choice. None with fewer than 3 questions.
        missing: what could not be computed -> why.
    """

    layers: list[LayerSeparation]
    n_pairs: int
    n_questions: int
    best: LayerSeparation | None
    chosen_auc: float | None
    missing: dict[str, str]


def separations(
    pos: Float[Tensor, "n layers d_model"],
    neg: Float[Tensor, "n layers d_model"],
    questions: Sequence[Any],
    layers: Sequence[int],
    *,
    seed: int = 0,
) -> Separations:
    """The report of each layer's difference of means.

    Args:
        pos, neg: response_avg of answers with and without the trait, row i of both a pair.
        questions: the question of each pair.
        layers: hidden_states index of each layer that was read.
    """
    vectors = {"response_avg": (pos.double().mean(0) - neg.double().mean(0)).float()}
    norms = (pos.norm(dim=-1).mean(0) + neg.norm(dim=-1).mean(0)) / 2
    quality = vector_quality(vectors, pos, neg, questions, norms, layers=layers, seed=seed)
    sides = [(pos[:, i].double().numpy(), neg[:, i].double().numpy()) for i in range(len(layers))]
    found = [_layer(own, *side, questions, seed) for own, side in zip(quality.layers, sides, strict=True)]
    there = [one for one in found if one.auc is not None]
    return Separations(
        layers=found,
        n_pairs=len(pos),
        n_questions=len(set(questions)),
        best=max(there, key=_merit, default=None),
        chosen_auc=chosen_layer_auc(sides, questions, seed=seed) if there and len(set(questions)) > 2 else None,
        missing=quality.missing,
    )


def _merit(one: LayerSeparation) -> tuple[float, float]:
    return one.auc.mean if one.auc else 0.0, one.separation or 0.0


def _layer(quality: LayerQuality, pos: np.ndarray, neg: np.ndarray, questions: Labels, seed: int) -> LayerSeparation:
    unit = difference_of_means(pos, neg) / max(quality.norm, 1e-30)
    (high, low) = ((float(rows.mean()), float(rows.std(ddof=1))) for rows in (pos @ unit, neg @ unit))
    if quality.auc is None:
        return LayerSeparation(quality, None, None, None, None, None, None, high, low)
    chance = permuted_aucs(pos, neg, questions, seed=seed)
    held_out = held_out_auc(pos, neg, questions, seed=seed)
    own, random = held_out_separations(pos, neg, questions, seed=seed)
    return LayerSeparation(
        quality=quality,
        auc=no_narrower(held_out, chance),
        separation=own,
        random_95=None if random is None else float(np.quantile(random, 0.95)),
        permuted_mean=float(chance.mean()),
        permuted_95=float(np.quantile(chance, 0.95)),
        p=float((1 + (chance >= held_out.mean - 1e-12).sum()) / (1 + len(chance))),
        high=high,
        low=low,
    )


def no_narrower(interval: Interval, chance: Float[np.ndarray, " n"], level: float = 0.95) -> Interval:
    """The AUC's interval, each end at least as far out as chance AUCs scatter about a half on that side; within 0..1.

    Shuffled labels showed why: with 5 questions under the same 5 instructions the resampled interval alone held 0.5 in
    78 of 100 cases, and this one in 94.
    """
    below, above = np.quantile(chance, [(1 - level) / 2, (1 + level) / 2])
    low, high = min(interval.low, interval.mean - (above - 0.5)), max(interval.high, interval.mean + (0.5 - below))
    return replace(interval, low=max(0.0, float(low)), high=min(1.0, float(high)))


def held_out_separations(
    pos: Float[np.ndarray, "n d"],
    neg: Float[np.ndarray, "n d"],
    questions: Labels,
    *,
    n_random: int = N_RANDOM,
    n_folds: int = 5,
    seed: int = 0,
    direction: Direction = difference_of_means,
) -> tuple[float, Float[np.ndarray, " n_random"]] | tuple[None, None]:
    """(the direction's, random directions') separations on held-out questions; None without any spread.

    Separation is (mean(pos) - mean(neg)) / pooled standard deviation of projections. Folds have directions of their
    own, so means are compared and spreads taken within a fold, and summed over folds by their number of answers:
    sum n_f (mean_f(pos) - mean_f(neg)) / sum n_f, over the root of (squares around the means of fold and side) /
    (answers - 2 a fold). Random directions are oriented on the other folds.
    """
    random = random_directions(n_random, pos.shape[1], 1.0, seed).double().numpy()  # (n_random, d)
    gap, squares = np.zeros((2, 1 + n_random))
    n = freedom = 0
    for held, _ in held_out_rows(questions, n_folds=n_folds, seed=seed):
        made = direction(pos[~held], neg[~held])
        ahead = random @ difference_of_means(pos[~held], neg[~held])
        towards = np.where(ahead < 0, -1.0, 1.0)[:, None] * random
        directions = np.concatenate([made[None] / max(float(np.linalg.norm(made)), 1e-30), towards])
        high, low = pos[held] @ directions.T, neg[held] @ directions.T  # (n_held, 1 + n_random)
        gap += 2 * len(high) * (high.mean(0) - low.mean(0))
        squares += np.square(high - high.mean(0)).sum(0) + np.square(low - low.mean(0)).sum(0)
        n, freedom = n + 2 * len(high), freedom + 2 * len(high) - 2
    if not freedom or not squares.all():
        return None, None
    found = gap / n / np.sqrt(squares / freedom)
    return float(found[0]), found[1:]


def permuted_aucs(
    pos: Float[np.ndarray, "n d"],
    neg: Float[np.ndarray, "n d"],
    questions: Labels,
    *,
    n_permutations: int = N_PERMUTATIONS,
    n_folds: int = 5,
    seed: int = 0,
) -> Float[np.ndarray, " n_permutations"]:
    """Held-out AUCs of the difference of means after pos and neg are swapped within each pair at random.

    Where neither prompt changes the answers, pos and neg of a pair could as well be the other way round, so these are
    what the whole procedure gives for nothing. Row i of pos and neg is a pair. A direction is a sum of rows, so only
    the rows' products with one another are needed.
    """
    n = len(pos)
    rows = np.concatenate([pos, neg])
    rows = rows - rows.mean(0)  # a shift of all rows changes no order, and keeps the products small
    products = rows @ rows.T  # (2n, 2n)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(n, n_permutations))
    both = np.concatenate([signs, -signs])  # (2n, n_permutations)
    total, weight = np.zeros(n_permutations), 0
    for held, _ in held_out_rows(questions, n_folds=n_folds, seed=seed):
        out = np.concatenate([held, held])
        on = products[np.ix_(out, ~out)] @ both[~out]  # (2 n_out, n_permutations)
        high, low = on[: held.sum()], on[held.sum() :]
        kept = signs[held] > 0
        total += held.sum() ** 2 * auc_columns(np.where(kept, high, low), np.where(kept, low, high))
        weight += held.sum() ** 2
    return total / weight


def chosen_layer_auc(
    sides: Sequence[tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]],
    questions: Labels,
    *,
    n_folds: int = 5,
    seed: int = 0,
) -> float:
    """Held-out AUC of choosing among layers: without each fold's questions the layer with the highest held-out AUC is
    found and its direction made; both are then scored on that fold.

    Args:
        sides: (pos, neg) of each layer, row i of all of them a pair.
        questions: of each pair; at least 3 different ones.
    """
    total = weight = 0.0
    for held, _ in held_out_rows(questions, n_folds=n_folds, seed=seed):
        rest = [question for question, out in zip(questions, held, strict=True) if not out]
        inner = [cross_validated_auc(pos[~held], neg[~held], rest, n_folds=n_folds, seed=seed) for pos, neg in sides]
        pos, neg = sides[int(np.argmax(inner))]
        direction = difference_of_means(pos[~held], neg[~held])
        n_pairs = float(held.sum() ** 2)
        total += n_pairs * auc(pos[held] @ direction, neg[held] @ direction)
        weight += n_pairs
    return total / weight


def band(value: float) -> str:
    """The published word for an AUC: excellent above 0.8, good above 0.7, moderate above 0.6, poor otherwise."""
    return next((word for least, word in BANDS if value > least), "poor")

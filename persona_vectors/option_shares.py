"""From the likelihoods of four options to a trait's score: orders that cancel the pull of a place, and what chance is.

    P(high) of an item = what its two high options get of the probability that all four get, mean over its orders
    score of a trait   = mean of P(high) over its items, 0..1

A model that goes by the place of an option alone gets exactly 0.5, because every option is asked at every place.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from persona_vectors.questionnaire import Item
from persona_vectors.scores import MIN_MASS
from persona_vectors.statistics import Interval, cluster_bootstrap_mean

Order = tuple[int, int, int, int]
"""The option (0, 1 high; 2, 3 low) at each place, A to D."""

BALANCED: tuple[Order, ...] = ((0, 1, 3, 2), (1, 2, 0, 3), (2, 3, 1, 0), (3, 0, 2, 1))
"""Every option once at every place, and every option once right after every other; each order also stands reversed."""
N_PERMUTATIONS = 2000


def orders_of(item: Item, seed: int = 0) -> tuple[Order, ...]:
    """The four orders an item is asked in: BALANCED, its options shuffled by the item's content and the seed."""
    options = list(range(4))
    random.Random(f"{seed} {item.trait} {item.question} {item.responses}").shuffle(options)
    return tuple(tuple(options[place] for place in order) for order in BALANCED)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True, eq=False)
class Shares:
    """What the options of each item get of the probability that all four get, mean over its orders.

    Attributes:
        options: (n_items, 4), high options first; NaN for an item one of whose orders is missing.
        places: (4,) what the places A to D get, mean over items and orders; None where options have no place.
        mass: mean probability that the four labels get together, over items and orders; None where it means nothing.
        n_missing: (item, order) pairs whose labels got less than MIN_MASS: the model said something else.
    """

    options: Float[np.ndarray, "n_items 4"]
    places: Float[np.ndarray, " 4"] | None
    mass: float | None
    n_missing: int

    @property
    def high(self) -> Float[np.ndarray, " n_items"]:
        """P(high) of each item."""
        return self.options[:, :2].sum(1)


def option_shares(
    log_scores: Float[np.ndarray, "n_items n_orders 4"], orders: Sequence[Sequence[Order]], *, labels: bool
) -> Shares:
    """The shares of options whose scores were taken place by place, exp(score) / sum of exp(score).

    Args:
        log_scores: log P of each place's option: of its letter, or the mean over its tokens.
        orders: of each item, which option stands at which place.
        labels: the scores are log P of labels, whose sum says whether the model answered by a label at all.
    """
    at = np.asarray(orders)  # (n_items, n_orders, 4)
    likelihood = np.exp(log_scores)
    mass = likelihood.sum(-1)  # (n_items, n_orders)
    missing = mass < MIN_MASS if labels else np.zeros_like(mass, dtype=bool)
    relative = np.exp(log_scores - log_scores.max(-1, keepdims=True))
    by_place = np.where(missing[..., None], np.nan, relative / relative.sum(-1, keepdims=True))
    by_option = np.empty_like(by_place)
    np.put_along_axis(by_option, at, by_place, axis=-1)
    several = at.shape[1] > 1
    whole = ~missing.any(1)
    return Shares(
        options=by_option.mean(1),
        places=by_place[whole].mean((0, 1)) if several and whole.any() else None,
        mass=float(mass.mean()) if labels else None,
        n_missing=int(missing.sum()),
    )


@dataclass(frozen=True)
class TraitScore:
    """A trait's score with its interval, and what stands beside it.

    Attributes:
        score: mean P(high) with a 95% interval from resampling items; its n counts items, n_dropped those missing.
        permuted_low, permuted_high: 95% of the scores with two of each item's four options called high at random.
        p: share of those that are as far from 0.5, two-sided.
        longest: score of a reader who always takes the longest option.
        places: what A to D get; None where options have no place.
        mass: probability on the four letters; None but for letters.
        n_missing, n_asked: (item, order) pairs without a letter, of how many.
    """

    trait: str
    score: Interval
    permuted_low: float
    permuted_high: float
    p: float
    longest: float
    places: tuple[float, ...] | None
    mass: float | None
    n_missing: int
    n_asked: int

    def record(self) -> dict[str, Any]:
        """As a row of a table holds it."""
        places = self.places or (None,) * 4
        return {
            "trait": self.trait,
            "score": self.score.mean,
            "low": self.score.low,
            "high": self.score.high,
            "n_items": self.score.n,
            "n_items_missing": self.score.n_dropped,
            "permuted_low": self.permuted_low,
            "permuted_high": self.permuted_high,
            "p": self.p,
            "longest_option": self.longest,
            **{f"place_{letter}": share for letter, share in zip("ABCD", places, strict=True)},
            "mass": self.mass,
            "n_missing": self.n_missing,
            "n_asked": self.n_asked,
        }


def trait_score(items: Sequence[Item], shares: Shares, n_asked: int, seed: int = 0) -> TraitScore:
    """The score of one trait's items. Items with the same question are resampled together."""
    interval = cluster_bootstrap_mean(shares.high, [item.question for item in items], seed=seed)
    chance = permuted_scores(shares.options, seed=seed)
    low, high = np.quantile(chance, [0.025, 0.975]) if len(chance) else (np.nan, np.nan)
    far = np.abs(chance - 0.5) >= abs(interval.mean - 0.5) - 1e-12
    return TraitScore(
        trait=items[0].trait,
        score=interval,
        permuted_low=float(low),
        permuted_high=float(high),
        p=float((1 + far.sum()) / (1 + len(far))),
        longest=float(np.mean([_longest_is_high(item) for item in items])),
        places=None if shares.places is None else tuple(float(share) for share in shares.places),
        mass=shares.mass,
        n_missing=shares.n_missing,
        n_asked=n_asked,
    )


def permuted_scores(
    options: Float[np.ndarray, "n_items 4"], *, n_permutations: int = N_PERMUTATIONS, seed: int = 0
) -> Float[np.ndarray, " n_permutations"]:
    """Scores with two of each item's four options called high at random: 0.5 in the mean. None without an item."""
    there = options[~np.isnan(options).any(1)]
    if not len(there):
        return np.empty(0)
    sums = np.stack([there[:, pair].sum(1) for pair in combinations(range(4), 2)], axis=1)  # (n, 6)
    drawn = np.random.default_rng(seed).integers(6, size=(n_permutations, len(there)))
    return sums[np.arange(len(there)), drawn].mean(1)


def _longest_is_high(item: Item) -> float:
    """The share of high ones among the item's longest options, in characters."""
    lengths = [len(text) for text in item.responses]
    longest = [k for k, length in enumerate(lengths) if length == max(lengths)]
    return sum(k < 2 for k in longest) / len(longest)

"""Which rows are flagged, and in which order rows stand: values in, decisions out.

A row has a value of each criterion, or NaN where it cannot be had. It is flagged where criteria are above their
thresholds: one of them (`any`), every one (`all`), or the mean of the row's ranks above one threshold (`mean_rank`).
A row is never decided by a value that is not there: it stays undecided where that value could change the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

Combine = Literal["any", "all", "mean_rank"]
Values = Mapping[str, Float[np.ndarray, " n_rows"]]
"""Criterion -> a value a row, NaN where the row has none."""

_OF_RANKS: dict[Combine, Callable[..., np.ndarray]] = {"any": np.max, "all": np.min, "mean_rank": np.mean}


@dataclass(frozen=True)
class Rule:
    """When a row is flagged.

    Attributes:
        combine: how several criteria are one decision.
        thresholds: name -> what a flagged row is above: of each criterion, or of "mean_rank" alone.
        source: where the thresholds come from, in words.
    """

    combine: Combine
    thresholds: dict[str, float]
    source: str


def rank_shares(
    values: Float[np.ndarray, " n"], among: Float[np.ndarray, " m"] | None = None
) -> Float[np.ndarray, " n"]:
    """The share of `among` (the values themselves by default) that lies below each value, ties counting half.

    From 0 to 1, 1 the highest. NaN has no rank and takes none; without a number in `among` all ranks are NaN.
    """
    among = values if among is None else among
    known = np.sort(among[~np.isnan(among)])
    if not len(known):
        return np.full(len(values), np.nan)
    below, up_to = (np.searchsorted(known, values, side=side) for side in ("left", "right"))
    return np.where(np.isnan(values), np.nan, (below + up_to) / (2 * len(known)))


def ranks(values: Values, combine: Combine, among: Values | None = None) -> Float[np.ndarray, " n_rows"]:
    """One rank a row, 0 to 1: the mean of its ranks by the criteria; for `any` the highest, for `all` the lowest.

    NaN for a row that lacks a criterion. With `among` the ranks are among those rows.
    """
    shares = [rank_shares(own, None if among is None else among[name]) for name, own in values.items()]
    return _OF_RANKS[combine](np.stack(shares), axis=0)


def decide(values: Values, rule: Rule, among: Values | None = None) -> list[bool | None]:
    """Whether each row is flagged; None where a value that is not there decides it.

    `among` are the rows that ranks are taken among (`mean_rank`); by default the rows themselves.
    """
    if rule.combine == "mean_rank":
        rank, threshold = ranks(values, "mean_rank", among), rule.thresholds["mean_rank"]
        return [None if np.isnan(one) else bool(one > threshold) for one in rank]
    flagged: list[bool | None] = []
    limits = [rule.thresholds[name] for name in values]
    for row in zip(*values.values(), strict=True):
        above = [None if np.isnan(one) else bool(one > limit) for one, limit in zip(row, limits, strict=True)]
        settles = rule.combine == "any"  # one criterion above settles `any`, one that is not settles `all`
        if settles in above:
            flagged.append(settles)
        else:
            flagged.append(None if None in above else not settles)
    return flagged


def given_rule(names: Sequence[str], combine: Combine, thresholds: Sequence[float]) -> Rule:
    """Flagged above given numbers, one a criterion; one alone, from 0 to 1, for `mean_rank`.

    Raises:
        ValueError: another number of thresholds, or a rank outside 0 to 1.
    """
    expected = ["mean_rank"] if combine == "mean_rank" else list(names)
    if len(thresholds) != len(expected):
        raise ValueError(
            f"--threshold has {len(thresholds)} numbers; expected {len(expected)}, in this order: {', '.join(expected)}"
        )
    if combine == "mean_rank" and not 0 <= thresholds[0] <= 1:
        raise ValueError(f"--threshold of mean_rank is a rank from 0 (lowest) to 1 (highest); got {thresholds[0]:g}")
    return Rule(combine, dict(zip(expected, map(float, thresholds), strict=True)), "given")


def percentile_rule(values: Values, reference: Values, combine: Combine, percentile: float, name: str) -> Rule:
    """Flagged above the reference rows' percentile, of each criterion or of the mean rank among `values`.

    Raises:
        ValueError: the reference has no value of a criterion.
    """
    compared = {"mean_rank": ranks(reference, combine, values)} if combine == "mean_rank" else dict(reference)
    known = {one: own[~np.isnan(own)] for one, own in compared.items()}
    if empty := [one for one, own in known.items() if not len(own)]:
        raise ValueError(f"no row of the reference {name} has a value of {', '.join(empty)}; give other rows")
    thresholds = {one: float(np.percentile(own, percentile)) for one, own in known.items()}
    counts = sorted({len(own) for own in known.values()})
    counted = " to ".join(map(str, counts[:: max(1, len(counts) - 1)]))
    return Rule(combine, thresholds, f"percentile {percentile:g} of {counted} reference rows of {name}")


def fraction_rule(values: Values, combine: Combine, fraction: float) -> Rule:
    """Flagged where a row is in the top share, of each criterion or of the mean rank; never more rows than that.

    The threshold is the highest value that is not in the share, so that rows that tie with it are not flagged.

    Raises:
        ValueError: no row has a value of a criterion.
    """
    compared = {"mean_rank": ranks(values, combine)} if combine == "mean_rank" else dict(values)
    thresholds = {}
    for name, own in compared.items():
        known = np.sort(own[~np.isnan(own)])[::-1]
        if not len(known):
            raise ValueError(f"no row has a value of {name}")
        thresholds[name] = float(known[min(top_count(len(known), fraction), len(known) - 1)])
    return Rule(combine, thresholds, f"the top {100 * fraction:g}% of the rows")


def top_count(n: int, fraction: float) -> int:
    """How many of n rows a share is: the nearest whole number, halves up."""
    return int(np.floor(n * fraction + 0.5))


def in_order(rank: Float[np.ndarray, " n_rows"]) -> list[int]:
    """Row numbers, highest rank first; rows of the same rank as they stand, and those without one at the end."""
    return np.argsort(np.where(np.isnan(rank), np.inf, -rank), kind="stable").tolist()


def subsets(rank: Float[np.ndarray, " n_rows"], n: int, seed: int) -> dict[str, list[int]]:
    """`n` row numbers each, rising: the highest, a seeded draw from all rows that have a rank, and the lowest.

    Raises:
        ValueError: fewer than 2n rows with a rank: the highest and the lowest would share rows.
    """
    ordered = [row for row in in_order(rank) if not np.isnan(rank[row])]
    if 2 * n > len(ordered):
        raise ValueError(
            f"--subsets {n} needs {2 * n} rows with all criteria, so that high and low share none; "
            f"there are {len(ordered)}"
        )
    drawn = np.random.default_rng(seed).choice(sorted(ordered), n, replace=False)
    return {"high": sorted(ordered[:n]), "random": sorted(drawn.tolist()), "low": sorted(ordered[-n:])}

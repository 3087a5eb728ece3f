"""How well a criterion tells labelled levels apart: AUC with its interval, beside what chance and any direction give.

Levels of a family answer the same questions, so a question's rows, of both levels, are one cluster: resampled
together, and their labels swapped together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from persona_vectors.statistics import Interval, auc, expanded_percentiles, group_codes

N_RANDOM = 200
"""Random directions beside each projection."""
N_PERMUTED = 1000


@dataclass(frozen=True)
class Control:
    """AUCs of what should find nothing, and how the criterion stands among them.

    Attributes:
        low, median, high: 2.5th, 50th and 97.5th percentile.
        beaten: the share of them that the criterion's AUC is above.
    """

    low: float
    median: float
    high: float
    beaten: float

    @classmethod
    def of(cls, value: float, found: Float[np.ndarray, " n"]) -> Control:
        low, median, high = (float(one) for one in np.percentile(found, [2.5, 50, 97.5]))
        return cls(low, median, high, float((found < value).mean()))

    def text(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Separation:
    """How one criterion tells one level from the normal one.

    Attributes:
        auc: the chance that a row of the level is above a normal row (ties half), `n` rows in `n_clusters` questions.
        random: of random directions at the same layer, each oriented on half of the questions and scored on the other
            half, both ways; None where there are none, or too few questions.
        permuted: of the criterion with the labels of questions permuted.
        p: one-sided, from the permutations.
    """

    level: str
    criterion: str
    auc: Interval
    random: Control | None
    permuted: Control
    p: float

    def record(self) -> dict[str, Any]:
        """For a sidecar."""
        interval = [None if np.isnan(one) else one for one in (self.auc.low, self.auc.high)]
        return {
            "level": self.level,
            "criterion": self.criterion,
            "auc": self.auc.mean,
            "interval": interval,
            "n_rows": self.auc.n,
            "n_questions": self.auc.n_clusters,
            "n_without_value": self.auc.n_dropped,
            "random_directions": vars(self.random) if self.random else None,
            "permuted_labels": vars(self.permuted),
            "p": self.p,
        }


def separation(
    level: str,
    criterion: str,
    normal: tuple[Float[np.ndarray, " n"], Sequence[str]],
    other: tuple[Float[np.ndarray, " m"], Sequence[str]],
    random: tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "m k"]] | None,
    *,
    n_boot: int = 2000,
    seed: int = 0,
) -> Separation | None:
    """The AUC of one criterion between two levels, with its controls; None where a level has no value.

    Args:
        normal, other: (values, NaN where a row has none; each row's question).
        random: the same rows' projections on random directions, NaN where the values are.
    """
    values = np.concatenate([normal[0], other[0]])
    there = ~np.isnan(values)
    is_other = np.repeat([False, True], [len(normal[0]), len(other[0])])[there]
    if is_other.all() or not is_other.any():
        return None
    codes = group_codes([question for question, kept in zip([*normal[1], *other[1]], there, strict=True) if kept])
    values = values[there]
    found = auc(values[is_other], values[~is_other])
    low, high = auc_interval(values, is_other, codes, n_boot, seed)
    interval = Interval(found, low, high, len(values), int(codes.max()) + 1, int((~there).sum()))
    chance = permuted_aucs(values, is_other, codes, N_PERMUTED, seed)
    directions = None
    if random is not None:
        directions = oriented_aucs(np.concatenate(random)[there], is_other, codes, seed)
    return Separation(
        level,
        criterion,
        interval,
        None if directions is None else Control.of(found, directions),
        Control.of(found, chance),
        float((1 + (chance >= found - 1e-12).sum()) / (1 + len(chance))),
    )


def auc_interval(
    values: Float[np.ndarray, " n"],
    is_other: Bool[np.ndarray, " n"],
    codes: Int[np.ndarray, " n"],
    n_boot: int,
    seed: int,
) -> tuple[float, float]:
    """The ends of the 95% interval of the AUC, from resampling questions; NaN for a single question."""
    k = int(codes.max()) + 1
    if k < 2:
        return np.nan, np.nan
    ladder = _Ladder(values)
    rng, resampled = np.random.default_rng(seed), []
    for _ in range(n_boot):
        weights = rng.multinomial(k, np.full(k, 1 / k))[codes].astype(float)
        resampled.append(ladder.auc(weights * is_other, weights * ~is_other))
    finite = np.array(resampled)[np.isfinite(resampled)]
    return expanded_percentiles(finite, k, 0.95) if len(finite) > 1 else (np.nan, np.nan)


def permuted_aucs(
    values: Float[np.ndarray, " n"], is_other: Bool[np.ndarray, " n"], codes: Int[np.ndarray, " n"], n: int, seed: int
) -> Float[np.ndarray, " n_permuted"]:
    """AUCs with permuted labels.

    In a question that both levels answer, all its labels are swapped, or none. Questions of one level alone keep their
    rows together and exchange their labels with one another.
    """
    k = int(codes.max()) + 1
    share = np.bincount(codes, is_other, minlength=k) / np.bincount(codes, minlength=k)
    mixed, pure = (share > 0) & (share < 1), np.flatnonzero((share == 0) | (share == 1))
    rng, ladder, found = np.random.default_rng(seed), _Ladder(values), []
    for _ in range(n):
        swapped = (rng.random(k) < 0.5) & mixed
        of_question = share.copy()
        of_question[pure] = rng.permutation(share[pure])
        labels = np.where(mixed[codes], is_other ^ swapped[codes], of_question[codes] == 1)
        found.append(ladder.auc(labels.astype(float), (~labels).astype(float)))
    return np.array(found)


def oriented_aucs(
    values: Float[np.ndarray, "n k"], is_other: Bool[np.ndarray, " n"], codes: Int[np.ndarray, " n"], seed: int
) -> Float[np.ndarray, " k"] | None:
    """Held-out AUC of each column: turned so that the level is above normal on half of the questions, scored on the
    other half, and the other way round; the mean of both by their pairs of rows.

    A direction has no sign of its own. None where a half lacks a level.
    """
    order = np.random.default_rng(seed).permutation(int(codes.max()) + 1)
    first = np.isin(codes, order[: len(order) // 2])
    total, n_pairs = np.zeros(values.shape[1]), 0
    for fitted, held_out in ((first, ~first), (~first, first)):
        sides = [values[rows & side] for rows in (fitted, held_out) for side in (is_other, ~is_other)]
        if not all(map(len, sides)):
            return None
        signs = np.where(sides[0].mean(0) < sides[1].mean(0), -1.0, 1.0)
        pairs = len(sides[2]) * len(sides[3])
        columns = zip((sides[2] * signs).T, (sides[3] * signs).T, strict=True)
        total += pairs * np.array([auc(above, below) for above, below in columns])
        n_pairs += pairs
    return total / n_pairs


class _Ladder:
    """AUCs of the same values under changing weights, without sorting again."""

    def __init__(self, values: np.ndarray):
        self.order = np.argsort(values, kind="stable")
        ordered = values[self.order]
        self.starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])

    def auc(self, above: np.ndarray, below: np.ndarray) -> float:
        """Weighted chance that a row of `above` lies above one of `below`, ties half; NaN where one has no weight."""
        up, down = (np.add.reduceat(weights[self.order], self.starts) for weights in (above, below))
        total = up.sum() * down.sum()
        return float(up @ (np.cumsum(down) - down / 2) / total) if total else np.nan

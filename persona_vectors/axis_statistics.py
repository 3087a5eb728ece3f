"""What chance would give: controls and intervals for the assistant axis and PC1.

A cosine of 0.9 between the assistant axis and PC1 says little by itself. The assistant personas are prompts that mean
nearly the same, so their vectors nearly coincide, and k equal points (a) have a mean that other sets of k personas do
not reach, and (b) are counted k times in PC1. So each number here stands beside several controls:

- `labels`: any other k personas called the assistant. Answers whether these k belong together and lie along PC1. It
  cannot tell "the assistant" from any k prompts of equal meaning: that is what the next two are for.
- `counted_alike`: each role in turn counted k times instead of the assistant, everything done again.
- `as_one`: the assistant personas averaged into one, and each persona in turn held against all others.
- `held_out`: PC1 of the roles alone, which the assistant personas had no part in; labels permuted as above.
- `random`: isotropic random directions. Cosines and projections do not depend on a direction's norm, so these are
  directions of the axis's norm too. In a wide model they are easily beaten.

The last three nulls have as few values as there are roles: with 19 roles no p is below 0.05.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from persona_vectors.axis import (
    Vectors,
    assistant_mask,
    axis_of,
    first_direction,
    in_their_span,
    persona_rows,
    unit,
)
from persona_vectors.axis_intervals import agreement, over_questions
from persona_vectors.correlation import Estimated
from persona_vectors.statistics import auc_columns, random_directions

N_PERMUTATIONS = 2000
_NUMBERS_AT_ONCE = 4_000_000
LEAST_ROLES = 3
"""Fewest personas besides the assistant's for which there are controls."""
MOST_EXACT = 10_000
"""Sets of assistant personas that are all tried, where there are no more than this; otherwise N_PERMUTATIONS drawn."""


@dataclass(frozen=True)
class Chance:
    """A number beside what a control gives; larger is further from chance.

    Attributes:
        value: of the real axis.
        null: of the control, one number each.
        exact: the null holds every possibility, `value` itself among them.
    """

    value: float
    null: Float[np.ndarray, " m"]
    exact: bool = False

    @property
    def p(self) -> float:
        """Share of the control that reaches the value: hits / m where exact, else (1 + hits) / (1 + m)."""
        hits = int((self.null >= self.value - 1e-9).sum())
        return hits / len(self.null) if self.exact else (1 + hits) / (1 + len(self.null))

    def text(self) -> str:
        """`0.91 (chance: median 0.30, 95th percentile 0.62; p = 0.003)`."""
        median, high = np.quantile(self.null, [0.5, 0.95])
        return f"{self.value:.2f} (chance: median {median:.2f}, 95th percentile {high:.2f}; p = {self.p:.2g})"

    def record(self) -> dict[str, float | int | bool]:
        """For a sidecar."""
        median, high = np.quantile(self.null, [0.5, 0.95])
        told = {"value": self.value, "p": self.p, "chance_median": float(median), "chance_95th": float(high)}
        return {**told, "n_chance": len(self.null), "exact": self.exact}


@dataclass(frozen=True)
class AxisEvidence:
    """How far the assistant axis and PC1 agree, beside its controls (this module's first lines say what each asks).

    Attributes:
        cosine, r_squared: of axis and PC1, against other labels.
        counted_alike, as_one: the cosine against roles treated as the assistant is.
        held_out: |cosine| of the axis and PC1 of the roles alone, against other labels.
        random: the cosine against that of random directions and PC1.
        end: AUC of assistant personas against roles along PC1 of the roles alone, against random directions: 1 means
            that all assistant personas lie beyond every role.
        spread: distance of the assistant personas from their mean as a share of that of all personas from theirs (root
            mean squares): near 0 they are one point.
        var_explained: PC1's share of the variance.
        intervals: 95% intervals of cosine, r_squared and var_explained, from resampling questions; {} without
            vectors by question.
    """

    n_personas: int
    n_assistant: int
    cosine: Chance
    r_squared: Chance
    counted_alike: Chance
    as_one: Chance
    held_out: Chance
    random: Chance
    end: Chance
    spread: float
    var_explained: float
    intervals: Mapping[str, Estimated]

    def sentences(self) -> list[str]:
        """What was found and what it cannot show, for a page or a terminal."""
        n_roles = self.n_personas - self.n_assistant
        k, one = self.n_assistant, f"{self.n_assistant} assistant persona{'s' * (self.n_assistant > 1)}"
        own = f"{self.intervals['cosine'].text()} over questions; " if self.intervals else ""
        found = [
            f"cosine of assistant axis and PC1: {own}against any {k} personas called the assistant: "
            f"{self.cosine.text()}",
            f"R² of the projections: {self.r_squared.text()}; PC1 explains {self.var_explained:.0%} of the variance",
            f"PC1 of the {n_roles} roles alone: cosine {self.held_out.text()}; AUC of {one} against the roles along "
            f"it {self.end.value:.2f}, reached by {np.mean(self.end.null >= self.end.value - 1e-9):.0%} of random "
            "directions (an easier task for them: along PC1 of the roles, the roles spread most)",
        ]
        if k == 1:
            return found  # the other controls are then this module's first
        return [
            *found,
            f"each role counted {k} times in the assistant's place: {self.counted_alike.text()}",
            f"the {one} counted once: {self.as_one.text()}",
            f"the {one} lie within {self.spread:.0%} of the spread of all personas: permuting labels shows that they "
            f"belong together, not that they are the assistant; p cannot be below {1 / (n_roles + 1):.2g} in the last "
            "two controls",
        ]

    def record(self) -> dict[str, object]:
        """For a sidecar."""
        controls = ("cosine", "r_squared", "counted_alike", "as_one", "held_out", "random", "end")
        return {
            **{name: getattr(self, name).record() for name in controls},
            "n_personas": self.n_personas,
            "n_assistant": self.n_assistant,
            "assistant_spread": self.spread,
            "var_explained": self.var_explained,
            "intervals": {name: interval.record() for name, interval in self.intervals.items()},
        }


def axis_evidence(
    vectors: Vectors,
    assistant_personas: Sequence[str],
    by_question: Mapping[str, Float[Tensor, "n_questions d_model"]] | None = None,
    *,
    n_permutations: int = N_PERMUTATIONS,
    n_random: int = 1000,
    n_boot: int = 500,
    seed: int = 0,
) -> AxisEvidence:
    """The assistant axis beside every control.

    Args:
        by_question: persona -> one vector a question, the same questions in the same order for all, for intervals.

    Raises:
        ValueError: as `axis.assistant_axis`; fewer than three roles; `by_question` with other personas or questions.
    """
    names, wide = persona_rows(vectors)
    mask = check_roles(names, assistant_personas)
    axis_of(wide, mask)  # refuses what has no axis
    rows = in_their_span(wide)  # (n, rank)
    cosine, r_squared = label_permutation(rows, mask, n_permutations, seed)
    pc1 = first_direction(rows)
    to_pc1 = np.abs(_chance_cosines(wide, n_random, seed))
    centred = rows - rows.mean(0)
    spread = np.sqrt(((rows[mask] - rows[mask].mean(0)) ** 2).sum(1).mean() / (centred**2).sum(1).mean())
    intervals = {} if by_question is None else over_questions(names, by_question, mask, n_boot, seed)
    return AxisEvidence(
        n_personas=len(names),
        n_assistant=int(mask.sum()),
        cosine=cosine,
        r_squared=r_squared,
        counted_alike=counted_alike(rows, mask),
        as_one=_as_one(rows, mask),
        held_out=_held_out(rows, mask, n_permutations, seed),
        random=Chance(abs(float(unit(axis_of(rows, mask)) @ pc1)), to_pc1),
        end=_end(wide, mask, n_random, seed),
        spread=float(spread),
        var_explained=agreement(rows, mask)[2],
        intervals=intervals,
    )


def check_roles(names: Sequence[str], assistant_personas: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Which of the personas are the assistant's, if there are enough others to give evidence.

    Raises:
        ValueError: as `axis.assistant_mask`, or fewer than LEAST_ROLES others.
    """
    mask = assistant_mask(names, assistant_personas)
    roles = [name for name, assistant in zip(names, mask, strict=True) if not assistant]
    if len(roles) < LEAST_ROLES:
        raise ValueError(
            f"{len(roles)} personas besides the assistant's ({', '.join(roles)}); controls need at least {LEAST_ROLES}"
        )
    return mask


def label_permutation(
    rows: Float[np.ndarray, "n d"], mask: np.ndarray, n_permutations: int = N_PERMUTATIONS, seed: int = 0
) -> tuple[Chance, Chance]:
    """|cosine| and R² of axis and PC1, beside those of the axes of other sets of as many personas; PC1 stays."""
    centred, pc1 = rows - rows.mean(0), first_direction(rows)
    sets, exact = _label_sets(len(rows), int(mask.sum()), n_permutations, seed)
    sets = np.vstack([mask, sets])  # (1 + m, n)
    # mean(set) - mean(others) is a multiple of the set's sum, once the rows are centred
    axes = sets @ centred  # (1 + m, d)
    norms = np.linalg.norm(axes, axis=1)
    along = centred @ pc1  # (n,)
    projections = axes @ centred.T  # (1 + m, n): of every persona, and centred too
    there = norms > 1e-9 * norms.max()
    cosines = np.divide(np.abs(axes @ pc1), norms, out=np.zeros(len(axes)), where=there)
    scale = np.linalg.norm(projections, axis=1) * np.linalg.norm(along)
    r_squared = np.divide(projections @ along, scale, out=np.zeros(len(axes)), where=there) ** 2
    return Chance(float(cosines[0]), cosines[1:], exact), Chance(float(r_squared[0]), r_squared[1:], exact)


def _label_sets(n: int, k: int, n_permutations: int, seed: int) -> tuple[np.ndarray, bool]:
    """(m, n) bool: sets of k of n personas, all of them where they are few; and whether they are all."""
    if math.comb(n, k) <= MOST_EXACT:
        chosen = np.array(list(itertools.combinations(range(n), k)))
    else:
        chosen = np.random.default_rng(seed).random((n_permutations, n)).argsort(1)[:, :k]
    sets = np.zeros((len(chosen), n), dtype=bool)
    np.put_along_axis(sets, chosen, True, axis=1)
    return sets, math.comb(n, k) <= MOST_EXACT


def _held_out(rows: np.ndarray, mask: np.ndarray, n_permutations: int, seed: int) -> Chance:
    """|cosine| of the axis and PC1 of the roles alone, for the real set and for others.

    Through Gram matrices, all sets at once: with G = X X', roles R and u the first eigenvector of their centred G, PC1
    is X_R' u / sqrt(eigenvalue), and the axis X' w with w = 1/k on the set and -1/(n-k) on the roles.
    """
    n, k = len(rows), int(mask.sum())
    sets, exact = _label_sets(n, k, n_permutations, seed)
    most = min(n_permutations, max(200, 20_000_000 // n**3))  # an eigenproblem each: seconds for hundreds of personas
    if len(sets) > most:
        chosen = np.random.default_rng(seed).choice(len(sets), most, replace=False)
        sets, exact = sets[chosen], False
    sets = np.vstack([mask, sets])
    gram, size = rows @ rows.T, max(1, _NUMBERS_AT_ONCE // n**2)
    parts = [_axis_on_pc1_of_roles(gram, sets[start : start + size]) for start in range(0, len(sets), size)]
    cosines = np.concatenate(parts)
    return Chance(float(cosines[0]), cosines[1:], exact)


def _axis_on_pc1_of_roles(gram: Float[np.ndarray, "n n"], sets: Bool[np.ndarray, "m n"]) -> Float[np.ndarray, " m"]:
    """|cosine| of the axis of each set and PC1 of what is not in it."""
    n, k = len(gram), int(sets[0].sum())
    roles = np.nonzero(~sets)[1].reshape(len(sets), n - k)
    weights = np.where(sets, 1 / k, -1 / (n - k))  # (m, n)
    among = gram[roles[:, :, None], roles[:, None, :]]  # (m, n - k, n - k)
    among = among - among.mean(1, keepdims=True) - among.mean(2, keepdims=True) + among.mean((1, 2), keepdims=True)
    values, vectors = np.linalg.eigh(among)
    first = vectors[:, :, -1]  # (m, n - k); centred, so it needs no centring of the rows
    on_pc1 = np.einsum("sr,srn,sn->s", first, gram[roles], weights, optimize=True)
    lengths = np.einsum("sn,nm,sm->s", weights, gram, weights, optimize=True)
    scale = np.sqrt(np.clip(values[:, -1] * lengths, 0, None))
    return np.divide(np.abs(on_pc1), scale, out=np.zeros(len(sets)), where=scale > 1e-9 * np.trace(gram))


def counted_alike(rows: np.ndarray, mask: np.ndarray) -> Chance:
    """|cosine| of axis and PC1 with the assistant's mean counted k times, beside each role counted k times instead."""
    k, roles = int(mask.sum()), rows[~mask]
    if k == 1:
        return _as_one(rows, mask)
    once = np.vstack([rows[mask].mean(0), roles])  # the assistant first
    cosines = []
    for chosen in range(len(once)):
        others = np.delete(once, chosen, axis=0)
        counted = np.vstack([np.repeat(once[chosen : chosen + 1], k, axis=0), others])
        direction = once[chosen] - others.mean(0)
        length = np.linalg.norm(direction)
        cosines.append(abs(float(direction @ first_direction(counted))) / length if length > 0 else 0.0)
    return Chance(cosines[0], np.array(cosines), exact=True)


def _as_one(rows: np.ndarray, mask: np.ndarray) -> Chance:
    """|cosine| of (persona - mean of the others) and PC1, the assistant personas averaged into one persona."""
    once = np.vstack([rows[mask].mean(0), rows[~mask]])
    centred = once - once.mean(0)  # (persona - mean of the others) is a multiple of the centred persona
    lengths = np.linalg.norm(centred, axis=1)
    cosines = np.divide(np.abs(centred @ first_direction(once)), lengths, out=np.zeros(len(once)), where=lengths > 0)
    return Chance(float(cosines[0]), cosines, exact=True)


def _end(rows: np.ndarray, mask: np.ndarray, n_random: int, seed: int) -> Chance:
    """AUC of assistant personas against roles along PC1 of the roles, beside random directions.

    Each direction is turned so that the assistant personas' mean is on its positive side.
    """
    pc1 = first_direction(rows[~mask])
    random = random_directions(n_random, rows.shape[1], 1.0, seed).double().numpy()
    along = (rows - rows.mean(0)) @ np.vstack([pc1, random]).T  # (n, 1 + n_random)
    along = along * np.where(along[mask].mean(0) < along[~mask].mean(0), -1.0, 1.0)
    aucs = auc_columns(along[mask], along[~mask])
    return Chance(float(aucs[0]), aucs[1:])


def _chance_cosines(rows: np.ndarray, n_random: int, seed: int) -> np.ndarray:
    return random_directions(n_random, rows.shape[1], 1.0, seed).double().numpy() @ first_direction(rows)

"""A model's personality: scores of a questionnaire's traits under one condition after another, and what moved them.

A shift is of the same items: P(high) under the condition less P(high) unsteered. It counts as an effect where it is
larger than what random directions of the vector's norm do to the trait, and its interval leaves out 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.model_utils import Steering
from eval.text_table import aligned, counted
from eval.trait_scoring import Condition, Scored, Scoring
from persona_vectors.statistics import Interval, cluster_bootstrap_mean, random_directions
from persona_vectors.traits import load_trait, system_prompt

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from persona_vectors.option_shares import TraitScore

UNSTEERED = "unsteered"


def steered_conditions(
    vector: Tensor, layer: int, coefs: Sequence[float], positions: str, n_random: int, seed: int
) -> list[Condition]:
    """Every coefficient, and beside each as many random directions of the vector's norm."""
    found = [Condition(f"coef {coef:g}", "steered", Steering(vector, layer, coef, positions)) for coef in coefs]
    directions = random_directions(n_random, len(vector), float(vector.norm()), seed) if n_random else ()
    for number, direction in enumerate(directions, 1):
        for coef in coefs:
            steering = Steering(direction, layer, coef, positions)
            found.append(Condition(f"random {number}, coef {coef:g}", "random", steering, control=number))
    return found


def told_conditions(trait: str, poles: Sequence[str], model: str) -> list[Condition]:
    """System prompts of the trait's own instructions, as `eval.eval_persona` writes them, one condition a pole.

    Raises:
        ValueError: there are no instructions for the trait.
    """
    if not poles:
        return []
    definition = load_trait(trait, "extract", model=model)
    names = {"pos": definition.name, "neg": "helpful"}
    return [
        Condition(
            f"told {pole}",
            "told",
            systems=tuple(system_prompt(names[pole], getattr(one, pole)) for one in definition.instruction),
        )
        for pole in poles
    ]


@dataclass(frozen=True, eq=False)
class Profile:
    """All conditions by one way of scoring, unsteered first.

    Attributes:
        trait: the one that vector and instructions are of.
        scored: of each condition, each trait.
    """

    scoring: Scoring
    trait: str
    scored: Sequence[Sequence[Scored]]
    seed: int = 0

    @property
    def traits(self) -> list[str]:
        return [own.score.trait for own in self.scored[0]]

    @property
    def conditions(self) -> list[Condition]:
        return [row[0].condition for row in self.scored]

    def of(self, kind: str) -> list[int]:
        """Numbers of the conditions of a kind."""
        return [number for number, condition in enumerate(self.conditions) if condition.kind == kind]

    @cached_property
    def shifts(self) -> list[list[Interval]]:
        """Of each condition and trait, the mean change of P(high) over its items against unsteered."""
        return [
            [
                cluster_bootstrap_mean(
                    own.shares.high - plain.shares.high, [item.question for item in own.items], seed=self.seed
                )
                for own, plain in zip(row, self.scored[0], strict=True)
            ]
            for row in self.scored
        ]

    def largest_random(self, trait: str, coef: float) -> float | None:
        """The largest |shift| of the trait by a random direction at this coefficient; None without one."""
        column = self.traits.index(trait)
        found = [
            abs(self.shifts[number][column].mean)
            for number in self.of("random")
            if (steering := self.conditions[number].steering) is not None and steering.coef == coef
        ]
        return max(found, default=None)

    def followed(self, number: int) -> bool:
        """Whether the trait moved as the condition asks: the whole interval lies on that side of 0, and random
        directions of the same norm do less."""
        condition, shift = self.conditions[number], self.shifts[number][self.traits.index(self.trait)]
        steering = condition.steering
        up = condition.name == "told pos" if steering is None else steering.coef > 0
        chance = None if steering is None else self.largest_random(self.trait, steering.coef)
        return (shift.low > 0 if up else shift.high < 0) and abs(shift.mean) > (chance or 0.0)

    def table(self) -> pd.DataFrame:
        """A row a condition and trait: the score with all that stands beside it, and the shift."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"scoring": self.scoring, **_described(own.condition), **own.score.record(), **_shift(shift)}
                for row, shifts in zip(self.scored, self.shifts, strict=True)
                for own, shift in zip(row, shifts, strict=True)
            ]
        )

    def items(self) -> pd.DataFrame:
        """A row a condition and item: P(high), and what each option gets."""
        import pandas as pd

        names = ("share_high1", "share_high2", "share_low1", "share_low2")
        return pd.DataFrame(
            [
                {
                    **{"scoring": self.scoring, **_described(own.condition), "trait": item.trait, "item": number},
                    **{"question": item.question, "p_high": float(shares[:2].sum())},
                    **dict(zip(names, map(float, shares), strict=True)),
                }
                for row in self.scored
                for own in row
                for number, (item, shares) in enumerate(zip(own.items, own.shares.options, strict=True), 1)
            ]
        )

    def columns(self) -> list[str]:
        """The heads of `cells`."""
        return [
            "trait",
            *(f"{self.conditions[number].name} (swapped labels)" for number in self._shown()),
            "longest option",
        ]

    def cells(self) -> list[list[str]]:
        """A row a trait: its score under each condition but random directions, and what stands beside it."""
        rows = []
        for column, trait in enumerate(self.traits):
            plain = self.scored[0][column].score
            scores = [_beside_null(self.scored[number][column].score) for number in self._shown()]
            rows.append([trait, *scores, f"{plain.longest:.2f}"])
        return rows

    def _shown(self) -> list[int]:
        return [number for kind in (UNSTEERED, "told", "steered") for number in self.of(kind)]

    def lines(self) -> list[str]:
        """The profile as printed: the table and what was found."""
        return [f"P(high), scored by {self.scoring}:", *aligned([self.columns(), *self.cells()]), *self.sentences()]

    def sentences(self) -> list[str]:
        """What was found, in words."""
        asked = [*self.of("told"), *self.of("steered")]
        return [*self._about_labels(), *(self._about(number) for number in asked)]

    def _about_labels(self) -> Iterator[str]:
        """Whether options were told apart at all, what their places get, and how often no letter was said."""
        scores = [own.score for row in self.scored for own in row]
        plain = [own.score for own in self.scored[0]]
        passed = holm([score.p for score in plain])
        outside = [score.trait for score, own in zip(plain, passed, strict=True) if own]
        corrected = f" (Holm, {len(plain)} tests at 0.05)" if len(plain) > 1 else ""
        yield (
            f"unsteered, {len(outside)} of {len(plain)} traits lie outside what swapped labels give{corrected}"
            + (f": {', '.join(outside)}" if outside else "")
        )
        if self.scoring != "letter":
            yield "the level of a score also says how usual its words are; what a condition shifts does not"
        places = np.array([score.places for score in plain if score.places is not None])
        if len(places):
            shares = ", ".join(f"{letter} {share:.2f}" for letter, share in zip("ABCD", places.mean(0), strict=True))
            yield (
                f"place alone gets: {shares} (0.25 each without a pull); it cancels, since every option stands at "
                "every place, and a reader who goes by place alone scores 0.50"
            )
        missing, asked = sum(score.n_missing for score in scores), sum(score.n_asked for score in scores)
        if missing:
            dropped = sum(score.score.n_dropped for score in scores)
            yield (
                f"the letters got less than a quarter of the probability in {missing} of {asked} prompts: "
                f"{dropped} items of a trait and condition are left out"
            )

    def _about(self, number: int) -> str:
        """What a condition did to its own trait, to the others, and what random directions did."""
        condition, column = self.conditions[number], self.traits.index(self.trait)
        text = f"{condition.name}: {self.trait} {self.shifts[number][column].text(3, sign=True)}"
        text += ", as asked" if self.followed(number) else ", which is no effect"
        steering = condition.steering
        chance = None if steering is None else self.largest_random(self.trait, steering.coef)
        if chance is not None:
            n_random = len({self.conditions[k].control for k in self.of("random")})
            text += f" ({counted(n_random, 'random direction')} of the same norm: {chance:.3f} at most)"
        others = {trait: self.shifts[number][k].mean for k, trait in enumerate(self.traits) if k != column}
        if not others:
            return text
        most = max(others, key=lambda trait: abs(others[trait]))
        return f"{text}; of the other traits {most} moves most, {others[most]:+.3f}"


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which hypotheses fall with at most `level` as the chance of any false one: the k-th smallest p of n is held
    against level / (n - k + 1), until one does not pass. NaN never passes."""
    passed = [False] * len(p_values)
    for rank, number in enumerate(sorted(range(len(p_values)), key=lambda i: np.nan_to_num(p_values[i], nan=1.0))):
        if not p_values[number] <= level / (len(p_values) - rank):
            break
        passed[number] = True
    return passed


def _beside_null(own: TraitScore) -> str:
    """The score with its interval, and 95% of the scores with swapped labels."""
    return f"{own.score.text(2)} ({own.permuted_low:.2f} to {own.permuted_high:.2f})"


def _described(condition: Condition) -> dict[str, Any]:
    steering = condition.steering
    return {
        "condition": condition.name,
        "kind": condition.kind,
        "coef": None if steering is None else steering.coef,
        "layer": None if steering is None else steering.layer,
        "control": condition.control,
    }


def _shift(shift: Interval) -> dict[str, float]:
    return {"shift": shift.mean, "shift_low": shift.low, "shift_high": shift.high}

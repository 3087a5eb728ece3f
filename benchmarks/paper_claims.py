"""The claims, each with the paper's value, a threshold and what was measured for every trait.

Thresholds were written before the study's first run. A claim holds for a trait or does not; it "holds" where it holds
for every trait. Where a correlation is claimed it must also beat 99% of 1,000 random directions, each with the sign
that suits it: over such data sets many directions correlate with anything that grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MIN_R, MIN_LOW, MIN_BEATEN = 0.85, 0.6, 0.99  # of projection differences; the first two are the aim
PAPER_R_MONITOR, PAPER_R_SHIFT = 0.75, 0.76  # the lowest of the paper's own
MIN_DOSE, MIN_COHERENCE, MAX_DIP, MIN_TIMES_RANDOM = 20.0, 80.0, 2.0, 3.0
MIN_GAP = 25.0  # points that training with the vector stays below training with random directions
MIN_COST = 5.0  # points of coherence that the same trait score costs afterwards
MIN_SUBSET = 5.0  # points between models of the rows that are highest and of random rows
MIN_AUC = 0.9
MAX_RHO = -0.71  # Spearman over seven traits: one-sided p < .05


@dataclass(frozen=True)
class Found:
    """A claim's number for one trait.

    Attributes:
        value, low, high: with its 95% interval; None where there is none.
        holds: against the threshold.
        beside: what stands beside it, in words: random directions, the text alone, the other recipe.
    """

    value: float | None
    low: float | None
    high: float | None
    holds: bool
    beside: str = ""
    digits: int = 2

    def text(self) -> str:
        """`0.93 [0.85, 0.97]`."""
        if self.value is None:
            return "not defined"
        around = "" if self.low is None else f" [{self.low:.{self.digits}f}, {self.high:.{self.digits}f}]"
        return f"{self.value:.{self.digits}f}{around}"


@dataclass(frozen=True)
class Claim:
    """A row of the table.

    Attributes:
        figure: where the paper shows it.
        paper: its value on models of 7 and 8 billion parameters.
        threshold: set before the first run.
        found: trait -> what was measured.
    """

    key: str
    figure: str
    quantity: str
    paper: str
    threshold: str
    found: Mapping[str, Found]

    @property
    def n_held(self) -> int:
        return sum(one.holds for one in self.found.values())

    @property
    def verdict(self) -> str:
        """`holds`, `holds for 3 of 4` or `does not hold`."""
        if self.n_held == len(self.found):
            return "holds"
        return f"holds for {self.n_held} of {len(self.found)}" if self.n_held else "does not hold"


CORRELATES = f"r >= {MIN_R:g}, lower bound >= {MIN_LOW:g}, beats {MIN_BEATEN:.0%} of random directions"
MONITORS = f"r >= {PAPER_R_MONITOR:g}, beats {MIN_BEATEN:.0%} of random directions"
ABOVE_ZERO = "lower bound > 0"

TEXTS: dict[str, tuple[str, str, str, str]] = {
    # key: (figure, quantity, the paper's value on 7-8B models, threshold)
    "position": (
        "appendix",
        "steering by the vector of answer tokens minus the best of prompt_avg and prompt_last, equal norms, points",
        "answer tokens steer best",
        ABOVE_ZERO,
    ),
    "dose": (
        "Fig. 3",
        "trait score at coefficient 1.5 minus unsteered, points",
        "rises with the coefficient",
        f">= {MIN_DOSE:g}, no dip above {MAX_DIP:g} on the way, coherence >= {MIN_COHERENCE:g}, and "
        f">= {MIN_TIMES_RANDOM:g} times the largest shift of 5 random directions",
    ),
    "monitor_system": ("Fig. 4", "system prompts: last-token projection with trait score, r", ".75 to .83", MONITORS),
    "monitor_system_within": (
        "Sec. 3.3",
        "the same within one system prompt, r",
        "weaker, unreliable within a type of prompt",
        f"{ABOVE_ZERO}, beats {MIN_BEATEN:.0%} of random directions",
    ),
    "monitor_shots": ("Fig. 4", "many shots: last-token projection with trait score, r", ".75 to .83", MONITORS),
    "monitor_shots_within": (
        "Sec. 3.3",
        "the same within one number of shots, r",
        "weaker, unreliable within a type of prompt",
        f"{ABOVE_ZERO}, beats {MIN_BEATEN:.0%} of random directions",
    ),
    "shift": (
        "Fig. 6",
        "finetuning shift of the last prompt token with trait score after finetuning, r",
        ".76 to .97",
        f"r >= {PAPER_R_SHIFT:g}, lower bound >= {MIN_LOW:g}, beats {MIN_BEATEN:.0%} of random directions",
    ),
    "shift_cross": (
        "Fig. 6",
        "own trait's r minus the largest r of another trait's vector",
        "own .76 to .97, other traits' .34 to .86",
        ABOVE_ZERO,
    ),
    "posthoc": (
        "Fig. 7A",
        "coherence of the model trained with the vector minus that of steering afterwards to its trait score or below",
        "steering afterwards costs capability",
        f">= {MIN_COST:g} points, {ABOVE_ZERO}",
    ),
    "prevention": (
        "Fig. 7B",
        "trained with a random direction minus trained with the vector, trait score, points",
        "training with the vector keeps the trait down",
        f"lower bound >= {MIN_GAP:g}",
    ),
    "all_layers": (
        "appendix",
        "trained with the vector at one layer minus incremental vectors at all layers, trait score, points",
        "all layers limit it further, near the base model",
        ABOVE_ZERO,
    ),
    "caft": (
        "appendix",
        "base model's projection with what ablation in training takes off the score, Spearman over seven traits",
        "works where the base model projects negatively",
        f"<= {MAX_RHO:g}",
    ),
    "penalty": (
        "appendix",
        "trained with a projection penalty minus trained with the vector, trait score, points",
        "a penalty does less than steering",
        ABOVE_ZERO,
    ),
    "inoculation": (
        "related work",
        "finetuned plainly minus under an inoculation prompt, trait score, points",
        "no number in the paper",
        f"lower bound >= {MIN_GAP:g}",
    ),
    "delta_p": (
        "Sec. 6.1",
        "projection difference of the data with trait score after finetuning, r",
        "strong",
        CORRELATES,
    ),
    "delta_p_cross": (
        "Sec. 6.1",
        "own trait's r minus the largest r of another trait's vector",
        "own above others",
        ABOVE_ZERO,
    ),
    "delta_p_plain": (
        "Sec. 6.1",
        "the same by the published vector, others not projected out, r",
        "strong",
        CORRELATES,
    ),
    "delta_p_raw": (
        "Sec. 6.1",
        "r of projection difference minus r of raw projection",
        "difference above raw",
        ABOVE_ZERO,
    ),
    "delta_p_text": (
        "control",
        "r of projection difference minus r of the trait score of the training text alone",
        "not in the paper",
        ABOVE_ZERO,
    ),
    "cheap": (
        "appendix",
        "cheap difference (answer minus last prompt token) with trait score, r",
        "strong",
        CORRELATES,
    ),
    "samples": (
        "Sec. 6.2",
        "severe rows against normal ones by projection difference, AUC",
        "largely separable",
        f">= {MIN_AUC:g} and above {MIN_BEATEN:.0%} of random directions",
    ),
    "subsets": (
        "Sec. 6.3",
        "model of the wild rows highest in projection difference minus model of random rows, trait score, points",
        "high > random > low",
        f"lower bound >= {MIN_SUBSET:g}, low rows not above random rows by more than {MAX_DIP:g}, and high above every "
        "choice by a random direction",
    ),
}


def claim(key: str, found: Mapping[str, Found]) -> Claim:
    """The row `key` with what was found."""
    return Claim(key, *TEXTS[key], found)

"""How far a vector can be pushed before a limit is crossed: bisection, for many layers and both signs at once.

Sizes are in units of the mean residual norm, so that layers and vectors of different lengths can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

START = 0.25  # the first size tried
MOST = 4.0  # beyond this nothing is tried: the vector would be four times the stream it is added to
LEAST = 0.01  # below this a size counts as none
TOLERANCE = 0.1  # of the size that fails


@dataclass(frozen=True)
class Arm:
    """One thing that is pushed: a layer's vector (hidden_states index), along it (1) or against it (-1)."""

    layer: int
    sign: int


@dataclass(frozen=True)
class Bracket:
    """What is known of an arm: the largest size that passed (0 passes by itself), and the smallest that did not."""

    passed: float = 0.0
    failed: float = math.inf

    @property
    def next_size(self) -> float | None:
        """What to try next: twice as much until something fails, then the middle; None where it is known enough."""
        if math.isinf(self.failed):
            larger = START if not self.passed else 2 * self.passed
            return larger if larger <= MOST else None
        if self.failed <= LEAST or self.failed - self.passed <= TOLERANCE * self.failed:
            return None
        return (self.passed + self.failed) / 2


def find_bounds(arms: Sequence[Arm], passes: Callable[[Mapping[Arm, float]], Mapping[Arm, bool]]) -> dict[Arm, Bracket]:
    """Each arm's bracket; the limit is taken to be crossed once and for good.

    Args:
        passes: arm -> size in, arm -> whether it stays within the limit out; called with all arms that still need a
            try, so that each round is one job.
    """
    found = {arm: Bracket() for arm in arms}
    while sizes := {arm: size for arm, bracket in found.items() if (size := bracket.next_size) is not None}:
        for arm, passed in passes(sizes).items():
            old = found[arm]
            found[arm] = Bracket(sizes[arm], old.failed) if passed else Bracket(old.passed, sizes[arm])
    return found


@dataclass(frozen=True)
class LayerRange:
    """One layer's range, from the questions that find it; coefficients multiply a vector of `vector_norm`.

    Attributes:
        norm: mean residual norm over the prompts; vector_norm: of the vector.
        up, down: brackets along and against the vector, in units of `norm`.
        trait: mean trait at the largest coefficient that passed; None where it was not judged.
    """

    layer: int
    norm: float
    vector_norm: float
    up: Bracket
    down: Bracket
    trait: float | None = None

    def coef(self, size: float) -> float:
        """The coefficient that adds `size` mean residual norms, to four digits."""
        return float(f"{size * self.norm / self.vector_norm:.4g}")

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and highest coefficient that passed."""
        return 0.0 - self.coef(self.down.passed), self.coef(self.up.passed)

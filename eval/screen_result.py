"""A finished screen as one value: the rows with their decisions, and where each row goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from eval.screen_auc import Separation
from eval.screen_rows import Criterion, Measured
from eval.screen_rule import Combine, Rule, decide, in_order, ranks, subsets

Action = Literal["rank", "filter", "split"]
Unscored = Literal["keep", "flag"]


@dataclass(frozen=True)
class Screen:
    """What was found.

    Attributes:
        data: the rows that were screened.
        rank: one rank a row, 0 to 1, NaN where a criterion is missing.
        rule: None where rows are only ranked.
        flagged: whether each row is; None where it is undecided (unscored), or there is no rule.
        reference: the reference rows, and whether the rule flags each of them.
        levels: labelled levels by name, the normal one first, with how many of their rows the rule flags.
        separations: every level but the first, by every criterion.
        baseline: the same by the answers' length alone.
        record: for sidecars: settings, inputs.
    """

    data: Measured
    criteria: list[Criterion]
    combine: Combine
    rank: Float[np.ndarray, " n_rows"]
    rule: Rule | None
    flagged: list[bool | None]
    action: Action
    unscored_to: Unscored
    reference: Measured | None = None
    levels: Mapping[str, Measured] = field(default_factory=dict)
    separations: Sequence[Separation] = ()
    baseline: Sequence[Separation] = ()
    notes: Sequence[str] = ()
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unscored(self) -> list[int]:
        """Row numbers that cannot be decided (or, without a rule, ranked)."""
        if self.rule is None:
            return np.flatnonzero(np.isnan(self.rank)).tolist()
        return [i for i, yes in enumerate(self.flagged) if yes is None]

    def is_flagged(self, row: int) -> bool:
        """Whether the row goes to the flagged ones, as it does where undecided rows are to."""
        yes = self.flagged[row]
        return self.unscored_to == "flag" if yes is None else yes

    def counts(self) -> dict[str, int]:
        """n_rows = n_kept + n_flagged; n_unscored are among those that they went to."""
        n = len(self.data.rows)
        counts = {"n_rows": n, "n_unscored": len(self.unscored)}
        if self.rule is not None:
            n_flagged = sum(self.is_flagged(row) for row in range(n))
            counts |= {"n_flagged": n_flagged, "n_kept": n - n_flagged}
        return counts

    def share_flagged(self, measured: Measured) -> tuple[int, int]:
        """(rows that the rule flags, rows that it decides) of other rows than the data."""
        assert self.rule is not None
        decided = [yes for yes in decide(measured.values, self.rule, self.data.values) if yes is not None]
        return sum(decided), len(decided)

    def files(self, n_subset: int | None, seed: int) -> dict[str, list[int]]:
        """Name of each file of rows -> its row numbers, as the action says: kept and flagged are all rows."""
        n = len(self.data.rows)
        if self.action == "rank":
            files = {"ranked": in_order(self.rank)}
        else:
            files = {"kept": [row for row in range(n) if not self.is_flagged(row)]}
        if self.action == "split":
            files["flagged"] = [row for row in range(n) if self.is_flagged(row)]
        return files | ({} if n_subset is None else subsets(self.rank, n_subset, seed))

    def table(self) -> pd.DataFrame:
        """scores.csv: a row a row of the data, in its order."""
        table = pd.DataFrame({"line": [row.line for row in self.data.rows], **self.data.values, "rank": self.rank})
        if self.rule is not None:
            table["flagged"] = [self.is_flagged(row) for row in range(len(table))]
        unscored = set(self.unscored)
        table["unscored"] = [row in unscored for row in range(len(table))]
        table["why_missing"] = self.data.reasons
        return table


def ranked(data: Measured, criteria: Sequence[Criterion], combine: Combine, rule: Rule | None, **rest: Any) -> Screen:
    """The screen of `data` under a rule."""
    flagged: list[bool | None] = [None] * len(data.rows) if rule is None else decide(data.values, rule)
    return Screen(data, list(criteria), combine, ranks(data.values, combine), rule, flagged, **rest)

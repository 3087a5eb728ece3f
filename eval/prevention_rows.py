"""What a comparison of finetuned models shows: a row a model and setting, as a table for readers and as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.text_table import aligned
from persona_vectors.statistics import Interval, cluster_bootstrap_mean

if TYPE_CHECKING:
    import pandas as pd

MAX_WIDTH = 120


@dataclass(frozen=True)
class Score:
    """A task's metric of one model: its value with a 95% interval, None where the task gives none."""

    metric: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Row:
    """One model under one setting.

    Attributes:
        kind: base | finetuned | prevented | random | other | posthoc | back_on | base_on.
        coef: what its answers were sampled under; 0 is unsteered.
        answers: the response table of this setting.
        loss: held-out loss of the training data before and after; None where it is another row's or unknown.
        capability: task -> score.
    """

    name: str
    kind: str
    model: str
    answers: pd.DataFrame
    score: Interval
    coherence: Interval
    coef: float = 0.0
    layer: int | None = None
    vector: str = ""
    loss: tuple[float, float] | None = None
    capability: Mapping[str, Score] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """All rows of one trait, and how they came about. `n_steps` is the plain run's optimizer steps."""

    trait: str
    model: str
    judge: str
    rows: Sequence[Row]
    n_steps: int
    notes: Sequence[str] = ()
    commands: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def of_kind(self, kind: str) -> list[Row]:
        return [row for row in self.rows if row.kind == kind]

    def one(self, kind: str) -> Row:
        """The base, the finetuned or the prevented model: there is one of each."""
        return self.of_kind(kind)[0]

    def difference(self, row: Row, other: Row, column: str | None = None) -> Interval:
        """Mean of row - other over answers to the same question from the same random stream; the trait by default."""
        name = column or self.trait
        questions = row.answers["question"].tolist()
        if other.answers["question"].tolist() != questions:
            raise ValueError("the tables of a comparison must ask the same questions in the same order; run it anew")
        gaps = row.answers[name].to_numpy(dtype=float) - other.answers[name].to_numpy(dtype=float)
        return cluster_bootstrap_mean(gaps, questions)

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for row in self.rows for task in row.capability))


def make_row(name: str, kind: str, model: str, answers: pd.DataFrame, trait: str, **more: Any) -> Row:
    """The row of a response table, its means with intervals by question."""
    clusters = answers["question"].tolist()
    score, coherence = (cluster_bootstrap_mean(answers[own].tolist(), clusters) for own in (trait, "coherence"))
    return Row(name, kind, model, answers, score, coherence, **more)


def columns(comparison: Comparison) -> list[str]:
    """The headings of `cells`."""
    own = ["model", f"{comparison.trait} [95%]", "minus finetuned", "coherence", "held-out loss"]
    return own + comparison.tasks


def cells(comparison: Comparison) -> list[list[str]]:
    """A row's texts under each of `columns`."""
    finetuned = comparison.one("finetuned")
    found = []
    for row in comparison.rows:
        difference = "" if row is finetuned else comparison.difference(row, finetuned).text(sign=True)
        loss = f"{row.loss[0]:.2f} -> {row.loss[1]:.2f}" if row.loss else ""
        tasks = [_value(row.capability.get(task)) for task in comparison.tasks]
        found.append([row.name, row.score.text(), difference, row.coherence.text(), loss, *tasks])
    return found


def _value(score: Score | None) -> str:
    return "" if score is None else f"{score.value:.3f}"


def table_lines(comparison: Comparison) -> list[str]:
    """The table in aligned columns; tasks for which 120 columns have no room come in a table of their own below."""
    table = [columns(comparison), *cells(comparison)]
    lines, n_first = aligned(table), len(columns(comparison)) - len(comparison.tasks)
    if max(map(len, lines)) <= MAX_WIDTH or not comparison.tasks:
        return lines
    first = aligned([row[:n_first] for row in table])
    return [*first, "", *aligned([[row[0], *row[n_first:]] for row in table])]


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """One dict a row, for the CSV and its sidecar; what could not be had is None."""
    finetuned = comparison.one("finetuned")
    found = []
    for row in comparison.rows:
        parts = {comparison.trait: row.score, "minus_finetuned": comparison.difference(row, finetuned)}
        parts["coherence"] = row.coherence
        entry: dict[str, Any] = {
            **{name: getattr(row, name) for name in ("name", "kind", "model", "coef", "layer", "vector")},
            **{"n_total": len(row.answers), "n_scored": row.score.n, "n_questions": row.score.n_clusters},
        }
        for name, interval in parts.items():
            entry |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
        first, last = row.loss or (None, None)
        entry |= {"held_out_loss_first": first, "held_out_loss_last": last}
        for task in comparison.tasks:
            score = row.capability.get(task)
            values = (score.value, score.low, score.high) if score else (None, None, None)
            entry |= dict(zip((task, f"{task}_low", f"{task}_high"), values, strict=True))
        found.append({name: None if isinstance(v, float) and np.isnan(v) else v for name, v in entry.items()})
    return found


def write_table(comparison: Comparison, path: Path) -> None:
    """The rows as CSV."""
    import pandas as pd

    from persona_vectors.files import write_csv_atomic

    write_csv_atomic(pd.DataFrame(records(comparison)).astype({"layer": "Int64"}), path)

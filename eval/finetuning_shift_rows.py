"""What a comparison of finetuned models found: shifts and correlations, as tables for readers and for files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from eval.finetuning_shift_measure import SPANS, Measured
from eval.finetuning_shift_models import Finetune
from eval.finetuning_shift_statistics import ShiftCorrelation, cross_mean, shift_correlations
from persona_vectors.projection import project
from persona_vectors.statistics import Interval, cluster_bootstrap_mean

SPAN_NAMES = {"prompt_last": "last prompt token", "response_avg": "answer mean"}


@dataclass(frozen=True)
class Found:
    """A correlation at one layer, of shifts read over one span."""

    layer: int
    span: str
    correlation: ShiftCorrelation


@dataclass(frozen=True)
class Comparison:
    """Everything that was measured.

    Attributes:
        vectors: trait -> (n_layers + 1, d_model).
        measured: the base model first, then the finetunes in order.
        found: every vector and trait, by layer and span.
        sources: hashes of the models and files behind it, for sidecars.
    """

    base: str
    judge: str
    layers: Sequence[int]
    vectors: Mapping[str, Float[Tensor, "all_layers d_model"]]
    finetunes: Sequence[Finetune]
    measured: Sequence[Measured]
    found: Sequence[Found] = ()
    notes: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, Any] = field(default_factory=dict)

    @property
    def traits(self) -> list[str]:
        return list(self.vectors)

    def changes(self, trait: str, span: str, layer: int) -> Float[Tensor, "n d_model"]:
        """Mean activation on the trait's questions of each finetune, minus the base model's."""
        at = list(self.layers).index(layer)
        base, *own = [one.means[trait, span][at] for one in self.measured]
        return torch.stack(own) - base

    def shifts(self, vector: str, trait: str, span: str, layer: int) -> list[float]:
        """Each finetune's shift along a trait's vector, read on another's questions or its own; NaN without answers."""
        return project(self.changes(trait, span, layer), self.vectors[vector][layer]).tolist()

    def interval(self, model: int, trait: str, column: str) -> Interval:
        """Mean score of a model (0 is the base, 1 the first finetune) with its interval by question."""
        table = self.measured[model].tables[trait]
        return cluster_bootstrap_mean(table[column].tolist(), table["question"].tolist())

    def mean(self, model: int, trait: str, column: str) -> float:
        """The same without its interval; NaN where the judge gave no score."""
        values = self.measured[model].tables[trait][column].to_numpy(dtype=float)
        there = values[np.isfinite(values)]
        return float(there.mean()) if len(there) else np.nan

    def scores(self, trait: str) -> list[float]:
        """Each finetune's mean trait score; NaN where the judge gave none."""
        return [self.mean(i + 1, trait, trait) for i in range(len(self.finetunes))]

    def of(self, span: str, layer: int, trait: str) -> list[ShiftCorrelation]:
        """Every vector's correlation with the trait's score, its own first."""
        return [
            one.correlation
            for one in self.found
            if (one.span, one.layer, one.correlation.trait) == (span, layer, trait)
        ]


def correlated(comparison: Comparison, seed: int) -> list[Found]:
    """Every correlation: the trait's score with the shift along each vector, read on that trait's own questions."""
    scores = {trait: comparison.scores(trait) for trait in comparison.traits}
    clusters = [one.cluster for one in comparison.finetunes]
    return [
        Found(layer, span, one)
        for layer in comparison.layers
        for span in SPANS
        for one in shift_correlations(
            scores,
            {trait: comparison.changes(trait, span, layer) for trait in comparison.traits},
            {trait: vectors[layer] for trait, vectors in comparison.vectors.items()},
            clusters,
            seed=seed,
        )
    ]


def shift_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row a model and trait: score, coherence, and the shift on every vector; the base's shifts are 0."""
    found = []
    shifts = {
        (trait, column): [0.0, *values]
        for trait in comparison.traits
        for column, values in _shift_columns(comparison, trait).items()
    }
    base = Finetune(comparison.base, "base", "", {})
    for model, one in enumerate([base, *comparison.finetunes]):
        for trait in comparison.traits:
            score, coherence = (comparison.interval(model, trait, column) for column in (trait, "coherence"))
            row: dict[str, Any] = {"model": one.label, "path": one.name, "group": one.cluster, "trait": trait}
            row |= {"score": score.mean, "score_low": score.low, "score_high": score.high}
            row |= {"coherence": coherence.mean, "n_total": score.n + score.n_dropped, "n_scored": score.n}
            row |= {"n_empty": comparison.measured[model].n_empty[trait]}
            row |= {column: values[model] for (own, column), values in shifts.items() if own == trait}
            found.append(_without_nan(row))
    return found


def _shift_columns(comparison: Comparison, trait: str) -> dict[str, list[float]]:
    """Column -> each finetune's shift on the trait's questions."""
    return {
        f"shift_{vector}_{span}_layer{layer}": comparison.shifts(vector, trait, span, layer)
        for vector in comparison.traits
        for layer in comparison.layers
        for span in SPANS
    }


def correlation_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row a correlation, with the random directions beside it."""
    return [{"layer": one.layer, "span": one.span, **one.correlation.record()} for one in comparison.found]


def _without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}


OWN_COLUMNS = ("trait", "layer", "read at", "Pearson r [95%]", "Spearman [95%]", "n (groups)")
OWN_COLUMNS += ("random |r| 50/95/99%", "above random", "cross r")


def own_cells(comparison: Comparison) -> list[list[str]]:
    """The own-trait table: what each vector says of its own trait, beside random directions and the other vectors."""
    found = []
    for one in comparison.found:
        record = one.correlation
        if record.own:
            cross = cross_mean(comparison.of(one.span, one.layer, record.trait), record.trait)
            row = [record.trait, str(one.layer), one.span, *_statistics(record)]
            found.append([*row, "" if cross is None else f"{cross:.2f}"])
    return sorted(found, key=lambda row: comparison.traits.index(row[0]))


ALL_COLUMNS = ("vector", "trait scored", "layer", "read at", *OWN_COLUMNS[3:-1], "own r minus this [95%]")


def all_cells(comparison: Comparison) -> list[list[str]]:
    """Every correlation, own and cross."""
    found = []
    for one in comparison.found:
        record = one.correlation
        minus = record.own_minus.text() if record.own_minus else ""
        where = [record.vector, record.trait, str(one.layer), one.span]
        found.append([*where, *_statistics(record), minus])
    return found


def _statistics(record: ShiftCorrelation) -> list[str]:
    level, own = record.random, record.correlation
    random = f"{level.median:.2f} / {level.high:.2f} / {level.highest:.2f}" if level else ""
    beaten = "" if record.beaten is None else share(record.beaten)
    return [own.pearson.text(), own.spearman.text(), f"{own.n} ({own.n_clusters})", random, beaten]


def share(value: float) -> str:
    """`99.3%`, or `100%`."""
    return f"{100 * value:.3g}%"


def matrix_cells(comparison: Comparison, span: str, layer: int) -> list[list[str]]:
    """Vectors in rows, scored traits in columns: r, and the share of random directions below it."""
    cells = []
    for vector in comparison.traits:
        row = [vector]
        for trait in comparison.traits:
            (one,) = [own for own in comparison.of(span, layer, trait) if own.vector == vector]
            text = "not defined" if one.r is None else f"{one.r:.2f} ({share(one.beaten or 0.0)})"
            row.append(f"own: {text}" if one.own else text)
        cells.append(row)
    return cells

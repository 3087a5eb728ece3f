"""What was measured and found about a trait's monitor, as tables for readers and for files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from eval.finetuning_shift_rows import share
from eval.monitor_conditions import KIND_NAMES, Condition, Kind
from eval.monitor_measure import MonitorPoints
from eval.monitor_statistics import MonitorCorrelation
from persona_vectors.projection import project
from persona_vectors.statistics import Interval, cluster_bootstrap_mean


@dataclass(frozen=True)
class Found:
    """Correlations of one kind of condition at one layer, by `monitor_statistics.OVER`.

    Attributes:
        prompts: a point a prompt, with the mean score of its answers.
        answers: a point an answer.
        each: the condition's number -> over its own prompts alone.
    """

    kind: Kind
    layer: int
    prompts: Mapping[str, MonitorCorrelation]
    answers: Mapping[str, MonitorCorrelation]
    each: Mapping[float, MonitorCorrelation]


@dataclass(frozen=True)
class Study:
    """Everything about one trait and vector."""

    trait: str
    model: str
    judge: str
    vectors: Mapping[int, Float[Tensor, " d_model"]]
    points: MonitorPoints
    found: Sequence[Found] = ()
    notes: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> list[int]:
        return list(self.vectors)

    @property
    def kinds(self) -> list[Kind]:
        return list(dict.fromkeys(one.kind for one in self.points.conditions))

    def conditions(self, kind: Kind) -> list[Condition]:
        return [one for one in self.points.conditions if one.kind == kind]

    def projections(self, layer: int) -> Float[np.ndarray, " n_prompts"]:
        """Each prompt's last token on the unit vector."""
        return project(self.points.activations[layer], self.vectors[layer]).double().numpy()

    def mean(self, condition: Condition, name: str) -> Interval:
        """Mean of a score over the condition's answers, with its interval by question."""
        rows = self.points.rows_of(condition)
        scores = self.points.scores[name][rows]
        return cluster_bootstrap_mean(scores.ravel(), np.repeat(rows, scores.shape[1]).tolist())

    def mean_projection(self, condition: Condition, layer: int) -> Interval:
        rows = self.points.rows_of(condition)
        return cluster_bootstrap_mean(self.projections(layer)[rows], rows)

    def own_correlation(self, condition: Condition, layer: int) -> MonitorCorrelation:
        """Over the condition's own prompts."""
        found = next(one for one in self.found if (one.kind, one.layer) == (condition.kind, layer))
        return found.each[condition.number]

    def spread(self, condition: Condition) -> float:
        """Standard deviation of the condition's prompts' scores: what there is to foretell within it."""
        values = self.points.means()[self.points.rows_of(condition)]
        values = values[np.isfinite(values)]
        return float(values.std()) if len(values) else np.nan


def find(study: Study, seed: int) -> list[Found]:
    """Every correlation. Where a prompt has one answer, the two kinds of point are the same and computed once."""
    found = []
    for kind in study.kinds:
        for layer, vector in study.vectors.items():
            prompts = study.points.correlations(kind, layer, vector, seed=seed)
            answers = prompts
            if study.points.answers.shape[1] > 1:
                answers = study.points.correlations(kind, layer, vector, each_answer=True, seed=seed)
            each = study.points.correlations_by_condition(kind, layer, vector, seed=seed)
            found.append(Found(kind, layer, prompts, answers, each))
    return found


def point_rows(study: Study) -> list[dict[str, Any]]:
    """points.csv: a row an answer; the trait's score is `score`, so that a trait may have any column's name."""
    projections = {f"projection_layer{layer}": study.projections(layer) for layer in study.layers}
    return [
        {
            "kind": prompt.condition.kind,
            "condition": prompt.condition.name,
            "number": prompt.condition.number,
            "question_id": prompt.question_id,
            "question": prompt.question,
            "sample": sample,
            **{name: float(values[row]) for name, values in projections.items()},
            "score": study.points.scores["trait"][row, sample],
            "coherence": study.points.scores["coherence"][row, sample],
            "answer": study.points.answers[row, sample],
        }
        for row, prompt in enumerate(study.points.prompts)
        for sample in range(study.points.answers.shape[1])
    ]


def prompt_rows(study: Study) -> list[dict[str, Any]]:
    """prompts.csv: a row a prompt, as the model read it."""
    return [
        {
            "kind": prompt.condition.kind,
            "condition": prompt.condition.name,
            "question_id": prompt.question_id,
            "n_tokens": prompt.n_tokens,
            "prompt": prompt.text,
        }
        for prompt in study.points.prompts
    ]


def condition_rows(study: Study) -> list[dict[str, Any]]:
    """conditions.csv: means with intervals by question, a row a condition."""
    found = []
    for condition in study.points.conditions:
        score = study.mean(condition, "trait")
        rows = study.points.rows_of(condition)
        row: dict[str, Any] = {"kind": condition.kind, "condition": condition.name, "number": condition.number}
        row |= {"n_prompts": len(rows), "n_total": score.n + score.n_dropped, "n_scored": score.n}
        row |= _flat("score", score)
        row |= {"score_sd_of_prompts": study.spread(condition)}
        row |= _flat("coherence", study.mean(condition, "coherence"))
        for layer in study.layers:
            row |= _flat(f"projection_layer{layer}", study.mean_projection(condition, layer))
        row |= {"mean_tokens": float(np.mean([study.points.prompts[i].n_tokens for i in rows]))}
        found.append(row | {"system_prompt": condition.system})
    return found


def _flat(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def correlation_rows(study: Study) -> list[dict[str, Any]]:
    """correlations.csv: a row a correlation, with random directions and the condition's number beside it."""
    rows = []
    for one in study.found:
        first = {"kind": one.kind, "layer": one.layer}
        for points, records in (("prompts", one.prompts), ("answers", one.answers)):
            rows += [{**first, "points": points, "condition": None, **own.record()} for own in records.values()]
        for condition in study.conditions(one.kind):
            own = one.each[condition.number]
            rows.append({**first, "points": "prompts", "condition": condition.name, **own.record()})
    return rows


COLUMNS = ("conditions", "layer", "over", "r [95%]", "Spearman [95%]", "n", "random |r| 50/95/99%", "above random")
COLUMNS += ("number alone", "condition known", "r of single answers [95%]")
WORDS = {"overall": "all prompts", "within": "within a condition", "between": "condition means"}


def correlation_cells(study: Study, *, short: bool = False) -> list[list[str]]:
    """The correlations with their heading: overall, within and between, always beneath one another.

    The layer is left out where there is one, and `short` leaves out Spearman.
    """
    cells: list[list[str]] = [list(COLUMNS)]
    for one in study.found:
        for over, record in one.prompts.items():
            level = record.random
            random = f"{level.median:.2f} / {level.high:.2f} / {level.highest:.2f}" if level else ""
            beaten = "" if record.beaten is None else share(record.beaten)
            baselines = ["" if b.value is None else f"{b.value:.2f}" for b in (record.number, record.known)]
            single = "" if over == "between" else one.answers[over].pearson.text()
            row = [KIND_NAMES[one.kind], str(one.layer), WORDS[over], record.pearson.text()]
            row += [record.correlation.spearman.text(), str(record.correlation.n), random, beaten, *baselines, single]
            cells.append(row)
    left_out = {"Spearman [95%]"} if short else set()
    left_out |= {"layer"} if len(study.layers) == 1 else set()
    return [[cell for name, cell in zip(COLUMNS, row, strict=True) if name not in left_out] for row in cells]


def condition_cells(study: Study, *, whole: bool = False) -> list[list[str]]:
    """Means by condition with their heading; `whole` adds each condition's own correlations."""
    digits = _digits(study)
    names = [f"projection, layer {layer} [95%]" for layer in study.layers]
    cells = [["condition", f"{study.trait} [95%]", "sd of prompts", *names, "coherence", "scored"]]
    for condition in study.points.conditions:
        score = study.mean(condition, "trait")
        row = [condition.name, score.text() if score.n else "not scored", f"{study.spread(condition):.1f}"]
        row += [study.mean_projection(condition, layer).text(digits) for layer in study.layers]
        row += [f"{study.mean(condition, 'coherence').mean:.1f}", f"{score.n} of {score.n + score.n_dropped}"]
        cells.append(row)
    if whole:
        cells[0] += [f"r, layer {layer} [95%] (above random)" for layer in study.layers]
        for row, condition in zip(cells[1:], study.points.conditions, strict=True):
            row += [_own_text(study.own_correlation(condition, layer)) for layer in study.layers]
    return cells


def _own_text(record: MonitorCorrelation) -> str:
    return record.pearson.text() + ("" if record.beaten is None else f" ({share(record.beaten)})")


def _digits(study: Study) -> int:
    """Digits after the point that show three figures of the largest projection."""
    largest = max(float(np.abs(study.projections(layer)).max()) for layer in study.layers)
    return min(6, max(0, 2 - math.floor(math.log10(largest)))) if largest else 1

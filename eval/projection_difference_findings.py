"""What a comparison of data sets shows, in words and as tables for readers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eval.projection_difference_rows import Mean, Study
from eval.projection_difference_scores import Correlated
from persona_vectors.correlation import MIN_CLUSTERS, Estimated
from persona_vectors.statistics import Interval

MOST_LINES = 40
MOST_VECTORS = 3
FEW = MIN_CLUSTERS
"""Data sets below which a correlation is called one over few."""


def vectors_of(study: Study) -> list[tuple[str, int]]:
    """(vector, layer) of each column, in order."""
    return [(m.of, m.layer) for m in study.measures if m.layer is not None and m.kind == first_kind(study)]


def first_kind(study: Study) -> str:
    """The kind that figures and sentences are of: delta_p where it was asked for."""
    kinds = [m.kind for m in study.measures if m.layer is not None]
    return "delta_p" if "delta_p" in kinds else kinds[0]


def digits_of(means: Sequence[Mean]) -> int:
    """Digits after the point that show three figures of the largest mean."""
    sizes = [abs(one.interval.mean) for one in means if one.interval.n]
    return min(6, max(0, 2 - math.floor(math.log10(max(sizes))))) if any(sizes) else 1


def number(interval: Interval, digits: int) -> str:
    return interval.text(digits, sign=True) if interval.n else "none"


def table_cells(study: Study, most: int = MOST_LINES) -> list[list[str]]:
    """The means with a heading: a row a data set x vector x layer, a column a kind."""
    kinds = list(dict.fromkeys(m.kind for m in study.measures if m.layer is not None))
    cells = [["data set", "vector", "layer", *kinds, "random", "cosine", "n"]]
    for of, layer in vectors_of(study):
        columns = [study.means_of(kind, of, layer) for kind in kinds]
        shown = [[number(one.interval, digits_of(column)) for one in column] for column in columns]
        main = columns[kinds.index(first_kind(study))]
        for i, one in enumerate(main):
            random = "" if one.random is None else f"{one.random:.{digits_of(main)}f} ({one.share:.0%})"
            cosine = "" if one.cosine is None else f"{one.cosine:+.2f}"
            n = f"{one.interval.n} of {len(one.data_set.chosen)}"
            cells.append([one.data_set.name, of, str(layer), *(column[i] for column in shown), random, cosine, n])
    if len(cells) > most + 1:
        left = len(cells) - most - 1
        cells = [*cells[: most + 1], [f"({left} more in datasets.csv)", *[""] * (len(cells[0]) - 1)]]
    return cells


def judge_cells(study: Study) -> list[list[str]]:
    """The judge's means with a heading, a row a data set; nothing without a judge."""
    judges = [(m.kind, m.of) for m in study.measures if m.layer is None]
    if not judges:
        return []
    columns = [study.means_of(kind, of, None) for kind, of in judges]
    rows = [[one.name, *(column[i].interval.text(1) for column in columns)] for i, one in enumerate(study.data_sets)]
    return [["data set", *(f"{kind} {of}" for kind, of in judges)], *rows]


def correlation_cells(study: Study) -> list[list[str]]:
    """The correlations with the scores, with a heading."""
    cells = [["kind", "vector", "layer", "Pearson", "Spearman", "|r| of random", "above", "delta_p's r minus this"]]
    for one in study.correlations:
        random = f"{one.random[0]:.2f}, {one.random[1]:.2f}, {one.random[2]:.2f}" if one.random else ""
        ahead = "; ".join(
            f"{estimated.text()}{f' ({of}, layer {layer})' if one.measure.layer is None else ''}"
            for of, layer, estimated in one.ahead[:2]
        )
        cells.append(
            [one.measure.kind, one.measure.of, "" if one.measure.layer is None else str(one.measure.layer)]
            + [one.correlation.pearson.text(), one.correlation.spearman.text(), random]
            + ["" if one.share is None else f"{one.share:.1%}", ahead]
        )
    return cells


def sentences(study: Study) -> list[str]:
    """What was found: the ends of each vector's order, and how it goes with the scores."""
    found = [_order(study, of, layer) for of, layer in vectors_of(study)[:MOST_VECTORS]]
    if len(vectors_of(study)) > MOST_VECTORS:
        found.append(f"{len(vectors_of(study)) - MOST_VECTORS} more vectors and layers are in the tables.")
    of_vectors = [one for one in study.correlations if one.measure.kind == first_kind(study)]
    found += [_with_scores(one, study) for one in of_vectors[:MOST_VECTORS]]
    found += _beside_texts(study)
    if study.correlations:
        n = study.correlations[0].correlation.n
        if n < FEW:
            found.append(f"{n} data sets are too few for intervals: read the random directions before the r.")
        if len(of_vectors) > 1:
            found.append(
                f"{len(of_vectors)} vectors and layers were tried: the best of them, picked afterwards, is flattered."
            )
    return found


def _order(study: Study, of: str, layer: int) -> str:
    kind = first_kind(study)
    means = [one for one in study.means_of(kind, of, layer) if one.interval.n]
    if not means:
        return f"{of}, layer {layer}: no data set has a value of {kind}."
    digits = digits_of(means)

    def said(one: Mean) -> str:
        control = ""
        if one.random is not None and one.share is not None:
            against = "further than" if one.share >= 0.95 else "not further than"
            control = f", {against} 95% of random directions ({one.random:.{digits}f})"
        return f"{one.data_set.name} ({number(one.interval, digits)}{control})"

    high, low = max(means, key=lambda one: one.interval.mean), min(means, key=lambda one: one.interval.mean)
    if high is low:
        return f"{of}, layer {layer}: {kind} of {said(high)}."
    return f"{of}, layer {layer}: {kind} is highest for {said(high)} and lowest for {said(low)}."


def _with_scores(one: Correlated, study: Study) -> str:
    text = (
        f"Over {one.correlation.n} data sets {one.measure.kind} on {one.measure.of}, layer {one.measure.layer}, goes "
    )
    text += f"with the scores with r = {one.correlation.pearson.text()}"
    if one.share is not None and one.random is not None:
        text += (
            f", above {one.share:.1%} of 1,000 random directions on the same activations (their |r|: median "
            f"{one.random[0]:.2f}, 95th percentile {one.random[1]:.2f})"
        )
    others = [
        f"minus that of {other.measure.kind} {_difference(estimated)}"
        for other in study.correlations
        for of, layer, estimated in other.ahead
        if other.measure.layer is not None and (of, layer) == (one.measure.of, one.measure.layer)
    ]
    return text + (f". Its r {', '.join(others)}." if others else ".")


def _difference(one: Estimated) -> str:
    if one.value is None or one.low is None or one.high is None:
        return f"is {one.text()}"
    return f"is {one.text()}" + ("" if one.low > 0 or one.high < 0 else " (not told apart)")


def _beside_texts(study: Study) -> list[str]:
    """What the judge's scores of the texts alone reach."""
    names = {"judge": "training answers", "judge_change": "training answers minus the model's own"}
    return [
        f"Without activations: the judge's mean score ({one.measure.of}) of the {names[one.measure.kind]} goes with "
        f"the scores with r = {one.correlation.pearson.text()}."
        for one in study.correlations
        if one.measure.kind in names
    ]

"""What finetuned models scored beside what was known of their data: correlations over data sets, with controls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.row_projections import NO_BASE
from persona_vectors.correlation import (
    Correlation,
    Estimated,
    correlate,
    paired_difference,
    random_correlations,
    share_beaten,
)

if TYPE_CHECKING:
    from eval.projection_difference_rows import DataSet, Measure
    from eval.row_projections import DataRow, Reading
    from persona_vectors.store import Store

LEAST_DATA_SETS = 3


@dataclass(frozen=True)
class Judged:
    """A judge's score of each row's training answer, and the mean over the model's own answers where there are some."""

    given: list[float | None]
    own: list[float | None] | None

    def columns(self) -> Iterator[tuple[str, list[float | None]]]:
        """(kind, a value a row): judge, and with own answers judge_base and judge_change = judge - judge_base."""
        yield "judge", self.given
        if self.own is not None:
            yield "judge_base", self.own
            both = zip(self.given, self.own, strict=True)
            yield "judge_change", [None if a is None or b is None else a - b for a, b in both]


@dataclass(frozen=True)
class Correlated:
    """A measure's means of data sets against the scores of models finetuned on them.

    Attributes:
        xs: the means, NaN where a data set has none.
        random: |r| of random directions on the same mean activations: median, 95th and 99th percentile; None of a
            judge, whose scores are no projection.
        share: of the random directions that Pearson's r is above.
        ahead: (vector, layer, r of delta_p on it - r of this measure), each with an interval from the same resamples of
            data sets; of a vector's own kinds against delta_p of the same vector and layer.
    """

    measure: Measure
    xs: list[float]
    correlation: Correlation
    random: tuple[float, float, float] | None
    share: float | None
    ahead: list[tuple[str, int, Estimated]]


def read_scores(path: str, column: str, data_sets: Sequence[DataSet]) -> list[float]:
    """A score for each data set: the mean of the rows that name its file (several models may be finetuned on it).

    Raises:
        ValueError: no such table or columns, a score that is no number, a data set without a score, a file that is not
            among the data sets, or fewer than three data sets.
    """
    import pandas as pd

    if len(data_sets) < LEAST_DATA_SETS:
        raise ValueError(f"--scores needs at least {LEAST_DATA_SETS} data sets; --file_path has {len(data_sets)}")
    if not Path(path).is_file():
        raise ValueError(f"--scores {path} is no file; give a CSV with the columns file and {column}")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV table: {error}") from None
    if missing := [name for name in ("file", column) if name not in table.columns]:
        raise ValueError(f"{path} has no column {missing[0]}; it has {', '.join(map(str, table.columns))}")
    known = {Path(one.file).resolve(): one.name for one in data_sets} | {Path(one.name): one.name for one in data_sets}
    found: dict[str, list[float]] = {one.name: [] for one in data_sets}
    for line, (file, text) in enumerate(zip(table["file"], table[column], strict=True), start=2):
        name = known.get(Path(file).resolve()) or known.get(Path(file))
        if name is None:
            raise ValueError(f"{path}, line {line}: {file} is not among the data sets ({', '.join(found)})")
        try:
            found[name].append(float(text))
        except ValueError:
            found[name].append(math.nan)
        if not math.isfinite(found[name][-1]):
            raise ValueError(f"{path}, line {line}: {column} is {text!r}; expected a number")
    if without := [name for name, scores in found.items() if not scores]:
        raise ValueError(f"{path} has no score of {', '.join(without)}; every data set needs one")
    return [float(np.mean(scores)) for scores in found.values()]


def judged(
    judge_model: str | None,
    traits: Sequence[str] | None,
    model: str,
    rows: Sequence[DataRow],
    reading: Reading,
    store: Store,
) -> dict[str, Judged]:
    """Trait -> the judge's scores of the rows that were read; nothing without a judge."""
    from eval.finished_scores import scores_of
    from persona_vectors.traits import load_trait

    found: dict[str, Judged] = {}
    for name in traits or () if judge_model is not None else ():
        trait = load_trait(name, "eval", model=model, judge_model=judge_model)
        items = [  # (row, the model's own?, question, answer)
            (i, is_own, _asked(row), answer)
            for i, row in enumerate(rows)
            for is_own, answers in ((False, [row.answer]), (True, reading.own_answers[i]))
            for answer in answers
            if answer.strip() and reading.left_out[i] in (None, NO_BASE)
        ]
        scores = scores_of(
            judge_model or "",
            trait.eval_prompt,
            [(question, answer) for _row, _own, question, answer in items],
            store=store,
            progress=f"judging {trait.name}",
        )
        of_row: dict[tuple[int, bool], list[float]] = {}
        for (i, is_own, _question, _text), score in zip(items, scores, strict=True):
            if score is not None:
                of_row.setdefault((i, is_own), []).append(score)
        given, own = (
            [float(np.mean(of_row[i, side])) if (i, side) in of_row else None for i in range(len(rows))]
            for side in (False, True)
        )
        found[trait.name] = Judged(given, own if any(reading.own_answers) else None)
    return found


def _asked(row: DataRow) -> str:
    """What the judge is told was asked: the user's last turn."""
    return next((turn["content"] for turn in reversed(row.messages[:-1]) if turn["role"] == "user"), row.question)


def correlations_of(
    means: Sequence[tuple[Measure, list[float]]], scores: Sequence[float], names: Sequence[str], seed: int
) -> list[Correlated]:
    """Each measure's means against the scores. Measures that fewer than three data sets have are left out."""
    found = []
    deltas = [(measure, xs) for measure, xs in means if measure.kind == "delta_p"]
    for measure, xs in means:
        if np.isfinite(xs).sum() < LEAST_DATA_SETS:
            continue
        correlation = correlate(xs, scores, names, seed=seed)
        random, share = None, None
        if measure.changes is not None:
            there = np.where(np.isfinite(xs), np.asarray(scores), np.nan)
            on_random = random_correlations(measure.changes, there, seed=seed)
            low, high, highest = np.quantile(on_random, [0.5, 0.95, 0.99])
            random, share = (
                (float(low), float(high), float(highest)),
                share_beaten(correlation.pearson.value, on_random),
            )
        ahead = [
            (delta.of, delta.layer or 0, paired_difference(theirs, xs, scores, names, seed=seed))
            for delta, theirs in deltas
            if _comparable(delta, measure) and np.isfinite(np.add(xs, theirs)).sum() >= LEAST_DATA_SETS
        ]
        found.append(Correlated(measure, xs, correlation, random, share, ahead))
    return found


def _comparable(delta: Measure, measure: Measure) -> bool:
    """Whether delta_p is set against this measure: the other kinds of its vector and layer, and any judge."""
    same = (delta.of, delta.layer) == (measure.of, measure.layer)
    return measure.kind != "delta_p" and (measure.layer is None or same)


def correlation_rows(correlations: Sequence[Correlated]) -> list[dict[str, Any]]:
    """correlations.csv: a row a measure."""
    return [
        {
            "vector": one.measure.of,
            "layer": one.measure.layer,
            "kind": one.measure.kind,
            "n": one.correlation.n,
            **_flat("pearson", one.correlation.pearson),
            **_flat("spearman", one.correlation.spearman),
            "random_median": one.random and one.random[0],
            "random_95": one.random and one.random[1],
            "random_99": one.random and one.random[2],
            "random_beaten": one.share,
        }
        for one in correlations
    ]


def difference_rows(correlations: Sequence[Correlated]) -> list[dict[str, Any]]:
    """differences.csv: r of delta_p minus r of something else with the same scores, a row a pair."""
    return [
        {
            "vector": vector,
            "layer": layer,
            "minus": one.measure.kind if one.measure.layer is not None else f"{one.measure.kind} {one.measure.of}",
            **_flat("difference", estimated),
        }
        for one in correlations
        for vector, layer, estimated in one.ahead
    ]


def _flat(name: str, one: Estimated) -> Mapping[str, float | None]:
    return {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}

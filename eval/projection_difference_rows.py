"""What a comparison of data sets rests on: their rows, the values of each, and the means of data sets."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from eval.projection_difference_scores import Correlated, Judged, correlations_of
from eval.row_projections import NO_BASE, Column, DataRow, Reading, read_rows
from persona_vectors.correlation import N_RANDOM
from persona_vectors.statistics import Interval, cluster_bootstrap_mean, random_directions

NOT_DRAWN = "not among the rows that were drawn"


@dataclass(frozen=True)
class DataSet:
    """A file of training rows. `chosen` are the positions of the rows that are read, in order; `name` is unique."""

    name: str
    file: str
    rows: list[DataRow]
    chosen: list[int]

    def drawn(self) -> list[DataRow]:
        return [self.rows[i] for i in self.chosen]

    def written_to(self, folder: str | Path) -> Path:
        """Where its rows go, with their values."""
        return Path(folder) / "rows" / f"{self.name}.jsonl"


@dataclass(frozen=True)
class Measure:
    """One number a row: a kind of projection on a vector, or a judge's score.

    Attributes:
        kind: delta_p | raw | base | cheap | judge | judge_base | judge_change.
        of: the vector file's stem, or the trait that was judged.
        layer: None of a judge.
        values: one for each drawn row, all data sets one after another.
        changes: the mean activations whose projections the data sets' means are; None of a judge.
    """

    kind: str
    of: str
    layer: int | None
    values: list[float | None]
    changes: Float[Tensor, "n_data_sets d_model"] | None


@dataclass(frozen=True)
class Mean:
    """A data set's mean of a measure.

    Attributes:
        random: what 95 of 100 random directions stay below on the same activations, in absolute value.
        share: of the random directions that the mean is further from 0 than.
        cosine: of the mean change of activations with the vector.
    """

    measure: Measure
    data_set: DataSet
    interval: Interval
    random: float | None
    share: float | None
    cosine: float | None


@dataclass(frozen=True)
class Study:
    """Everything that tables, figures and page show. `scores` is one for each data set."""

    model: str
    data_sets: list[DataSet]
    columns: list[Column]
    measures: list[Measure]
    means: list[Mean]
    reading: Reading
    judged: Mapping[str, Judged]
    scores: list[float] | None
    correlations: list[Correlated]
    notes: list[str]
    settings: Mapping[str, Any]

    def means_of(self, kind: str, of: str, layer: int | None) -> list[Mean]:
        """One for each data set, in order."""
        wanted = (kind, of, layer)
        return [one for one in self.means if (one.measure.kind, one.measure.of, one.measure.layer) == wanted]

    def drawn(self) -> list[tuple[DataSet, int]]:
        """The data set and position in it of each row that was read."""
        return [(one, i) for one in self.data_sets for i in one.chosen]


def load_data_sets(paths: Sequence[str], n_rows: int | None, seed: int) -> list[DataSet]:
    """The files' rows, with a seeded sample of `n_rows` of each (the same lines where files have equal lengths).

    Raises:
        ValueError: no file, a file given twice, or what `read_rows` refuses.
    """
    if not paths:
        raise ValueError("--file_path names no data set; give at least one")
    data_sets = []
    for name, path in zip(_names(paths), paths, strict=True):
        rows = read_rows(path)
        chosen = list(range(len(rows)))
        if n_rows is not None and n_rows < len(rows):
            chosen = sorted(random.Random(f"rows {seed}").sample(chosen, n_rows))
        data_sets.append(DataSet(name, path, rows, chosen))
    return data_sets


def _names(paths: Sequence[str]) -> list[str]:
    """The ends of the paths, as long as it takes to tell them apart: at least folder and stem."""
    resolved = [Path(path).resolve().with_suffix("") for path in paths]
    if twice := [path for path, n in Counter(resolved).items() if n > 1]:
        raise ValueError(f"--file_path has {paths[resolved.index(twice[0])]} twice; give each once")
    for length in range(2, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(part for part in path.parts[-length:] if part != path.anchor) for path in resolved]
        if len(set(names)) == len(names):
            break
    return names


def study_of(
    model: str,
    data_sets: list[DataSet],
    columns: list[Column],
    kinds: Sequence[str],
    reading: Reading,
    judged: Mapping[str, Judged],
    scores: list[float] | None,
    settings: Mapping[str, Any],
) -> Study:
    """The study, from what was read and judged."""
    seed = int(settings["seed"])
    measures = [
        Measure(
            kind,
            Path(column.path).stem,
            column.layer,
            reading.values[kind, column.name],
            reading.changes[kind, column.layer],
        )
        for column in columns
        for kind in dict.fromkeys(kinds)
    ]
    measures += [
        Measure(kind, trait, None, values, None) for trait, one in judged.items() for kind, values in one.columns()
    ]
    means = [mean for measure in measures for mean in _means(measure, data_sets, seed)]
    correlations: list[Correlated] = []
    if scores is not None:
        per_set = [(m, [x.interval.mean for x in means if x.measure is m]) for m in measures]
        correlations = correlations_of(per_set, scores, [one.name for one in data_sets], seed)
    notes = _notes(model, data_sets, columns, reading, settings)
    if scores is not None and not correlations:
        notes.append("Fewer than three data sets have values, so there is no correlation with the scores.")
    return Study(model, data_sets, columns, measures, means, reading, judged, scores, correlations, notes, settings)


def _means(measure: Measure, data_sets: Sequence[DataSet], seed: int) -> Iterator[Mean]:
    """Each data set's mean with an interval over questions, beside random directions."""
    start = 0
    on_random = _on_random(measure, seed)
    for number, one in enumerate(data_sets):
        values = measure.values[start : start + len(one.chosen)]
        start += len(one.chosen)
        interval = cluster_bootstrap_mean(values, [row.question for row in one.drawn()], seed=seed)
        if on_random is None or measure.changes is None or not interval.n:
            yield Mean(measure, one, interval, None, None, None)
            continue
        randoms, length = on_random[number], float(measure.changes[number].norm())
        yield Mean(
            measure,
            one,
            interval,
            float(np.quantile(randoms, 0.95)),
            float((randoms < abs(interval.mean)).mean()),
            interval.mean / length if length else None,
        )


def _on_random(measure: Measure, seed: int) -> Float[np.ndarray, "n_data_sets n_directions"] | None:
    """|projection| of the mean changes on random directions."""
    if measure.changes is None:
        return None
    directions = random_directions(N_RANDOM, measure.changes.shape[1], 1.0, seed).double()
    return (measure.changes @ directions.T).abs().numpy()


def _notes(
    model: str,
    data_sets: Sequence[DataSet],
    columns: Sequence[Column],
    reading: Reading,
    settings: Mapping[str, Any],
) -> list[str]:
    """What a reader must know beside the numbers."""
    from persona_vectors.files import read_sidecar
    from persona_vectors.models import fingerprint

    notes, start = [], 0
    for one in data_sets:
        lines: dict[str, list[int]] = {}
        for row, why in zip(one.drawn(), reading.left_out[start : start + len(one.chosen)], strict=True):
            if why is not None:
                lines.setdefault(why, []).append(row.line)
        start += len(one.chosen)
        notes += [
            f"{one.name}: {len(own)} of {len(one.chosen)} rows have no {'delta_p' if why == NO_BASE else 'value'}: "
            f"{why} (line{'s' * (len(own) > 1)} {', '.join(map(str, own[:10]))}{', ...' * (len(own) > 10)})."
            for why, own in lines.items()
        ]
    drawn = [f"{len(one.chosen)} of {len(one.rows)}" for one in data_sets if len(one.chosen) < len(one.rows)]
    if drawn:
        notes.append(f"Rows were drawn from {len(drawn)} data sets: {', '.join(dict.fromkeys(drawn))}.")
    if any(reading.own_answers) and len(data_sets) > 1:
        notes.append(
            "Rows of different data sets with the same prompt share the model's own answers: data sets over the same "
            "questions differ in their training answers alone."
        )
    for path in dict.fromkeys(column.path for column in columns):
        made = read_sidecar(path).get("model", {})
        if isinstance(made, dict) and made.get("fingerprint") not in (None, fingerprint(model)):
            notes.append(f"{path} was made with another model ({made.get('name')}) than {model}.")
    if settings.get("judge_model") == model:
        notes.append("The judge is the model itself, so read the answers too.")
    return notes


def table_rows(study: Study) -> list[dict[str, Any]]:
    """datasets.csv: a row a data set x measure."""
    return [
        {
            "dataset": one.data_set.name,
            "file": one.data_set.file,
            "vector": one.measure.of,
            "layer": one.measure.layer,
            "kind": one.measure.kind,
            "mean": _number(one.interval.mean),
            "low": _number(one.interval.low),
            "high": _number(one.interval.high),
            "n": one.interval.n,
            "n_questions": one.interval.n_clusters,
            "n_left_out": one.interval.n_dropped,
            "random_95": one.random,
            "random_share": one.share,
            "cosine": one.cosine,
        }
        for one in study.means
    ]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def row_records(study: Study, data_set: DataSet) -> list[dict[str, Any]]:
    """Every row of the file as it was read, in order, with what was found under one more key."""
    place = {position: n for n, (one, position) in enumerate(study.drawn()) if one is data_set}
    records = []
    for position, row in enumerate(data_set.rows):
        found: dict[str, Any] = {"line": row.line, "left_out": NOT_DRAWN, "values": {}}
        if position in place:
            n = place[position]
            found["left_out"] = study.reading.left_out[n]
            for measure in study.measures:
                name = measure.of if measure.layer is None else f"{measure.of}_layer{measure.layer}"
                found["values"].setdefault(measure.kind, {})[name] = measure.values[n]
        records.append({**row.content, "projection_difference": found})
    return records

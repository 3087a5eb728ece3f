"""Weight projections against behaviour: correlations over models, beside random directions and the norm alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eval.weight_projection_measure import Record
from persona_vectors.correlation import (
    LEAST_POINTS,
    MIN_CLUSTERS,
    NOT_DEFINED,
    Correlation,
    Estimated,
    correlate,
    paired_difference,
    pearson,
    share_beaten,
)

LEAST_FOR_P95 = 20
"""random directions that a 95th percentile needs: of fewer it lies between the two highest"""
NAME, GROUP = "model_name", "group"


def read_scores(path: str) -> pd.DataFrame:
    """The table of scores, by model_name: numeric columns, and `group` where it has one.

    Raises:
        ValueError: no such file, no model_name, a model twice, no column of scores, or one that is not numbers.
    """
    if not Path(path).is_file():
        raise ValueError(f"behavior_scores {path} does not exist; give a CSV with columns {NAME} and one a trait")
    try:
        table = pd.read_csv(path, dtype={NAME: str, GROUP: str}, index_col=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV table: {error}") from None
    if NAME not in table.columns:
        raise ValueError(f"{path} has no column {NAME}; it has {', '.join(map(str, table.columns))}")
    if not all(isinstance(name, str) for name in table[NAME]):
        raise ValueError(f"column {NAME} of {path} is empty in some rows; give every row its model")
    if twice := list(table[NAME][table[NAME].duplicated()]):
        raise ValueError(f"{path} has {twice[0]} in more than one row; expected a row a model")
    traits = traits_of(table)
    if not traits:
        raise ValueError(f"{path} has no scores; expected a column a trait beside {NAME}")
    for trait in traits:
        if not pd.api.types.is_numeric_dtype(table[trait]):
            raise ValueError(f"column {trait} of {path} is not numbers; leave a score that is missing empty")
    if GROUP in table.columns and not all(isinstance(group, str) for group in table[GROUP]):
        raise ValueError(f"column {GROUP} of {path} is empty in some rows; give every model its group")
    return table.set_index(NAME)


def traits_of(table: pd.DataFrame) -> list[str]:
    """The columns of scores."""
    return [str(name) for name in table.columns if name not in (NAME, GROUP)]


def score_of(table: pd.DataFrame, model: str, trait: str) -> float:
    """NaN where it is missing."""
    return float(table.loc[model, trait])  # pyright: ignore[reportArgumentType]


def check_scores(table: pd.DataFrame, models: Sequence[str], path: str) -> list[str]:
    """Notes on models without scores and scores without models.

    Raises:
        ValueError: too few models with scores of a trait for a correlation.
    """
    common = [name for name in models if name in table.index]
    if len(common) < LEAST_POINTS:
        raise ValueError(
            f"{len(common)} of {len(models)} models have a row in {path}, and a correlation needs {LEAST_POINTS}: "
            f"models are called {', '.join(models[:3])}, ..., rows {', '.join(map(str, table.index[:3]))}, ..."
        )
    for trait in traits_of(table):
        n = sum(np.isfinite(score_of(table, name, trait)) for name in common)
        if n < LEAST_POINTS:
            raise ValueError(f"{n} models have a score of {trait} in {path}; a correlation needs {LEAST_POINTS}")
    unscored = [name for name in models if name not in table.index]
    absent = [str(name) for name in table.index if name not in models]
    notes = [f"no scores for {', '.join(unscored)}"] if unscored else []
    return notes + ([f"scores without a model: {', '.join(absent)}"] if absent else [])


def compute_projection_correlation(
    records: Sequence[Record], behavior_scores: str | pd.DataFrame, seed: int = 0
) -> list[Record]:
    """Every direction with every trait: how projection, cosine and norm go with the score over models.

    Intervals resample models, or the groups of a `group` column (models of one family are not independent). Random
    directions are those of the records: a |r| that many of them reach says nothing about the direction.

    Args:
        records: of `compute_projection_dataset`.
        behavior_scores: CSV of `read_scores`, or its table.

    Raises:
        ValueError: a table that is none, or fewer than three models with a score of a trait.
    """
    table = read_scores(behavior_scores) if isinstance(behavior_scores, str) else behavior_scores
    found = []
    for direction in dict.fromkeys(record["direction"] for record in records):
        own = [one for one in records if one["direction"] == direction and one["model_name"] in table.index]
        for trait in traits_of(table):
            scored = [one for one in own if np.isfinite(score_of(table, one["model_name"], trait))]
            if len(scored) < LEAST_POINTS:
                raise ValueError(f"{len(scored)} models have a score of {trait}; a correlation needs {LEAST_POINTS}")
            found.append({"direction": direction, "trait": trait, **_correlated(scored, table, trait, seed)})
    return found


def few_models_notes(correlations: Sequence[Record]) -> list[str]:
    """A note for each number of models, or of groups of them, that is too small for an interval."""
    few = sorted({one["n_clusters"] for one in correlations if one["n_clusters"] < MIN_CLUSTERS})
    return [
        f"r over {n} models (or groups of models) says little and has no interval, which needs {MIN_CLUSTERS}: over so "
        "few a high |r| is often chance; the random directions beside it show how often"
        for n in few
    ]


def _correlated(records: Sequence[Record], table: pd.DataFrame, trait: str, seed: int) -> Record:
    names = [one["model_name"] for one in records]
    scores = np.array([score_of(table, name, trait) for name in names])
    clusters = list(table[GROUP][names]) if GROUP in table.columns else names
    x = np.array([one["total_projection"] for one in records])
    size = np.array([one["weight_shift_norm"] for one in records])
    cosine = np.array([np.nan if one["cosine"] is None else one["cosine"] for one in records])
    projection = correlate(x, scores, clusters, seed=seed)
    random = _random(records, scores)
    return {
        "n_models": projection.n,
        "n_clusters": projection.n_clusters,
        **projection.record(),
        "cosine": _pearson(cosine, scores, clusters, seed),
        "weight_shift_norm": _pearson(size, scores, clusters, seed),
        "projection_less_norm": paired_difference(x, size, scores, clusters, seed=seed).record(),
        "random": _level(projection, random),
    }


def _pearson(x: np.ndarray, y: np.ndarray, clusters: Sequence[str], seed: int) -> Record:
    if np.isfinite(x).sum() < LEAST_POINTS:
        return NOT_DEFINED.record()
    return correlate(x, y, clusters, seed=seed).pearson.record()


def _random(records: Sequence[Record], scores: np.ndarray) -> np.ndarray:
    """|r| of each random direction's projections with the scores."""
    columns = np.array([one["control"]["projections"] for one in records])  # (n_models, n_random)
    found = np.abs([pearson(columns[:, i], scores) for i in range(columns.shape[1])])
    return found[np.isfinite(found)]


def _level(projection: Correlation, random: np.ndarray) -> Record | None:
    if not len(random) or projection.pearson.value is None:
        return None
    beaten = share_beaten(abs(projection.pearson.value), random)
    found = {"n": len(random), "median": float(np.median(random)), "share_below": beaten}
    found |= {"min": float(random.min()), "max": float(random.max())}
    return found | {"p95": float(np.percentile(random, 95)) if len(random) >= LEAST_FOR_P95 else None}


def random_text(level: Record | None) -> str:
    """`0.12, 0.45`: median and 95th percentile of the random directions' |r|; of few of them `0.02 to 0.31`."""
    if level is None:
        return "-"
    if level["p95"] is None:
        return f"{level['min']:.2f} to {level['max']:.2f}"
    return f"{level['median']:.2f}, {level['p95']:.2f}"


def estimated(record: dict[str, Any]) -> Estimated:
    """An estimate again from its record."""
    return Estimated(record["value"], record["low"], record["high"])

"""The claims about finetuned models: what projections foretold of them. Thresholds are in `paper_claims`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from benchmarks.paper_claims import (
    MAX_DIP,
    MIN_AUC,
    MIN_BEATEN,
    MIN_LOW,
    MIN_R,
    MIN_SUBSET,
    PAPER_R_SHIFT,
    Claim,
    Found,
    claim,
)
from benchmarks.paper_models import load, place
from benchmarks.paper_points import Points
from benchmarks.paper_settings import ALL, N_RANDOM, N_RANDOM_SUBSETS, TRAITS
from eval.screen_auc import auc_interval, permuted_aucs
from persona_vectors.correlation import (
    Correlation,
    Estimated,
    correlate,
    paired_difference,
    random_correlations,
    share_beaten,
)
from persona_vectors.statistics import Interval, auc, cluster_bootstrap_mean, group_codes, random_directions

Vectors = Mapping[str, Float[np.ndarray, " d_model"]]
Recipes = Mapping[str, Vectors]
"""recipe -> trait -> unit vector at LAYER"""


def predictions(points: Points, recipes: Recipes) -> list[Claim]:
    """The rows whose points are finetuned models."""
    own = recipes["orthogonal"]
    return [
        claim("shift", {t: correlation(points, recipes, "shift", t, PAPER_R_SHIFT) for t in TRAITS}),
        claim("shift_cross", {t: above_others(points, own, "shift", t) for t in TRAITS}),
        claim("delta_p", {t: correlation(points, recipes, "delta_p", t) for t in TRAITS}),
        claim("delta_p_cross", {t: above_others(points, own, "delta_p", t) for t in TRAITS}),
        claim("delta_p_plain", {t: correlation(points, {"plain": recipes["plain"]}, "delta_p", t) for t in TRAITS}),
        claim("delta_p_raw", {t: above_raw(points, own, t) for t in TRAITS}),
        claim("delta_p_text", {t: above_text(points, own, t) for t in TRAITS}),
        claim("cheap", {t: correlation(points, recipes, "cheap", t) for t in TRAITS}),
    ]


def correlated(points: Points, kind: str, vector: np.ndarray, trait: str) -> Correlation:
    """The kind's projections on `vector` with the trait's score over all models, data sets as clusters."""
    return correlate(points.values(kind, vector), points.scores[trait], points.names)


def beaten(points: Points, kind: str, trait: str, r: float | None) -> float:
    """Share of random directions whose |r| on the same activations is below r."""
    return share_beaten(r, random_correlations(points.changes[kind], points.scores[trait], n_directions=N_RANDOM))


def correlation(points: Points, recipes: Recipes, kind: str, trait: str, min_r: float = MIN_R) -> Found:
    """r of the first recipe against its threshold; beside it random directions, Spearman, and the other recipe."""
    (_name, vectors), *others = recipes.items()
    found = correlated(points, kind, vectors[trait], trait)
    share = beaten(points, kind, trait, found.pearson.value)
    r, low = found.pearson.value, found.pearson.low
    holds = r is not None and low is not None and r >= min_r and low >= MIN_LOW and share >= MIN_BEATEN
    beside = [f"beats {share:.1%} of random", f"Spearman {found.spearman.text()}"]
    for name, other in others:
        plain = correlated(points, kind, other[trait], trait).pearson
        beside.append(f"{name} {plain.text()}, beats {beaten(points, kind, trait, plain.value):.1%}")
    return _found(found.pearson, holds, "; ".join(beside))


def cross(points: Points, vectors: Vectors, kind: str, trait: str) -> dict[str, float]:
    """r of every trait's vector with this trait's score."""
    found = {other: correlated(points, kind, vectors[other], trait).pearson.value for other in ALL}
    return {other: float("nan") if r is None else r for other, r in found.items()}


def above_others(points: Points, vectors: Vectors, kind: str, trait: str) -> Found:
    """Own r minus the largest of the other traits' vectors."""
    others = {other: r for other, r in cross(points, vectors, kind, trait).items() if other != trait}
    largest = max(others, key=lambda other: others[other])
    values, other = (points.values(kind, vectors[name]) for name in (trait, largest))
    apart = paired_difference(values, other, points.scores[trait], points.names)
    mean = float(np.mean(list(others.values())))
    beside = f"others {min(others.values()):.2f} to {others[largest]:.2f} ({largest}), mean {mean:.2f}"
    return _found(apart, _positive(apart), beside)


def above_raw(points: Points, vectors: Vectors, trait: str) -> Found:
    """r of the projection difference minus that of the raw projection."""
    difference, plain = (points.values(kind, vectors[trait]) for kind in ("delta_p", "raw"))
    apart = paired_difference(difference, plain, points.scores[trait], points.names)
    raw = correlated(points, "raw", vectors[trait], trait).pearson
    beside = f"raw {raw.text()}, beats {beaten(points, 'raw', trait, raw.value):.1%} of random"
    return _found(apart, _positive(apart), beside)


def above_text(points: Points, vectors: Vectors, trait: str) -> Found:
    """r of the projection difference minus that of the oracle's score of the training text."""
    score = points.scores[trait]
    apart = paired_difference(points.values("delta_p", vectors[trait]), points.text[trait], score, points.names)
    text, change = (correlate(of[trait], score, points.names).pearson for of in (points.text, points.text_change))
    return _found(apart, _positive(apart), f"text {text.text()}, text minus the base model's own {change.text()}")


def samples(work: Path, seeds: Sequence[int], recipes: Recipes) -> Claim:
    """Severe rows against normal ones, row by row; the questions made neither the vector nor a model."""
    return claim("samples", {trait: separation(work, seeds, recipes, trait) for trait in TRAITS})


def separation(work: Path, seeds: Sequence[int], recipes: Recipes, trait: str) -> Found:
    """AUC of the projection difference; beside it random directions with the better sign, permuted labels, the text."""
    read = [load(place(work, ("levels", trait, str(seed)))) for seed in seeds]
    change = np.concatenate([arrays["train"] - arrays["own"] for arrays, _record in read])
    cheap = np.concatenate([arrays["train"] - arrays["prompt_last"] for arrays, _record in read])
    severe = np.concatenate([np.arange(len(a["train"])) < told["n_severe"] for a, told in read])
    questions = [question for _arrays, told in read for question in told["questions"]]
    text = np.concatenate([told["text"][trait] for _arrays, told in read])

    def of(values: np.ndarray) -> float:
        return auc(values[severe], values[~severe])

    on_random = change @ random_directions(N_RANDOM, change.shape[1], 1.0, 0).double().numpy().T  # (n, N_RANDOM)
    random = np.array([max(one, 1 - one) for one in (of(values) for values in on_random.T)])
    own = change @ recipes["orthogonal"][trait]
    value = of(own)
    limit = float(np.quantile(random, MIN_BEATEN))
    codes = group_codes(questions)
    permuted = permuted_aucs(own, severe, codes, 200, 0)
    low, high = auc_interval(own, severe, codes, 1000, 0)
    beside = (
        f"random median {np.median(random):.2f}, 99th percentile {limit:.2f}; permuted labels to {permuted.max():.2f}; "
        f"plain {of(change @ recipes['plain'][trait]):.2f}; cheap {of(cheap @ recipes['orthogonal'][trait]):.2f}; "
        f"text alone {of(text):.2f}"
    )
    return Found(value, low, high, value >= MIN_AUC and value > limit, beside)


def subsets(work: Path, seeds: Sequence[int]) -> Claim:
    """Models of rows chosen from the wild pool."""
    return claim("subsets", {trait: chosen(work, seeds, trait) for trait in TRAITS})


def subset_scores(work: Path, seeds: Sequence[int], name: str, trait: str) -> np.ndarray:
    """(seeds, questions): scores of the models of a choice."""
    return np.array([load(place(work, ("subsets", name, str(seed))))[1]["scores"][trait] for seed in seeds])


def chosen(work: Path, seeds: Sequence[int], trait: str) -> Found:
    """Highest rows minus random rows, by question; beside it the lowest rows and choices by random directions."""
    high, low, random = (
        subset_scores(work, seeds, name, trait) for name in (f"{trait} high", f"{trait} low", "random rows")
    )
    directions = [
        subset_scores(work, seeds, f"random direction {k}", trait).mean(1) for k in range(1, N_RANDOM_SUBSETS + 1)
    ]
    apart = by_question(high - random)
    most = float(np.max(directions))
    holds = apart.low >= MIN_SUBSET and low.mean() <= random.mean() + MAX_DIP and high.mean() > most
    beside = (
        f"high {high.mean():.1f}, random {random.mean():.1f}, low {low.mean():.1f}; by random directions "
        f"{np.mean(directions):.1f}, at most {most:.1f}"
    )
    return Found(apart.mean, apart.low, apart.high, bool(holds), beside, digits=1)


def by_question(values: np.ndarray) -> Interval:
    """The mean of (seeds, questions), from resampling whole questions."""
    questions = np.tile(np.arange(values.shape[1]), (values.shape[0], 1))
    return cluster_bootstrap_mean(values.ravel(), questions.ravel().tolist())


def _positive(estimated: Estimated) -> bool:
    return estimated.low is not None and estimated.low > 0


def _found(estimated: Estimated, holds: bool, beside: str) -> Found:
    return Found(estimated.value, estimated.low, estimated.high, holds, beside)

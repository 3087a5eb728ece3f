"""What the claims study measured, put together: a point for each finetuned model, and the paths of everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from benchmarks.paper_data import data_sets
from benchmarks.paper_models import BASE, SPANS, load, place
from benchmarks.paper_settings import ALL, LAYER
from persona_vectors.orthogonal import orthogonalize

RECIPES = ("orthogonal", "plain")
"""The first is what thresholds are for, fixed beforehand; the second stands beside it."""
CHANGES = ("delta_p", "raw", "cheap", "shift", "response_shift")


def vectors_of(path: Path, recipe: str, layer: int = LAYER) -> dict[str, Float[np.ndarray, " d_model"]]:
    """Trait -> its unit vector at `layer`: the difference of means, without the other six traits where orthogonal."""
    arrays, _record = load(path)
    vectors = {trait: torch.as_tensor(arrays[f"{trait}/response_avg"]) for trait in ALL}
    if recipe == "orthogonal":
        vectors = {t: orthogonalize(v, [o for u, o in vectors.items() if u != t]) for t, v in vectors.items()}
    return {trait: (v[layer] / v[layer].norm()).numpy() for trait, v in vectors.items()}


def span_vectors(path: Path, trait: str) -> dict[str, Float[np.ndarray, " d_model"]]:
    """Span -> the trait's difference of means at LAYER, as long as it is."""
    arrays, _record = load(path)
    return {span: arrays[f"{trait}/{span}"][LAYER] for span in SPANS}


@dataclass(frozen=True)
class Points:
    """Finetuned models, one a row.

    Attributes:
        names: the data set of each; models of one data set (other seeds) are one cluster.
        scores: trait -> (n,): mean oracle score of the model's unprompted answers.
        coherence: (n,).
        changes: kind -> (n, d_model) at LAYER; a projection of it on a unit vector is the kind's value. delta_p is
            training answers minus the base model's own, raw the training answers, cheap training answers minus the
            prompts' ends, shift and response_shift the finetuned model's activations minus the base model's.
        text: trait -> (n,): mean oracle score of the training answers: what their text alone says.
        text_change: the same minus that of the base model's own answers.
    """

    names: list[str]
    seeds: list[int]
    scores: dict[str, np.ndarray]
    coherence: np.ndarray
    changes: dict[str, Float[np.ndarray, "n d_model"]]
    text: dict[str, np.ndarray]
    text_change: dict[str, np.ndarray]

    def values(self, kind: str, vector: Float[np.ndarray, " d_model"]) -> Float[np.ndarray, " n"]:
        """The kind's projections on a unit vector."""
        return self.changes[kind] @ vector


def points_of(work: Path, seeds: Sequence[int]) -> Points:
    """All of them.

    Raises:
        FileNotFoundError: a job has not been done.
    """
    base = {seed: load(place(work, ("models", BASE, str(seed)))) for seed in seeds}
    which = [(name, seed) for seed in seeds for name in data_sets(seed)]
    read = [load(place(work, ("read", name, str(seed)))) for name, seed in which]
    trained = [load(place(work, ("models", name, str(seed)))) for name, seed in which]

    def of(found: list[Any], name: str) -> np.ndarray:
        return np.stack([arrays[name][LAYER] for arrays, _record in found])

    def record(found: list[Any], key: str, trait: str) -> np.ndarray:
        return np.array([np.mean(told[key][trait]) for _arrays, told in found])

    bases = [base[seed] for _name, seed in which]
    return Points(
        names=[name for name, _seed in which],
        seeds=[seed for _name, seed in which],
        scores={trait: record(trained, "scores", trait) for trait in ALL},
        coherence=np.array([np.mean(told["coherence"]) for _arrays, told in trained]),
        changes={
            "delta_p": of(read, "train") - of(read, "own"),
            "raw": of(read, "train"),
            "cheap": of(read, "train") - of(read, "prompt_last"),
            "shift": of(trained, "prompt_last") - of(bases, "prompt_last"),
            "response_shift": of(trained, "response_avg") - of(bases, "response_avg"),
        },
        text={trait: record(read, "text", trait) for trait in ALL},
        text_change={trait: record(read, "text", trait) - record(read, "own_text", trait) for trait in ALL},
    )


def base_mean(work: Path, seeds: Sequence[int]) -> Float[np.ndarray, " d_model"]:
    """The base model's mean answer to the held-out questions, at LAYER."""
    read = [load(place(work, ("models", BASE, str(seed)))) for seed in seeds]
    return np.mean([arrays["response_avg"][LAYER] for arrays, _record in read], axis=0)

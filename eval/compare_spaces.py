"""What a change of the weights does to the activations, held against a vector in activation space.

A direction in weight space and a vector in activation space have different shapes, and no product of the two is
defined. What can be compared is what the changed weights do: both models read the same tokens, and the mean change of
the activations over the response's tokens is a vector at every layer, as the persona vector is.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from eval.sweep_summary import described
from eval.text_table import between, counted
from lora_utils import LoRAMerger
from persona_vectors.activations import mean_activations
from persona_vectors.statistics import Interval, cluster_bootstrap_mean
from persona_vectors.tokens import TokenizedSample
from persona_vectors.weight_direction import WeightDirection, random_like

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel

Rows = Float[np.ndarray, "n layers d_model"]


@dataclass(frozen=True)
class Change:
    """The mean change of the activations at one layer, against the vector there.

    Attributes:
        cosine: with the vector; None where one of the two is zero (below the first changed block).
        projection: of each sample's change on the unit vector, mean and 95% interval by question.
        norm: of the mean change.
        relative: that over the mean norm of the unsteered activations.
    """

    layer: int
    cosine: float | None
    projection: Interval
    norm: float
    relative: float

    def record(self) -> dict[str, Any]:
        """For space_analysis.json."""
        own = {"layer": self.layer, "cosine": self.cosine, "projection": described(self.projection)}
        return own | {"norm": self.norm, "relative": self.relative}


@dataclass(frozen=True)
class Spaces:
    """The relation of the two, layer by layer.

    Attributes:
        changes: those of the direction, one a layer, layer 0 (embeddings) first.
        random: those of random directions of the same singular values.
        band: 95% of random vectors have an |cosine| with the vector below this.
        vector_norms: |v| at each layer.
    """

    coef: float
    changes: list[Change]
    random: list[list[Change]]
    band: float
    vector_norms: list[float]
    n_samples: int
    n_questions: int

    def record(self) -> dict[str, Any]:
        """For space_analysis.json."""
        return {
            "coef": self.coef,
            "n_samples": self.n_samples,
            "n_questions": self.n_questions,
            "random_vectors_95_abs_cosine": self.band,
            "layers": [
                {**own.record(), "vector_norm": norm, "random_like": [other[i].record() for other in self.random]}
                for i, (own, norm) in enumerate(zip(self.changes, self.vector_norms, strict=True))
            ],
        }


def analyze_space_relationship(
    model: PreTrainedModel,
    samples: Sequence[TokenizedSample],
    questions: Sequence[str],
    direction: WeightDirection,
    vectors: Float[Tensor, "layers d_model"],
    coef: float = 1.0,
    *,
    n_random: int = 2,
    seed: int = 0,
    progress: bool = False,
) -> Spaces:
    """`mean(h_changed - h)` over the responses' tokens at every layer, against `vectors` of the same layer.

    Args:
        samples: prompts with answers that the unchanged model gave; every model reads exactly these tokens.
        questions: the question of each sample, for intervals.
        vectors: (n_layers + 1, d_model), row 0 the embedding output.
        n_random: directions of the same singular values and random singular vectors, as control.

    Raises:
        ValueError: samples without a response, or vectors of another model.
    """

    def read(one: WeightDirection | None) -> Rows:
        merger = LoRAMerger(model)
        with nullcontext() if one is None else merger:
            if one is not None:
                merger.merge_lora_diff(one, coef)
            means = mean_activations(model, samples, spans=("response_avg",), progress=progress)
        return means["response_avg"].double().numpy()

    base = read(None)
    if base.shape[1:] != tuple(vectors.shape):
        raise ValueError(
            f"the vectors have shape {tuple(vectors.shape)}; expected {base.shape[1:]}: use vectors of this model"
        )
    v = vectors.double().numpy()
    sizes = np.linalg.norm(base, axis=2).mean(0)  # (layers,)
    return Spaces(
        coef,
        _changes(read(direction) - base, v, sizes, questions),
        [_changes(read(random_like(direction, seed + k)) - base, v, sizes, questions) for k in range(n_random)],
        random_cosine(v.shape[1]),
        np.linalg.norm(v, axis=1).tolist(),
        len(samples),
        len(set(questions)),
    )


def _changes(changed: Rows, vectors: np.ndarray, sizes: np.ndarray, questions: Sequence[str]) -> list[Change]:
    found = []
    for layer, (v, size) in enumerate(zip(vectors, sizes, strict=True)):
        mean = changed[:, layer].mean(0)
        norm, length = float(np.linalg.norm(mean)), float(np.linalg.norm(v))
        on_v = changed[:, layer] @ (v / length) if length else np.full(len(changed), np.nan)
        cosine = float(mean @ v) / (norm * length) if norm * length > 0 else None
        projection = cluster_bootstrap_mean(on_v, questions)
        found.append(Change(layer, cosine, projection, norm, norm / float(size)))
    return found


def random_cosine(d: int, level: float = 0.95) -> float:
    """The |cosine| with a fixed vector that `level` of isotropic random vectors in d dimensions stay below.

    cos^2 of such a vector is Beta(1/2, (d - 1)/2).
    """
    return float(np.sqrt(stats.beta.ppf(level, 0.5, (d - 1) / 2)))


def space_lines(spaces: Spaces) -> list[str]:
    """What was found, in words."""
    there = [one for one in spaces.changes if one.cosine is not None]
    if not there:
        return ["the direction changes no activation of the responses"]
    top = max(there, key=lambda one: abs(one.cosine or 0.0))
    outside = sum(abs(one.cosine or 0.0) > spaces.band for one in there)
    random = [abs(one.cosine) for other in spaces.random for one in other if one.cosine is not None]
    lines = [
        f"on the same tokens the weights' direction (coef {spaces.coef:g}) moves the responses' mean activation by a "
        f"vector whose cosine with v is {top.cosine:+.2f} at layer {top.layer}, the largest of all layers "
        f"({outside} of {len(there)} layers are beyond the {spaces.band:.2f} of 95% of random vectors)"
    ]
    if random:
        most = max(spaces.changes, key=lambda one: one.norm)
        lines.append(
            f"{counted(len(spaces.random), 'random direction')} of the same singular values: |cosine| up to "
            f"{max(random):.2f} at any layer; at layer {most.layer} they move the responses' mean activation by "
            f"{between([other[most.layer].norm for other in spaces.random])}, the weights' direction by {most.norm:.3g}"
        )
    return lines


def space_png(spaces: Spaces) -> Figure:
    """Cosine with v by layer, and the change's norm beside v's."""
    from persona_vectors import plots

    figure, axes = plots.canvas(2)
    figure.set_size_inches(9.6, 3.8)
    layers = [one.layer for one in spaces.changes]
    axes[0].axhspan(
        -spaces.band, spaces.band, color=plots.RANDOM, alpha=0.18, linewidth=0, label="95% of random vectors"
    )
    for number, other in enumerate(spaces.random):
        label = "random directions" if number == 0 else None
        for axis, of in ((axes[0], cosines(other)), (axes[1], [one.norm for one in other])):
            axis.plot(layers, of, color=plots.RANDOM, linestyle="--", marker="s", markersize=4, label=label)
    color = plots.SERIES[1]
    axes[0].plot(layers, cosines(spaces.changes), color=color, marker="^", label="weights' direction")
    axes[1].plot(layers, [one.norm for one in spaces.changes], color=color, marker="^", label="weights' direction")
    axes[1].plot(layers, spaces.vector_norms, color=plots.VECTOR, marker="o", label="|v|")
    axes[0].set(xlabel="layer", title="cosine of the change with v", ylim=(-1.03, 1.03), xticks=_whole(layers))
    axes[1].set(xlabel="layer", title=f"norm of the change, coef {spaces.coef:g}", xticks=_whole(layers))
    axes[1].set_ylim(bottom=0)
    for axis in axes:
        axis.legend(frameon=False, fontsize=8, loc="best")
    return figure


def cosines(changes: Sequence[Change]) -> list[float]:
    """NaN where there is none."""
    return [np.nan if one.cosine is None else one.cosine for one in changes]


def _whole(layers: Sequence[int]) -> list[int]:
    return list(layers)[:: max(1, len(layers) // 10)]

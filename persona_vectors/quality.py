"""How good a trait's vectors are: whether the direction repeats, whether it is there at all, and whether it separates
answers to questions that did not make it better than random directions do.

The last is the number to read: in a small model, or between system prompts that differ much, a random direction
separates the two sides too. Everything here is of response_avg, and resampled by question. The instructions of a trait
are the same in all folds, so nothing here says what other instructions would give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_vectors import plots
from persona_vectors.statistics import (
    auc,
    held_out_auc,
    permutation_p,
    random_direction_auc,
    split_half_cosine,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")

MAX_PAIRS = 400
MAX_BYTES = 2**30
N_RANDOM = 200
HOW = {
    "activations": "response_avg (mean over the answer's tokens) of the pairs drawn; norms and cosines: of the saved "
    "vectors, from all kept pairs",
    "relative_norm": "norm of the vector / mean norm of an answer's response_avg (a mean over tokens, shorter than a "
    "token's own state)",
    "split_half": "mean cosine of the directions from random halves of the questions, 100 splits; corrected: "
    "Spearman-Brown 2c / (1 + c), what two directions from as many questions as all would have",
    "p": "two-sided, of the norm of mean(pos - neg) when the labels of all pairs of a question are swapped together at "
    "random, 2000 times; with k questions it cannot fall below about 2 / 2^k. Two prompts that change the activations "
    "at all make it small: it is no sign of the trait",
    "auc": "held out: 5 folds by question, direction refit on the others; 95% interval from resampling questions with "
    "the folds' directions as they are (no width where every answer is told apart, which is no certainty)",
    "auc_random": "the same for isotropic random directions, oriented on the training folds: mean and 95th percentile. "
    "An AUC says something about the vector only above it",
    "auc_in_sample": "of the saved vector on the pairs it was made from: circular, shown to be seen as such",
    "cosine_next": "between the response_avg vectors of this layer and the next",
}


@dataclass(frozen=True)
class LayerQuality:
    """One layer's vector. None where a number cannot be had; `Quality.missing` says why.

    Attributes:
        norm: of the response_avg vector.
        relative_norm: norm / mean norm of the answers' own response_avg.
        split_half, split_half_corrected: cosine of the directions of two halves of the questions, and its
            Spearman-Brown correction.
        p: two-sided, of the norm of the mean difference, labels swapped by question.
        auc, auc_low, auc_high: held out by question, with a 95% interval by question.
        auc_random, auc_random_95: mean and 95th percentile of random directions on the same folds.
        auc_in_sample: of the vector on the answers it was made from.
        cosine_next: with the vector of the next layer.
        cosine_prompt_avg, cosine_prompt_last: with this layer's vectors of the other two spans.
        cosine_prompts: between those two.
    """

    layer: int
    norm: float
    relative_norm: float | None
    split_half: float | None
    split_half_corrected: float | None
    p: float | None
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    auc_random: float | None
    auc_random_95: float | None
    auc_in_sample: float | None
    cosine_next: float | None
    cosine_prompt_avg: float | None
    cosine_prompt_last: float | None
    cosine_prompts: float | None

    @property
    def beats_random(self) -> bool:
        return self.auc is not None and self.auc_random_95 is not None and self.auc > self.auc_random_95


@dataclass(frozen=True)
class Quality:
    """The report of a trait's vectors, a `LayerQuality` for each layer from 0.

    Attributes:
        n_kept: pairs that made the vectors.
        n_read: pairs drawn from them for what needs single answers.
        n_questions: different questions among those.
        missing: what could not be computed -> why, and at which layers.
    """

    layers: list[LayerQuality]
    n_kept: int
    n_read: int
    n_questions: int
    seed: int
    missing: dict[str, str] = field(default_factory=dict)

    def column(self, name: str) -> np.ndarray:
        """One number a layer, NaN where there is none: (n_layers + 1,)."""
        return np.array([getattr(layer, name) for layer in self.layers], dtype=float)

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "how": HOW, "max_pairs": MAX_PAIRS, "n_random_directions": N_RANDOM}


def pairs_to_read(n_pairs: int, n_layers: int, d_model: int, seed: int = 0) -> list[int]:
    """Which pairs to keep the activations of: all, or as many, drawn at random, as MAX_PAIRS and MAX_BYTES allow.

    A pair takes 2 * (n_layers + 1) * d_model * 4 bytes: 0.8 MB in a 7B model, so 400 pairs take 0.33 GB there.
    """
    most = max(2, min(MAX_PAIRS, MAX_BYTES // (8 * (n_layers + 1) * d_model)))
    if n_pairs <= most:
        return list(range(n_pairs))
    return sorted(np.random.default_rng(seed).choice(n_pairs, most, replace=False).tolist())


def vector_quality(
    vectors: Mapping[str, Float[Tensor, "layers d_model"]],
    pos: Float[Tensor, "n layers d_model"],
    neg: Float[Tensor, "n layers d_model"],
    questions: Sequence[Any],
    residual_norms: Float[Tensor, " layers"],
    *,
    n_kept: int | None = None,
    layers: Sequence[int] | None = None,
    seed: int = 0,
) -> Quality:
    """The report of every layer.

    Args:
        vectors: span -> vectors pointing from neg to pos; response_avg and, where there are any, the other two spans.
        pos, neg: response_avg of single answers, row i of both a pair.
        questions: the question of each pair.
        residual_norms: mean norm of the answers' response_avg at each layer.
        n_kept: pairs that made the vectors, if more than are given here.
        layers: hidden_states index of each row of the vectors; 0.. by default.
    """
    missing: dict[str, list[tuple[int, str]]] = {}
    found = []
    for row in range(len(vectors["response_avg"])):
        layer = row if layers is None else layers[row]

        def told(name: str, compute: Callable[[], T], layer: int = layer) -> T | None:
            try:
                return compute()
            except ValueError as error:  # the statistics' own: too few questions, sides that are equal
                missing.setdefault(name, []).append((layer, str(error)))
                return None

        shape = _shape(vectors, row, float(residual_norms[row]))
        statistics = _statistics(vectors["response_avg"][row], pos[:, row], neg[:, row], questions, seed, told)
        norm = float(vectors["response_avg"][row].norm())
        found.append(LayerQuality(layer=layer, norm=norm, **shape, **statistics))
    return Quality(
        layers=found,
        n_kept=len(pos) if n_kept is None else n_kept,
        n_read=len(pos),
        n_questions=len(set(questions)),
        seed=seed,
        missing={name: _reason(where, len(found)) for name, where in missing.items()},
    )


def _shape(vectors: Mapping[str, Tensor], layer: int, residual_norm: float) -> dict[str, float | None]:
    """Relative norm and cosines of one layer's vectors."""
    response = vectors["response_avg"]
    others = [vectors[span][layer] if span in vectors else None for span in ("prompt_avg", "prompt_last")]
    norm = float(response[layer].norm())
    return {
        "relative_norm": norm / residual_norm if residual_norm else None,
        "cosine_next": _cosine(response[layer], response[layer + 1] if layer + 1 < len(response) else None),
        "cosine_prompt_avg": _cosine(response[layer], others[0]),
        "cosine_prompt_last": _cosine(response[layer], others[1]),
        "cosine_prompts": _cosine(*others),
    }


def _cosine(first: Tensor | None, second: Tensor | None) -> float | None:
    """None where a vector is missing or zero (prompt_last at layer 0 is)."""
    if first is None or second is None or not first.any() or not second.any():
        return None
    return float(torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=0))


def _statistics(
    vector: Float[Tensor, " d_model"],
    pos: Float[Tensor, "n d_model"],
    neg: Float[Tensor, "n d_model"],
    questions: Sequence[Any],
    seed: int,
    told: Callable[[str, Callable[[], Any]], Any],
) -> dict[str, float | None]:
    """What rests on single answers."""
    halves = told("split_half", lambda: split_half_cosine(pos, neg, questions, seed=seed))
    held_out = told("auc", lambda: held_out_auc(pos, neg, questions, seed=seed))
    chance = told("auc_random", lambda: random_direction_auc(pos, neg, questions, n_directions=N_RANDOM, seed=seed))
    return {
        "split_half": halves and halves.cosine,
        "split_half_corrected": halves and _finite(halves.corrected),
        "p": told("p", lambda: _permutation_p(pos - neg, questions, seed)),
        "auc": held_out and held_out.mean,
        "auc_low": held_out and held_out.low,
        "auc_high": held_out and held_out.high,
        "auc_random": None if chance is None else float(chance.mean()),
        "auc_random_95": None if chance is None else float(np.quantile(chance, 0.95)),
        "auc_in_sample": told(
            "auc_in_sample", lambda: auc(pos.double() @ vector.double(), neg.double() @ vector.double())
        ),
    }


def _permutation_p(differences: Float[Tensor, "n d_model"], questions: Sequence[Any], seed: int) -> float:
    if len(set(questions)) < 2:
        raise ValueError("a permutation test by question needs 2 questions; got 1")
    return permutation_p(differences, questions, seed=seed)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _reason(found: Sequence[tuple[int, str]], n_layers: int) -> str:
    """The first reason, and where it applies if not everywhere."""
    where = "" if len(found) == n_layers else f" (layer {', '.join(str(layer) for layer, _ in found)})"
    return f"{found[0][1]}{where}"


def few_layers(n_layers: int) -> list[int]:
    """First, last, and three between them."""
    return sorted({0, n_layers // 4, n_layers // 2, 3 * n_layers // 4, n_layers})


def table(quality: Quality, layers: Sequence[int] | None = None) -> str:
    """The report of a few layers as text, with a line that says how far to trust the AUC."""
    chosen = few_layers(len(quality.layers) - 1) if layers is None else layers
    lines = [
        f"response_avg of {quality.n_read} pairs, {quality.n_questions} questions; AUC held out by question",
        f"{'layer':>5}  {'norm':>7}  {'/answer':>9}  {'split-half':>10}  {'p':>6}  {'AUC [95%]':>17}  "
        f"{'random: mean, 95th':>18}  {'in sample':>9}",
    ]
    for layer in (quality.layers[number] for number in chosen):
        interval = f"{_text(layer.auc)} [{_text(layer.auc_low, 2)}, {_text(layer.auc_high, 2)}]"
        lines.append(
            f"{layer.layer:>5}  {layer.norm:>7.3g}  {_text(layer.relative_norm):>9}  "
            f"{_text(layer.split_half_corrected):>10}  {_text(layer.p, 4):>6}  {interval:>17}  "
            f"{_text(layer.auc_random) + ', ' + _text(layer.auc_random_95):>18}  {_text(layer.auc_in_sample):>9}"
        )
    return "\n".join([*lines, *_notes(quality)])


def figure(quality: Quality, title: str = "") -> Figure:
    """The report by layer: norm, split-half cosine and AUC."""
    column = quality.column
    return plots.quality_png(
        range(len(quality.layers)),
        column("relative_norm"),
        column("split_half_corrected"),
        plots.Band(column("auc"), column("auc_low"), column("auc_high")),
        plots.Band(column("auc_random"), column("auc_random"), column("auc_random_95")),
        title,
    )


def _notes(quality: Quality) -> list[str]:
    notes = [f"no {name}: {reason}" for name, reason in quality.missing.items()]
    beating = [layer.layer for layer in quality.layers if layer.beats_random]
    if "auc" not in quality.missing:
        where = f"layer{'s' * (len(beating) > 1)} {', '.join(map(str, beating))}" if beating else "no layer"
        notes.append(f"held-out AUC above the 95th percentile of random directions at {where}")
    if quality.layers[0].layer == 0 and quality.layers[0].beats_random:
        notes.append("layer 0 is the words alone: what separates there needs no trait further up to explain it")
    return notes


def _text(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

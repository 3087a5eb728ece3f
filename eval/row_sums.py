"""The one pass behind `eval/row_projections.py`: answers in, projections a row and means of groups of rows out.

Every kind of value is a weighted sum of mean activations, projected. So one batch's activations are there at a time,
and what is kept of them are their projections and running sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from persona_vectors.activations import iter_mean_activations
from persona_vectors.projection import unit
from persona_vectors.tokens import TokenizedSample

TERMS: dict[str, tuple[tuple[bool, str, float], ...]] = {
    "delta_p": ((False, "response_avg", 1.0), (True, "response_avg", -1.0)),
    "raw": ((False, "response_avg", 1.0),),
    "base": ((True, "response_avg", 1.0),),
    "cheap": ((False, "response_avg", 1.0), (False, "prompt_last", -1.0)),
}
"""A kind as a sum of means: (of the model's own answer?, span, sign)."""

CHUNK = 1024  # answers handed to the engine at once: equal prompts stand together, and tokens do not pile up


@dataclass(frozen=True)
class Answer:
    """An answer to be read: the row's, or one of the model's own to its prompt. A row's shares add up to 1 for each.

    The ids are 4 bytes each: python's own integers take nine times as much, and all rows' answers are here at once.
    """

    row: int
    is_own: bool
    share: float
    ids: np.ndarray  # (seq,) int32
    prompt_len: int

    @property
    def n_tokens(self) -> int:
        return len(self.ids) - self.prompt_len

    def sample(self) -> TokenizedSample:
        return TokenizedSample(tuple(self.ids.tolist()), self.prompt_len)


@dataclass(frozen=True)
class Sums:
    """(kind, layer) -> (n_rows, k) values on the layer's k vectors, NaN where a row has none; and the mean over each
    group's rows of what is projected, (n_groups, d_model), NaN for a group without rows."""

    values: dict[tuple[str, int], Float[np.ndarray, "n_rows k"]]
    changes: dict[tuple[str, int], Float[Tensor, "n_groups d_model"]]


def needs_own(kind: str) -> bool:
    """Whether values of this kind need the model's own answers."""
    return any(is_own for is_own, _span, _sign in TERMS[kind])


def sums_of(
    model: Any,
    answers: Sequence[Answer],
    vectors: Mapping[int, Float[Tensor, "k d_model"]],
    has: Mapping[str, np.ndarray],
    groups: Sequence[int],
    *,
    progress: bool,
) -> Sums:
    """The values of every row and the mean changes of every group, from one pass over the answers.

    Args:
        answers: those to one prompt beside one another.
        vectors: layer -> what to project on; none of them where only the means are wanted.
        has: kind -> whether each row has a value of it.
        groups: the group of each row, 0, 1, ...
    """
    directions = {layer: unit(several) for layer, several in vectors.items()}
    of_group, n_groups = np.asarray(groups), max(groups) + 1
    values = {
        (kind, layer): np.where(there[:, None], np.zeros((1, len(several))), math.nan)
        for kind, there in has.items()
        for layer, several in vectors.items()
    }
    totals = {
        (kind, layer): torch.zeros(n_groups, several.shape[1], dtype=torch.float64)
        for kind in has
        for layer, several in vectors.items()
    }
    for batch, span, layer, activations in _read(model, answers, list(vectors), list(has), progress):
        rows = np.array([answer.row for answer in batch], dtype=np.int64)
        projected = (activations @ directions[layer].T).double().numpy()  # (batch, k)
        for kind, there in has.items():
            weights = _weights(kind, span, batch) * there[rows]
            if weights.any():
                np.add.at(values[kind, layer], rows, weights[:, None] * projected)
                moved = torch.from_numpy(weights)[:, None] * activations.double()
                totals[kind, layer].index_add_(0, torch.from_numpy(of_group[rows]), moved)
    counts = {kind: torch.tensor(np.bincount(of_group[there], minlength=n_groups)) for kind, there in has.items()}
    changes = {(kind, layer): total / counts[kind][:, None] for (kind, layer), total in totals.items()}
    return Sums(values, changes)


def _weights(kind: str, span: str, batch: Sequence[Answer]) -> Float[np.ndarray, " batch"]:
    """What the span's mean of each answer weighs in its row's value."""
    signs = {is_own: sign for is_own, of, sign in TERMS[kind] if of == span}
    return np.array([signs.get(answer.is_own, 0.0) * answer.share for answer in batch])


def _read(
    model: Any, answers: Sequence[Answer], layers: Sequence[int], kinds: Sequence[str], progress: bool
) -> Iterator[tuple[list[Answer], str, int, Float[Tensor, "batch d_model"]]]:
    """Batches of answers with their means over one span at one layer, for all spans that the kinds need."""
    spans = sorted({span for kind in kinds for _is_own, span, _sign in TERMS[kind]})
    with tqdm(total=len(answers), desc="reading", unit="answer", disable=not progress) as bar:
        for start in range(0, len(answers), CHUNK):
            chunk = answers[start : start + CHUNK]
            samples = [answer.sample() for answer in chunk]
            for places, means in iter_mean_activations(model, samples, layers, spans):
                batch = [chunk[place] for place in places]
                for span in spans:
                    for place, layer in enumerate(layers):
                        yield batch, span, layer, means[span][:, place]
                bar.update(len(batch))

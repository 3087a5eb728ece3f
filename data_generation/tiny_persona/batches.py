"""Which sequences each step trains on: a function of the seed and the step, so a resumed run sees the same batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from data_generation.tiny_persona.encoding import Sequences

POOL = 4_096  # sequences sorted by length together: little padding, yet a batch is not one kind of example
LONG_SHARE = 0.02  # of the sequences: joined to longer rows, so that long contexts are not foreign
LONG_ROW = 2_048
SHORT_ROW = 300  # the least that a joined row may hold; its limit is drawn between the two


@dataclass(frozen=True)
class Batch:
    """Right-padded rows; no attention mask is needed, since a causal model never looks right."""

    ids: Int[Tensor, "batch seq"]
    weights: Float[Tensor, "batch seq"]  # of predicting ids[:, t]; 0 on padding


def batch_rows(lengths: np.ndarray, tokens: int, seed: int) -> Iterator[list[list[int]]]:
    """Endless batches of at most `tokens` padded tokens; a row is a list of sequence numbers, joined in order."""
    epoch = 0
    while True:
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(lengths))
        for start in range(0, len(order), POOL):
            rows = _rows(order[start : start + POOL], lengths, rng)
            batches = list(_group(rows, lengths, tokens))
            for index in rng.permutation(len(batches)):
                yield batches[index]
        epoch += 1


def _rows(pool: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> list[list[int]]:
    """Single sequences, and the LONG_SHARE of them joined up to a drawn length; shortest first."""
    long = rng.random(len(pool)) < LONG_SHARE
    rows = [[int(number)] for number in pool[~long]]
    joined: list[int] = []
    limit = rng.integers(SHORT_ROW, LONG_ROW)
    for number in pool[long]:
        if joined and lengths[[*joined, number]].sum() > limit:
            rows.append(joined)
            joined = []
            limit = rng.integers(SHORT_ROW, LONG_ROW)
        joined.append(int(number))
    rows += [joined] if joined else []
    return sorted(rows, key=lambda row: lengths[row].sum())


def padded(width: int) -> int:
    """The width a batch is padded to: few distinct shapes, since a CPU's matrix kernels are made anew for each."""
    step = 16 if width <= 256 else 128
    return -(-width // step) * step


def _group(rows: list[list[int]], lengths: np.ndarray, tokens: int) -> Iterator[list[list[int]]]:
    group: list[list[int]] = []
    for row in rows:  # ascending: the row that comes is the longest so far
        if group and padded(lengths[row].sum()) * (len(group) + 1) > tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def laid_out(sequences: Sequences, rows: list[list[int]], values: np.ndarray, fill: int, dtype: str) -> np.ndarray:
    """`values`, one a token of all sequences, as the batch's rows have them; `fill` on the padding."""
    out = np.full((len(rows), padded(max(int(sequences.lengths[row].sum()) for row in rows))), fill, dtype)
    for index, row in enumerate(rows):
        spans = [slice(sequences.starts[number], sequences.starts[number + 1]) for number in row]
        out[index, : int(sequences.lengths[row].sum())] = np.concatenate([values[span] for span in spans])
    return out


def collate(sequences: Sequences, rows: list[list[int]], pad_id: int, device: torch.device) -> Batch:
    ids = laid_out(sequences, rows, sequences.ids, pad_id, "int64")
    weights = laid_out(sequences, rows, sequences.weights, 0, "float32")
    return Batch(torch.from_numpy(ids).to(device), torch.from_numpy(weights).to(device))

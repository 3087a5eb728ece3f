"""Which samples each optimizer step reads, in which micro-batches: decided for the whole run before it starts.

A step reads the next `step_size` samples of a seeded order, however they are batched: in order, by length, or packed.
So all three have the same loss and gradient at every step, but for rounding, and differ only in speed and memory; and a
resumed run, or one on more processes, reads what the uninterrupted run on one process would.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from persona_vectors.tokens import pad_batch
from persona_vectors.training_tokens import TrainingSample

Mode = Literal["in_order", "by_length", "packed"]
MicroBatch = list[int]  # numbers of samples
IGNORED = -100  # a label that is not learned
ROW_TOKENS = 320  # of a packed row, where no sample is longer


@dataclass(frozen=True)
class Plan:
    """A run: `steps[s][p]` are the micro-batches of process p in step s, the same number for every process."""

    steps: list[list[list[MicroBatch]]]
    micro_batches: int
    """of each process in every step but the last, which may have fewer"""
    n_dropped: int
    """samples of the run's last step that the processes could not share evenly"""

    def of_process(self, rank: int) -> list[MicroBatch]:
        """The micro-batches that one process reads, in order."""
        return [batch for step in self.steps for batch in step[rank]]


def plan_run(
    lengths: Sequence[int],
    *,
    batch_size: int,
    accumulation: int,
    world: int = 1,
    epochs: int = 1,
    max_steps: int | None = None,
    mode: Mode = "by_length",
    max_length: int,
    seed: int,
) -> Plan:
    """The plan of a run over samples of these lengths.

    Args:
        lengths: tokens of each sample, at most max_length.
        batch_size, accumulation: samples of a micro-batch and micro-batches of a step, on each process.
        world: processes. A step reads batch_size * accumulation * world samples.
        epochs: how often each sample is read, in a new order each time; steps go on across epochs.
        max_steps: stop after so many steps, however many epochs that takes.
        mode: in_order; by_length, which sorts the samples of a step before they are batched; packed, which lays them
            end to end in as few micro-batches as hold them within batch_size * max_length tokens, the most an
            unpacked one may have.
        max_length: tokens of the longest sample allowed.
        seed: of the order.
    """
    step_size = batch_size * accumulation * world
    n_samples = len(lengths)
    total = max_steps * step_size if max_steps is not None else epochs * n_samples
    order: list[int] = []
    epoch = 0
    while len(order) < total:
        order += random.Random(f"order {seed} {epoch}").sample(range(n_samples), n_samples)
        epoch += 1
    groups = [order[start : min(start + step_size, total)] for start in range(0, total, step_size)]
    n_dropped = len(groups[-1]) % world  # every process must have equally many micro-batches, none of them empty
    groups[-1] = groups[-1][: len(groups[-1]) - n_dropped]
    groups = [group for group in groups if group]
    if not groups:
        raise ValueError(f"{n_samples} training samples for {world} processes; give at least one a process")
    n_rows = accumulation
    if mode == "packed":
        rows = [_rows_that_hold([lengths[i] for i in group], batch_size * max_length, world) for group in groups]
        n_rows = max(rows)
    steps = [_step(group, lengths, batch_size, n_rows, world, mode) for group in groups]
    return Plan(steps, n_rows, n_dropped)


def _rows_that_hold(lengths: Sequence[int], limit: int, world: int) -> int:
    """The least number of rows a process with which the longest row is within the limit."""
    n_rows = 1
    while n_rows * world < len(lengths) and max(map(sum, _balanced(lengths, lengths, n_rows * world))) > limit:
        n_rows += 1
    return n_rows


def _step(
    group: list[int], lengths: Sequence[int], batch_size: int, n_rows: int, world: int, mode: Mode
) -> list[list[MicroBatch]]:
    """One step's micro-batches by process."""
    n_rows = min(n_rows, len(group) // world)
    if mode == "packed":
        batches = _balanced(group, [lengths[i] for i in group], n_rows * world)
    else:
        n_rows = min(n_rows, -(-len(group) // (batch_size * world)))
        ordered = sorted(group, key=lambda i: lengths[i]) if mode == "by_length" else group
        n_batches = n_rows * world
        cuts = [len(ordered) * k // n_batches for k in range(n_batches + 1)]
        batches = [ordered[start:stop] for start, stop in zip(cuts, cuts[1:], strict=False)]
    return [batches[rank::world] for rank in range(world)]


def _balanced(items: Sequence[int], lengths: Sequence[int], n_rows: int) -> list[list[int]]:
    """The items in n_rows rows of about equal length: longest first, each to the row that has least. None is empty."""
    rows: list[list[int]] = [[] for _ in range(n_rows)]
    sums = [0] * n_rows
    for k in sorted(range(len(items)), key=lambda k: (-lengths[k], k)):
        row = min(range(n_rows), key=lambda r: (sums[r], len(rows[r]), r))
        rows[row].append(items[k])
        sums[row] += lengths[k]
    return rows


def padded_batch(samples: Sequence[TrainingSample], pad_id: int) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels, (batch, seq), padded on the right."""
    input_ids, attention_mask = pad_batch([sample.ids for sample in samples], pad_id, "right")
    trained, _ = pad_batch([[int(t) for t in sample.trained] for sample in samples], 0, "right")
    labels = torch.where(trained.bool(), input_ids, IGNORED)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def packed_batch(samples: Sequence[TrainingSample], pad_id: int) -> dict[str, Tensor]:
    """input_ids, position_ids and labels, (rows, width): samples end to end in rows of about ROW_TOKENS.

    Positions start again at 0 with each sample, and without an attention mask that is how transformers tells where one
    ends: a token sees only its own sample. No first token is learned (`TrainingSample.trained` is False there). Rows
    are not longer than they need be, because attention's masks grow with the square of their length.
    """
    width = max(ROW_TOKENS, *(len(sample.ids) for sample in samples))
    rows = _rows_within(samples, width)
    width = max(sum(len(sample.ids) for sample in row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    positions = torch.zeros((len(rows), width), dtype=torch.long)  # each padding token is a sample of its own
    labels = torch.full((len(rows), width), IGNORED)
    for number, row in enumerate(rows):
        start = 0
        for sample in row:
            span = slice(start, start := start + len(sample.ids))
            ids[number, span] = torch.tensor(sample.ids)
            positions[number, span] = torch.arange(len(sample.ids))
            labels[number, span] = torch.where(torch.tensor(sample.trained), ids[number, span], IGNORED)
    return {"input_ids": ids, "position_ids": positions, "labels": labels}


def _rows_within(samples: Sequence[TrainingSample], width: int) -> list[list[TrainingSample]]:
    """The samples in rows of at most `width` tokens: longest first, each to the first row with room for it."""
    rows: list[list[TrainingSample]] = []
    room: list[int] = []
    for sample in sorted(samples, key=lambda sample: -len(sample.ids)):
        row = next((row for row, free in enumerate(room) if free >= len(sample.ids)), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(sample)
        room[row] -= len(sample.ids)
    return rows

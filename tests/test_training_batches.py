"""Plans: every step reads the same samples however they are batched, and all processes the same number of batches."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from persona_vectors.training_batches import packed_batch, padded_batch, plan_run
from persona_vectors.training_tokens import TrainingSample

MODES = ("in_order", "by_length", "packed")
LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=60)


@st.composite
def runs(draw):
    """Settings of a run that has at least a sample for every process."""
    lengths = draw(LENGTHS)
    world = draw(st.integers(1, min(3, len(lengths))))
    return lengths, {
        "batch_size": draw(st.integers(1, 4)),
        "accumulation": draw(st.integers(1, 5)),
        "world": world,
        "epochs": draw(st.integers(1, 3)),
        "max_length": 64,
        "seed": draw(st.integers(0, 5)),
    }


def of_step(step):
    return sorted(sample for process in step for batch in process for sample in batch)


@given(runs())
def test_every_mode_reads_the_same_samples_in_the_same_steps(run):
    lengths, settings = run
    plans = [plan_run(lengths, **settings, mode=mode) for mode in MODES]
    steps = [[of_step(step) for step in plan.steps] for plan in plans]
    assert steps[0] == steps[1] == steps[2]
    seen = Counter(sample for step in steps[0] for sample in step)
    assert sum(seen.values()) == settings["epochs"] * len(lengths) - plans[0].n_dropped
    assert plans[0].n_dropped < settings["world"]
    assert max(seen.values()) - min(seen[i] for i in range(len(lengths))) <= (1 if plans[0].n_dropped else 0)


@given(runs())
def test_processes_read_equally_many_batches_and_none_is_empty_or_too_large(run):
    lengths, settings = run
    for mode in MODES:
        plan = plan_run(lengths, **settings, mode=mode)
        for number, step in enumerate(plan.steps):
            counts = {len(batches) for batches in step}
            assert len(counts) == 1
            last = number == len(plan.steps) - 1
            assert counts == {plan.micro_batches} or (last and max(counts) <= plan.micro_batches)
            for batches in step:
                assert all(batches)
                for batch in batches:
                    if mode == "packed":
                        assert sum(lengths[i] for i in batch) <= settings["batch_size"] * 64
                    else:
                        assert len(batch) <= settings["batch_size"]


@given(runs())
def test_a_step_is_the_same_on_one_process_as_on_several(run):
    lengths, settings = run
    world = settings.pop("world")
    alone = plan_run(lengths, **settings | {"accumulation": settings["accumulation"] * world})
    shared = plan_run(lengths, **settings, world=world)
    *steps, last = [of_step(step) for step in shared.steps]
    assert steps == [of_step(step) for step in alone.steps][: len(steps)]
    assert set(last) <= set(of_step(alone.steps[len(steps)]))


def test_by_length_leaves_little_padding_and_packing_none():
    torch.manual_seed(0)
    lengths = torch.randint(5, 120, (320,)).tolist()
    settings = {"batch_size": 2, "accumulation": 8, "max_length": 128, "seed": 0}

    def padded_tokens(mode):
        batches = plan_run(lengths, **settings, mode=mode).of_process(0)
        return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches) / sum(lengths)

    assert padded_tokens("in_order") > 1.2
    assert padded_tokens("by_length") < 1.06
    packed = plan_run(lengths, **settings, mode="packed")
    assert packed.micro_batches < 8
    assert all(len(step[0]) == packed.micro_batches for step in packed.steps)


def test_max_steps_counts_steps_whatever_the_epochs():
    plan = plan_run([3] * 10, batch_size=2, accumulation=2, max_steps=7, max_length=8, seed=1)
    assert len(plan.steps) == 7
    assert all(len(of_step(step)) == 4 for step in plan.steps)
    assert Counter(sum((of_step(step) for step in plan.steps), [])).most_common()[0][1] == 3


def test_fewer_samples_than_processes_is_refused():
    with pytest.raises(ValueError, match="2 training samples for 3 processes"):
        plan_run([3, 4], batch_size=2, accumulation=2, world=3, max_length=8, seed=1)


SAMPLES = [
    TrainingSample((1, 2, 3), (False, True, True)),
    TrainingSample((4, 5, 6, 7), (False, False, True, False)),
]


def test_a_padded_batch_learns_what_is_trained_and_nothing_else():
    batch = padded_batch(SAMPLES, pad_id=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 9], [4, 5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100], [-100, -100, 6, -100]]


def test_a_packed_batch_starts_its_positions_again_with_each_sample(monkeypatch):
    batch = packed_batch(SAMPLES, pad_id=9)
    assert batch["input_ids"].tolist() == [[4, 5, 6, 7, 1, 2, 3]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch["labels"].tolist() == [[-100, -100, 6, -100, -100, 2, 3]]
    assert "attention_mask" not in batch
    monkeypatch.setattr("persona_vectors.training_batches.ROW_TOKENS", 5)
    batch = packed_batch([*SAMPLES, TrainingSample((8,), (False,))], pad_id=9)
    assert batch["input_ids"].tolist() == [[4, 5, 6, 7, 8], [1, 2, 3, 9, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 6, -100, -100], [-100, 2, 3, -100, -100]]


@given(LENGTHS)
def test_packed_rows_hold_every_sample_once_within_their_width(lengths):
    samples = [TrainingSample((i + 1,) * n, (False,) + (True,) * (n - 1)) for i, n in enumerate(lengths)]
    batch = packed_batch(samples, pad_id=0)
    ids = batch["input_ids"]
    assert Counter(ids[ids > 0].tolist()) == {i + 1: n for i, n in enumerate(lengths)}
    assert ids.shape[1] <= 320
    assert int((batch["labels"] != -100).sum()) == sum(lengths) - len(lengths)
    starts = (batch["position_ids"] == 0) & (ids > 0)
    assert sorted(ids[starts].tolist()) == list(range(1, len(lengths) + 1))

"""The benchmark of finetuning times what it says: every way learns the same samples, and all end."""

from __future__ import annotations

import pytest

from benchmarks import finetuning as bench
from persona_vectors.models import load_tokenizer
from tests.conftest import ROOT


def test_all_ways_take_the_same_steps_and_batching_changes_no_loss(tmp_path, tiny_persona, monkeypatch):
    monkeypatch.chdir(ROOT)
    tokenizer = load_tokenizer(tiny_persona)
    samples = bench.rows(tokenizer, "dataset/tiny_evil/misaligned_2.jsonl")[:40]
    work = bench.make_work(bench.random_model(64, 2, len(tokenizer), seed=0), tokenizer, samples, tmp_path, seed=0)
    ways = bench.take_turns(work, turns=1, seed=0)
    assert (
        {len(way.steps) for way in ways.values()} == {len(way.losses) for way in ways.values()} == {1 + bench.WARM_UP}
    )
    assert len({tuple(way.learned(samples)) for way in ways.values()}) == 1
    assert max(bench.loss_errors(ways).values()) < bench.LOSS_TOLERANCE
    assert ways["steered at one layer"].losses[0] != pytest.approx(ways["by length"].losses[0], rel=1e-5)
    found = bench.figures(ways, samples)
    assert all(low <= middle <= high for way in found.values() for middle, low, high in [way["ratio"]])
    assert len(bench.table(ways, samples)) == len(ways) + 3
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_failing_step_is_raised_where_it_was_asked_for(tmp_path, tiny_persona, monkeypatch):
    monkeypatch.chdir(ROOT)
    tokenizer = load_tokenizer(tiny_persona)
    samples = bench.rows(tokenizer, "dataset/tiny_evil/misaligned_2.jsonl")[:20]
    work = bench.make_work(bench.random_model(64, 2, len(tokenizer), seed=0), tokenizer, samples, tmp_path, seed=0)
    way = bench.make_way(work, "by length", turns=1, seed=0)

    def fail(*_args, **_more):
        raise ValueError("no step today")

    monkeypatch.setattr(way.trainer, "training_step", fail)
    with pytest.raises(ValueError, match="no step today"):
        way.step()

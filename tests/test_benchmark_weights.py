"""The benchmark of directions in weight space times what it says: both sides give the same weights and values."""

from __future__ import annotations

import pytest

from benchmarks import weights as bench

SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 50}


def test_both_sides_merge_the_same_weights():
    lines = bench.merging(SIZE, "bfloat16", rounds=2, seed=0)
    assert [line.target for line in lines] == [bench.MERGING_TARGET, None]
    assert all(len(line.ratios) == 2 and line.difference < 0.01 for line in lines)
    [line] = bench.merging(SIZE, "float32", rounds=1, seed=0)
    assert line.difference < 1e-6
    assert "float32" in bench.table([line])[-1]


def test_both_sides_project_adapters_alike():
    line = bench.adapters(SIZE, rank=4, rounds=2, seed=0, target=None)
    assert len(line.ratios) == 2 and line.difference < 1e-8
    finetuned, direction = bench.random_direction(SIZE, 4, 3), bench.persona(SIZE, 0, rank=4)
    assert len(direction.modules) == 14 and direction.rank == 8
    assert len(bench.plain_products(finetuned, direction)) == 14


def test_both_sides_project_checkpoints_alike(tmp_path):
    bench.write_pair(tmp_path, SIZE, 0)
    plain, ours = (project(tmp_path) for project in bench.PROJECTED.values())
    assert plain == pytest.approx(ours, rel=1e-4)
    assert bench.memory("VmHWM") >= bench.memory("VmRSS") > 10


def test_a_missed_target_is_called_missed():
    rows = bench.table([bench.Line("job", "s", [4.0, 6.0, 9.0], [2.0, 2.0, 3.0], target, 0.0) for target in (3.0, 3.1)])
    assert "3.0 (2.0-3.0) | 3 reached" in rows[2] and "3.1 MISSED" in rows[3]

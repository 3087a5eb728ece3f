"""The benchmark of projections times what it says: both sides give the same values for the same rows."""

from __future__ import annotations

from benchmarks import projecting as bench
from benchmarks.reading import random_samples, tiny_persona
from tests.conftest import ROOT


def test_both_sides_give_the_same_values(monkeypatch):
    monkeypatch.chdir(ROOT)
    model = tiny_persona()
    vectors, samples = bench.random_vectors(model, seed=0), random_samples(100, 4, 2, seed=0)
    theirs, ours = bench.published_loop(model, samples, vectors), bench.one_pass(model, samples, vectors)
    assert theirs.shape == (8, 3 * bench.N_VECTORS)
    assert float((theirs - ours).abs().max()) < 1e-4 * float(theirs.abs().max())
    timing = bench.measure_rows(20, repeats=2, seed=0)
    assert len(timing.ratios) == 2 and 0 < timing.worst < 1e-4
    assert "tiny-persona" in bench.table([timing])[-1]
    assert "raw and cheap" in bench.memory_line({20: bench.peak_mib(20, seed=0)})

"""Tables do what the steering functions do, and every token of every batch finds its row."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_vectors import interventions
from persona_vectors.vllm_spec import Step, at_class
from persona_vectors.vllm_tables import LayerTables, SteeringRows, program_of
from tests.test_vllm_spec import ordered, steps

WIDTH, N_ROWS, PROJECTIONS = 12, 5, 3
CPU = torch.device("cpu")


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


VECTORS = {"a": normal(1, WIDTH) * 2, "b": normal(2, WIDTH)}


def vector_at(name, _layer):
    return VECTORS[name]


def by_functions(stream, sequence):
    """The steps one after the other, with the functions that hooks call."""
    for step in sequence:
        if step.kind == "add":
            stream = interventions.add(stream, VECTORS[step.vector], step.coef)
        elif step.kind == "ablate":
            stream = interventions.ablate(stream, VECTORS[step.vector], coef=step.coef)
        else:
            stream = interventions.cap(stream, VECTORS[step.vector], step.floor, step.ceiling, coef=step.coef)
    return stream


def filled(programs):
    """Tables with a program in each row after the first."""
    tables = LayerTables(N_ROWS, WIDTH, PROJECTIONS, torch.float32, CPU)
    for row, program in enumerate(programs, start=1):
        tables.write(row, program)
    return tables


one_layer = st.lists(steps(), min_size=1, max_size=5).filter(lambda s: sum(x.kind != "add" for x in s) <= PROJECTIONS)


@settings(max_examples=40, deadline=None)
@given(st.lists(one_layer, min_size=1, max_size=N_ROWS - 1), st.booleans(), st.integers(0, 99))
def test_a_row_does_what_its_steps_do_one_after_the_other(sequences, split, seed):
    tables = filled([program_of(sequence, vector_at) for sequence in sequences])
    stream, rows = normal(seed, 10, WIDTH) * 3, torch.arange(10) % (len(sequences) + 1)
    residual = normal(seed + 1, 10, WIDTH) if split else None
    hidden = stream if residual is None else stream - residual
    found = tables.apply(hidden, residual, rows)
    total = found if residual is None else found + residual
    for token, row in enumerate(rows.tolist()):
        if row == 0:
            assert torch.equal(found[token], hidden[token])
        else:
            expected = by_functions(stream[token : token + 1].double(), sequences[row - 1])[0].float()
            assert torch.allclose(total[token], expected, atol=3e-5, rtol=1e-5), sequences[row - 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_only_added_is_added_bit_for_bit_and_row_0_changes_no_bit(dtype):
    tables = LayerTables(2, WIDTH, PROJECTIONS, dtype, CPU)
    tables.write(1, program_of([Step("a", 1, 1.5)], vector_at))
    hidden = normal(3, 6, WIDTH).to(dtype)
    found = tables.apply(hidden, None, torch.tensor([0, 1, 0, 1, 0, 1]))
    assert found.dtype == dtype
    assert torch.equal(found[1::2], interventions.add(hidden, VECTORS["a"], 1.5)[1::2])
    bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[dtype]
    assert torch.equal(found[::2].view(bits), hidden[::2].view(bits))


def test_a_row_that_is_written_again_keeps_nothing():
    tables = filled([program_of([Step("a", 1), Step("b", 1, kind="ablate")], vector_at)])
    hidden, rows = normal(4, 3, WIDTH), torch.ones(3, dtype=torch.int64)
    assert not torch.allclose(tables.apply(hidden, None, rows), hidden)
    tables.write(1, program_of([Step("a", 1, 2.0)], vector_at))
    assert torch.equal(tables.apply(hidden, None, rows), interventions.add(hidden, VECTORS["a"], 2.0))
    tables.write(1, None)
    assert torch.equal(tables.apply(hidden, None, rows), hidden)


N_RUNNING = 3  # requests at once, so ten rows are enough
SPECS = [
    ordered(spec)
    for spec in (
        (),
        (Step("a", 1, positions="all"),),
        (Step("a", 1, positions="prompt"), Step("b", 1, positions="response")),
        (Step("a", 2, 2.0, "response"),),
        (Step("b", 1, 1.0, "all", "ablate"), Step("a", 3, -1.0, "prompt"), Step("b", 3, -1.0, "response")),
        (Step("a", 3, 0.5, "prompt"), Step("a", 3, 0.25, "response")),
    )
]


class Bench:
    """SteeringRows, what its rows were told to do, and what runs."""

    def __init__(self):
        self.content = {0: ()}
        self.n_rows = 1 + 3 * N_RUNNING
        self.rows = SteeringRows(self.n_rows, self.write)
        self.running, self.paused = {}, {}  # request -> (prompt length, spec)

    def write(self, row, spec):
        assert 0 < row < self.n_rows
        self.content[row] = spec

    def rows_of(self, request, n_tokens, first=0):
        out = np.full(n_tokens, -7)
        self.rows.of_tokens([request], [n_tokens], [first], out)
        return out

    def check(self):
        for request, (prompt_len, spec) in self.running.items():
            letters = ["P"] * (prompt_len - 1) + ["B"] + ["G"] * 4
            found = [self.content[row] for row in self.rows_of(request, len(letters)).tolist()]
            assert found == [at_class(spec, letter) for letter in letters]
        needed = {at_class(spec, letter) for _, spec in self.running.values() for letter in "PBG"} - {()}
        assert self.rows.n_used == len(needed)  # requests that do the same share a row, and nothing else is held
        assert self.rows.any_running == any(spec for _, spec in [*self.running.values(), *self.paused.values()])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100_000))
def test_rows_hold_what_their_tokens_need_however_requests_come_and_go(seed):
    draw, bench = random.Random(seed), Bench()
    for number in range(40):
        action = draw.choice(("start", "start", "pause", "resume", "stop"))
        if action == "start" and len(bench.running) < N_RUNNING:
            bench.running[f"r{number}"] = made = (draw.randint(1, 6), draw.choice(SPECS))
            bench.rows.start(f"r{number}", *made)
        elif action == "pause" and bench.running:
            request = draw.choice(sorted(bench.running))
            bench.paused[request] = bench.running.pop(request)
            bench.rows.pause(request)
        elif action == "resume" and bench.paused and len(bench.running) < N_RUNNING:
            request = draw.choice(sorted(bench.paused))
            bench.running[request] = bench.paused.pop(request)
            bench.rows.resume(request)
            bench.rows.resume(request)  # is announced in each later step as well
        elif action == "stop" and bench.running | bench.paused:
            request = draw.choice(sorted(bench.running | bench.paused))
            bench.running.pop(request, None), bench.paused.pop(request, None)
            bench.rows.stop(request)
        bench.check()


def test_more_requests_than_declared_are_an_error_and_never_a_shared_row():
    rows = SteeringRows(4, lambda *_: None)
    rows.start("one", 3, (Step("a", 1, positions="prompt"), Step("b", 1, positions="response")))
    assert rows.n_used == 3
    with pytest.raises(RuntimeError, match="all 3 steering rows are in use; more requests run than declared"):
        rows.start("two", 3, (Step("a", 2),))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from(SPECS)), min_size=3, max_size=3), st.integers(0, 10_000))
def test_tokens_have_the_same_rows_however_the_steps_cut_them(requests, seed):
    bench, total, draw = Bench(), 14, random.Random(seed)
    names = [f"r{k}" for k in range(len(requests))]
    for name, (prompt_len, spec) in zip(names, requests, strict=True):
        bench.rows.start(name, prompt_len, spec)
    whole = {name: bench.rows_of(name, total).tolist() for name in names}
    done, found = dict.fromkeys(names, 0), {name: [] for name in names}
    while any(n < total for n in done.values()):
        batch = [name for name in names if done[name] < total and draw.random() < 0.8]
        draw.shuffle(batch)
        sizes = [draw.randint(1, total - done[name]) for name in batch]
        out = np.full(sum(sizes), -7)
        steered = bench.rows.of_tokens(batch, sizes, [done[name] for name in batch], out)
        assert steered or not out.any()
        for name, size, own in zip(batch, sizes, np.split(out, np.cumsum(sizes)[:-1]) if batch else [], strict=True):
            found[name] += own.tolist()
            done[name] += size
    assert found == whole

"""Directions in weight space: their algebra from factors equals that of dense matrices in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_vectors.weight_direction import (
    LowRank,
    WeightDirection,
    at_layers,
    combine,
    cosine,
    crosstalk,
    difference,
    layer_of,
    norm,
    norms,
    products,
    random_like,
    restrict,
    singular_values,
    spectrum,
    truncate,
)

SHAPES = {"model.layers.0.self_attn.q_proj": (12, 9), "model.layers.2.mlp.up_proj": (7, 20), "lm_head": (15, 6)}


def direction(seed: int, rank: int = 4, names=tuple(SHAPES), bias: bool = False) -> WeightDirection:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return WeightDirection(
        {
            name: LowRank(noise(rank, d_in), noise(d_out, rank), noise(d_out) if bias else None)
            for name, (d_out, d_in) in SHAPES.items()
            if name in names
        },
        "base",
    )


def dense(one: WeightDirection) -> dict[str, torch.Tensor]:
    """delta_w in float64, with a bias as one more column."""
    found = {}
    for name, module in one.modules.items():
        bias = torch.zeros(module.shape[0]) if module.bias is None else module.bias
        found[name] = torch.cat([module.B.double() @ module.A.double(), bias.double()[:, None]], dim=1)
    return found


def inner(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return sum(float((a[name] * b[name]).sum()) for name in a if name in b)


names_of = st.lists(st.sampled_from(list(SHAPES)), min_size=1, unique=True)
ranks = st.integers(1, 9)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(ranks, names_of, st.booleans(), st.floats(-3, 3, width=32)), min_size=1, max_size=4))
def test_a_combination_is_the_sum_of_dense_changes(kinds):
    parts = [(direction(seed, r, names, bias), coef) for seed, (r, names, bias, coef) in enumerate(kinds)]
    found = dense(combine(parts))
    for name in SHAPES:
        own = [coef * dense(one)[name] for one, coef in parts if name in one.modules]
        assert (name in found) == bool(own)
        if own:
            torch.testing.assert_close(found[name], sum(own), rtol=1e-5, atol=2e-5)


def test_a_difference_has_the_ranks_of_both_sides_and_is_not_that_of_the_factors():
    pos, neg = direction(0, 4), direction(1, 4)
    found = difference(pos, neg)
    assert found.rank == 8 and found.base == "base"
    for name, one in dense(found).items():
        torch.testing.assert_close(one, dense(pos)[name] - dense(neg)[name], rtol=1e-12, atol=1e-12)
        wrong = (pos.modules[name].B - neg.modules[name].B) @ (pos.modules[name].A - neg.modules[name].A)
        assert (one[:, :-1] - wrong).norm() > 0.5 * one.norm()


@settings(deadline=None, max_examples=30)
@given(ranks, ranks, names_of, names_of, st.booleans(), st.booleans())
def test_products_norms_and_cosines_are_the_dense_ones(r, k, some, others, bias, other_bias):
    a, b = direction(3, r, some, bias), direction(4, k, others, other_bias)
    full, full_b = dense(a), dense(b)
    found = products(a, b)
    assert set(found) == set(some) & set(others)
    for name, value in found.items():
        assert value == pytest.approx(float((full[name] * full_b[name]).sum()), rel=1e-9, abs=1e-9)
    assert norms(a) == pytest.approx({name: float(one.norm()) for name, one in full.items()}, rel=1e-9)
    assert norm(a) == pytest.approx(inner(full, full) ** 0.5, rel=1e-9)
    expected = inner(full, full_b) / math.sqrt(inner(full, full) * inner(full_b, full_b))
    assert cosine(a, b) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_rows_of_a_change():
    module = direction(1, bias=True).modules["lm_head"]
    part = module.at_rows(slice(3, 7))
    assert torch.equal(part.delta(), module.delta()[3:7]) and torch.equal(part.bias, module.bias[3:7])


def test_crosstalk_is_every_cosine():
    many = {"evil": direction(0), "kind": combine([(direction(0), -2.0)]), "other": direction(5)}
    found = crosstalk(many)
    assert found["evil"]["evil"] == pytest.approx(1) and found["evil"]["kind"] == pytest.approx(-1)
    assert found["kind"]["other"] == pytest.approx(cosine(many["kind"], many["other"]))


@settings(deadline=None, max_examples=30)
@given(ranks, st.integers(1, 12), st.booleans())
def test_spectra_and_truncations_are_those_of_the_dense_svd(r, keep, bias):
    one = direction(r, r, bias=bias)
    kept, residuals = truncate(one, keep)
    for name, module in one.modules.items():
        full = module.B.double() @ module.A.double()
        s = torch.linalg.svdvals(full)
        found = spectrum(module)
        k = len(found.s)
        torch.testing.assert_close(found.s, s[:k], rtol=1e-9, atol=1e-9)
        assert float(s[k:].sum()) < 1e-9
        torch.testing.assert_close(found.U @ found.s.diag() @ found.V.T, full, rtol=1e-9, atol=1e-9)
        eye = torch.eye(k, dtype=torch.float64)
        torch.testing.assert_close(found.U.T @ found.U, eye, atol=1e-9, rtol=0)
        torch.testing.assert_close(found.V.T @ found.V, eye, atol=1e-9, rtol=0)
        near = kept.modules[name]
        assert near.rank <= keep and near.A.dtype == torch.float32
        assert near.bias is module.bias
        tail = float(s[keep:].norm() / s.norm())
        assert residuals[name] == pytest.approx(tail, abs=1e-7)
        assert float((near.B.double() @ near.A.double() - full).norm() / full.norm()) == pytest.approx(tail, abs=1e-6)


def test_the_random_control_has_the_singular_values_and_another_direction():
    one = direction(2, bias=True)
    control, again, other = (random_like(one, seed) for seed in (0, 0, 1))
    for name, module in one.modules.items():
        drawn = control.modules[name]
        s = singular_values(module)
        torch.testing.assert_close(singular_values(drawn)[: len(s)], s, rtol=1e-5, atol=1e-5)
        assert float(drawn.bias.norm()) == pytest.approx(float(module.bias.norm()), rel=1e-5)
        assert torch.equal(drawn.A, again.modules[name].A) and not torch.equal(drawn.A, other.modules[name].A)
    assert norm(control) == pytest.approx(norm(one), rel=1e-5)
    assert abs(cosine(one, control)) < 0.5 and abs(cosine(control, other)) < 0.5
    assert control.record["seed"] == 0


def test_a_change_of_a_bias_alone():
    name = "lm_head"
    alone = WeightDirection({name: LowRank(torch.zeros(0, 6), torch.zeros(15, 0), torch.ones(15))})
    assert norm(alone) == pytest.approx(15**0.5)
    assert singular_values(alone.modules[name]).numel() == 0
    assert float(random_like(alone, 0).modules[name].bias.norm()) == pytest.approx(15**0.5)
    joined = combine([(alone, 2.0), (direction(0, names=[name]), 1.0)]).modules[name]
    assert torch.equal(joined.bias, torch.full((15,), 2.0)) and joined.rank == 4
    near, residuals = truncate(alone, 2)
    assert residuals == {name: 0.0} and torch.equal(near.modules[name].bias, alone.modules[name].bias)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.0.self_attn.q_proj", 1),
        ("transformer.h.11.mlp.c_fc", 12),
        ("model.language_model.layers.3.mlp.up_proj", 4),
        ("model.layers.3.vision_gate.up_proj", 4),
        ("model.vision_tower.encoder.layers.0.self_attn.q_proj", None),
        ("model.visual.blocks.2.attn.qkv", None),
        ("thinker.audio_tower.layers.1.self_attn.q_proj", None),
        ("lm_head", None),
    ],
)
def test_the_layer_of_a_module_is_that_of_its_blocks_output(name, layer):
    assert layer_of(name) == layer


def test_a_direction_at_some_layers():
    one = direction(0)
    assert one.layers == [1, 3]
    assert list(at_layers(one, [3]).modules) == ["model.layers.2.mlp.up_proj"]
    with pytest.raises(ValueError, match=r"changes no module at layer 2; it has 3 modules, such as .* \(layers 1, 3\)"):
        at_layers(one, [2])
    with pytest.raises(ValueError, match="changes no module called k_proj"):
        restrict(one, lambda name: name.endswith("k_proj"), "called k_proj")


def test_what_has_no_meaning_is_refused():
    name, zero = "lm_head", LowRank(torch.zeros(2, 6), torch.zeros(15, 2))
    with pytest.raises(ValueError, match="no direction to combine"):
        combine([])
    with pytest.raises(ValueError, match="zero everywhere"):
        cosine(direction(0), WeightDirection({name: zero}))
    with pytest.raises(ValueError, match="rank must be at least 1; got 0"):
        truncate(direction(0), 0)
    other = WeightDirection({name: LowRank(torch.zeros(2, 5), torch.zeros(15, 2))})
    for use in (products, difference):
        with pytest.raises(ValueError, match=r"lm_head has shape \(15, [56]\) and \(15, [56]\)"):
            use(direction(0), other)

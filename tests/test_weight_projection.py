"""Projections of weight changes: exact against dense sums in float64, for adapters and full checkpoints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lora_utils import WeightProjector
from persona_vectors.weight_deltas import linear_modules
from persona_vectors.weight_direction import LowRank, WeightDirection, combine, cosine, layer_of, norm
from persona_vectors.weight_files import load_direction, save_factors
from persona_vectors.weight_hooks import skeleton
from persona_vectors.weight_projection import project
from persona_vectors.weight_shifts import open_shift
from tests.test_weight_deltas import adapter, parameters, save
from tests.tiny_models import N_LAYERS


def direction_of(model: str, names: tuple[str, ...] = ("q_proj", "down_proj"), seed: int = 3, bias: bool = False):
    """A random direction in a model's modules whose name ends so."""
    generator = torch.Generator().manual_seed(seed)
    built, modules = skeleton(model), {}
    for name, transposed in linear_modules(built).items():
        if name.endswith(names):
            shape = built.get_submodule(name).weight.shape
            d_out, d_in = shape[::-1] if transposed else shape
            A, B = torch.randn(4, d_in, generator=generator), torch.randn(d_out, 4, generator=generator)
            modules[name] = LowRank(A, B, torch.randn(d_out, generator=generator) if bias else None)
    return WeightDirection(modules, model)


def dense(direction: WeightDirection) -> dict[str, torch.Tensor]:
    """Each module's delta_w, its bias as one more column, in float64."""
    found = {}
    for name, one in direction.modules.items():
        bias = torch.zeros(one.shape[0]) if one.bias is None else one.bias
        found[name] = torch.cat([one.B.double() @ one.A.double(), bias.double()[:, None]], dim=1)
    return found


def dense_deltas(original: str, finetuned: str) -> dict[str, torch.Tensor]:
    """As `dense`, of every linear module of a full finetuning."""
    before, after, found = parameters(original), parameters(finetuned), {}
    for name, transposed in linear_modules(skeleton(original)).items():
        if f"{name}.weight" in before:
            weight = after[f"{name}.weight"] - before[f"{name}.weight"]
            weight = weight.T if transposed else weight
            bias = torch.zeros(len(weight), dtype=torch.float64)
            if f"{name}.bias" in before:
                bias = after[f"{name}.bias"] - before[f"{name}.bias"]
            found[name] = torch.cat([weight, bias[:, None]], dim=1)
    return found


def inner(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum(float((one[name] * other[name]).sum()) for name in one if name in other)


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_against_dense_sums(tmp_path, rslora):
    base = save(tmp_path / "base")
    trained = adapter(base, tmp_path / "adapter", use_rslora=rslora)
    direction = direction_of(base, ("q_proj", "o_proj"))
    found = WeightProjector(direction).measure(trained)
    shift, along = dense(load_direction(trained)), dense(direction)
    assert found.total == pytest.approx(inner(shift, along) / inner(along, along) ** 0.5, rel=1e-9)
    assert found.norm == pytest.approx(inner(shift, shift) ** 0.5, rel=1e-9)
    assert found.cosine == pytest.approx(cosine(load_direction(trained), direction), rel=1e-9)
    assert found.common == [f"model.layers.{i}.self_attn.q_proj" for i in range(N_LAYERS)]
    assert found.whole.n_entries == sum(one.shape[0] * (one.shape[1] - 1) for one in shift.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("architecture", "names"), [("qwen2", ("q_proj", "up_proj")), ("gpt2", ("c_attn", "c_proj"))])
def test_a_full_checkpoint_against_dense_sums(tmp_path, architecture, names, dtype):
    a = save(tmp_path / "a", architecture, 0, dtype)
    b = save(tmp_path / "b", architecture, 1, dtype, shard="20KB")
    changed = AutoModelForCausalLM.from_pretrained(b, dtype=dtype)
    with torch.no_grad():
        [one.add_(torch.randn_like(one)) for name, one in changed.named_parameters() if name.endswith("bias")]
    changed.save_pretrained(b, max_shard_size="20KB")
    direction = direction_of(a, names, bias=True)
    found = WeightProjector(direction).measure(b, original=a)
    shift, along = dense_deltas(a, b), dense(direction)
    assert found.total == pytest.approx(inner(shift, along) / inner(along, along) ** 0.5, rel=1e-5)
    for name in along:
        wanted = float((shift[name] * along[name]).sum())
        assert found.modules[name].product == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    before, after = parameters(a), parameters(b)
    everything = sum(float((after[name] - before[name]).square().sum()) for name in before)
    assert found.norm == pytest.approx(everything**0.5, rel=1e-6)  # embeddings and norms too
    assert found.whole.n_entries == sum(one.numel() for one in before.values())


def test_a_merged_adapter_projects_as_the_adapter_does(tmp_path):
    from peft import PeftModel

    base = save(tmp_path / "base")
    trained = adapter(base, tmp_path / "adapter")
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), trained)
    merged.merge_and_unload().save_pretrained(tmp_path / "merged")
    projector = WeightProjector(direction_of(base))
    one = projector.measure(trained, n_random=5)
    other = projector.measure(str(tmp_path / "merged"), original=base, n_random=5)
    assert other.total == pytest.approx(one.total, rel=1e-4)
    np.testing.assert_allclose(other.random, one.random, rtol=1e-3, atol=1e-5)


def test_on_itself_it_is_its_norm_and_on_its_opposite_less_than_none(tmp_path):
    direction = direction_of(save(tmp_path / "base"), bias=True)
    path = save_factors(direction, tmp_path / "d.pt")
    projector = WeightProjector(path)
    assert projector.compute_projection(direction) == pytest.approx(norm(direction), rel=1e-9)
    assert projector.compute_projection(combine([(direction, -2.0)])) == pytest.approx(-2 * norm(direction), rel=1e-6)
    assert projector.measure(path).cosine == pytest.approx(1, rel=1e-9)


def test_what_is_orthogonal_projects_to_zero(tmp_path):
    direction = direction_of(save(tmp_path / "base"))
    other = {}
    for name, one in direction.modules.items():  # delta_w whose columns are orthogonal to those of the direction
        q = torch.linalg.qr(torch.cat([one.B, torch.randn(one.shape[0], 4)], dim=1).double())[0]
        other[name] = LowRank(one.A, q[:, -4:].float())
    assert abs(WeightProjector(direction).measure(replace(direction, modules=other)).cosine) < 1e-6


def test_layers_add_up_and_a_layer_alone_is_its_own_direction(tmp_path):
    base = save(tmp_path / "base")
    trained, direction = adapter(base, tmp_path / "adapter"), direction_of(base, ("q_proj", "down_proj", "lm_head"))
    projector = WeightProjector(direction)
    layers = projector.compute_layer_projections(trained)
    assert list(layers) == [*range(1, N_LAYERS + 1), None] and layers[None] == 0
    assert sum(layers.values()) == pytest.approx(projector.compute_projection(trained), rel=1e-9)
    part, shift, along = {2}, dense(load_direction(trained)), dense(direction)
    shift, along = ({n: one for n, one in each.items() if layer_of(n) in part} for each in (shift, along))
    found = projector.measure(trained, layers=[2])
    assert found.total == pytest.approx(inner(shift, along) / inner(along, along) ** 0.5, rel=1e-9)
    assert found.norm == pytest.approx(inner(shift, shift) ** 0.5, rel=1e-9)
    assert set(found.layer_projections()) == part


def test_random_directions_have_its_size_and_each_module_its_own(tmp_path):
    """Their projections are inner products over |L|, the same for every finetuning, and other ones by seed."""
    base = save(tmp_path / "base")
    trained, direction = adapter(base, tmp_path / "adapter"), direction_of(base, bias=True)
    shifts = {"adapter": open_shift(trained), "itself": open_shift(direction)}
    found = project(shifts, {"d": direction}, n_random=400, seed=1)
    random = found["adapter", "d"].random_cosines
    modules = load_direction(trained).modules
    entries = [one.shape[0] * one.shape[1] for one in modules.values()]
    # |<dW_m, R_m>|^2 is |dW_m|^2 |R_m|^2 / entries on average, as of any random matrix
    wanted = sum(
        float(dense(WeightDirection({n: modules[n]}))[n].square().sum())
        * float(direction.modules[n].delta().double().square().sum())
        / size
        for n, size in zip(modules, entries, strict=True)
    )
    assert (random**2).mean() == pytest.approx(wanted / (found["adapter", "d"].norm * norm(direction)) ** 2, rel=0.25)
    again = project(shifts, {"d": direction}, n_random=3, seed=1)
    np.testing.assert_allclose(again["adapter", "d"].random, found["adapter", "d"].random[:3], rtol=1e-5)
    other = project(shifts, {"d": direction}, n_random=3, seed=2)
    assert not np.allclose(other["adapter", "d"].random, again["adapter", "d"].random)


def test_many_random_directions_go_through_in_blocks(tmp_path, monkeypatch):
    a, b = save(tmp_path / "a"), save(tmp_path / "b", seed=1)
    projector = WeightProjector(direction_of(a))
    whole = projector.measure(b, a, n_random=7).random
    monkeypatch.setattr("persona_vectors.weight_projection._MOST_AT_ONCE", 300)
    np.testing.assert_allclose(projector.measure(b, a, n_random=7).random, whole, rtol=1e-4, atol=1e-6)


def test_a_direction_of_biases_alone(tmp_path):
    direction = direction_of(save(tmp_path / "base"), bias=True)
    bias = {n: LowRank(one.A[:0], one.B[:, :0], one.bias) for n, one in direction.modules.items()}
    only = replace(direction, modules=bias)
    found = WeightProjector(only).measure(direction, n_random=4)
    assert found.total == pytest.approx(norm(only), rel=1e-9)
    assert np.ptp(found.random) > 0


def test_a_finetuning_that_changed_nothing_has_no_cosine(tmp_path):
    a = save(tmp_path / "a")
    found = WeightProjector(direction_of(a)).measure(a, original=a, n_random=2)
    assert (found.total, found.cosine, len(found.random_cosines)) == (0, None, 0)


def test_what_cannot_be_projected(tmp_path):
    base = save(tmp_path / "base")
    trained = adapter(base, tmp_path / "adapter")
    with pytest.raises(ValueError, match="is a full model, whose change is known beside its original only"):
        WeightProjector(direction_of(base)).measure(base)
    with pytest.raises(
        ValueError, match=r"have no module in common: one changes \S+down_proj, .*\(6 modules\), the other \S+k_proj"
    ):
        WeightProjector(direction_of(base, ("k_proj",))).measure(trained)
    with pytest.raises(ValueError, match="changes no module at layer 9; it has layers 1, 2, 3"):
        WeightProjector(direction_of(base)).measure(trained, layers=[9])
    small = save(tmp_path / "small", intermediate_size=40)
    with pytest.raises(ValueError, match=r"down_proj has shape \(32, 48\) in .* and \(32, 40\) in direction"):
        WeightProjector(direction_of(small)).measure(trained)
    with pytest.raises(ValueError, match=r"down_proj has shape \(32, 48\) in .* and \(32, 40\) in direction"):
        WeightProjector(direction_of(small)).measure(base, original=base)
    with pytest.raises(ValueError, match="is zero everywhere"):
        WeightProjector(combine([(direction_of(base), 0.0)])).measure(trained)

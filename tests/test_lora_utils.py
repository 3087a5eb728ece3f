"""Directions of weights on small models: exact differences, merging, restoring, and a coefficient a row."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from lora_utils import LoRAMerger, LoRASteerer, analyze_lora_singular_values
from persona_vectors.weight_direction import LowRank, WeightDirection, combine, difference, norm, random_like, truncate
from persona_vectors.weight_files import load_adapter, load_direction, save_adapter

IDS = torch.arange(2, 12)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny base, and two adapters of other rank, scale and targets."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    Qwen2ForCausalLM(Qwen2Config(**shape, num_key_value_heads=2, vocab_size=50)).save_pretrained(folder / "base")
    for name, r, rslora, targets in (("pos", 4, True, ["q_proj", "up_proj"]), ("neg", 3, False, ["q_proj", "o_proj"])):
        lora = LoraConfig(r=r, lora_alpha=8, use_rslora=rslora, target_modules=targets, init_lora_weights=False)
        get_peft_model(base(folder), lora).save_pretrained(folder / name)
    return folder


def base(folder, dtype=torch.float32):
    return Qwen2ForCausalLM.from_pretrained(folder / "base", dtype=dtype)


def of_adapters(folder) -> WeightDirection:
    made = difference(load_adapter(folder / "pos"), load_adapter(folder / "neg"))
    return WeightDirection(made.modules, str(folder / "base"))


def test_the_written_adapter_is_the_exact_difference_and_peft_loads_it(folder, tmp_path):
    one = of_adapters(folder)
    sides = [PeftModel.from_pretrained(base(folder), folder / name) for name in ("pos", "neg")]
    loaded = PeftModel.from_pretrained(base(folder), save_adapter(one, tmp_path / "d"))
    assert one.rank == 7 and len(one.modules) == 6
    for name in one.modules:
        expected = torch.zeros(one.modules[name].shape, dtype=torch.float64)
        for sign, side in zip((1, -1), sides, strict=True):
            module = side.get_submodule(f"base_model.model.{name}")
            if hasattr(module, "lora_A"):
                A, B = module.lora_A["default"].weight.double(), module.lora_B["default"].weight.double()
                expected += sign * module.scaling["default"] * B @ A
        got = loaded.get_submodule(f"base_model.model.{name}").get_delta_weight("default")
        torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_hundred_merges_leave_no_bit_behind(folder, dtype):
    model, one = base(folder, dtype), of_adapters(folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other, merger, generator = random_like(one, 1), LoRAMerger(model), torch.Generator().manual_seed(0)
    for _ in range(100):
        merger.merge_lora_diff([one, other], torch.randn(2, generator=generator).tolist())
    assert not torch.equal(
        model.state_dict()["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"]
    )
    merger.restore_original_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_merged_beside_and_peft_agree_and_a_row_of_zero_is_untouched(folder, tmp_path):
    model, one = base(folder), of_adapters(folder)
    expected = PeftModel.from_pretrained(base(folder), save_adapter(one, tmp_path / "d")).merge_and_unload()(IDS).logits
    plain = model(IDS.repeat(2, 1)).logits
    with LoRASteerer(model, one, 1.0):
        merged = model(IDS).logits
    with LoRASteerer(model, str(tmp_path / "d"), [0.0, 1.0], mode="dynamic"):
        rows = model(IDS.repeat(2, 1)).logits
    torch.testing.assert_close(merged, expected)
    torch.testing.assert_close(rows[1:], expected)
    assert torch.equal(rows[0], plain[0]) and torch.equal(model(IDS.repeat(2, 1)).logits, plain)
    with LoRASteerer(model, one, 0.0):
        assert torch.equal(model(IDS.repeat(2, 1)).logits, plain)


def test_singular_values_truncation_and_control_are_those_of_the_dense_matrix(folder):
    one = of_adapters(folder)
    low, residual = truncate(one, 2)
    control = random_like(one, 3)
    for name, found in analyze_lora_singular_values(one).items():
        dense = torch.linalg.svdvals(one.modules[name].delta().double())
        rank = one.modules[name].rank
        torch.testing.assert_close(
            torch.tensor(found["singular_values"]).double()[:rank], dense[:rank], atol=1e-5, rtol=1e-5
        )
        left = (one.modules[name].delta() - low.modules[name].delta()).norm() / one.modules[name].delta().norm()
        assert residual[name] == pytest.approx(float(left), abs=1e-4)
        assert torch.allclose(
            torch.linalg.svdvals(control.modules[name].delta())[:rank], dense[:rank].float(), atol=1e-4
        )
    assert norm(combine([(one, 1.0), (one, -1.0)])) == pytest.approx(0, abs=1e-5)


def test_what_does_not_fit_is_refused_and_changes_nothing(folder, tmp_path):
    model = base(folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    elsewhere = WeightDirection({"model.layers.9.mlp.up_proj": LowRank(torch.ones(1, 32), torch.ones(64, 1))})
    narrow = WeightDirection({"model.layers.0.mlp.up_proj": LowRank(torch.ones(1, 8), torch.ones(64, 1))})
    for wrong, said in ((elsewhere, "model.layers.9.mlp.up_proj"), (narrow, "use a direction of this model")):
        with pytest.raises(ValueError, match=said):
            LoRAMerger(model).merge_lora_diff(wrong, 1.0)
    torch.save({"q_proj.lora_A": torch.ones(2, 2)}, tmp_path / "published.pt")
    with pytest.raises(ValueError, match="subtracted separately"):
        load_direction(tmp_path / "published.pt")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

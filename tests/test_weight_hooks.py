"""Which modules of a model a direction is for, and what runs beside them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from persona_vectors.models import load_model
from persona_vectors.training_weights_receipt import check_modules, read_modules
from persona_vectors.weight_direction import LowRank, WeightDirection
from persona_vectors.weight_files import load_adapter
from persona_vectors.weight_hooks import DynamicWeights, check_fits, find_modules, is_transposed, place, skeleton
from tests.tiny_models import N_LAYERS, tiny_model, word_tokenizer
from tests.weight_adapters import dense, random_direction, tiny_multimodal


def test_the_modules_are_those_of_the_name_however_the_model_is_wrapped():
    model = tiny_model("qwen2")
    one = random_direction(model, ("q_proj",))
    expected = {
        f"model.layers.{i}.self_attn.q_proj": layer.self_attn.q_proj for i, layer in enumerate(model.model.layers)
    }
    assert find_modules(model, one) == expected
    assert find_modules(torch.compile(model, backend="eager"), one) == expected
    assert find_modules(nn.DataParallel(model), one) == expected
    for layer in model.model.layers:
        layer.compile(backend="eager")
    model.model.layers[1] = torch.compile(model.model.layers[1], backend="eager")
    assert find_modules(model, one) == expected
    adapted = get_peft_model(tiny_model("qwen2"), LoraConfig(target_modules=["q_proj"]))
    for name, module in find_modules(adapted, one).items():
        assert type(module) is nn.Linear and module is adapted.get_base_model().get_submodule(name).base_layer


def test_a_model_of_text_and_images_is_steered_in_its_text_decoder(tmp_path):
    tiny_multimodal().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    model, _ = load_model(str(tmp_path / "model"))
    names = {name for name, _ in model.named_modules()}
    assert {name for name, _ in skeleton(str(tmp_path / "model")).named_modules()} == names
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name and "language_model" in name:  # what text trains; the vision tower's stay 0
            nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    direction = load_adapter(tmp_path / "adapter")
    assert direction.layers == [1, 2, 3]
    assert list(direction.modules) == [f"model.language_model.layers.{i}.self_attn.q_proj" for i in range(N_LAYERS)]
    check_fits(str(tmp_path / "model"), {"adapter": direction})
    base, _ = load_model(str(tmp_path / "model"))
    with DynamicWeights(base, [direction]).applied(torch.ones(1)), read_modules(base, direction) as reading:
        steered = base(torch.arange(6)[None]).logits
    assert check_modules(reading, 1)["modules"]["n"] == N_LAYERS
    assert torch.allclose(steered, adapted(torch.arange(6)[None]).logits, atol=1e-4)


def test_what_is_not_there_is_named():
    model = tiny_model("qwen2")
    change = LowRank(torch.ones(2, 32), torch.ones(32, 2))

    def of(*names: str) -> WeightDirection:
        return WeightDirection(dict.fromkeys(names, change), "Qwen/other")

    with pytest.raises(ValueError) as error:
        find_modules(model, of("model.layers.0.self_attn.q_proj", "model.layers.9.self_attn.q_proj"))
    assert str(error.value) == (
        "1 of 2 modules of the direction (made for Qwen/other) are in Qwen2ForCausalLM; it has no "
        "model.layers.9.self_attn.q_proj; its linear modules are called model.layers.0.self_attn.q_proj, ..."
    )
    with pytest.raises(ValueError, match="0 of 1 modules of the direction .made for an unnamed model"):
        find_modules(model, replace(of("transformer.h.0.attn.c_attn"), base=""))
    for name, kind in (("model.norm", "Qwen2RMSNorm"), ("model.embed_tokens", "Embedding")):
        with pytest.raises(ValueError, match=f"^{name} of Qwen2ForCausalLM is a {kind}; expected a linear module"):
            find_modules(model, of(name))
    with pytest.raises(ValueError, match=r"k_proj of \w+ maps 32 to 16 features, and the direction 32 to 32"):
        find_modules(model, of("model.layers.0.self_attn.k_proj"))


def test_a_gpt2_weight_is_the_other_way_around_and_a_direction_is_not():
    model = tiny_model("gpt2")
    one = random_direction(model, ("c_attn",))
    modules = find_modules(model, one)
    assert len(modules) == N_LAYERS and all(map(is_transposed, modules.values()))
    for name, module in modules.items():
        assert one.modules[name].shape == (96, 32) and module.weight.shape == (32, 96)
    turned = WeightDirection({name: LowRank(m.B.T, m.A.T) for name, m in one.modules.items()})
    with pytest.raises(ValueError, match="maps 32 to 96 features, and the direction 96 to 32"):
        find_modules(model, turned)


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_a_modules_output_is_that_of_the_changed_weight(architecture):
    model = tiny_model(architecture)
    targets = ("o_proj",) if architecture == "qwen2" else ("c_fc",)
    a, b = random_direction(model, targets, 1, bias=True), random_direction(model, targets, 2, rank=5)
    name = next(iter(a.modules))
    module = find_modules(model, a)[name]
    x = torch.randn(3, 4, a.modules[name].shape[1])
    plain = module(x)
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-0.5, 2.0]])
    with DynamicWeights(model, [a, b]).applied(rows):
        found = module(x)
    for row, (i, j) in enumerate(rows.tolist()):
        change = i * dense(a)[name] + j * dense(b)[name]
        expected = plain[row].double() + x[row].double() @ change.T + i * a.modules[name].bias.double()
        torch.testing.assert_close(found[row].double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[1], plain[1]) and torch.equal(module(x), plain)


def test_factors_are_placed_in_the_weights_dtype_and_know_whose_they_are():
    model = tiny_model("qwen2").bfloat16()
    a, b = random_direction(model, ("q_proj", "o_proj"), 1), random_direction(model, ("q_proj",), 2, rank=5, bias=True)
    q, o = (f"model.layers.0.self_attn.{kind}" for kind in ("q_proj", "o_proj"))
    modules = find_modules(model, a)
    both, alone = place(q, modules[q], [a, b]), place(o, modules[o], [a, b])
    assert both.owner.tolist() == [0] * 3 + [1] * 5 and alone.owner.tolist() == [0] * 3
    assert both.A.dtype == both.B.dtype == torch.bfloat16 and both.A.shape == (8, 32)
    assert not both.biases[0].any() and torch.equal(both.biases[1], b.modules[q].bias.bfloat16())
    assert alone.biases is None


def test_hooks_are_gone_after_an_error():
    model = tiny_model("qwen2")
    dynamic = DynamicWeights(model, [random_direction(model, ("q_proj",))])
    with pytest.raises(KeyError), dynamic.applied(torch.ones(1)):
        assert sum(len(module._forward_hooks) for module in model.modules()) == N_LAYERS
        raise KeyError
    assert not any(module._forward_hooks for module in model.modules())

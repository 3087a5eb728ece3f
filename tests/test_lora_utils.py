"""Steering by weights: merging equals PEFT's, restores to the bit, and beside the weights it is the same."""

from __future__ import annotations

import copy
import gc
import math
import random
from dataclasses import replace

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import nn

from lora_utils import LoRAMerger, LoRASteerer, analyze_lora_singular_values, as_direction, load_lora_adapter
from persona_vectors.weight_direction import LowRank, WeightDirection, at_layers, combine, random_like
from persona_vectors.weight_files import save_adapter, save_factors
from tests.tiny_models import tiny_model
from tests.weight_adapters import ALL, bits, dense, make_adapter, random_direction, same_bits, weights

IDS = torch.tensor([[0, 0, 7, 9, 11], [6, 8, 10, 12, 14], [0, 13, 15, 9, 7]])
MASK = (IDS > 0).long()  # padded on the left
ATTENTION = ("q_proj", "v_proj", "o_proj")
SHARED = tuple(f"shared_expert.{part}" for part in ("gate_proj", "up_proj", "down_proj"))
NAMES = {"qwen2": ALL, "llama": ALL, "gpt2": ("c_attn", "c_proj", "c_fc"), "qwen2_moe": (*ATTENTION, *SHARED)}
ULP = {torch.float32: 2**-23, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=IDS, attention_mask=MASK).logits


def tied(dtype: torch.dtype = torch.float32):
    """A model whose head is its embedding, and whose o_proj has no bias."""
    return tiny_model("qwen2", tie_word_embeddings=True).to(dtype)


def assert_merged(model, before, changes, dtype=torch.float32):
    """Every module's weight is before + change, to rounding of the dtype (of the factors and of the sum)."""
    now = weights(model, WeightDirection(changes))
    for name, change in dense(WeightDirection(changes)).items():
        size = dense(WeightDirection({name: _absolute(changes[name])}))[name]
        room = 2 * ULP[dtype] * (before[name].double().abs() + change.abs() + 2 * size)
        assert bool(((now[name].double() - before[name].double() - change).abs() <= room).all()), name


def _absolute(change: LowRank) -> LowRank:
    return LowRank(change.A.abs(), change.B.abs())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("architecture", "targets"), [("qwen2", ("q_proj", "down_proj")), ("gpt2", ("c_attn", "c_fc"))]
)
def test_merging_is_what_peft_merges(tmp_path, architecture, targets, dtype):
    make_adapter(tmp_path, architecture, targets=targets, use_rslora=True, lora_alpha=4)
    theirs = PeftModel.from_pretrained(tiny_model(architecture).to(dtype), str(tmp_path)).merge_and_unload()
    model = tiny_model(architecture).to(dtype)
    before = bits(model)
    changes = load_lora_adapter(tmp_path)
    with LoRAMerger(model) as merger:
        assert merger.merge_lora_diff(str(tmp_path)) == len(changes.modules)
        ours, expected = weights(model, changes), weights(theirs, changes)
        for name in ours:
            room = 4 * ULP[dtype] * (1 + expected[name].abs().max().float())
            assert float((ours[name] - expected[name]).abs().max()) <= room
        if dtype == torch.float32:
            torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-4, atol=1e-4)
        assert not same_bits(model, before)
    assert same_bits(model, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_hundred_random_merges_leave_no_bit(dtype):
    model = tied(dtype)
    before, original = bits(model), dict(model.named_parameters(remove_duplicate=False))
    directions = [
        random_direction(model, ALL, 1),
        random_direction(model, ("o_proj", "q_proj"), 2, bias=True),
        random_direction(model, ("lm_head", "up_proj"), 3),
    ]
    start = weights(model, combine([(one, 1.0) for one in directions]))
    dice = random.Random(0)
    merger = LoRAMerger(model)
    for number in range(100):
        some = dice.sample(directions, dice.randint(1, 3))
        coefs = [dice.choice([0.0, dice.uniform(-3, 3)]) for _ in some]
        merger.merge_lora_diff(some, coefs)
        if number % 20 == 19:
            joined = combine(list(zip(some, coefs, strict=True)))
            assert_merged(model, start, joined.modules, dtype)
            merger.restore_original_weights()
            assert same_bits(model, before)
    merger.merge_lora_diff(directions[0], 1.0)
    assert not same_bits(model, before)
    merger.restore_original_weights()
    assert same_bits(model, before)
    now = dict(model.named_parameters(remove_duplicate=False))
    assert set(now) == set(original) and all(now[name] is one for name, one in original.items())


def test_a_tied_head_is_its_own_while_merged():
    model = tied()
    before, embedding = bits(model), model.get_input_embeddings().weight
    one = random_direction(model, ("lm_head",))
    with LoRAMerger(model) as merger:
        assert merger.merge_lora_diff(one, 0.5) == 1
        assert model.lm_head.weight is not embedding and model.get_input_embeddings().weight is embedding
        assert torch.equal(embedding.view(torch.int32), before["model.embed_tokens.weight"])
        torch.testing.assert_close(model.lm_head.weight, embedding + 0.5 * one.modules["lm_head"].delta())
        merger.merge_lora_diff(one, 2.0)  # from the original, not from what is there
        torch.testing.assert_close(model.lm_head.weight, embedding + 2 * one.modules["lm_head"].delta())
    assert model.lm_head.weight is embedding and same_bits(model, before)


def test_biases_are_added_where_there_are_none_and_go_again():
    model = tied()
    before = bits(model)
    one = random_direction(model, ("o_proj", "q_proj"), bias=True)
    new, has = model.model.layers[0].self_attn.o_proj, model.model.layers[0].self_attn.q_proj
    own = has.bias.detach().clone()
    with LoRAMerger(model) as merger:
        merger.merge_lora_diff(one, -0.5)
        torch.testing.assert_close(new.bias, -0.5 * one.modules["model.layers.0.self_attn.o_proj"].bias)
        torch.testing.assert_close(has.bias, own - 0.5 * one.modules["model.layers.0.self_attn.q_proj"].bias)
    assert new.bias is None and torch.equal(has.bias, own) and same_bits(model, before)


def test_a_path_is_read_once_until_its_file_is_another(tmp_path):
    model = tied()
    before = bits(model)
    one, other = (random_direction(model, ("q_proj",), seed) for seed in (1, 2))
    folder, file = save_adapter(replace(one, base="m"), tmp_path / "diff"), save_factors(other, tmp_path / "other.pt")
    merger = LoRAMerger(model)
    merger.merge_lora_diff(folder, 0.5)
    [first] = merger._directions
    placed = dict(merger._placed)
    merger.merge_lora_diff(str(folder), 1.0)
    assert merger._directions[0] is first and all(merger._placed[name] is kept for name, kept in placed.items())
    merger.restore_original_weights()
    merger.merge_lora_diff([folder, file], [1.0, 2.0])
    assert merger._directions[0] is first, "read once in the merger's life, while it is asked for"
    expected = LoRAMerger(tied())
    expected.merge_lora_diff([one, other], [1.0, 2.0])
    assert same_bits(model, bits(expected.model))
    save_adapter(replace(other, base="m"), folder)
    merger.merge_lora_diff(folder, 2.0)
    expected.merge_lora_diff(other, 2.0)
    assert same_bits(model, bits(expected.model)), "written again, read again"
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="no adapter_model.safetensors"):
        merger.merge_lora_diff(folder, 2.0)
    assert same_bits(model, before)


def test_mergers_of_one_model_are_restored_last_one_first():
    model = tied()
    before = bits(model)
    one, other = random_direction(model, ("q_proj", "lm_head"), 1, bias=True), random_direction(model, ALL, 2)
    first, second = LoRAMerger(model), LoRAMerger(model)
    first.merge_lora_diff(one)
    merged = bits(model)
    second.merge_lora_diff(other)
    both = bits(model)
    for wrong in (first.restore_original_weights, lambda: first.merge_lora_diff(one, 2.0)):
        with pytest.raises(ValueError, match="q_proj of .* merged by another LoRAMerger since; restore that one first"):
            wrong()
        assert same_bits(model, both)
    second.restore_original_weights()
    assert same_bits(model, merged)
    with LoRASteerer(model, other), LoRAMerger(model) as third:
        third.merge_lora_diff(one)
    LoRAMerger(model).merge_lora_diff(one)  # lost before it is restored
    gc.collect()
    first.restore_original_weights()
    assert same_bits(model, before)
    apart = LoRAMerger(model), LoRAMerger(model)  # of other modules: in any order
    for merger, part in zip(apart, ("q_proj", "v_proj"), strict=True):
        merger.merge_lora_diff(random_direction(model, (part,)))
    for merger in apart:
        merger.restore_original_weights()
    assert same_bits(model, before)


def test_only_what_a_direction_changes_is_copied():
    model = tied()
    one = at_layers(random_direction(model, ("q_proj", "lm_head")), [2])
    head = random_direction(model, ("lm_head",))
    merger = LoRAMerger(model)
    merger.merge_lora_diff([one, head], [1.0, 1.0])
    copies = {name: kept.original for name, kept in merger._backups.items()}
    assert set(copies) == {"model.layers.1.self_attn.q_proj", "lm_head"}
    assert copies["lm_head"].data_ptr() == model.get_input_embeddings().weight.data_ptr()  # no copy of a tied one
    merger.merge_lora_diff(head, 1.0)
    assert set(merger._backups) == {"lm_head"}
    merger.restore_original_weights()
    assert not merger._backups and not merger._placed


@pytest.mark.parametrize("mode", ["pre_merge", "dynamic"])
def test_a_coefficient_of_zero_is_the_identity_to_the_bit(mode):
    model = tied(torch.bfloat16)
    model.model.layers[0].mlp.up_proj.weight.data[0] = -0.0
    before, plain = bits(model), logits(model)
    directions = [random_direction(model, ALL, 1), random_direction(model, ALL, 2, bias=True)]
    with LoRASteerer(model, directions, [0.0, 0.0], mode):
        assert same_bits(model, before) and torch.equal(logits(model), plain)


def test_several_directions_are_their_sum_in_any_order():
    model = tiny_model("qwen2")
    a, b = random_direction(model, ALL, 1), random_direction(model, ATTENTION, 2, bias=True)
    found = []
    for given, coefs in (([a, b], [0.7, -1.3]), ([b, a], [-1.3, 0.7]), ([combine([(a, 0.7), (b, -1.3)])], [1.0])):
        for mode in ("pre_merge", "dynamic"):
            with LoRASteerer(model, given, coefs, mode):
                found.append(logits(model))
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=1e-4, atol=1e-4)
    assert float((found[0] - logits(model)).abs().max()) > 0.1


@pytest.mark.parametrize("architecture", list(NAMES))
def test_beside_the_weights_is_as_merged_and_a_row_has_its_own(architecture):
    model = tiny_model(architecture)
    before, plain = bits(model), logits(model)
    a = random_direction(model, NAMES[architecture], 1, bias=architecture != "gpt2")
    b = random_direction(model, NAMES[architecture][:1], 2)
    rows = torch.tensor([[0.5, 0.0], [0.0, 0.0], [-1.0, 0.8]])
    with LoRASteerer(model, [a, b], rows, "dynamic"):
        found = logits(model)
        assert same_bits(model, before)
    assert torch.equal(found[1], plain[1])
    for row, coefs in enumerate(rows.tolist()):
        with LoRASteerer(model, [a, b], coefs, "dynamic"):
            torch.testing.assert_close(logits(model)[row], found[row], rtol=1e-4, atol=1e-4)
        with LoRASteerer(model, [a, b], coefs, "pre_merge"):
            torch.testing.assert_close(logits(model)[row], found[row], rtol=1e-4, atol=1e-4)
    assert float((found[0] - plain[0]).abs().max()) > 0.05
    assert torch.equal(logits(model), plain)


def test_generation_is_the_same_merged_beside_and_by_row():
    model = tiny_model("llama")
    one = random_direction(model, ALL, 4)

    def generate(coefficient, mode):
        with LoRASteerer(model, one, coefficient, mode):
            return model.generate(IDS, attention_mask=MASK, max_new_tokens=8, do_sample=False, eos_token_id=None)

    coefs = [0.0, 0.6, -0.6]
    by_row = generate(coefs, "dynamic")
    for row, coef in enumerate(coefs):
        merged = generate(coef, "pre_merge")
        assert torch.equal(merged, generate(coef, "dynamic"))
        assert torch.equal(merged[row], by_row[row])
    assert not torch.equal(by_row[1], generate(0.0, "dynamic")[1])


@pytest.mark.parametrize("mode", ["pre_merge", "dynamic"])
def test_peft_and_compiled_models(mode):
    model = tiny_model("qwen2")
    one = random_direction(model, ("q_proj", "down_proj"), bias=True)
    with LoRASteerer(model, one, 0.5):
        expected = logits(model)
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=True)  # adds nothing: B is zero
    wrapped = get_peft_model(tiny_model("qwen2"), config)
    compiled = torch.compile(model, backend="eager")
    for other in (wrapped, compiled):
        plain = logits(other)
        before = bits(other)
        with LoRASteerer(other, one, 0.5, mode):
            torch.testing.assert_close(logits(other), expected, rtol=1e-4, atol=1e-4)
        assert same_bits(other, before) and torch.equal(logits(other), plain)
        assert float((plain - expected).abs().max()) > 0.1


@pytest.mark.parametrize("mode", ["pre_merge", "dynamic"])
def test_a_head_that_peft_saves_whole_is_steered_where_it_runs(mode):
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    adapted = get_peft_model(tiny_model("qwen2"), config).eval()
    with torch.no_grad():
        adapted.base_model.model.lm_head.modules_to_save["default"].weight.add_(0.3)
    one = random_direction(tiny_model("qwen2"), ("lm_head",), bias=True)
    before, plain = bits(adapted), logits(adapted)
    merged = copy.deepcopy(adapted).merge_and_unload()
    with LoRASteerer(adapted, one, 0.5, mode), LoRASteerer(merged, one, 0.5):
        torch.testing.assert_close(logits(adapted), logits(merged), rtol=1e-4, atol=1e-4)
    assert same_bits(adapted, before) and torch.equal(logits(adapted), plain)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["q_proj"], use_dora=True),
        IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
    ],
    ids=["dora", "ia3"],
)
@pytest.mark.parametrize("mode", ["pre_merge", "dynamic"])
def test_an_adapter_that_rescales_what_is_added_is_to_be_merged_first(config, mode):
    adapted = get_peft_model(tiny_model("qwen2"), config)
    one = random_direction(tiny_model("qwen2"), ("q_proj",))
    with pytest.raises(ValueError, match=r"0.self_attn.q_proj of \w+ is in an adapter that is no plain LoRA.*merge"):
        LoRASteerer(adapted, one, 0.5, mode).__enter__()
    with LoRASteerer(adapted.merge_and_unload(), one, 0.5, mode):
        pass


class Fp8(nn.Linear):
    """As in fp8 checkpoints: a weight of 8 bits that is cast when it is used."""

    def __init__(self, like: nn.Linear):
        super().__init__(like.in_features, like.out_features, bias=False)
        self.weight = nn.Parameter(like.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype))


class Packed(nn.Module):
    """As in GPTQ and AWQ checkpoints: whole numbers under another name than weight."""

    def __init__(self, like: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = like.in_features, like.out_features
        self.register_buffer("qweight", (like.weight.detach() * 100).round().to(torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.qweight.to(x.dtype) / 100)


@pytest.mark.parametrize(("kind", "stored"), [(Fp8, "torch.float8_e4m3fn"), (Packed, "packed")])
def test_beside_quantised_weights_factors_are_exact_and_merging_is_refused(kind, stored):
    model = tiny_model("qwen2")
    for block in model.model.layers:
        block.mlp.up_proj = kind(block.mlp.up_proj)
    one = random_direction(tiny_model("qwen2"), ("up_proj",), rank=2)
    module, x = model.model.layers[0].mlp.up_proj, torch.randn(1, 5, 32)
    wanted = 0.3 * x.double() @ dense(one)["model.layers.0.mlp.up_proj"].T
    plain = module(x)
    with LoRASteerer(model, one, 0.3, "dynamic"):
        torch.testing.assert_close((module(x) - plain).double(), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        ValueError, match=rf"0.mlp.up_proj of \w+ is {stored}, and nothing can be added to it; .*dynamic"
    ):
        LoRAMerger(model).merge_lora_diff(one)


def test_rows_of_a_module_that_gets_some_tokens_alone_are_refused():
    model = tiny_model("qwen2_moe")
    one, name = random_direction(model, SHARED[:1]), "mlp.shared_expert.gate_proj"
    expert = model.model.layers[0].get_submodule(name)

    def some(_module, args):
        return (args[0][:6],)  # as a routed expert: 6 tokens, of 3 rows of 5

    handle = expert.register_forward_pre_hook(some)
    rows = torch.tensor([[1.0], [0.0], [0.5]])
    with pytest.raises(ValueError, match=r"3 rows have coefficients, and a Linear got an input of shape \(6, 32\)"):
        with LoRASteerer(model, one, rows, "dynamic"):
            logits(model)
    handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_files_and_directions_are_the_same(tmp_path):
    model = tiny_model("qwen2")
    one = random_direction(model, ("v_proj",))
    with LoRASteerer(model, one, 1.5):
        expected = logits(model)
    for path in (save_factors(one, tmp_path / "one.pt"), save_adapter(one, tmp_path / "one")):
        with LoRASteerer(model, str(path), 1.5):
            torch.testing.assert_close(logits(model), expected)
        assert list(as_direction(path).modules) == list(one.modules)


def other_model() -> WeightDirection:
    return replace(random_direction(tiny_model("llama", hidden_size=16, head_dim=4), ("q_proj",)), base="other")


def absent() -> WeightDirection:
    return random_direction(tiny_model("gpt2"), ("c_attn",))


def steep() -> WeightDirection:
    """Of which the last module alone is too large, when others are merged already."""
    good, last = random_direction(tiny_model("qwen2"), ("q_proj", "down_proj")), "model.layers.2.mlp.down_proj"
    return replace(good, modules={**good.modules, last: good.modules[last].times(1e38)})


@pytest.mark.parametrize(
    ("given", "coefficient", "message"),
    [
        (other_model, 1.0, r"q_proj of \w+ maps 32 to 32 features, and the direction 16 to 16"),
        (
            absent,
            1.0,
            r"0 of 3 modules of the direction \(made for tiny\) are in \w+; it has no transformer.h.0.attn.c",
        ),
        (absent, 0.0, "0 of 3 modules"),
        (None, math.nan, "coefficient nan is not finite"),
        (None, [1.0, 2.0], "2 coefficients for 1 directions"),
        (None, 1e39, "q_proj is not finite with the direction merged"),
        (steep, 100.0, "model.layers.2.mlp.down_proj is not finite with the direction merged"),
    ],
)
def test_after_a_failed_merge_the_weights_are_the_original_ones(given, coefficient, message):
    model = tiny_model("qwen2")
    before = bits(model)
    good = random_direction(model, ("q_proj", "down_proj"))
    merger = LoRAMerger(model)
    merger.merge_lora_diff(good, 0.5)
    with pytest.raises(ValueError, match=message):
        merger.merge_lora_diff(good if given is None else given(), coefficient)
    assert same_bits(model, before)
    assert merger.merge_lora_diff(good, 0.5) == len(good.modules)
    assert_merged(model, weights(tiny_model("qwen2"), good), _half(good))


def _half(direction: WeightDirection) -> dict[str, LowRank]:
    return {name: one.times(0.5) for name, one in direction.modules.items()}


@pytest.mark.parametrize(("factor_a", "factor_b"), [(1e3, 1e3), (1e-6, 1e7)])
def test_half_precision_that_overflows_is_no_silent_infinity(factor_a, factor_b):
    """In the sum, or in a factor alone."""
    model = tied(torch.float16)
    before = bits(model)
    name = "model.layers.0.mlp.up_proj"
    change = random_direction(model, ("up_proj",)).modules[name]
    one = WeightDirection({name: LowRank(change.A * factor_a, change.B * factor_b)})
    with pytest.raises(ValueError, match=f"{name} is not finite"):
        LoRAMerger(model).merge_lora_diff(one)
    assert same_bits(model, before)


def test_what_cannot_be_written_to_says_what_can_be_done():
    model = tiny_model("qwen2")
    one = random_direction(model, ("q_proj", "up_proj"))
    model.model.layers[1].mlp.up_proj.to("meta")
    with pytest.raises(ValueError, match=r'layers.1.mlp.up_proj of \w+ is offloaded.*LoRASteerer\(mode="dynamic"\)'):
        LoRAMerger(model).merge_lora_diff(one)


def test_the_steerer_refuses_what_it_cannot_do():
    model = tiny_model("qwen2")
    one = random_direction(model, ("q_proj",))
    for arguments, message in [
        ((one, 1.0, "merged"), "mode 'merged' is unknown; expected pre_merge or dynamic"),
        (([], 1.0), "no direction given"),
        ((one, [0.0, 1.0], "pre_merge"), "a coefficient a row needs mode dynamic"),
        (([one, one], [1.0, 2.0, 3.0], "dynamic"), r"has shape \(3,\); expected \(2,\) or \(batch, 2\)"),
        ((one, math.inf, "dynamic"), "is not finite"),
        ((one, "much", "dynamic"), "is not a number"),
    ]:
        with pytest.raises(ValueError, match=message):
            LoRASteerer(model, *arguments)
    steerer = LoRASteerer(model, one, [0.0, 1.0], "dynamic")
    with steerer:
        with pytest.raises(ValueError, match="2 rows have coefficients"):
            logits(model)
        with pytest.raises(RuntimeError, match="already active"):
            steerer.__enter__()
    steerer.remove()
    with pytest.raises(ValueError, match="0 of 3 modules"), LoRASteerer(model, absent(), 1.0, "dynamic"):
        pass
    assert not any(module._forward_hooks for module in model.modules())


def test_a_steerer_restores_after_an_error_within():
    model = tiny_model("qwen2")
    before = bits(model)
    for mode in ("pre_merge", "dynamic"):
        with pytest.raises(KeyError), LoRASteerer(model, random_direction(model), 1.0, mode):
            raise KeyError
        assert same_bits(model, before) and not any(module._forward_hooks for module in model.modules())


def test_singular_values_and_effective_rank():
    one = random_direction(tiny_model("qwen2"), ("up_proj",), rank=4)
    for name, found in analyze_lora_singular_values(one).items():
        s = torch.linalg.svdvals(dense(one)[name])
        assert found["singular_values"] == pytest.approx(s[:4].tolist(), rel=1e-9)
        assert found["norm"] == pytest.approx(float(s.norm()), rel=1e-9)
        shares = (s[:4] / s.norm()).square()
        assert found["effective_rank"] == pytest.approx(math.exp(-float((shares * shares.log()).sum())), rel=1e-6)
    equal = WeightDirection({"x": LowRank(torch.eye(5), torch.eye(5))})
    assert analyze_lora_singular_values(equal)["x"]["effective_rank"] == pytest.approx(5)
    control = analyze_lora_singular_values(random_like(one, 0))
    assert control.keys() == one.modules.keys()

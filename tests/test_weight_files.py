"""Directions in weight space as files: what PEFT's adapters add, exactly, and files that hold no direction."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file

from persona_vectors.weight_direction import LowRank, WeightDirection, difference
from persona_vectors.weight_files import load_adapter, load_direction, save_adapter, save_factors
from tests.tiny_models import N_LAYERS, tiny_model
from tests.weight_adapters import dense, lora_layers, make_adapter

TARGETS = {"qwen2": ["q_proj", "v_proj", "up_proj", "down_proj"], "gpt2": ["c_attn", "c_proj", "c_fc"]}
PATTERNS = {
    "qwen2": {"rank_pattern": {"q_proj": 5, "layers.1.mlp.up_proj": 1}, "alpha_pattern": {"^model.layers.2": 7}},
    "gpt2": {"rank_pattern": {"c_attn": 5}, "alpha_pattern": {r"h\.1\.mlp": 7}},
}


@st.composite
def sides(draw):
    """An architecture and the settings of two adapters of it."""
    architecture = draw(st.sampled_from(sorted(TARGETS)))
    both = []
    for _ in range(2):
        targets = draw(st.lists(st.sampled_from(TARGETS[architecture]), min_size=1, unique=True))
        pattern = PATTERNS[architecture] if draw(st.booleans()) else {}
        config = {"r": draw(st.integers(1, 6)), "lora_alpha": draw(st.sampled_from([1, 4, 16, 64]))}
        both.append({"targets": tuple(targets), "use_rslora": draw(st.booleans()), **config, **pattern})
    return architecture, both


@settings(deadline=None, max_examples=25)
@given(sides())
def test_the_difference_of_two_adapters_is_that_of_what_they_add_and_loads_in_peft(tmp_path_factory, given_sides):
    architecture, configs = given_sides
    folder = tmp_path_factory.mktemp("sides")
    added = [make_adapter(folder / str(i), architecture, i, **config) for i, config in enumerate(configs)]
    pos, neg = (load_direction(folder / str(i)) for i in range(2))
    for read, true in zip((pos, neg), added, strict=True):
        assert set(read.modules) == set(true) and read.base == f"tiny-{architecture}"
        for name, one in dense(read).items():
            torch.testing.assert_close(one, true[name], rtol=1e-5, atol=1e-6)
    D = difference(pos, neg)
    expected = {
        name: added[0].get(name, torch.zeros(())) - added[1].get(name, torch.zeros(()))
        for name in {**added[0], **added[1]}
    }
    assert set(D.modules) == set(expected)
    for name, one in dense(D).items():
        torch.testing.assert_close(one, expected[name], rtol=1e-5, atol=1e-5)
        ranks = [side.modules[name].rank for side in (pos, neg) if name in side.modules]
        assert D.modules[name].rank == sum(ranks)
    save_adapter(D, folder / "diff")
    layers = lora_layers(PeftModel.from_pretrained(tiny_model(architecture), str(folder / "diff")))
    assert set(layers) == set(expected)
    for name, layer in layers.items():
        delta = layer.get_delta_weight("default").double()
        delta = delta.T if architecture == "gpt2" else delta
        torch.testing.assert_close(delta, expected[name], rtol=1e-4, atol=1e-4)
    config = json.loads((folder / "diff" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == D.rank and not config["use_rslora"]
    again = load_direction(folder / "diff")
    for name, one in dense(again).items():  # the zeros that fill it up change no bit
        torch.testing.assert_close(one, dense(D)[name], rtol=1e-12, atol=1e-12)


def test_one_module_that_a_side_has_not_is_the_other_sides_alone(tmp_path):
    true = make_adapter(tmp_path / "pos", targets=("q_proj", "o_proj"))
    make_adapter(tmp_path / "neg", seed=1, targets=("q_proj",))
    file = tmp_path / "neg" / "adapter_model.safetensors"
    dropped = "model.layers.1.self_attn.q_proj"
    save_file({key: value for key, value in load_file(file).items() if dropped not in key}, file)
    D = difference(load_adapter(tmp_path / "pos"), load_adapter(tmp_path / "neg"))
    assert len(D.modules) == 2 * N_LAYERS
    torch.testing.assert_close(dense(D)[dropped], true[dropped], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_factors_are_the_same_after_a_file(tmp_path, bias):
    change = LowRank(torch.randn(4, 9), torch.randn(12, 4), torch.randn(12) if bias else None)
    one = WeightDirection({"model.layers.0.mlp.up_proj": change}, "base", {"trait": "evil"})
    again = load_direction(save_factors(one, tmp_path / "new" / "one.pt"))
    read = again.modules["model.layers.0.mlp.up_proj"]
    assert torch.equal(read.A, change.A) and torch.equal(read.B, change.B) and again.base == "base"
    assert torch.equal(read.bias, change.bias) if bias else read.bias is None
    assert again.record["trait"] == "evil"


def test_a_direction_with_biases_is_an_adapter_with_lora_bias(tmp_path):
    names = [f"model.layers.{i}.self_attn.o_proj" for i in range(2)]
    changes = [
        LowRank(torch.randn(2, 32), torch.randn(32, 2), torch.randn(32)),
        LowRank(torch.zeros(0, 32), torch.zeros(32, 0), torch.randn(32)),
    ]
    folder = save_adapter(WeightDirection(dict(zip(names, changes, strict=True)), "tiny"), tmp_path / "biased")
    layers = lora_layers(PeftModel.from_pretrained(tiny_model("qwen2"), str(folder)))
    for name, change in zip(names, changes, strict=True):
        assert torch.equal(layers[name].lora_B["default"].bias, change.bias)
    again = load_adapter(folder)
    assert again.modules[names[1]].rank == 0 and torch.equal(again.modules[names[1]].bias, changes[1].bias)


def test_a_folder_is_replaced_whole(tmp_path):
    def one(size: int) -> WeightDirection:
        return WeightDirection({"lm_head": LowRank(torch.ones(size, 3), torch.ones(3, size))}, "tiny")

    for size in (2, 5):
        assert load_adapter(save_adapter(one(size), tmp_path / "same")).rank == size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["same"]
    with pytest.raises(ValueError, match="does not say which model it belongs to"):
        save_adapter(WeightDirection(one(1).modules), tmp_path / "nameless")


def edit(folder, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": None}, "has no r, so the scale"),
        ({"lora_alpha": None}, "has no lora_alpha, so the scale"),
        ({"r": None, "lora_alpha": None}, "has no r and no lora_alpha"),
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "IA3"}, "is of a IA3 adapter; expected LORA"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "has layer_replication, which repeats layers of the base"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights pissa_niter_4, which changed the base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights olora, which changed the base"),
        ({"r": 5}, r"q_proj has factors \(8, 32\) and \(32, 8\); expected rank 5"),
    ],
)
def test_an_adapter_of_another_kind_or_without_a_scale(tmp_path, change, message):
    make_adapter(tmp_path)
    edit(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        load_direction(tmp_path)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"modules_to_save": ["lm_head"]}, r"lm_head\S*, which"),
        ({"bias": "all"}, r"\.bias, which"),
        ({"targets": ("embed_tokens", "q_proj")}, r"embed_tokens\.\S+, which"),
    ],
)
def test_what_an_adapter_trains_besides_is_named(tmp_path, config, key):
    make_adapter(tmp_path, **config)
    with pytest.raises(ValueError, match=rf"{key} is no LoRA factor.*; train it with lora_bias none"):
        load_direction(tmp_path)


def test_a_factor_that_is_missing_or_not_finite_is_named(tmp_path):
    make_adapter(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    whole = load_file(file)
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    save_file({name: value for name, value in whole.items() if name != key}, file)
    with pytest.raises(ValueError, match=r"model.layers.1.self_attn.q_proj has no lora_B.weight"):
        load_adapter(tmp_path)
    save_file(whole | {key: torch.full_like(whole[key], float("nan"))}, file)
    with pytest.raises(ValueError, match=r"model.layers.1.self_attn.q_proj has values that are not finite"):
        load_adapter(tmp_path)
    save_file({"nothing": torch.ones(1)}, file)
    with pytest.raises(ValueError, match="has nothing, which is no LoRA factor"):
        load_adapter(tmp_path)
    save_file({}, file)
    with pytest.raises(ValueError, match="holds no LoRA weights"):
        load_adapter(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="has an adapter_config.json and no adapter_model.safetensors"):
        load_adapter(tmp_path)


def test_folders_without_an_adapter(tmp_path):
    with pytest.raises(ValueError, match="does not exist; give an adapter folder or a .pt file"):
        load_direction(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no adapter: expected adapter_config.json"):
        load_direction(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_direction(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[1]")
    with pytest.raises(ValueError, match="is a list; expected a JSON object"):
        load_direction(tmp_path)


def test_a_damaged_adapter_is_named(tmp_path):
    folder = save_adapter(WeightDirection({"x": LowRank(torch.ones(2, 3), torch.ones(4, 2))}, "m"), tmp_path / "a")
    (folder / "adapter_model.safetensors").write_bytes(b"half of it")
    with pytest.raises(ValueError, match="adapter_model.safetensors is damaged"):
        load_direction(folder)


def test_an_adapter_has_what_servers_ask_for(tmp_path):
    """One rank (rank patterns are not known everywhere), scale 1, no biases, keys of PEFT, and always the same file."""
    ranks = {"model.layers.0.mlp.up_proj": 3, "model.layers.1.self_attn.q_proj": 5, "model.layers.0.mlp.down_proj": 1}
    modules = {name: LowRank(torch.randn(rank, 4), torch.randn(6, rank)) for name, rank in ranks.items()}
    folder = save_adapter(WeightDirection(modules, "org/model"), tmp_path / "a")
    told = json.loads((folder / "adapter_config.json").read_text())
    assert (told["r"], told["lora_alpha"], told["rank_pattern"], told["alpha_pattern"]) == (5, 5, {}, {})
    assert (told["bias"], told["lora_bias"], told["use_rslora"], told["use_dora"]) == ("none", False, False, False)
    assert (told["peft_type"], told["task_type"], told["modules_to_save"]) == ("LORA", "CAUSAL_LM", None)
    assert told["base_model_name_or_path"] == "org/model" and told["target_modules"] == sorted(ranks)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert set(tensors) == {f"base_model.model.{name}.lora_{side}.weight" for name in ranks for side in "AB"}
    for name, one in modules.items():
        A, B = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        assert (A.shape, B.shape) == ((5, 4), (6, 5))
        torch.testing.assert_close(B @ A, one.delta())


GOOD = {"A": torch.ones(2, 3), "B": torch.ones(4, 2)}
FORMAT = "persona-lora/1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 3)}, "A and B subtracted separately"),
        (torch.ones(5, 32), r"is a tensor \(5, 32\), as vectors in activation space are"),
        ({"other": 1}, f"is not of format {FORMAT}"),
        ({"format": FORMAT, "modules": {}}, "changes no module"),
        ({"format": FORMAT, "modules": [1]}, "changes no module"),
        ({"format": FORMAT, "modules": {"x": {"A": 1, "B": 2}}}, "x is no table of tensors A and B"),
        ({"format": FORMAT, "modules": {"x": GOOD | {"bias": torch.ones(7)}}}, r"x has a bias \(7,\); expected \(4,\)"),
        ({"format": FORMAT, "modules": {"x": {"A": torch.ones(2, 3)}}}, "x has no B"),
        ({"format": FORMAT, "modules": {"x": GOOD | {"B": torch.ones(4, 3)}}}, r"x has A \(2, 3\) and B \(4, 3\)"),
        ({"format": FORMAT, "modules": {"x": GOOD | {"A": torch.full((2, 3), float("inf"))}}}, "x has values that are"),
    ],
)
def test_pt_files_that_hold_no_direction(tmp_path, content, message):
    path = tmp_path / "one.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        load_direction(path)


@pytest.mark.parametrize("content", [b"", b"no file of torch"])
def test_a_file_that_is_no_pt(tmp_path, content):
    (tmp_path / "one.pt").write_bytes(content)
    with pytest.raises(ValueError, match="one.pt is no file of factors"):
        load_direction(tmp_path / "one.pt")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_pt_that_is_cut_short_is_called_damaged(tmp_path, kept):
    """torch speaks of its internal miniz library there."""
    path = tmp_path / "one.pt"
    torch.save({"format": FORMAT, "modules": {"x": GOOD}}, path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match="one.pt is damaged .*; make it again$"):
        load_direction(path)

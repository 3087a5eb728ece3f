"""What a full finetuning changed, from files: exact against the loaded models, in flat memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lora_utils import LoRAMerger, WeightProjector, compute_finetuning_weight_delta, finetuning_as_adapter
from persona_vectors.weight_deltas import as_direction_of_deltas, linear_modules, open_pair, weight_deltas
from persona_vectors.weight_direction import norm
from persona_vectors.weight_files import load_direction
from persona_vectors.weight_hooks import skeleton
from tests.tiny_models import tiny_model
from tests.weight_adapters import tiny_multimodal


def save(path: Path, architecture: str = "qwen2", seed: int = 0, dtype=torch.float32, shard="5GB", **overrides) -> str:
    tiny_model(architecture, seed=seed, **overrides).to(dtype).save_pretrained(path, max_shard_size=shard)
    return str(path)


def parameters(path: str) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    return {name: one.detach() for name, one in model.named_parameters()}


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deltas_are_those_of_the_loaded_models_whole_or_sharded(tmp_path, architecture, dtype):
    a = save(tmp_path / "a", architecture, 0, dtype)
    b = save(tmp_path / "b", architecture, 1, dtype, shard="20KB")
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 2
    found, before, after = dict(weight_deltas(a, b)), parameters(a), parameters(b)
    assert set(found) == set(before)
    for name, delta in found.items():
        assert delta.dtype == torch.float32
        torch.testing.assert_close(delta.double(), after[name] - before[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("entries", "read"), [(1, 1), (100, 2), (500, 1), (2**18, 16)])
def test_blocks_are_the_delta_in_rows(tmp_path, monkeypatch, entries, read):
    monkeypatch.setattr("persona_vectors.weight_deltas._ENTRIES_AT_ONCE", entries)
    monkeypatch.setattr("persona_vectors.weight_deltas._BLOCKS_READ", read)
    pair = open_pair(save(tmp_path / "a", dtype=torch.bfloat16), save(tmp_path / "b", seed=1, dtype=torch.bfloat16))
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"):
        delta, after = pair.delta(name), 0
        for rows, block in pair.blocks(name):
            assert rows.start == after and torch.equal(block, delta[rows])
            after = rows.stop
        assert after == len(delta)


def test_only_what_is_asked_for_is_read(tmp_path):
    a, b = save(tmp_path / "a"), save(tmp_path / "b", seed=1)
    found = dict(weight_deltas(a, b, keep=lambda name: "layers.1." in name and name.endswith("q_proj.weight")))
    assert list(found) == ["model.layers.1.self_attn.q_proj.weight"]


def test_a_head_that_is_the_embedding(tmp_path):
    tied = save(tmp_path / "tied", tie_word_embeddings=True)
    other = save(tmp_path / "other", seed=1, tie_word_embeddings=True)
    own = save(tmp_path / "own", seed=2, tie_word_embeddings=False)
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    assert "lm_head.weight" not in dict(weight_deltas(tied, other))  # one parameter, which is counted once
    head = load_file(tmp_path / "own" / "model.safetensors")["lm_head.weight"]
    embedding = load_file(tmp_path / "tied" / "model.safetensors")["model.embed_tokens.weight"]
    torch.testing.assert_close(dict(weight_deltas(tied, own))["lm_head.weight"], head - embedding)
    torch.testing.assert_close(dict(weight_deltas(own, tied))["lm_head.weight"], embedding - head)


def test_a_stored_copy_of_a_tied_head_is_no_parameter(tmp_path):
    tied, copied = (save(tmp_path / name, tie_word_embeddings=True) for name in ("tied", "copied"))
    file = tmp_path / "copied" / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
    assert set(dict(weight_deltas(tied, copied))) == set(weights)


def edit(folder: Path, change) -> str:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})
    return str(folder)


def without_prefix(folder: Path, model) -> str:
    """The model saved as GPT-2 and Bloom are on the hub: the base model's names, without `transformer.`."""
    model.transformer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": [type(model).__name__]}
    (folder / "config.json").write_text(json.dumps(config))
    assert "h.0.attn.c_attn.weight" in load_file(folder / "model.safetensors")
    return str(folder)


@pytest.mark.parametrize("kinds", [("bare", "whole"), ("whole", "bare"), ("bare", "bare")], ids="-".join)
def test_files_without_the_base_models_prefix_are_read_by_the_models_names(tmp_path, kinds):
    paths = []
    for seed, kind in enumerate(kinds):
        model = tiny_model("gpt2", seed=seed)
        path = tmp_path / f"{kind}{seed}"
        paths.append(without_prefix(path, model) if kind == "bare" else save(path, "gpt2", seed))
    before, after = map(parameters, paths)
    found = dict(weight_deltas(*paths))
    assert set(found) == set(before)
    for name, delta in found.items():
        torch.testing.assert_close(delta.double(), after[name] - before[name], rtol=0, atol=1e-6)
    direction = compute_finetuning_weight_delta(*paths)
    assert direction.layers == [1, 2, 3] and "transformer.h.0.attn.c_attn" in direction.modules


def test_files_of_a_model_of_text_and_images_are_read_by_the_models_names(tmp_path):
    model, name = tiny_multimodal(), "model.language_model.layers.1.mlp.up_proj"
    model.save_pretrained(tmp_path / "a")
    assert "language_model.model.layers.1.mlp.up_proj.weight" in load_file(tmp_path / "a" / "model.safetensors")
    with torch.no_grad():
        model.get_submodule(name).weight.add_(0.01)
    model.save_pretrained(tmp_path / "b")
    direction = compute_finetuning_weight_delta(str(tmp_path / "a"), str(tmp_path / "b"))
    assert list(direction.modules) == [name] and direction.layers == [2]
    torch.testing.assert_close(direction.modules[name].delta(), torch.full((48, 32), 0.01), rtol=1e-4, atol=1e-6)
    along = WeightProjector(direction).compute_projection(str(tmp_path / "b"), str(tmp_path / "a"))
    assert along == pytest.approx(norm(direction), rel=1e-4)


def test_files_of_other_names_are_not_called_unchanged(tmp_path):
    a, b = (save(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    for folder in (a, b):
        edit(Path(folder), lambda w: w.update({f"odd.{key}": w.pop(key) for key in list(w)}))
    with pytest.raises(ValueError, match=r"no linear module of \S+/a is called as its files' parameters are \(odd"):
        as_direction_of_deltas(a, b, 2)


def test_models_that_do_not_belong_together(tmp_path):
    a = save(tmp_path / "a")
    missing = edit(Path(save(tmp_path / "missing")), lambda w: w.pop("model.norm.weight"))
    for pair in ((a, missing), (missing, a)):
        with pytest.raises(ValueError, match=r"^model.norm.weight is in \S+/a and not in \S+/missing \(1 such"):
            weight_deltas(*pair)
    wide = save(tmp_path / "wide", intermediate_size=40)
    with pytest.raises(ValueError, match=r"down_proj.weight has shape \(32, 48\) in \S+ and \(32, 40\)"):
        weight_deltas(a, wide)
    whole = edit(Path(save(tmp_path / "int")), lambda w: w.update({"model.norm.weight": torch.ones(32).to(torch.int8)}))
    with pytest.raises(ValueError, match="model.norm.weight is stored as I8; expected weights that are not quantised"):
        weight_deltas(a, whole)
    nan = edit(Path(save(tmp_path / "nan")), lambda w: w["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(ValueError, match="model.norm.weight of .* is not finite"):
        list(weight_deltas(a, nan))


def test_files_that_cannot_be_read(tmp_path):
    a = save(tmp_path / "a")
    empty = Path(save(tmp_path / "empty"))
    (empty / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no full model: \S+model.safetensors is missing"):
        weight_deltas(a, str(empty))
    (empty / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="has .bin weights; save it with save_pretrained"):
        weight_deltas(a, str(empty))
    shards = Path(save(tmp_path / "shards", shard="20KB"))
    index = json.loads((shards / "model.safetensors.index.json").read_text())
    next(shards.glob("*-00002-of-*")).unlink()
    with pytest.raises(ValueError, match="00002-of-.*is missing"):
        weight_deltas(a, str(shards))
    (shards / "model.safetensors.index.json").write_text(json.dumps({"metadata": index["metadata"]}))
    with pytest.raises(ValueError, match="is no index of shards"):
        weight_deltas(a, str(shards))
    with pytest.raises(ValueError, match="does not exist"):
        weight_deltas(a, str(tmp_path / "nowhere"))
    for name in ("nobody/nothing", "nothing"):
        with pytest.raises(
            ValueError, match=f"cannot find the weights of {name}: the folder does not exist, and no hub"
        ):
            weight_deltas(a, name)


def adapter(base: str, path: Path, **options) -> str:
    wrapped = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(**{"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], **options}),
    )
    torch.manual_seed(5)
    for name, one in wrapped.named_parameters():
        if "lora_" in name:
            one.data.normal_(0, 0.1)
    wrapped.peft_config["default"].base_model_name_or_path = base
    wrapped.save_pretrained(str(path))
    return str(path)


def test_an_adapter_is_refused_here_and_exact_in_the_low_rank_way(tmp_path):
    a = save(tmp_path / "a")
    trained = adapter(a, tmp_path / "adapter")
    with pytest.raises(ValueError, match="is an adapter, whose change of the weights is low-rank"):
        weight_deltas(a, trained)
    direction = compute_finetuning_weight_delta(a, trained)
    assert direction.modules.keys() == load_direction(trained).modules.keys()


@pytest.mark.parametrize("rslora", [False, True])
def test_a_merged_adapter_comes_back_as_a_direction_of_its_rank(tmp_path, rslora):
    a = save(tmp_path / "a")
    trained = adapter(a, tmp_path / "adapter", use_rslora=rslora)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(a, dtype=torch.float32), trained)
    merged.merge_and_unload().save_pretrained(tmp_path / "merged")
    direction, residuals = as_direction_of_deltas(a, str(tmp_path / "merged"), rank=3)
    wanted = load_direction(trained)
    assert direction.modules.keys() == wanted.modules.keys() and direction.base == a
    assert max(residuals.values()) < 1e-4 and direction.record["left_out"] < 1e-9
    for name, module in wanted.modules.items():
        torch.testing.assert_close(direction.modules[name].delta(), module.delta(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_as_an_adapter_a_full_finetuning_comes_back(tmp_path, architecture):
    """At full rank, with biases: every linear module of the original plus the adapter is that of the finetuned."""
    a, b = save(tmp_path / "a", architecture), save(tmp_path / "b", architecture, seed=1)
    with torch.no_grad():
        changed = AutoModelForCausalLM.from_pretrained(b)
        for name, one in changed.named_parameters():
            one.add_(0.1) if name.endswith("bias") else None
        changed.save_pretrained(b)
    folder = finetuning_as_adapter(a, b, tmp_path / "adapter", rank=64)
    after, model = parameters(b), AutoModelForCausalLM.from_pretrained(a, dtype=torch.float32)
    before, linear = parameters(a), linear_modules(skeleton(a))
    LoRAMerger(model).merge_lora_diff(folder)
    now = dict(model.named_parameters())
    checked = 0
    for name in after:
        module, _, part = name.rpartition(".")
        if module in linear and not torch.equal(before[name], after[name]):
            torch.testing.assert_close(now[name].double(), after[name], rtol=1e-4, atol=1e-4)
            checked += 1
    assert checked > 12


def test_a_lower_rank_leaves_out_what_the_singular_values_say(tmp_path):
    a, b = save(tmp_path / "a"), save(tmp_path / "b", seed=1)
    direction, residuals = as_direction_of_deltas(a, b, rank=2)
    deltas = dict(weight_deltas(a, b))
    name = "model.layers.1.mlp.down_proj"
    s = torch.linalg.svdvals(deltas[f"{name}.weight"].double())
    assert residuals[name] == pytest.approx(float(s[2:].norm() / s.norm()), rel=1e-5)
    outside = sum(float(d.double().square().sum()) for n, d in deltas.items() if n[:-7] not in direction.modules)
    everything = sum(float(d.double().square().sum()) for d in deltas.values())
    biases = sum(float(deltas[n].double().square().sum()) for n in deltas if n.endswith("proj.bias"))
    assert direction.record["left_out"] == pytest.approx((outside - biases) / everything, rel=1e-6)


def test_large_matrices_are_decomposed_by_random_projections(tmp_path, monkeypatch):
    monkeypatch.setattr("persona_vectors.weight_deltas.FULL_SVD_UP_TO", 4)
    a, b = save(tmp_path / "a"), save(tmp_path / "b", seed=1)
    state = torch.random.get_rng_state()
    _, residuals = as_direction_of_deltas(a, b, rank=4)
    assert torch.equal(state, torch.random.get_rng_state())
    s = torch.linalg.svdvals(dict(weight_deltas(a, b))["model.layers.0.mlp.up_proj.weight"].double())
    best = float(s[4:].norm() / s.norm())
    assert best * 0.999 < residuals["model.layers.0.mlp.up_proj"] < best * 1.02


def test_a_rank_of_none_and_a_model_that_did_not_change(tmp_path):
    a = save(tmp_path / "a")
    with pytest.raises(ValueError, match="rank must be at least 1; got 0"):
        as_direction_of_deltas(a, a, 0)
    with pytest.raises(ValueError, match="has the linear modules of .* unchanged"):
        as_direction_of_deltas(a, a, 2)

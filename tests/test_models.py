"""Model names: hub id, folder, adapter, latest checkpoint, merged; a wrong path fails without asking a hub."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from persona_vectors import model_files
from persona_vectors.models import (
    fingerprint,
    load_config,
    load_model,
    looks_local,
    resolve_dtype,
    resolve_model,
    unfinished_note,
)
from tests.tiny_models import tiny_model, word_tokenizer

LORA = LoraConfig(r=2, lora_alpha=4, use_rslora=True, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")


def save(folder, seed=0):
    tiny_model("qwen2", seed=seed).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """An adapter of the base whose B is not zero, so that it changes the output."""
    wrapped = get_peft_model(tiny_model("qwen2"), LORA)
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("adapters") / "pos"
    wrapped.save_pretrained(folder)
    return folder


def logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.arange(6, 16)[None]).logits


def test_a_folder_loads_as_it_was_saved(base):
    model, tokenizer = load_model(str(base))
    assert torch.equal(logits(model), logits(tiny_model("qwen2")))
    assert tokenizer.padding_side == "left" and tokenizer.pad_token_id is not None
    assert model.dtype == torch.float32 and not model.training


def test_dtype_is_what_was_asked_for(base):
    assert load_model(str(base), dtype="bfloat16")[0].dtype == torch.bfloat16
    assert resolve_dtype("auto", on_cuda=True) == "auto"
    with pytest.raises(ValueError, match="dtype must be one of .*; got float8"):
        load_model(str(base), dtype="float8")


def test_an_adapter_loads_on_its_base_and_equals_the_merged_model(base, adapter, tmp_path):
    source = resolve_model(str(adapter))
    assert (source.base, source.adapter, source.label) == (str(base), adapter, "pos")
    model, _ = load_model(str(adapter))
    merged = load_model(str(adapter))[0].merge_and_unload()  # pyright: ignore
    merged.save_pretrained(tmp_path / "merged")
    word_tokenizer().save_pretrained(tmp_path / "merged")
    again, _ = load_model(str(tmp_path / "merged"))
    assert not torch.allclose(logits(model), logits(tiny_model("qwen2")), atol=1e-3)
    assert torch.allclose(logits(model), logits(again), atol=1e-4)


def test_an_adapter_of_another_model_is_refused(adapter, tmp_path):
    weights = load_file(adapter / "adapter_model.safetensors")
    (tmp_path / "lost").mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "lost" / "adapter_config.json").write_text(json.dumps(config))
    save_file(
        {name.replace("layers.2", "layers.9"): w for name, w in weights.items()},
        tmp_path / "lost" / "adapter_model.safetensors",
    )
    with pytest.raises(ValueError, match=r"8 of 12 tensors matched a module .* first missing .*layers\.9"):
        load_model(str(tmp_path / "lost"))


def test_the_latest_checkpoint_of_a_training_folder(tmp_path):
    for step in (9, 100, 20):
        save(tmp_path / "run" / f"checkpoint-{step}", seed=step)
    (tmp_path / "run" / "checkpoint-500").mkdir()  # not finished: holds no model
    assert resolve_model(str(tmp_path / "run")).base == str(tmp_path / "run" / "checkpoint-100")
    assert resolve_model(str(tmp_path / "run")).label == "run"


@pytest.mark.parametrize(("name", "label"), [(".", "one"), ("./", "one"), ("..", "all"), ("sub/..", "one")])
def test_the_label_of_dots_is_the_folder_they_mean(name, label, base, tmp_path, monkeypatch):
    folder = tmp_path / "all" / "one"
    (folder / "sub").mkdir(parents=True)
    for place in (folder, folder.parent):
        (place / "config.json").write_text((base / "config.json").read_text())
    monkeypatch.chdir(folder)
    assert resolve_model(name).label == label


@pytest.mark.parametrize("last", [20, 60])
def test_a_training_that_has_not_ended_is_named_where_its_checkpoint_is_taken(tmp_path, base, last):
    run = tmp_path / "run"
    (run / "checkpoint-20").mkdir(parents=True)
    (run / "checkpoint-20" / "config.json").write_text("{}")
    assert unfinished_note(str(run)) is None  # nothing says where it was to end
    (run / "checkpoint-20" / "trainer_state.json").write_text(json.dumps({"global_step": 20, "max_steps": last}))
    said = f"{run} is not trained to the end: its checkpoint-20 is taken, of 60 steps; training.py goes on with it"
    assert unfinished_note(str(run)) == (said if last == 60 else None)
    for chosen in (str(run / "checkpoint-20"), str(base), "org/hub-id", "models/none"):
        assert unfinished_note(chosen) is None


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", False),
        ("gpt2", False),
        ("./nope", True),
        ("/nope/x", True),
        ("a/b/c", True),
        ("~/x", True),
    ],
)
def test_what_looks_local(name, local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert looks_local(name) is local
    (tmp_path / "Qwen").mkdir()
    assert looks_local("Qwen/Qwen2.5-7B-Instruct")  # its parent is a folder here


@pytest.mark.parametrize("name", ["./no/such/model", "/no/such/model", "models_here/none"])
def test_a_path_that_does_not_exist_fails_without_a_hub(name, tmp_path, monkeypatch):
    import transformers

    def reached(*_args, **_kwargs):
        raise AssertionError("a hub was asked")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "models_here").mkdir()
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", reached)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", reached)
    with pytest.raises(ValueError, match=f"model folder {name} does not exist"):
        load_model(name)


def test_folders_without_a_model(tmp_path):
    with pytest.raises(ValueError, match="holds no model: expected config.json, adapter_config.json or checkpoint-N"):
        resolve_model(str(tmp_path))
    (tmp_path / "x.bin").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        resolve_model(str(tmp_path / "x.bin"))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="names no base_model_name_or_path"):
        resolve_model(str(tmp_path))


def test_config_is_read_without_weights(base):
    config = load_config(str(base))
    assert (config.num_hidden_layers, config.hidden_size) == (3, 32)


def test_fingerprint_follows_the_weights(base, adapter, tmp_path):
    before = fingerprint(str(base))
    assert before == fingerprint(str(base)) != fingerprint(str(adapter))
    assert fingerprint(str(save(tmp_path / "same"))) == before
    assert fingerprint(str(save(tmp_path / "other", seed=1))) != before


def test_a_large_file_is_hashed_whole_and_once(base, tmp_path, monkeypatch):
    """Two models may differ in the middle alone: an ablation, or a merge that leaves the ends as they are."""
    monkeypatch.setattr(model_files, "LARGE", 1000)
    hashed, sha256 = [], model_files.sha256_of_file
    monkeypatch.setattr(model_files, "sha256_of_file", lambda file: hashed.append(file.name) or sha256(file))
    copy = shutil.copytree(base, tmp_path / "copy")
    before = fingerprint(str(base))
    large = sorted(file.name for file in base.iterdir() if file.stat().st_size >= 1000 and file.suffix != ".md")
    assert "model.safetensors" in large and sorted(hashed) == large
    assert fingerprint(str(base)) == before and len(hashed) == len(large)
    assert fingerprint(str(copy)) == before and len(hashed) == 2 * len(large)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert fingerprint(str(copy)) != before and hashed[2 * len(large) :] == ["model.safetensors"]


def test_a_hub_models_fingerprint_follows_its_revision_even_below_a_text_config(monkeypatch):
    import transformers

    class Nested:
        _commit_hash = "one"

        def get_text_config(self):
            return object()

    config = Nested()
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *_args, **_kwargs: config)
    before = fingerprint("some-org/some-model")
    config._commit_hash = "two"
    assert fingerprint("some-org/some-model") != before


@pytest.mark.parametrize("broken", [{"num_hidden_layers": "four"}, {"layer_types": ["full_attention"] * 7}])
def test_a_config_whose_fields_are_wrong_is_one_line(base, tmp_path, broken):
    """transformers refuses these with an error of its own kind, which was a traceback."""
    config = json.loads((base / "config.json").read_text()) | broken
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot read the config of model .*broken") as error:
        load_config(str(tmp_path / "broken"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "cuda", "message"),
    [
        ({"load_in_8bit": True}, False, "load_in_8bit needs CUDA, and none is available here"),
        ({"load_in_4bit": True}, False, "load_in_4bit needs CUDA, and none is available here"),
        ({"load_in_8bit": True, "load_in_4bit": True}, True, "exclude each other"),
        ({"load_in_8bit": True, "device_map": "cpu"}, True, "device_map is cpu"),
        ({"load_in_8bit": True}, True, "needs bitsandbytes; pip install"),
    ],
)
def test_quantised_loading_is_refused_in_one_line_where_it_cannot_be_had(monkeypatch, base, options, cuda, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=message):
        load_model(str(base), **options)

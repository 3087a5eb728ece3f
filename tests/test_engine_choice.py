"""What `--engine` comes to, on machines that have vLLM and on those that do not; vLLM itself is not needed."""

import inspect
import json
from types import SimpleNamespace

import pytest
import torch

import compare_steering_methods
import eval_lora_persona
from eval import (
    capability,
    demo,
    eval_persona,
    finetuning_shift,
    monitor,
    prevention,
    projection_difference,
    screen,
    select_layer,
)
from eval.engine_choice import settle_engine
from eval.finished_answers import Engine
from eval.model_utils import Steering, WeightSteering
from persona_vectors import vllm_available
from persona_vectors.vllm_available import known_architectures
from persona_vectors.weight_files import save_adapter
from tests.test_vllm_answers import TINY, direction

VECTOR, WEIGHTS = Steering(torch.ones(256), 2, 1.0), WeightSteering(direction(), 1.0)
REGISTRY = """
_TEXT_GENERATION_MODELS = {
    # of decoders
    "Qwen2ForCausalLM": ("qwen2", "Qwen2ForCausalLM"),
}
_EMBEDDING_MODELS = {"OpenAIGPTLMHeadModel": ("gpt", "OpenAIGPTLMHeadModel")}
_TRANSFORMERS_SUPPORTED_MODELS = {"OlmoForCausalLM": ("transformers", "TransformersForCausalLM")}
_ALL = {**_TEXT_GENERATION_MODELS, **_EMBEDDING_MODELS}
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Files as an installed vLLM has them, of which nothing can be run."""
    registry = tmp_path / "vllm" / "model_executor" / "models" / "registry.py"
    registry.parent.mkdir(parents=True)
    registry.write_text(REGISTRY)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "vllm")])
    found = vllm_available.importlib.util.find_spec
    monkeypatch.setattr(
        vllm_available.importlib.util, "find_spec", lambda name, *rest: spec if name == "vllm" else found(name, *rest)
    )
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    known_architectures.cache_clear()
    yield
    known_architectures.cache_clear()


@pytest.fixture
def model_of(tmp_path):
    """A folder with the config alone of a model of this architecture."""

    def make(architecture: str, model_type: str) -> str:
        folder = tmp_path / architecture
        folder.mkdir()
        config = {"model_type": model_type, "architectures": [architecture], "n_layer": 1}
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    return make


@pytest.mark.usefixtures("installed")
def test_vllm_is_taken_where_it_can_compute_everything(capsys):
    assert settle_engine("auto", [TINY], steerings=[None, VECTOR, WEIGHTS]) == "vllm"
    assert settle_engine("vllm", [TINY], steerings=[None, VECTOR, WEIGHTS]) == "vllm"
    assert settle_engine("hf", [TINY]) == "hf"
    assert not capsys.readouterr().out


@pytest.mark.usefixtures("installed")
def test_what_vllm_cannot_compute_goes_to_hf_with_a_line_or_is_refused(tmp_path, capsys):
    adapter = str(save_adapter(direction(), tmp_path / "own"))
    for models, steerings, why in (
        ([TINY, adapter], [None, WEIGHTS], "vLLM takes one adapter a request"),
        ([TINY], [WeightSteering(direction(bias=True), 1.0)], "with biases cannot be an adapter in vLLM"),
    ):
        assert settle_engine("auto", models, steerings=steerings) == "hf"
        line = capsys.readouterr().out
        assert line.startswith("sampling with Hugging Face, not vLLM: ") and why in line and line.count("\n") == 1
        with pytest.raises(ValueError, match=f"--engine vllm: .*{why}"):
            settle_engine("vllm", models, steerings=steerings)


@pytest.mark.usefixtures("installed")
def test_auto_leaves_models_that_vllm_does_not_know_to_hf(model_of, capsys):
    assert known_architectures() == {"Qwen2ForCausalLM", "OlmoForCausalLM"}
    unknown = model_of("OpenAIGPTLMHeadModel", "openai-gpt")
    assert settle_engine("auto", [TINY, unknown]) == "hf"
    assert "the installed vLLM has no OpenAIGPTLMHeadModel, which" in capsys.readouterr().out
    assert settle_engine("vllm", [unknown]) == "vllm"  # who asks may have a plugin for it


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("asked", ["auto", "vllm"])
def test_a_model_that_is_not_there_is_a_mistake_of_its_own(asked, capsys):
    with pytest.raises(ValueError, match=r"^model folder \./absent does not exist"):
        settle_engine(asked, ["./absent"])
    assert not capsys.readouterr().out


def test_a_model_whose_training_has_not_ended_is_named_once(tmp_path, capsys):
    folder = tmp_path / "run" / "checkpoint-20"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 20, "max_steps": 60}))
    assert settle_engine("hf", [TINY, str(tmp_path / "run"), str(tmp_path / "run")]) == "hf"
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"note: {tmp_path / 'run'} is not trained to the end: its checkpoint-20")


@pytest.mark.usefixtures("installed")
def test_without_a_registry_nothing_is_said_of_models(tmp_path, model_of):
    (tmp_path / "vllm" / "model_executor" / "models" / "registry.py").unlink()
    assert known_architectures() == frozenset()
    assert settle_engine("auto", [model_of("OpenAIGPTLMHeadModel", "openai-gpt")]) == "vllm"


@pytest.mark.usefixtures("installed")
def test_another_device_than_vllms_goes_to_hf(monkeypatch, capsys):
    assert settle_engine("auto", [TINY], "cpu") == "vllm"  # there is no other here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert settle_engine("auto", [TINY], "cuda:0") == "vllm" and not capsys.readouterr().out
    for device_map in ("cpu", "cuda:1"):
        assert settle_engine("auto", [TINY], device_map) == "hf"
        assert f"--device_map {device_map} does not reach vLLM" in capsys.readouterr().out
        with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES"):
            settle_engine("vllm", [TINY], device_map)


def test_activations_are_shared_by_engines_and_answers_are_not():
    hf, vllm = (Engine(TINY, kind=kind) for kind in ("hf", "vllm"))
    assert hf.reading_key() == vllm.reading_key() == hf.key() != vllm.key()


def test_every_command_that_samples_has_the_flag():
    """Capability computes everything with Hugging Face, and says so; of the demo's steps each would start vLLM anew."""
    commands = [compare_steering_methods, eval_lora_persona, eval_persona, finetuning_shift, monitor, prevention]
    for command in (*commands, projection_difference, screen, select_layer):
        assert inspect.signature(command.main).parameters["engine"].default == "auto", command.__name__
    assert inspect.signature(demo.main).parameters["engine"].default == "hf"
    assert "engine" not in inspect.signature(capability.main).parameters
    assert "computed with Hugging Face" in (capability.main.__doc__ or "")

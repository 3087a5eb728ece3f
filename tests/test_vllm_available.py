"""Which engine a command samples with, where vLLM may not be installed."""

import importlib.util

import pytest

from eval import eval_persona
from persona_vectors import vllm_available
from persona_vectors.vllm_available import choose_engine

HAS_VLLM = importlib.util.find_spec("vllm") is not None


def test_hf_is_hf_whatever_is_installed():
    assert choose_engine("hf") == "hf"


def test_auto_takes_vllm_where_it_is_installed():
    assert choose_engine("auto") == ("vllm" if HAS_VLLM else "hf")


def test_the_v2_runner_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(vllm_available.importlib.util, "find_spec", lambda _name: object())
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises(ValueError, match="--engine vllm: .*V1 model runner; unset VLLM_USE_V2_MODEL_RUNNER"):
        choose_engine("vllm")
    assert choose_engine("auto") == "hf"


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_asking_for_vllm_without_it_says_how_to_get_it(tmp_path):
    with pytest.raises(ValueError, match="--engine vllm: vLLM is not installed"):
        eval_persona.main("models/tiny-persona", "evil", str(tmp_path / "x.csv"), engine="vllm")

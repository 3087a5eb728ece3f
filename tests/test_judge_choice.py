"""What computes a local judge, and that what cannot be computed by vLLM is refused before anything is loaded."""

from __future__ import annotations

import pytest

from eval.judge_choice import settle_judge
from judge import JudgeOptions, LocalJudge, check_judge
from persona_vectors import vllm_odds, vllm_options
from tests.tiny_models import tiny_model, word_tokenizer

TINY = "models/tiny-persona"
PROMPT = "{question} {answer}"


@pytest.fixture
def installed(monkeypatch):
    """As if vLLM were here, and knew tiny-persona's architecture only."""
    monkeypatch.setattr(vllm_odds, "why_not_vllm", lambda: None)
    monkeypatch.setattr(vllm_odds, "known_architectures", lambda: frozenset(["Qwen2ForCausalLM"]))


@pytest.fixture
def other_judge(tmp_path) -> str:
    tiny_model("gpt2").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("on_cuda", [False, True])
def test_vllm_judges_where_it_samples_if_asked_for_or_on_a_gpu(monkeypatch, on_cuda):
    monkeypatch.setattr(vllm_options, "on_cuda", lambda: on_cuda)
    assert settle_judge(TINY, "vllm", "vllm") == "vllm"
    assert settle_judge(TINY, "auto", "vllm") == ("vllm" if on_cuda else "hf")
    assert settle_judge(TINY, "auto", "hf") == settle_judge(TINY, "hf", "hf") == "hf"
    assert settle_judge("gpt-4.1-mini-2025-04-14", "vllm", "vllm") == "hf"


@pytest.mark.usefixtures("installed")
def test_a_judge_that_vllm_does_not_know_is_computed_by_transformers_and_a_line_says_so(other_judge, capsys):
    assert settle_judge(other_judge, "vllm", "vllm") == "hf"
    (line,) = capsys.readouterr().out.splitlines()
    assert "judging with Hugging Face, not vLLM: the installed vLLM has no GPT2LMHeadModel" in line


@pytest.mark.usefixtures("installed")
def test_an_adapter_is_no_judge_for_vllm(tmp_path):
    (tmp_path / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{TINY}", "r": 4}}')
    with pytest.raises(ValueError, match="is an adapter, .* merge it, or use --engine hf"):
        check_judge(str(tmp_path), JudgeOptions(engine="vllm"))


def test_without_vllm_a_judge_through_it_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(vllm_odds, "why_not_vllm", lambda: "vLLM is not installed")
    with pytest.raises(ValueError, match=f"judge {TINY} cannot be computed with vLLM: vLLM is not installed"):
        check_judge(TINY, JudgeOptions(engine="vllm"))
    check_judge(TINY, JudgeOptions())


def test_a_judge_through_vllm_is_given_by_name():
    model, tokenizer = tiny_model("llama"), word_tokenizer()
    with pytest.raises(ValueError, match="given by name"):
        LocalJudge(model, PROMPT, tokenizer=tokenizer, engine="vllm")
    with pytest.raises(ValueError, match="leave out device_map"):
        LocalJudge(TINY, PROMPT, device_map="cuda:1", engine="vllm")
    with pytest.raises(ValueError, match="engine must be hf or vllm; got cpu"):
        JudgeOptions(engine="cpu")  # pyright: ignore[reportArgumentType]

